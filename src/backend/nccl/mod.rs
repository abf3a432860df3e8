//! The nccl backend: operations on device memory, handed to NCCL.
//!
//! - `alone.rs`: a part of one rank, which needs none of the rest.
//! - `library.rs`: which NCCL, its functions, its codes.
//! - `communicator.rs`: a group's communicator, and how it ends.
//! - `launch.rs`, `work.rs`: how operations get on a stream, and what they came to.
//! - `warden.rs`: the thread that looks after them, and ends the communicator.
//! - `collectives.rs`, `messages.rs`, `routes.rs`, `staged.rs`: what is asked of NCCL, and what is done where it
//!   has no answer.
//!
//! The world's control plane is the ring's: how ranks meet, liveness, failures. It also carries the unique id,
//! and what ranks tell each other in a split and under MLXD_CHECK.

mod alone;
mod collectives;
mod communicator;
mod launch;
mod library;
mod messages;
mod routes;
mod staged;
mod warden;
mod work;

pub use library::{Library, open};
pub use warden::Wardens;

use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use cudarc::driver::sys::CUstream;
use parking_lot::Mutex;

use super::{Backend, End, Limits, Operation, Track, split};
use crate::config::NcclStart;
use crate::control::{self, Member, Reactor, Seat, Topic};
use crate::cuda::{self, Context, Events, Pending as _, StreamHandle};
use crate::error::{Error, Result, Status, fail};
use crate::health::Health;
use crate::recorder::document::Identity;
use crate::wait::{Deadline, Wake};
use alone::Alone;
use communicator::{Communicator, ID_BYTES, unique_id};
use launch::Launch;
use library::Progress;
use staged::Memory;
use work::{Needs, Patience, Work};

/// How long an error of NCCL's waits for the control plane to say what is behind it: a rank that died, most
/// likely.
const WHY: Duration = Duration::from_secs(1);
/// How long the device may take to let go of buffers once the communicator is aborted.
const RELEASE: Duration = Duration::from_secs(10);

/// 200 us: how long NCCL's thread is given before its caller sleeps: it launches sooner, unless it has to
/// connect to ranks.
const AT_WORK: Duration = Duration::from_micros(200);

/// A group over a communicator of its own.
pub struct Nccl(Arc<Shared>);

/// What the group's callers and its warden share.
struct Shared {
    library: Arc<Library>,
    context: Arc<Context>,
    events: Arc<Events>,
    /// For operations without a stream.
    stream: StreamHandle,
    comm: Communicator,
    world: Arc<Seat>,
    wardens: Arc<Wardens>,
    member: Member,
    rank: usize,
    /// Whether calls are compared.
    check: bool,
    /// Held by whoever puts an operation on a stream.
    launch: Mutex<Launch>,
    /// Memory of the group's own: for what has no data, and for what is reduced on the host.
    mark: OnceLock<Memory>,
    scratch: OnceLock<Memory>,
    /// What is under way on the device, for the warden to look after.
    pending: Mutex<Pending>,
    wake: Wake,
    /// When the failure of the group was first seen here.
    failed_at: OnceLock<Instant>,
    /// The device did not let go of buffers in time.
    gave_up: AtomicBool,
    /// This rank leaves the world in good order.
    leaving: AtomicBool,
    /// The group is not used any more.
    closing: AtomicBool,
}

#[derive(Default)]
struct Pending {
    work: Vec<Arc<Work>>,
    /// Commands of all of it.
    commands: usize,
    /// Whether the warden sleeps until it is woken.
    parked: bool,
}

impl Pending {
    fn add(&mut self, work: Arc<Work>) {
        self.commands += work.commands;
        self.work.push(work);
    }

    /// Lets go of what is known.
    fn prune(&mut self) {
        self.work.retain(|work| !work.is_known());
        self.commands = self.work.iter().map(|work| work.commands).sum();
    }
}

impl Nccl {
    /// Starts a world, of two ranks at least.
    pub fn start(
        library: Arc<Library>,
        plan: &NcclStart,
        reactor: &Arc<Reactor>,
        wardens: &Arc<Wardens>,
    ) -> Result<Nccl> {
        let deadline = Deadline::after(plan.world.connect_timeout);
        let member = Member::of_world(plan.world.size)?;
        let (world, _) = control::start(&plan.world, reactor, member.clone(), |_| 0)?;
        let local_rank = plan.local_rank.unwrap_or_else(|| world.rank_on_machine());
        let parts =
            Parts { library, world: Arc::new(world), wardens: wardens.clone(), check: plan.check };
        let context = choose_device(parts.library.driver, local_rank);
        let context = context.map_err(|e| parts.failed(&member, e))?;
        let device = (context.device, parts.library.driver.name_of(context.device));
        log::info!("nccl: rank {} is on device {} ({})", plan.world.rank, device.0, device.1);
        parts.join(Arc::new(context), member, None, deadline)
    }
}

/// The device of a process that is alone, chosen as in a start with others.
pub fn start_alone(library: &Library, plan: &NcclStart) -> Result<i32> {
    choose_device(library.driver, plan.local_rank.unwrap_or(0)).map(|context| context.device)
}

/// The caller's device, or, if it has not chosen one, that of its number on the machine, which is its
/// current one from then on: so that what it allocates next is there.
fn choose_device(driver: &'static cuda::Driver, local_rank: usize) -> Result<Context> {
    if let Some(context) = Context::current(driver)? {
        let device = context.device;
        let Ok(number) = usize::try_from(device) else {
            fail!(Internal, "a CUDA device with the number {device}");
        };
        // NCCL's own threads use the CUDA runtime, and so that one.
        if !Context::primary(driver, number)?.is_same(&context) {
            fail!(
                Unsupported,
                "the current CUDA context is not the primary one of device {device}, which NCCL uses: make that \
                 current (cuDevicePrimaryCtxRetain, or cudaSetDevice)"
            );
        }
        return Ok(context);
    }
    let devices = driver.devices()?;
    if devices == 0 {
        fail!(Unavailable, "the CUDA driver sees no device");
    }
    let context = Context::primary(driver, local_rank % devices)?;
    context.make_current()?;
    Ok(context)
}

/// What groups of a world have in common.
struct Parts {
    library: Arc<Library>,
    world: Arc<Seat>,
    wardens: Arc<Wardens>,
    check: bool,
}

impl Parts {
    /// Connects the ranks of a group, which all do so; `parent` is that of the group that it is made of.
    fn join(
        self,
        context: Arc<Context>,
        member: Member,
        parent: Option<&Health>,
        deadline: Deadline,
    ) -> Result<Nccl> {
        let outcome = self.connect(&context, &member, parent, deadline);
        let (comm, stream) = outcome.map_err(|e| self.failed(&member, e))?;
        let rank = member.ranks.iter().position(|rank| *rank == self.world.rank).unwrap_or(0);
        let (world, id) = (self.world.clone(), member.group);
        let shared = Arc::new(Shared {
            events: Events::new(context.clone()),
            library: self.library,
            context,
            stream,
            comm,
            world: self.world,
            wardens: self.wardens,
            member,
            rank,
            check: self.check,
            launch: Mutex::default(),
            mark: OnceLock::new(),
            scratch: OnceLock::new(),
            pending: Mutex::default(),
            wake: Wake::new()?,
            failed_at: OnceLock::new(),
            gave_up: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            closing: AtomicBool::new(false),
        });
        warden::start(&shared).inspect_err(|e| {
            shared.comm.abort();
            world.fail_group(id, e, true);
        })?;
        Ok(Nccl(shared))
    }

    /// The group's first rank makes the id, the others learn it; then all meet in NCCL.
    fn connect(
        &self,
        context: &Context,
        member: &Member,
        parent: Option<&Health>,
        deadline: Deadline,
    ) -> Result<(Communicator, StreamHandle)> {
        let health = parent.unwrap_or(&member.health);
        let rank = member.ranks.iter().position(|rank| *rank == self.world.rank);
        let (rank, size) = (rank.unwrap_or(0), member.ranks.len());
        let _inside = context.enter()?;
        let id: [u8; ID_BYTES] = match rank {
            0 => {
                let id = unique_id(&self.library)?;
                let others: Vec<usize> = (1..size).collect();
                self.world.tell_record(member, &others, Topic::Start, &id);
                id
            }
            _ => {
                let told = self.world.await_record(member, 0, Topic::Start, health, deadline)?;
                match told.try_into() {
                    Ok(id) => id,
                    Err(_) => fail!(Internal, "rank 0 told no id of NCCL's"),
                }
            }
        };
        let comm = Communicator::join(self.library.clone(), &id, rank, size)?;
        let outcome = await_ready(&comm, health, member, deadline)
            .and_then(|()| new_stream(context.driver))
            .and_then(|stream| {
                // None goes on without the others.
                self.world.exchange(member, Topic::Ready, &[], health, deadline).map(|_| stream)
            });
        let stream = outcome.inspect_err(|_| comm.abort())?;
        Ok((comm, stream))
    }

    /// Fails the group on all its ranks, and returns what failed it.
    fn failed(&self, member: &Member, error: Error) -> Error {
        if matches!(error.status, Status::Backend | Status::PeerLost) {
            // Only waits for the cause.
            self.world.has_left(self.world.rank, &member.health, WHY);
        }
        self.world.fail_group(member.group, &error, true);
        // The process may end next.
        self.world.settle(WHY);
        let cause = member.health.check().err().unwrap_or(error);
        self.world.forget(member.group);
        cause
    }
}

/// Waits until all ranks have met in NCCL.
fn await_ready(
    comm: &Communicator,
    health: &Health,
    member: &Member,
    deadline: Deadline,
) -> Result<()> {
    let since = Instant::now();
    while comm.state()? == Progress::UnderWay {
        health.check()?;
        member.health.check()?;
        if deadline.passed() {
            fail!(Timeout, "not all ranks met in NCCL in time (ncclCommInitRankConfig)");
        }
        cuda::pause(since, false);
    }
    Ok(())
}

/// A stream that does not wait for the legacy default stream by itself.
fn new_stream(driver: &cuda::Driver) -> Result<StreamHandle> {
    /// `CU_STREAM_NON_BLOCKING`
    const NON_BLOCKING: u32 = 1;
    let mut raw: CUstream = ptr::null_mut();
    // SAFETY: there is a current context, and the driver writes a pointer of ours.
    let code = unsafe { (driver.functions.stream_create)(&mut raw, NON_BLOCKING) };
    driver.check("cuStreamCreate", code)?;
    Ok(StreamHandle::new(raw))
}

impl Shared {
    /// `[nccl] all_sum on rank 2 of 4`
    fn scene(&self, what: &str) -> String {
        format!("[nccl] {what} on rank {} of {}", self.rank, self.member.ranks.len())
    }

    /// Fails the group with this error on all its ranks, unless something else is behind it, and returns what
    /// failed it.
    fn failed(&self, error: Error) -> Error {
        if matches!(error.status, Status::Backend | Status::PeerLost) {
            // Only waits for that: this rank itself has not left.
            self.world.has_left(self.world.rank, &self.member.health, WHY);
        }
        self.fail_now(error)
    }

    /// The same without a wait for what may be behind it.
    fn fail_now(&self, error: Error) -> Error {
        let error = match error.status {
            // Other ranks hear it too.
            Status::Backend => error.at(format_args!("on rank {}", self.rank)),
            _ => error,
        };
        self.world.fail_group(self.member.group, &error, true);
        self.member.health.check().err().unwrap_or(error)
    }

    /// What an operation came to whose end the device has reached.
    fn verdict(&self) -> Result<()> {
        if self.comm.is_aborted() {
            self.member.health.check()?;
            fail!(Aborted, "the communicator was aborted");
        }
        self.comm.state().map(drop).map_err(|e| self.failed(e))
    }

    /// What to say of an operation that does not end although the group has failed; `None` while it may.
    fn has_given_up(&self) -> Option<Result<()>> {
        let cause = self.member.health.check().err()?;
        if self.failed_at.get_or_init(Instant::now).elapsed() < RELEASE {
            return None;
        }
        self.gave_up.store(true, Ordering::SeqCst);
        let still = "the device still has the buffers, whatever was tried";
        Some(Err(Error { message: format!("{}; {still}", cause.message), ..cause }))
    }

    /// Waits until NCCL has done on the host what it was asked for: a thread of its own launches it, and may have
    /// to connect to ranks first.
    fn await_host(&self, progress: Progress, patience: &mut Patience, needs: &Needs) -> Result<()> {
        let (mut progress, since) = (progress, Instant::now());
        while progress == Progress::UnderWay {
            self.member.health.check()?;
            patience.wears_off(self, needs)?;
            // Current versions leave every launch to a thread of their own, which takes some 10 us.
            match since.elapsed() < AT_WORK {
                true => std::thread::yield_now(),
                false => cuda::pause(since, false),
            }
            progress = self.comm.state()?;
        }
        Ok(())
    }
}

impl Backend for Nccl {
    fn name(&self) -> &'static str {
        "nccl"
    }

    fn rank(&self) -> usize {
        self.0.rank
    }

    fn size(&self) -> usize {
        self.0.member.ranks.len()
    }

    fn identity(&self) -> Identity {
        Identity {
            world: self.0.world.id,
            group: self.0.member.group,
            backend: self.name(),
            rank: self.0.rank,
            ranks: self.0.member.ranks.clone(),
        }
    }

    fn health(&self) -> &Health {
        &self.0.member.health
    }

    fn accepts(&self, track: Track<'_>) -> Result<()> {
        let handle = match track {
            Track::Here => StreamHandle::LEGACY,
            // When its turn comes.
            Track::Queue => return Ok(()),
            Track::Cuda(stream) => {
                stream.belongs_to(&self.0.context)?;
                stream.handle
            }
        };
        let _inside = self.0.context.enter()?;
        handle.refuse_capture(self.0.context.driver)
    }

    fn device(&self) -> Option<i32> {
        Some(self.0.context.device)
    }

    unsafe fn run(&self, operation: &Operation, limits: Limits) -> Result<()> {
        self.0.member.health.check()?;
        if let Some(outcome) = self.0.on_the_host(operation, limits) {
            return outcome.map_err(|e| self.0.failed(e));
        }
        // SAFETY: the caller vouches for the operation's memory until this returns.
        match unsafe { self.0.launch(operation, limits, None, None)? } {
            Some(work) => self.0.wait_for(&work),
            None => Ok(()),
        }
    }

    unsafe fn enqueue(
        &self,
        operation: &Operation,
        limits: Limits,
        stream: &cuda::Stream,
        end: End,
    ) -> Result<()> {
        if let Err(e) = self.0.member.health.check() {
            end(false);
            return Err(e);
        }
        if let Some(outcome) = self.0.on_the_host(operation, limits) {
            end(outcome.is_ok());
            return outcome.map_err(|e| self.0.failed(e));
        }
        // SAFETY: the caller vouches for the operation's memory until `end` is told.
        if let Some(work) = unsafe { self.0.launch(operation, limits, Some(stream), Some(end))? } {
            stream.push(work);
        }
        Ok(())
    }

    fn split(
        &self,
        color: i32,
        key: i32,
        sequence: u64,
        limits: Limits,
    ) -> Result<Option<Box<dyn Backend>>> {
        let shared = &self.0;
        let (world, of) = (&shared.world, &shared.member);
        let Some(member) = split::enter(self, world, of, (color, key), sequence, limits)? else {
            return Ok(None);
        };
        let parts = Parts {
            library: shared.library.clone(),
            world: shared.world.clone(),
            wardens: shared.wardens.clone(),
            check: shared.check,
        };
        let deadline = Deadline::after(limits.operation);
        if member.ranks.len() == 1 {
            return Ok(Some(Box::new(Alone { shared: shared.clone(), member })));
        }
        // Not ncclCommSplit, in which all ranks of this group would have to take part, behind all that it
        // has under way: a part that fails to connect would take the whole with it.
        let joined = parts.join(shared.context.clone(), member, Some(self.health()), deadline);
        // A rank that is lost is lost to both, and has another number there.
        let cause = |e: Error| self.health().check().err().unwrap_or(e.at("the new group"));
        let part = joined.map_err(cause)?;
        Ok(Some(Box::new(part)))
    }

    fn fail(&self, cause: &Error) {
        self.0.world.fail_group(self.0.member.group, cause, true);
    }

    fn leave(&self) {
        self.0.leaving.store(true, Ordering::SeqCst);
        self.0.world.leave();
        self.0.wake.wake();
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        self.0.world.forget(self.0.member.group);
        self.0.closing.store(true, Ordering::SeqCst);
        self.0.wake.wake();
    }
}

//! How a group comes up: its device, the unique id, and how its ranks meet in NCCL.

use std::ptr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use cudarc::driver::sys::CUstream;
use parking_lot::Mutex;

use super::communicator::{Communicator, ID_BYTES, unique_id};
use super::library::{Library, Progress};
use super::warden::{self, Wardens};
use super::{Nccl, Shared, WHY};
use crate::config::NcclStart;
use crate::control::{self, Member, Reactor, Seat, Topic};
use crate::cuda::{self, Context, Events, StreamHandle};
use crate::error::{Error, Result, Status, fail};
use crate::health::Health;
use crate::wait::{Deadline, Wake};

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
pub(super) struct Parts {
    library: Arc<Library>,
    world: Arc<Seat>,
    wardens: Arc<Wardens>,
    check: bool,
}

impl Parts {
    /// What this group shares with those that are made of it.
    pub(super) fn of(shared: &Shared) -> Parts {
        Parts {
            library: shared.library.clone(),
            world: shared.world.clone(),
            wardens: shared.wardens.clone(),
            check: shared.check,
        }
    }

    /// Connects the ranks of a group, which all do so; `parent` is that of the group that it is made of.
    pub(super) fn join(
        self,
        context: Arc<Context>,
        member: Member,
        parent: Option<&Health>,
        deadline: Deadline,
    ) -> Result<Nccl> {
        // Before the others go on.
        let wake = Wake::new().map_err(|e| self.failed(&member, e))?;
        let (comm, stream) = self.connect(&context, &member, parent, deadline)?;
        let rank = self.rank_in(&member);
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
            wake,
            failed_at: OnceLock::new(),
            gave_up: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            closing: AtomicBool::new(false),
        });
        warden::start(&shared).inspect_err(|e| {
            world.fail_group(id, e, true);
            shared.wardens.abandon(&shared.comm, &shared.context);
        })?;
        Ok(Nccl(shared))
    }

    /// All ranks of the group meet in NCCL. Fails the group on all of them if that fails.
    fn connect(
        &self,
        context: &Arc<Context>,
        member: &Member,
        parent: Option<&Health>,
        deadline: Deadline,
    ) -> Result<(Arc<Communicator>, StreamHandle)> {
        let failed = |e| self.failed(member, e);
        let health = parent.unwrap_or(&member.health);
        let _inside = context.enter().map_err(failed)?;
        let id = self.agree_on_id(member, health, deadline).map_err(failed)?;
        let (rank, size) = (self.rank_in(member), member.ranks.len());
        let (comm, begun) = Communicator::join(self.library.clone(), &id, rank, size);
        let comm = Arc::new(comm);
        let stream = begun
            .and_then(|()| await_ready(&comm, health, member, deadline))
            .and_then(|()| new_stream(context.driver))
            .and_then(|stream| {
                // None goes on without the others.
                self.world.exchange(member, Topic::Ready, &[], health, deadline).map(|_| stream)
            });
        match stream {
            Ok(stream) => Ok((comm, stream)),
            Err(e) => {
                // The others first: the end may take its time.
                let cause = failed(e);
                self.wardens.abandon(&comm, context);
                Err(cause)
            }
        }
    }

    /// The group's first rank makes the id, the others learn it.
    fn agree_on_id(
        &self,
        member: &Member,
        health: &Health,
        deadline: Deadline,
    ) -> Result<[u8; ID_BYTES]> {
        if self.rank_in(member) == 0 {
            let id = unique_id(&self.library)?;
            let others: Vec<usize> = (1..member.ranks.len()).collect();
            self.world.tell_record(member, &others, Topic::Start, &id);
            return Ok(id);
        }
        let told = self.world.await_record(member, 0, Topic::Start, health, deadline)?;
        match told.try_into() {
            Ok(id) => Ok(id),
            Err(_) => fail!(Internal, "rank 0 told no id of NCCL's"),
        }
    }

    /// This rank's number in the group.
    fn rank_in(&self, member: &Member) -> usize {
        member.ranks.iter().position(|rank| *rank == self.world.rank).unwrap_or(0)
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

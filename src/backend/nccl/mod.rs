//! The nccl backend: operations on device memory, handed to NCCL.
//!
//! - `alone.rs`: a part of one rank, which needs none of the rest.
//! - `library.rs`: which NCCL, its functions, its codes.
//! - `start.rs`: how a group comes up.
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
mod start;
mod warden;
mod work;

pub use library::{Library, open};
pub use start::start_alone;
pub use warden::Wardens;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Backend, End, Limits, Operation, Track, split};
use crate::control::{Member, Seat};
use crate::cuda::{self, Context, Events, Pending as _, StreamHandle};
use crate::error::{Error, Result, Status};
use crate::health::Health;
use crate::recorder::document::Identity;
use crate::wait::{Deadline, Wake};
use alone::Alone;
use communicator::Communicator;
use launch::Launch;
use library::Progress;
use staged::Memory;
use start::Parts;
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
    comm: Arc<Communicator>,
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

    /// What an operation came to whose end the device has reached; `None` while another thread is in a call
    /// of NCCL's, for which nobody waits here.
    fn verdict(&self) -> Option<Result<()>> {
        if self.comm.is_aborted() {
            let aborted = Error::new(Status::Aborted, "the communicator was aborted");
            return Some(Err(self.member.health.check().err().unwrap_or(aborted)));
        }
        Some(self.comm.state_now()?.map(drop).map_err(|e| self.failed(e)))
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
        let deadline = Deadline::after(limits.operation);
        if member.ranks.len() == 1 {
            return Ok(Some(Box::new(Alone { shared: shared.clone(), member })));
        }
        // Not ncclCommSplit, in which all ranks of this group would have to take part, behind all that it
        // has under way: a part that fails to connect would take the whole with it.
        let context = shared.context.clone();
        let joined = Parts::of(shared).join(context, member, Some(self.health()), deadline);
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

//! The mpi backend: whole operations, handed to the MPI that is there.
//!
//! - `library.rs`, `functions.rs`, `abi.rs`: which library, its functions, its constants.
//! - `place.rs`, `runtime.rs`, `caller.rs`: MPI in this process, and which threads may call it.
//! - `collectives.rs`, `messages.rs`, `reductions.rs`: what is asked of it.
//! - `waiting.rs`, `staging.rs`: waits with a limit, on memory of ours; `meeting.rs`, `turns.rs`: before
//!   calls that have none.
//! - `id.rs`, `news.rs`, `telling.rs`, `agreement.rs`: what ranks tell each other beside that: failures, and
//!   calls to compare.

pub mod abi;
mod agreement;
mod caller;
mod collectives;
pub mod functions;
mod id;
mod library;
mod meeting;
mod messages;
mod news;
mod place;
mod reductions;
mod runtime;
mod staging;
mod telling;
mod turns;
mod waiting;

pub use library::{Library, open};
pub use place::Place;
pub use runtime::Runtime;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::{Backend, Limits, Operation, Track, refuse_cuda, split};
use crate::config::MpiSettings;
use crate::dtype::Dtype;
use crate::error::{Error, Result, Status, fail};
use crate::health::Health;
use crate::recorder::document::Identity;
use crate::reduce::environment::Environment;
use crate::wait::Deadline;
use abi::{Comm, UNDEFINED};
use collectives::meet;
use functions::Functions;
use id::GroupId;
use staging::Staging;
use waiting::Way;

/// A group over a communicator of its own.
pub struct Mpi {
    runtime: Arc<Runtime>,
    comm: Comm,
    id: GroupId,
    rank: usize,
    /// Per rank of the group its rank in MPI's world.
    ranks: Vec<usize>,
    health: Arc<Health>,
    /// Set once an operation has failed: MPI may still be at it.
    abandoned: AtomicBool,
    /// Whether calls are compared.
    check: bool,
    /// Bytes of what MPI is asked for at once.
    part_bytes: usize,
    /// Input and output of our own, while no operation uses them.
    staging: Mutex<Vec<(Staging, Staging)>>,
}

impl Mpi {
    /// Starts a world of all ranks that the launcher started, of two at least, by the deadline.
    /// `limits` are those that were set for its operations.
    pub fn start(
        runtime: Arc<Runtime>,
        settings: &MpiSettings,
        limits: Limits,
        deadline: Deadline,
    ) -> Result<Mpi> {
        runtime.accepts(false)?;
        let health = Arc::new(Health::new()?);
        let _environment = Environment::standard();
        let inside = runtime.enter()?;
        let comm = runtime.next_world(deadline)?;
        drop(inside);
        let mut world = Mpi {
            comm,
            id: GroupId { world: 0, group: 0 },
            rank: runtime.rank,
            ranks: (0..runtime.size).collect(),
            health,
            abandoned: AtomicBool::new(false),
            check: settings.check,
            part_bytes: settings.part_bytes / PART_UNIT * PART_UNIT,
            staging: Mutex::default(),
            runtime,
        };
        world.agree_on_start(limits, deadline)?;
        world.runtime.news.enter(world.id, &world.health);
        Ok(world)
    }

    /// Rank 0's number for this start; and settings that all ranks must share.
    fn agree_on_start(&mut self, limits: Limits, deadline: Deadline) -> Result<()> {
        let random =
            getrandom::u64().map_err(|e| Error::new(Status::System, format!("getrandom: {e}")))?;
        // A nonblocking call of one rank does not meet a blocking one of another.
        let bounded = limits.operation.is_some() || limits.recv.is_some();
        let flags = [self.check, bounded, self.runtime.may_block()];
        let [check, bounded, may_block] = flags.map(u64::from);
        let own = [random, self.part_bytes as u64, check, bounded, may_block];
        let mut all = vec![[0u64; 5]; self.ranks.len()];
        let way = Way::Bounded(deadline.left());
        let datatype = self.runtime.library.abi.datatype(Dtype::Uint64);
        // On the heap, and left there if the wait fails: MPI may still be at work on it.
        let own = Box::new(own);
        let (input, output) = (own.as_ptr().cast(), all.as_mut_ptr().cast());
        let outcome = meet!(
            self,
            way,
            "MPI_Allgather",
            allgather,
            iallgather(input, 5, datatype, output, 5, datatype, self.comm)
        );
        if let Err(e) = outcome {
            std::mem::forget((own, all));
            self.abandoned.store(true, Ordering::Release);
            return Err(self.runtime.out_of_step(e));
        }
        for (rank, theirs) in all.iter().enumerate() {
            if theirs[4] != own[4] {
                fail!(
                    Config,
                    "MPI grants MPI_THREAD_MULTIPLE on some ranks only, not alike on rank {} and rank {rank}",
                    self.rank
                );
            }
            if theirs[1..] != own[1..] {
                fail!(
                    Config,
                    "MLXD_CHECK, MLXD_MPI_PART_BYTES, or whether there is a limit \
                     (MLXD_TIMEOUT_MS, MLXD_RECV_TIMEOUT_MS) is not the same on rank {} and rank {rank}",
                    self.rank
                );
            }
        }
        self.id.world = all[0][0];
        Ok(())
    }

    /// MPI_Comm_split, which MPI gives no limit. Where there is to be one, all ranks come together first,
    /// so that only one that dies right then keeps the others; and these wait within the limit.
    fn divide(&self, color: i32, key: i32, limits: Limits) -> Result<Comm> {
        let parent = self.comm;
        let split = move |f: &Functions| {
            let mut comm = Comm(0);
            // SAFETY: a communicator of this MPI, and room for another.
            let code = unsafe { (f.comm_split)(parent, color, key, &mut comm) };
            (code, comm)
        };
        let what = "MPI_Comm_split";
        let Way::Bounded(limit) = self.way(limits, limits.operation) else {
            let mut outcome = (0, Comm(0));
            self.runtime.call(what, |f| {
                outcome = split(f);
                outcome.0
            })?;
            return Ok(outcome.1);
        };
        // Whatever may fail on this rank alone comes before it says that it comes.
        let helper = self.runtime.helper(limit)?;
        let look = || self.health.check();
        let _turn = self.runtime.come_together(self.id, parent, Deadline::after(limit), look)?;
        self.runtime.call_within(what, helper.as_ref(), limit, split)
    }

    /// Fails the group with this error on all its ranks, and returns what failed it.
    fn failed(&self, error: Error) -> Error {
        // Something may still be under way on its communicator.
        self.abandoned.store(true, Ordering::Release);
        if self.id.group == 0 || error.status == Status::Timeout {
            self.runtime.spoil();
        }
        if self.health.fail(error.clone()) {
            self.runtime.tell(&self.ranks, self.id, &error);
        }
        self.health.check().err().unwrap_or(error)
    }
}

/// 16 bytes: parts end between elements of every type.
const PART_UNIT: usize = 16;

impl Backend for Mpi {
    fn name(&self) -> &'static str {
        "mpi"
    }

    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.ranks.len()
    }

    fn identity(&self) -> Identity {
        Identity {
            world: self.id.world,
            group: self.id.group,
            backend: self.name(),
            rank: self.rank,
            ranks: self.ranks.clone(),
        }
    }

    fn health(&self) -> &Health {
        &self.health
    }

    fn accepts(&self, track: Track<'_>) -> Result<()> {
        refuse_cuda(self.name(), track)?;
        self.runtime.accepts(matches!(track, Track::Queue))
    }

    fn listen(&self) {
        if self.runtime.accepts(false).is_ok()
            && let Ok(_inside) = self.runtime.enter()
        {
            let _environment = Environment::standard();
            self.runtime.listen();
        }
    }

    unsafe fn run(&self, operation: &Operation, limits: Limits) -> Result<()> {
        let _inside = self.runtime.enter()?;
        self.runtime.listen_now_and_then();
        self.health.check()?;
        let _environment = Environment::standard();
        // SAFETY: the caller vouches for the operation's memory.
        let outcome = unsafe {
            match operation {
                Operation::Collective { sequence, collective } => {
                    self.collective(*sequence, collective, limits)
                }
                Operation::Exchange { dtype, send, recv } => {
                    self.exchange(*dtype, *send, *recv, limits)
                }
            }
        };
        outcome.map_err(|e| self.failed(e))
    }

    fn split(
        &self,
        color: i32,
        key: i32,
        sequence: u64,
        limits: Limits,
    ) -> Result<Option<Box<dyn Backend>>> {
        let _inside = self.runtime.enter()?;
        let _environment = Environment::standard();
        let health = Arc::new(Health::new().map_err(|e| self.failed(e))?);
        let number = self.runtime.next_group_number();
        let part = split::agree(self, color, key, number, sequence, limits)?;
        let position = |part: &split::Part| part.ranks.iter().position(|rank| *rank == self.rank);
        let rank = part.as_ref().and_then(position);
        let (color, key) = (if part.is_some() { color } else { UNDEFINED }, rank.unwrap_or(0));
        let comm = self.divide(color, key as i32, limits);
        let comm = comm.map_err(|e| self.failed(e))?;
        let (Some(part), Some(rank)) = (part, rank) else { return Ok(None) };
        let id = GroupId { group: part.id(&self.ranks), ..self.id };
        self.runtime.news.enter(id, &health);
        Ok(Some(Box::new(Mpi {
            runtime: self.runtime.clone(),
            comm,
            id,
            rank,
            ranks: part.ranks.iter().map(|rank| self.ranks[*rank]).collect(),
            health,
            abandoned: AtomicBool::new(false),
            check: self.check,
            part_bytes: self.part_bytes,
            staging: Mutex::default(),
        })))
    }

    fn fail(&self, cause: &Error) {
        let allowed = self.runtime.accepts(false).is_ok();
        match self.runtime.enter() {
            Ok(_inside) if allowed => drop(self.failed(cause.clone())),
            // The other ranks learn of it when they wait for this one in vain.
            _ => {
                self.runtime.spoil();
                self.health.fail(cause.clone());
            }
        }
    }

    fn leave(&self) {
        self.health.close(Error::new(Status::Aborted, "mlxd_finalize was called"));
    }
}

impl Drop for Mpi {
    /// A group with a call under way keeps its communicator.
    fn drop(&mut self) {
        if !self.abandoned.load(Ordering::Acquire) {
            self.runtime.free(self.comm);
        }
    }
}

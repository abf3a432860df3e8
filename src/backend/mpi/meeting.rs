//! Starts, and coming together: all ranks say that they have come, before a call that MPI gives no limit.
//!
//! MPI_Comm_split blocks until all ranks are in it, and Open MPI makes the communicators of a process one
//! after the other, so that an MPI_Comm_idup that one rank does not come to keeps back all others of
//! the process. So nobody begins either before all ranks have said, within the limit, that they will.

use std::time::Duration;

use super::abi::{Comm, MessageStatus, Request};
use super::id::GroupId;
use super::news::News;
use super::runtime::Runtime;
use super::turns::Turn;
use crate::config::MpiSettings;
use crate::dtype::Dtype;
use crate::error::{Error, Result, Status, fail};
use crate::reduce::Reduction;
use crate::wait::Deadline;

impl Runtime {
    /// Finds the other ranks, which must all have been started by one launcher.
    pub(super) fn meet(&mut self, settings: &MpiSettings, deadline: Deadline) -> Result<()> {
        self.check_size(settings)?;
        if self.size > 1 {
            self.news = News::on(self.duplicate_world(deadline)?);
        }
        Ok(())
    }

    /// A library of another family than the launcher gives each process a world of its own.
    fn check_size(&self, settings: &MpiSettings) -> Result<()> {
        let Some(launcher) = &settings.launcher else { return Ok(()) };
        if launcher.size.is_none_or(|size| size == self.size) {
            return Ok(());
        }
        fail!(
            Config,
            "the launcher says {}, but the MPI library {} ({}) sees {} rank{}: it is not the \
             launcher's own; name that one with MLX_MPI_LIBNAME, or use this library's mpirun",
            launcher.variable,
            self.library.name,
            self.library.version,
            self.size,
            if self.size == 1 { "" } else { "s" }
        )
    }

    /// Comes back once all ranks of `comm` have come, and, where one thread makes all calls, once it
    /// is everybody's turn: the order holds until the turn is dropped. `look` is asked before this rank
    /// says that it comes, and while it waits for its turn; once it has said the last word it goes on,
    /// unless the deadline passes.
    pub fn come_together(
        &self,
        id: GroupId,
        comm: Comm,
        deadline: Deadline,
        look: impl Fn() -> Result<()>,
    ) -> Result<Turn<'_>> {
        let turn = self.turns.propose(id);
        self.listen();
        look()?;
        let greatest = self.greatest(turn.time, comm, deadline)?;
        // Where each thread makes its own calls, none keeps another back.
        if !self.may_block() {
            if !turn.wait(greatest, deadline, &look)? {
                fail!(Timeout, "the starts and splits of other groups have not ended in time");
            }
            // Until it is everybody's turn the thread must not block: others need it.
            self.listen();
            look()?;
            self.greatest(0, comm, deadline)?;
        }
        Ok(turn)
    }

    /// The greatest of these numbers among the ranks of `comm`.
    fn greatest(&self, own: u64, comm: Comm, deadline: Deadline) -> Result<u64> {
        let what = "MPI_Iallreduce";
        let op = self.operations.get(Reduction::Max, Dtype::Uint64);
        let datatype = self.library.abi.datatype(Dtype::Uint64);
        // On the heap, and left there if the deadline passes: MPI may still be at work on it.
        let numbers: *mut [u64; 2] = Box::into_raw(Box::new([own, 0]));
        let mut request = Request(0);
        self.call(what, |f| {
            let input = numbers.cast_const().cast();
            let output = numbers.cast::<u64>().wrapping_add(1).cast();
            // SAFETY: a communicator of ours; both numbers stay until the request is complete.
            unsafe { (f.iallreduce)(input, output, 1, datatype, op, comm, &mut request) }
        })?;
        let mut status = MessageStatus::default();
        match self.await_request(&mut request, &mut status, deadline, || Ok(()))? {
            Some(code) => self.library.check(what, code)?,
            None => fail!(Timeout, "not all ranks have come in time"),
        }
        // SAFETY: the request is complete, so MPI is done with them; they came from Box::into_raw.
        let numbers = unsafe { Box::from_raw(numbers) };
        Ok(numbers[1])
    }

    /// The communicator of the next start, whose traffic mixes with nobody's.
    pub fn next_world(&self, deadline: Deadline) -> Result<Comm> {
        let Some(comm) = self.news.comm() else {
            fail!(Internal, "a start of several ranks in a world of one");
        };
        let Some(_only) = self.starting.try_lock_for(deadline.left().unwrap_or(Duration::MAX))
        else {
            fail!(
                Timeout,
                "a start in another thread has not ended in time (MLXD_CONNECT_TIMEOUT_MS)"
            );
        };
        if let Some(cause) = self.out_of_step.get() {
            fail!(
                Unsupported,
                "MPI cannot start a world after one that not all ranks came to, which failed: {cause}"
            );
        }
        // One that gave up has said so, and has said before that it comes.
        let look = || self.out_of_step.get().map_or(Ok(()), |cause| Err(cause.clone()));
        let turn = self.come_together(GroupId::STARTS, comm, deadline, look);
        let turn = turn.map_err(|e| self.out_of_step(e))?;
        let world = self.duplicate_world(deadline);
        drop(turn);
        world
    }

    /// A communicator of ours with all ranks.
    pub fn duplicate_world(&self, deadline: Deadline) -> Result<Comm> {
        let what = "MPI_Comm_idup";
        // On the heap, and left there if the deadline passes: MPI writes to it whenever it is done.
        let comm = Box::leak(Box::new(Comm(0)));
        let at: *mut Comm = comm;
        let mut request = Request(0);
        let world = self.library.abi.comm_world;
        // SAFETY: MPI is initialised; the communicator stays until it is written.
        self.call(what, |f| unsafe { (f.comm_idup)(world, at, &mut request) })?;
        let mut status = MessageStatus::default();
        let late = || Error::new(Status::Timeout, "not all ranks have come in time");
        let code = self
            .await_request(&mut request, &mut status, deadline, || Ok(()))
            .and_then(|code| code.ok_or_else(late))
            .map_err(|e| self.out_of_step(e))?;
        self.library.check(what, code)?;
        // SAFETY: the request is complete, so MPI is done with it; it came from Box::leak.
        let comm = *unsafe { Box::from_raw(at) };
        let errors_return = self.library.abi.errors_return;
        // SAFETY: a communicator and a handler of this MPI.
        self.call("MPI_Comm_set_errhandler", |f| unsafe {
            (f.comm_set_errhandler)(comm, errors_return)
        })?;
        Ok(comm)
    }

    /// What a start failed with that has left a call under way. There will be no other: MPI matches
    /// calls by their order.
    pub fn out_of_step(&self, cause: Error) -> Error {
        let cause = match cause.status {
            Status::Timeout => {
                let message = format!(
                    "not all {} ranks that were started together called mlxd_init in time \
                     (MLXD_CONNECT_TIMEOUT_MS)",
                    self.size
                );
                Error::new(Status::Timeout, message)
            }
            _ => cause,
        };
        if self.out_of_step.set(cause.clone()).is_ok() {
            let all: Vec<usize> = (0..self.size).collect();
            self.tell(&all, GroupId::STARTS, &cause);
        }
        self.spoil();
        cause
    }
}

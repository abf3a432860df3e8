//! Coming together: all ranks say that they have come, before a call that MPI gives no limit.
//!
//! MPI_Comm_split blocks until all ranks are in it, and Open MPI makes the communicators of a process one
//! after the other, so that an MPI_Comm_idup that one rank does not come to keeps back all others of
//! the process. So nobody begins either before all ranks have said, within the limit, that they will.

use super::abi::{Comm, MessageStatus, Request};
use super::news::GroupId;
use super::runtime::Runtime;
use super::turns::Turn;
use crate::dtype::Dtype;
use crate::error::{Result, fail};
use crate::reduce::Reduction;
use crate::wait::Deadline;

impl Runtime {
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
}

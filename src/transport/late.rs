//! A link that comes later: takes posts at once, moves bytes once it is there.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use super::{Interest, Landing, Lent, Link};
use crate::error::Result;

/// What a link comes of.
pub trait Arrival: Send {
    /// Looks for the link: `None` while it has not come.
    fn look(&mut self) -> Result<Option<Box<dyn Link>>>;

    /// Ready to read when it is time to look again.
    fn bell(&self) -> BorrowedFd<'_>;
}

/// A link that is there or will be.
pub struct LateLink {
    state: State,
}

enum State {
    Coming {
        arrival: Box<dyn Arrival>,
        lent: Vec<Lent>,
        sends: VecDeque<(*const u8, usize)>,
        recvs: VecDeque<(Landing, usize)>,
    },
    Here(Box<dyn Link>),
}

// SAFETY: the raw pointers are only passed on to the link, whose callers vouch for them.
unsafe impl Send for LateLink {}

impl LateLink {
    /// The link that will come of `arrival`.
    pub fn new(arrival: Box<dyn Arrival>) -> LateLink {
        let (sends, recvs) = (VecDeque::new(), VecDeque::new());
        LateLink { state: State::Coming { arrival, lent: Vec::new(), sends, recvs } }
    }
}

impl Link for LateLink {
    unsafe fn lend(&mut self, memory: &[Lent]) {
        match &mut self.state {
            State::Coming { lent, .. } => {
                lent.clear();
                lent.extend(memory);
            }
            // SAFETY: as this function's contract says.
            State::Here(link) => unsafe { link.lend(memory) },
        }
    }

    unsafe fn post_send(&mut self, from: *const u8, len: usize) {
        match &mut self.state {
            State::Coming { sends, .. } => sends.push_back((from, len)),
            // SAFETY: as this function's contract says.
            State::Here(link) => unsafe { link.post_send(from, len) },
        }
    }

    unsafe fn post_recv(&mut self, landing: Landing, len: usize) {
        match &mut self.state {
            State::Coming { recvs, .. } => recvs.push_back((landing, len)),
            // SAFETY: as this function's contract says.
            State::Here(link) => unsafe { link.post_recv(landing, len) },
        }
    }

    fn progress(&mut self) -> Result<bool> {
        if let State::Coming { arrival, lent, sends, recvs } = &mut self.state {
            let Some(mut link) = arrival.look()? else {
                return Ok(false);
            };
            // SAFETY: whoever lent and posted these vouches for them still: nothing has been counted.
            unsafe {
                link.lend(lent);
                sends.drain(..).for_each(|(from, len)| link.post_send(from, len));
                recvs.drain(..).for_each(|(landing, len)| link.post_recv(landing, len));
            }
            self.state = State::Here(link);
        }
        match &mut self.state {
            State::Here(link) => link.progress(),
            State::Coming { .. } => Ok(false),
        }
    }

    fn sent(&self) -> u64 {
        match &self.state {
            State::Here(link) => link.sent(),
            State::Coming { .. } => 0,
        }
    }

    fn landed(&self) -> u64 {
        match &self.state {
            State::Here(link) => link.landed(),
            State::Coming { .. } => 0,
        }
    }

    fn cancel(&mut self) {
        match &mut self.state {
            State::Here(link) => link.cancel(),
            State::Coming { lent, sends, recvs, .. } => {
                lent.clear();
                sends.clear();
                recvs.clear();
            }
        }
    }

    fn stir(&mut self) {
        if let State::Here(link) = &mut self.state {
            link.stir();
        }
    }

    fn interest(&self) -> Option<Interest<'_>> {
        match &self.state {
            State::Here(link) => link.interest(),
            State::Coming { arrival, .. } => {
                Some(Interest { fd: arrival.bell(), read: true, write: false })
            }
        }
    }
}

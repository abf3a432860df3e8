//! A link whose peer calls: takes posts at once, moves bytes once the connection has come in.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::{Interest, Landing, Link};
use crate::error::Result;
use crate::wait::Wake;

/// Looks for the connection: `None` while it has not come.
pub type Arrive = Box<dyn FnMut() -> Result<Option<Box<dyn Link>>> + Send>;

/// A link that is there or will be.
pub struct LateLink {
    state: State,
    /// Woken when it is time to look for the connection.
    wake: Arc<Wake>,
}

enum State {
    Coming {
        arrive: Arrive,
        sends: VecDeque<(*const u8, usize)>,
        recvs: VecDeque<(Landing, usize)>,
    },
    Here(Box<dyn Link>),
}

// SAFETY: the raw pointers are only passed on to the link, whose callers vouch for them.
unsafe impl Send for LateLink {}

impl LateLink {
    /// A link that `arrive` gives, to be asked when `wake` is woken.
    pub fn new(arrive: Arrive, wake: Arc<Wake>) -> LateLink {
        let (sends, recvs) = (VecDeque::new(), VecDeque::new());
        LateLink { state: State::Coming { arrive, sends, recvs }, wake }
    }
}

impl Link for LateLink {
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
        if let State::Coming { arrive, sends, recvs } = &mut self.state {
            // Cleared first: what comes after the look wakes again.
            self.wake.clear();
            let Some(mut link) = arrive()? else {
                return Ok(false);
            };
            // SAFETY: whoever posted these vouches for them still: nothing has been counted.
            unsafe {
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
            State::Coming { sends, recvs, .. } => {
                sends.clear();
                recvs.clear();
            }
        }
    }

    fn interest(&self) -> Option<Interest<'_>> {
        match &self.state {
            State::Here(link) => link.interest(),
            State::Coming { .. } => {
                Some(Interest { fd: self.wake.as_fd(), read: true, write: false })
            }
        }
    }
}

//! What is posted on a link, in order, and how far it has come: the part that all links have alike.

use std::collections::VecDeque;

use super::Landing;

/// What is to be sent. The pointers are the posters'; whoever reads behind them relies on
/// [`Link::post_send`](super::Link::post_send)'s contract.
#[derive(Debug, Default)]
pub struct Sends {
    pieces: VecDeque<(*const u8, usize)>,
    sent: u64,
}

impl Sends {
    /// These bytes go after all others.
    pub fn post(&mut self, from: *const u8, len: usize) {
        if len > 0 {
            self.pieces.push_back((from, len));
        }
    }

    /// What is left of the next piece.
    pub fn front(&self) -> Option<(*const u8, usize)> {
        self.pieces.front().copied()
    }

    /// What is left of every piece, the next one first.
    pub fn iter(&self) -> impl Iterator<Item = (*const u8, usize)> {
        self.pieces.iter().copied()
    }

    /// So many bytes more have been sent, of one piece or several.
    pub fn advance(&mut self, mut bytes: usize) {
        self.sent += bytes as u64;
        while let Some((from, len)) = self.pieces.front_mut() {
            if bytes < *len {
                *from = from.wrapping_add(bytes);
                *len -= bytes;
                return;
            }
            bytes -= *len;
            self.pieces.pop_front();
        }
    }

    /// Bytes sent so far.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Whether all that was posted has been sent.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Forgets what has not been sent.
    pub fn clear(&mut self) {
        self.pieces.clear();
    }
}

/// Where bytes are to land.
#[derive(Clone, Copy, Debug)]
pub struct Recv {
    /// What becomes of them.
    pub landing: Landing,
    /// How many have landed.
    pub done: usize,
    /// How many are to come.
    pub left: usize,
}

/// What is to be received. The pointers are the posters'; whoever lands bytes relies on
/// [`Link::post_recv`](super::Link::post_recv)'s contract.
#[derive(Debug, Default)]
pub struct Recvs {
    pieces: VecDeque<Recv>,
    landed: u64,
}

impl Recvs {
    /// So many bytes come after all others.
    pub fn post(&mut self, landing: Landing, len: usize) {
        if len > 0 {
            self.pieces.push_back(Recv { landing, done: 0, left: len });
        }
    }

    /// What comes next.
    pub fn front(&self) -> Option<Recv> {
        self.pieces.front().copied()
    }

    /// So many bytes more have landed, all of the front.
    pub fn advance(&mut self, bytes: usize) {
        self.landed += bytes as u64;
        let Some(front) = self.pieces.front_mut() else { return };
        (front.done, front.left) = (front.done + bytes, front.left.saturating_sub(bytes));
        if front.left == 0 {
            self.pieces.pop_front();
        }
    }

    /// Lands as many of these bytes, which came next, as posts and grains allow: how many.
    ///
    /// # Safety
    /// As for [`super::Link::progress`]: whoever posted the landings keeps their memory valid, and away
    /// from all others; `bytes` are none of it.
    pub unsafe fn land(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while let Some(front) = self.front() {
            let take = (bytes.len() - done).min(front.left);
            let take = take - take % front.landing.grain();
            if take == 0 {
                break;
            }
            // SAFETY: the caller vouches for the memory; what is done of the front and `take` are
            // multiples of the grain.
            unsafe { front.landing.land(front.done, bytes[done..].as_ptr(), take) };
            done += take;
            self.advance(take);
        }
        done
    }

    /// Bytes landed so far.
    pub fn landed(&self) -> u64 {
        self.landed
    }

    /// Whether all that was posted has landed.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Forgets what has not landed.
    pub fn clear(&mut self) {
        self.pieces.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sends_advance_over_pieces() {
        let bytes = [0u8; 10];
        let (one, other) = (bytes.as_ptr(), bytes.as_ptr().wrapping_add(4));
        let mut sends = Sends::default();
        sends.post(one, 4);
        sends.post(one, 0);
        sends.post(other, 6);
        sends.advance(3);
        assert_eq!(sends.front(), Some((one.wrapping_add(3), 1)));
        sends.advance(3);
        assert_eq!(sends.iter().collect::<Vec<_>>(), [(other.wrapping_add(2), 4)]);
        sends.advance(4);
        assert!(sends.is_empty());
        assert_eq!(sends.sent(), 10);
    }

    #[test]
    fn recvs_advance_within_the_front() {
        let mut byte = 0u8;
        let landing = Landing::Copy { into: &raw mut byte };
        let mut recvs = Recvs::default();
        recvs.post(landing, 3);
        recvs.post(landing, 0);
        recvs.post(landing, 5);
        recvs.advance(2);
        assert!(recvs.front().is_some_and(|front| (front.done, front.left) == (2, 1)));
        recvs.advance(1);
        assert!(recvs.front().is_some_and(|front| (front.done, front.left) == (0, 5)));
        recvs.clear();
        assert!(recvs.is_empty());
        assert_eq!(recvs.landed(), 3);
    }
}

//! This rank's host as a group sees it: the ranks that share memory, and what is where in the segment.
//!
//! The first half is the board, or, in a group that spans hosts, the rings of its collectives; the second
//! half has the rings of messages. A *ring* is a one-way pipe of bytes, one for each two ranks and way.

use std::ops::Range;
use std::sync::Arc;

use crate::control::Purpose;
use crate::transport::board::Board;
use crate::transport::segment::Segment;

/// 2 MiB of each half for a rank: slots of blocks as large as are of use (`BLOCK` in
/// `collective/choose.rs`), and rings of up to 1 MiB.
const PER_RANK: usize = 2 << 20;
/// 16 MiB: the most for a half, 32 MiB in all, however many ranks there are.
const HALF: usize = 16 << 20;
/// 1 MiB: a longer ring is not faster.
const LONGEST: usize = 1 << 20;
/// 16 KiB: with less than this for a ring, TCP does better.
const SHORTEST: usize = 16 << 10;
/// Rings begin at multiples of two cache lines.
const LINE: usize = 128;

/// Bytes of a segment for so many ranks. Pages that nobody touches cost nothing.
pub fn bytes(ranks: usize) -> usize {
    2 * half(ranks)
}

fn half(ranks: usize) -> usize {
    (ranks * PER_RANK).min(HALF)
}

/// Ranks of a group that share a host.
pub struct Node {
    segment: Arc<Segment>,
    /// Their numbers in the group, in ascending order.
    ranks: Vec<usize>,
    lanes: usize,
}

impl Node {
    /// The ranks, several, that share this segment, and how many connections two of them have.
    pub fn new(segment: Segment, ranks: Vec<usize>, lanes: usize) -> Node {
        Node { segment: Arc::new(segment), ranks, lanes }
    }

    /// The board, if all of the group's `size` ranks are here, and not too many for it.
    pub fn board(&self, rank: usize, size: usize) -> Option<Board> {
        if self.ranks.len() != size {
            return None;
        }
        let board = Board::new(self.segment.clone(), half(size), rank, size);
        (board.slot_bytes() >= size * LINE).then_some(board)
    }

    /// The segment, to be kept as long as a part of it is in use.
    pub fn segment(&self) -> Arc<Segment> {
        self.segment.clone()
    }

    /// Where in the segment the bytes go that one rank sends to another over one of their connections;
    /// `None` if one of them is not here, or there is no room.
    pub fn ring(
        &self,
        purpose: Purpose,
        from: usize,
        to: usize,
        lane: usize,
    ) -> Option<Range<usize>> {
        let place = |rank| self.ranks.binary_search(&rank).ok();
        let (from, to) = (place(from)?, place(to)?);
        let (ranks, half) = (self.ranks.len(), half(self.ranks.len()));
        let all = half / (ranks * (ranks - 1)) / LINE * LINE;
        let each = (all / self.lanes).min(LONGEST) / LINE * LINE;
        if each < SHORTEST {
            return None;
        }
        let pair = from * (ranks - 1) + to - usize::from(to > from);
        let begin = pair * all + lane * each;
        let base = if purpose == Purpose::Message { half } else { 0 };
        Some(base + begin..base + begin + each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_lie_apart_within_the_segment() {
        for (ranks, lanes) in [(2, 1), (2, 4), (3, 1), (5, 2), (16, 1), (24, 1)] {
            let segment = Segment::create(bytes(ranks)).unwrap().0;
            // As ranks of a larger group.
            let node = Node::new(segment, (0..ranks).map(|rank| 2 * rank + 1).collect(), lanes);
            let mut places = Vec::new();
            for (from, to) in (0..ranks).flat_map(|from| (0..ranks).map(move |to| (from, to))) {
                for (purpose, lane) in (0..lanes)
                    .flat_map(|lane| [(Purpose::Message, lane), (Purpose::Collective, lane)])
                    .filter(|_| from != to)
                {
                    places.push(node.ring(purpose, 2 * from + 1, 2 * to + 1, lane).unwrap());
                }
            }
            places.sort_unstable_by_key(|place| place.start);
            assert!(places.iter().all(|place| place.len() >= SHORTEST && place.start % LINE == 0));
            assert!(places.windows(2).all(|w| w[0].end <= w[1].start), "{ranks} ranks");
            assert!(places.last().is_some_and(|place| place.end <= bytes(ranks)));
            assert_eq!(node.ring(Purpose::Message, 1, 2, 0), None);
        }
    }

    #[test]
    fn a_segment_grows_no_faster_than_its_ranks() {
        for ranks in 2..500 {
            assert!(bytes(ranks + 1) * ranks <= bytes(ranks) * (ranks + 1));
            assert!(bytes(ranks) <= 32 << 20);
        }
    }

    #[test]
    fn where_rings_would_be_short_there_are_none() {
        let segment = Segment::create(bytes(100)).unwrap().0;
        let node = Node::new(segment, (0..100).collect(), 1);
        assert_eq!(node.ring(Purpose::Message, 0, 1, 0), None);
        assert!(node.board(0, 100).is_some() && node.board(0, 101).is_none());
    }
}

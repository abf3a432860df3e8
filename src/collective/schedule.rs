//! What one rank does in one collective, as data.
//!
//! The steps of a schedule mean what they would mean one after the other, if sends never waited for
//! their receiver: a send takes what its span holds at that place in the order, a receive is
//! complete before the next step. Whoever runs a schedule may overlap steps as long as the outcome
//! is the same. Between two ranks, sends and receives pair up in order.

/// The memory that a span is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Buffer {
    /// The caller's, to read only.
    Input,
    /// The caller's.
    Output,
    /// The library's; holds anything at first.
    Scratch,
}

/// Elements `start..start + len` of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Which buffer.
    pub buffer: Buffer,
    /// The first element.
    pub start: usize,
    /// How many.
    pub len: usize,
}

impl Span {
    /// All elements of one block of `count` elements in `size` blocks, in this buffer.
    pub fn block(buffer: Buffer, index: usize, count: usize, size: usize) -> Span {
        let start = block_start(index, count, size);
        Span { buffer, start, len: block_start(index + 1, count, size) - start }
    }

    /// The same elements of another buffer.
    pub fn of(self, buffer: Buffer) -> Span {
        Span { buffer, ..self }
    }
}

/// Where a block begins: blocks differ by one element at most, longer ones first.
fn block_start(index: usize, count: usize, size: usize) -> usize {
    index * (count / size) + index.min(count % size)
}

/// One transfer or copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send to a rank.
    Send {
        /// That rank.
        to: usize,
        /// What.
        from: Span,
    },
    /// Receive from a rank.
    Recv {
        /// That rank.
        from: usize,
        /// Where to.
        into: Span,
    },
    /// Receive from a rank and reduce: `into = received op own`, or `own op received`.
    Reduce {
        /// That rank.
        from: usize,
        /// This rank's operand.
        own: Span,
        /// Where to.
        into: Span,
        /// Whether `own` is the left operand: both orders occur where two ranks reduce the same
        /// two operands and must get the same bytes.
        own_first: bool,
    },
    /// Copy from one span to another.
    Copy {
        /// What.
        from: Span,
        /// Where to.
        into: Span,
    },
}

/// All steps of one rank.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// In order.
    pub steps: Vec<Step>,
    /// Elements of scratch memory.
    pub scratch: usize,
}

impl Schedule {
    /// The ranks that it talks to, each once.
    pub fn peers(&self) -> Vec<usize> {
        let mut peers: Vec<usize> = self
            .steps
            .iter()
            .filter_map(|step| match *step {
                Step::Send { to, .. } => Some(to),
                Step::Recv { from, .. } | Step::Reduce { from, .. } => Some(from),
                Step::Copy { .. } => None,
            })
            .collect();
        peers.sort_unstable();
        peers.dedup();
        peers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_everything_once() {
        for size in 1..10 {
            for count in 0..50 {
                let mut next = 0;
                for index in 0..size {
                    let block = Span::block(Buffer::Input, index, count, size);
                    assert_eq!(block.start, next);
                    assert!(block.len == count / size || block.len == count / size + 1);
                    next += block.len;
                }
                assert_eq!(next, count);
            }
        }
    }
}

//! Fills the buffers of a call, and counts the elements of its output that are wrong.

use mlxd::reduce::Reduction;

use crate::operation::{Operation, Shape};
use crate::values::{Source, Values};

/// What an output holds before a call: of every type, nothing that should come out twice in a row.
const POISON: u8 = 0x5a;

/// A stretch of an output, in elements: where it lies, whose elements it holds, from which on.
struct Stretch {
    start: usize,
    len: usize,
    source: Source,
    first: usize,
}

/// What was found in an output.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Elements that are not what they should be.
    pub wrong: usize,
    /// The first of them, told with its bytes.
    pub first: Option<String>,
}

/// Makes the memory of one call, as long as its layout says, ready: the output poisoned, the input
/// as this rank puts it in.
pub fn fill(shape: &Shape, memory: &mut [u8]) {
    let layout = shape.layout();
    memory[layout.output.clone()].fill(POISON);
    let values = values(shape);
    if shape.root() == Some(shape.rank) {
        repeat(&values.period(Source::Rank(shape.rank), 0), &mut memory[layout.output]);
    } else if !layout.input.is_empty() {
        repeat(&values.period(Source::Rank(shape.rank), 0), &mut memory[layout.input]);
    }
}

/// Holds the output against what must be in it.
pub fn check(shape: &Shape, memory: &[u8]) -> Found {
    let output = &memory[shape.layout().output];
    let size = shape.dtype.size();
    let values = values(shape);
    let mut found = Found::default();
    for stretch in stretches(shape) {
        let period = values.period(stretch.source, stretch.first);
        let bytes = &output[stretch.start * size..(stretch.start + stretch.len) * size];
        for (number, chunk) in bytes.chunks(period.len()).enumerate() {
            if *chunk == period[..chunk.len()] {
                continue;
            }
            let pairs = chunk.chunks(size).zip(period.chunks(size)).enumerate();
            for (at, (got, want)) in pairs.filter(|(_, (got, want))| got != want) {
                let index = stretch.start + number * period.len() / size + at;
                found.wrong += 1;
                found.first.get_or_insert_with(|| {
                    format!("element {index} is {}, not {}", hex(got), hex(want))
                });
            }
        }
    }
    found
}

fn values(shape: &Shape) -> Values {
    Values { dtype: shape.dtype, ranks: shape.ranks, summed: shape.operation.sums() }
}

/// What the output of this rank consists of.
fn stretches(shape: &Shape) -> Vec<Stretch> {
    let Shape { rank, ranks, root, .. } = *shape;
    let (_, len) = shape.lengths();
    let block = shape.block();
    let whole = |source, first| vec![Stretch { start: 0, len, source, first }];
    let blocks = |first: usize| {
        let from =
            |rank| Stretch { start: rank * block, len: block, source: Source::Rank(rank), first };
        (0..ranks).map(from).collect()
    };
    match shape.operation {
        Operation::AllSum => whole(Source::All(Reduction::Sum), 0),
        Operation::AllMax => whole(Source::All(Reduction::Max), 0),
        Operation::AllMin => whole(Source::All(Reduction::Min), 0),
        Operation::SumScatter => whole(Source::All(Reduction::Sum), rank * block),
        Operation::AllGather => blocks(0),
        Operation::AllToAll => blocks(rank * block),
        Operation::Broadcast => whole(Source::Rank(root), 0),
        Operation::SendRecv => whole(Source::Rank((rank + ranks - 1) % ranks), 0),
        Operation::PingPong if rank < 2 => whole(Source::Rank(1 - rank), 0),
        Operation::PingPong | Operation::Barrier => Vec::new(),
    }
}

/// Writes the period again and again.
fn repeat(period: &[u8], to: &mut [u8]) {
    for chunk in to.chunks_mut(period.len()) {
        chunk.copy_from_slice(&period[..chunk.len()]);
    }
}

/// The bytes of an element as they lie in memory.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use mlxd::dtype::Dtype;

    use super::*;

    /// Elements as a right implementation would leave them, written element by element.
    fn right(shape: &Shape) -> Vec<u8> {
        let layout = shape.layout();
        let mut memory = vec![0; layout.bytes];
        fill(shape, &mut memory);
        for stretch in stretches(shape) {
            let period = values(shape).period(stretch.source, stretch.first);
            let size = shape.dtype.size();
            let start = layout.output.start + stretch.start * size;
            repeat(&period, &mut memory[start..start + stretch.len * size]);
        }
        memory
    }

    fn shapes() -> impl Iterator<Item = Shape> {
        Operation::ALL.into_iter().filter(|op| *op != Operation::Barrier).flat_map(|operation| {
            Dtype::ALL.into_iter().flat_map(move |dtype| {
                // More than a period, and on rank 1, which takes part in everything.
                let shape = Shape::new(operation, dtype, 3 * 1100 * dtype.size(), (1, 3));
                [false, operation.works_in_place()].map(|in_place| Shape { in_place, ..shape })
            })
        })
    }

    #[test]
    fn a_right_output_has_no_wrong_element() {
        for shape in shapes() {
            assert_eq!(check(&shape, &right(&shape)), Found::default(), "{shape:?}");
        }
    }

    #[test]
    fn every_spoiled_element_is_counted() {
        for shape in shapes() {
            let size = shape.dtype.size();
            let output = shape.layout().output;
            let mut memory = right(&shape);
            // The first, the last, and one in between; another byte of the element each time.
            let count = output.len() / size;
            for (spoiled, index) in [0, count / 2, count - 1].into_iter().enumerate() {
                memory[output.start + index * size + (spoiled * 3) % size] ^= 1;
                let found = check(&shape, &memory);
                assert_eq!(found.wrong, spoiled + 1, "{shape:?}");
                assert!(found.first.is_some_and(|first| first.starts_with("element 0 is ")));
            }
        }
    }

    #[test]
    fn an_output_that_nothing_wrote_is_wrong_nearly_everywhere() {
        for shape in shapes().filter(|shape| !shape.in_place && shape.root() != Some(shape.rank)) {
            let mut memory = vec![0; shape.layout().bytes];
            fill(&shape, &mut memory);
            let found = check(&shape, &memory);
            let count = shape.layout().output.len() / shape.dtype.size();
            // One byte of poison may be a right value now and then, but is not in these.
            assert!(found.wrong * 10 > count * 9, "{shape:?}: {} of {count}", found.wrong);
        }
    }

    #[test]
    fn a_block_of_another_rank_is_wrong() {
        let shape = Shape::new(Operation::AllGather, Dtype::Float32, 3 * 4096, (1, 3));
        let mut memory = right(&shape);
        let output = shape.layout().output;
        memory.copy_within(output.start..output.start + 4096, output.start + 4096);
        let found = check(&shape, &memory);
        assert!(found.wrong > 900, "{}", found.wrong);
        assert!(found.first.is_some_and(|first| first.starts_with("element 1024 is ")));
    }

    /// The closed forms themselves, by hand, for a few elements of two ranks.
    #[test]
    fn sums_and_blocks_by_hand() {
        // Rank 0 puts in 7 i % 31, rank 1 (7 i + 13) % 31 (i below 31).
        let read = |shape: Shape| -> Vec<f32> {
            let memory = right(&shape);
            let floats = memory[shape.layout().output].chunks(4);
            floats
                .map(|bytes| f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
                .collect()
        };
        let shape = |operation| Shape::new(operation, Dtype::Float32, 16, (1, 2));
        assert_eq!(read(shape(Operation::AllSum)), [13.0, 27.0, 41.0, 24.0]);
        assert_eq!(read(shape(Operation::AllMax)), [13.0, 20.0, 27.0, 21.0]);
        assert_eq!(read(shape(Operation::AllMin)), [0.0, 7.0, 14.0, 3.0]);
        assert_eq!(read(shape(Operation::SumScatter)), [41.0, 24.0]);
        assert_eq!(read(shape(Operation::AllGather)), [0.0, 7.0, 13.0, 20.0]);
        assert_eq!(read(shape(Operation::AllToAll)), [14.0, 21.0, 27.0, 3.0]);
        assert_eq!(read(shape(Operation::SendRecv)), [0.0, 7.0, 14.0, 21.0]);
    }
}

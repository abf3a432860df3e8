//! What is timed: an operation, and the shape of one call of it.

use std::ops::Range;

use mlxd::dtype::Dtype;

/// An operation of the library, or a pattern of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `mlxd_all_sum`
    AllSum,
    /// `mlxd_all_max`
    AllMax,
    /// `mlxd_all_min`
    AllMin,
    /// `mlxd_all_gather`
    AllGather,
    /// `mlxd_sum_scatter`
    SumScatter,
    /// `mlxd_all_to_all`
    AllToAll,
    /// `mlxd_broadcast`
    Broadcast,
    /// `mlxd_send_recv`, to the next rank and from the one before.
    SendRecv,
    /// `mlxd_send` and `mlxd_recv` between ranks 0 and 1, there and back.
    PingPong,
    /// `mlxd_barrier`
    Barrier,
}

impl Operation {
    /// Every operation, in the order of `--op all`.
    pub const ALL: [Operation; 10] = [
        Operation::AllSum,
        Operation::AllMax,
        Operation::AllMin,
        Operation::AllGather,
        Operation::SumScatter,
        Operation::AllToAll,
        Operation::Broadcast,
        Operation::SendRecv,
        Operation::PingPong,
        Operation::Barrier,
    ];

    /// The name on the command line and in every output.
    pub fn name(self) -> &'static str {
        match self {
            Operation::AllSum => "all_sum",
            Operation::AllMax => "all_max",
            Operation::AllMin => "all_min",
            Operation::AllGather => "all_gather",
            Operation::SumScatter => "sum_scatter",
            Operation::AllToAll => "all_to_all",
            Operation::Broadcast => "broadcast",
            Operation::SendRecv => "send_recv",
            Operation::PingPong => "ping_pong",
            Operation::Barrier => "barrier",
        }
    }

    /// The operation of this name.
    pub fn from_name(name: &str) -> Option<Operation> {
        Operation::ALL.into_iter().find(|operation| operation.name() == name)
    }

    /// Whether there is a form in which the input is (part of) the output. A broadcast has only that.
    pub fn works_in_place(self) -> bool {
        !matches!(self, Operation::AllToAll | Operation::SendRecv | Operation::PingPong)
    }

    /// Ranks that it needs.
    pub fn least_ranks(self) -> usize {
        if matches!(self, Operation::SendRecv | Operation::PingPong) { 2 } else { 1 }
    }

    /// Whether elements of several ranks are added up.
    pub fn sums(self) -> bool {
        matches!(self, Operation::AllSum | Operation::SumScatter)
    }

    /// Bus bandwidth over algorithm bandwidth: what the slowest link of a perfect machine carries
    /// per byte of the size (nccl-tests, doc/PERFORMANCE.md).
    pub fn bus_factor(self, ranks: usize) -> f64 {
        let n = ranks as f64;
        match self {
            Operation::AllSum | Operation::AllMax | Operation::AllMin => 2.0 * (n - 1.0) / n,
            Operation::AllGather | Operation::SumScatter | Operation::AllToAll => (n - 1.0) / n,
            Operation::Broadcast | Operation::SendRecv | Operation::PingPong => 1.0,
            Operation::Barrier => 0.0,
        }
    }
}

/// One call as this rank makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// What is called.
    pub operation: Operation,
    /// The element type.
    pub dtype: Dtype,
    /// The size of the group.
    pub ranks: usize,
    /// This rank.
    pub rank: usize,
    /// Who broadcasts.
    pub root: usize,
    /// Whether the input lies in the output, where the operation has that form.
    pub in_place: bool,
    /// Elements of the whole buffer that the size speaks of.
    pub elements: usize,
}

/// Where the input and the output of a call lie in one piece of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of the input.
    pub input: Range<usize>,
    /// Bytes of the output.
    pub output: Range<usize>,
    /// Bytes of both and what is between them.
    pub bytes: usize,
}

/// Where one buffer ends and the next begins.
pub const LINE: usize = 64;

impl Shape {
    /// A call of about this size in bytes: rounded down to whole elements, and to equal blocks
    /// where the operation has one per rank, but not to nothing.
    pub fn new(
        operation: Operation,
        dtype: Dtype,
        bytes: usize,
        (rank, ranks): (usize, usize),
    ) -> Shape {
        let blocks = match operation {
            Operation::AllGather | Operation::SumScatter | Operation::AllToAll => ranks,
            _ => 1,
        };
        let elements = match operation {
            Operation::Barrier => 0,
            _ => (bytes / dtype.size() / blocks).max(1) * blocks,
        };
        Shape { operation, dtype, ranks, rank, root: 0, in_place: false, elements }
    }

    /// The size, as nccl-tests count it: see `--help`.
    pub fn bytes(&self) -> usize {
        self.elements * self.dtype.size()
    }

    /// The `count` of the library's call.
    pub fn count(&self) -> usize {
        if self.operation == Operation::AllGather { self.block() } else { self.elements }
    }

    /// Elements of one rank's block.
    pub fn block(&self) -> usize {
        self.elements / self.ranks
    }

    /// The root, for an operation that has one.
    pub fn root(&self) -> Option<usize> {
        (self.operation == Operation::Broadcast).then_some(self.root)
    }

    /// Elements that this rank puts in and gets out; a broadcast's only buffer is its output.
    pub fn lengths(&self) -> (usize, usize) {
        match self.operation {
            Operation::AllGather => (self.block(), self.elements),
            Operation::SumScatter => (self.elements, self.block()),
            Operation::Broadcast => (0, self.elements),
            Operation::PingPong if self.rank > 1 => (0, 0),
            _ => (self.elements, self.elements),
        }
    }

    /// Where the buffers lie, each at a multiple of [`LINE`] unless it lies in the other.
    pub fn layout(&self) -> Layout {
        let (input, output) = self.lengths();
        let (input, output) = (input * self.dtype.size(), output * self.dtype.size());
        let own_block = self.rank * self.block() * self.dtype.size();
        let (input_at, output_at) = match self.operation {
            _ if !self.in_place => (0, input.next_multiple_of(LINE)),
            Operation::AllGather => (own_block, 0),
            Operation::SumScatter => (0, own_block),
            _ => (0, 0),
        };
        let (input, output) = (input_at..input_at + input, output_at..output_at + output);
        let bytes = input.end.max(output.end);
        Layout { input, output, bytes }
    }

    /// What messages call it.
    pub fn name(&self) -> String {
        format!("{} of {} bytes of {}", self.operation.name(), self.bytes(), self.dtype.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for operation in Operation::ALL {
            assert_eq!(Operation::from_name(operation.name()), Some(operation));
        }
        assert_eq!(Operation::from_name("all_mean"), None);
    }

    #[test]
    fn sizes_are_whole_elements_and_blocks() {
        let bytes = |operation, dtype, bytes, ranks| {
            Shape::new(operation, dtype, bytes, (0, ranks)).bytes()
        };
        assert_eq!(bytes(Operation::AllSum, Dtype::Float32, 4, 3), 4);
        assert_eq!(bytes(Operation::AllSum, Dtype::Float64, 4, 3), 8);
        assert_eq!(bytes(Operation::AllSum, Dtype::Float64, 31, 3), 24);
        assert_eq!(bytes(Operation::AllGather, Dtype::Float32, 4, 3), 12);
        assert_eq!(bytes(Operation::AllToAll, Dtype::Int8, 1024, 3), 1023);
        assert_eq!(bytes(Operation::SumScatter, Dtype::Int64, 1024, 3), 1008);
        assert_eq!(bytes(Operation::Barrier, Dtype::Int64, 1024, 3), 0);
    }

    #[test]
    fn counts_are_those_of_the_calls() {
        let count = |operation| Shape::new(operation, Dtype::Float32, 96, (1, 3)).count();
        assert_eq!(count(Operation::AllGather), 8);
        assert_eq!(count(Operation::SumScatter), 24);
        assert_eq!(count(Operation::AllSum), 24);
    }

    #[test]
    fn buffers_lie_apart_or_in_each_other() {
        let layout = |operation, in_place| {
            let shape = Shape::new(operation, Dtype::Float32, 120, (2, 3));
            Shape { in_place, ..shape }.layout()
        };
        let expect =
            |input: Range<usize>, output: Range<usize>, bytes| Layout { input, output, bytes };
        assert_eq!(layout(Operation::AllSum, false), expect(0..120, 128..248, 248));
        assert_eq!(layout(Operation::AllSum, true), expect(0..120, 0..120, 120));
        assert_eq!(layout(Operation::AllGather, false), expect(0..40, 64..184, 184));
        assert_eq!(layout(Operation::AllGather, true), expect(80..120, 0..120, 120));
        assert_eq!(layout(Operation::SumScatter, true), expect(0..120, 80..120, 120));
        assert_eq!(layout(Operation::Broadcast, false), expect(0..0, 0..120, 120));
        assert_eq!(layout(Operation::PingPong, false), expect(0..0, 0..0, 0));
    }

    #[test]
    fn bus_factors_are_those_of_nccl_tests() {
        let factors = |ranks| Operation::ALL.map(|operation| operation.bus_factor(ranks));
        assert_eq!(factors(4), [1.5, 1.5, 1.5, 0.75, 0.75, 0.75, 1.0, 1.0, 1.0, 0.0]);
        assert_eq!(Operation::AllSum.bus_factor(1), 0.0);
    }
}

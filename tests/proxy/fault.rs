//! A fault: what the proxy does to which connection, where in it; drawn from a seed.

use mlxd::control::Purpose;

/// Numbers that a seed gives (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// A number below `end`, of any length in bits as likely as of another.
    pub fn below_by_length(&mut self, end: u64) -> u64 {
        let bits = self.below(u64::from(end.ilog2()) + 1);
        self.below(2 << bits).min(end - 1)
    }
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To all connections: each chunk waits for some milliseconds.
    Delay,
    /// To all connections: a few bytes at a time.
    Split,
    /// Closed in order, both ways.
    Truncate,
    /// One way ends, the other goes on.
    HalfClose,
    /// Reset.
    Reset,
    /// Nothing comes any more, either way, and nobody says so.
    Stall,
    /// One bit is another.
    Corrupt,
    /// Some bytes come twice.
    Duplicate,
    /// Some bytes do not come.
    Drop,
}

impl Kind {
    pub const ALL: [Kind; 9] = [
        Kind::Delay,
        Kind::Split,
        Kind::Truncate,
        Kind::HalfClose,
        Kind::Reset,
        Kind::Stall,
        Kind::Corrupt,
        Kind::Duplicate,
        Kind::Drop,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Delay => "delay",
            Kind::Split => "split",
            Kind::Truncate => "truncate",
            Kind::HalfClose => "half_close",
            Kind::Reset => "reset",
            Kind::Stall => "stall",
            Kind::Corrupt => "corrupt",
            Kind::Duplicate => "duplicate",
            Kind::Drop => "drop",
        }
    }

    /// Whether it is only what any network may do.
    pub fn is_harmless(self) -> bool {
        matches!(self, Kind::Delay | Kind::Split)
    }

    /// Whether bytes arrive that were not sent so.
    pub fn changes_bytes(self) -> bool {
        matches!(self, Kind::Corrupt | Kind::Duplicate | Kind::Drop)
    }
}

/// What is done, where.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub kind: Kind,
    /// The connections that `from` makes to `to` for this; of no meaning for what is done to all.
    pub purpose: Purpose,
    pub from: usize,
    pub to: usize,
    /// Whether to what the listener sends.
    pub back: bool,
    /// Bytes before it.
    pub at: u64,
    /// Bytes that come twice or not, or the most of a chunk.
    pub len: usize,
    /// The bit that changes.
    pub bit: u8,
}

impl Fault {
    /// Any fault of this kind among so many ranks, on a connection that there is with this transport.
    pub fn draw(kind: Kind, transport: &str, ranks: usize, random: &mut Random) -> Fault {
        let purposes: &[Purpose] = match transport {
            // Collectives go through memory, as messages do, but those have a doorbell.
            "shm" => &[Purpose::Join, Purpose::Control, Purpose::Message],
            _ => &[Purpose::Join, Purpose::Control, Purpose::Collective, Purpose::Message],
        };
        let purpose = random.pick(purposes);
        let other = |random: &mut Random, rank| {
            (rank + 1 + random.below(ranks as u64 - 1) as usize) % ranks
        };
        let any = random.below(ranks as u64) as usize;
        let (from, to) = match purpose {
            // All come to rank 0; of two others the higher calls.
            Purpose::Join => (1 + random.below(ranks as u64 - 1) as usize, 0),
            Purpose::Control => (ranks - 1, 1 + random.below(ranks as u64 - 2) as usize),
            // The lower calls. (There are no wires where a proxy can be.)
            Purpose::Collective | Purpose::Wire => {
                let to = other(random, any);
                (any.min(to), any.max(to))
            }
            // The program sends to the next one.
            Purpose::Message => (any, (any + 1) % ranks),
        };
        let back = random.below(2) == 1;
        // About as many bytes as go there: a handshake and a few messages, or data.
        let most = match (purpose, back) {
            (Purpose::Join, false) => 600,
            (Purpose::Join, true) => 1000,
            (Purpose::Control, false) => 120,
            (Purpose::Control, true) => 80,
            (Purpose::Collective | Purpose::Wire, _) => 1 << 20,
            (Purpose::Message, false) if transport == "shm" => 110,
            (Purpose::Message, false) => 900 << 10,
            (Purpose::Message, true) => 80,
        };
        Fault {
            kind,
            purpose,
            from,
            to,
            back,
            at: random.below_by_length(most),
            len: random.pick(&[1, 7, 12, 64, 1000, 4096, 65548]),
            bit: random.below(8) as u8,
        }
    }
}

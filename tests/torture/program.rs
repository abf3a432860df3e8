//! What the ranks of a round do, all of it from the seed: groups and a program of steps, which every
//! rank makes alike and follows where it belongs to the step's group.
//!
//! Nothing can wait in a circle, whatever of a step a rank puts on a stream: of the steps that are not
//! done the first has nothing before it, on no rank and in no queue.

use std::fmt;

use crate::random::Random;
use crate::values::Dtype;

/// A collective with elements, or a barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    AllSum,
    AllMax,
    AllMin,
    AllGather,
    SumScatter,
    AllToAll,
    Broadcast,
    Barrier,
}

impl Verb {
    const ALL: [Verb; 8] = [
        Verb::AllSum,
        Verb::AllMax,
        Verb::AllMin,
        Verb::AllGather,
        Verb::SumScatter,
        Verb::AllToAll,
        Verb::Broadcast,
        Verb::Barrier,
    ];

    pub fn is_sum(self) -> bool {
        matches!(self, Verb::AllSum | Verb::SumScatter)
    }

    pub fn reduces(self) -> bool {
        self.is_sum() || matches!(self, Verb::AllMax | Verb::AllMin)
    }
}

/// What the ranks of a group do in a step. Ranks are those of the group.
#[derive(Clone, Debug)]
pub enum Action {
    Collective {
        verb: Verb,
        dtype: Dtype,
        count: usize,
        root: usize,
        in_place: bool,
    },
    /// Messages from one rank to another, of so many elements.
    Messages {
        dtype: Dtype,
        from: usize,
        to: usize,
        counts: Vec<usize>,
    },
    /// Each rank sends so many elements to another; one that would send to itself does nothing.
    Exchange {
        dtype: Dtype,
        to: Vec<usize>,
        counts: Vec<usize>,
    },
    /// Per rank its colour and key; the groups that come of it.
    Split {
        colors: Vec<i32>,
        keys: Vec<i32>,
        parts: Vec<usize>,
    },
    /// The group's handle is freed.
    Free,
    /// Two threads, each with steps of its own; the step's group is only the first one's.
    Threads([Vec<Step>; 2]),
}

/// A part of a program.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its place among all of the round.
    pub number: usize,
    /// Of [`Program::groups`].
    pub group: usize,
    pub action: Action,
}

/// All steps, and all groups.
#[derive(Clone, Debug)]
pub struct Program {
    pub steps: Vec<Step>,
    /// Per group its ranks, as ranks of the world; the first is the world.
    pub groups: Vec<Vec<usize>>,
    /// How many steps there are, those of threads too.
    pub length: usize,
}

/// Steps of a program, and of a thread beside another.
const STEPS: usize = 50;
const THREAD_STEPS: usize = 10;
/// Groups of a round; the first few steps of every second one make some.
const GROUPS: usize = 14;
const EARLY_SPLITS: usize = 3;
/// In bytes: where the library goes another way.
const THRESHOLDS: [usize; 6] = [8, 32 << 10, 64 << 10, 256 << 10, 512 << 10, 1 << 20];

impl Program {
    pub fn new(seed: u64, ranks: usize) -> Program {
        let groups = vec![(0..ranks).collect()];
        let program = Program { steps: Vec::new(), groups, length: 0 };
        let mut random = Random::new(&[seed, 1]);
        let early = random.one_in(2);
        let mut writer = Writer { random, early, program };
        let steps = writer.steps(STEPS, &mut vec![0], true);
        Program { steps, ..writer.program }
    }
}

struct Writer {
    random: Random,
    /// Whether groups are made before anything else.
    early: bool,
    program: Program,
}

impl Writer {
    /// So many steps on groups of these, which become those that are left.
    fn steps(&mut self, count: usize, groups: &mut Vec<usize>, may_fork: bool) -> Vec<Step> {
        let mut steps = Vec::new();
        while steps.len() < count {
            let group = self.random.pick(groups);
            let ranks = self.program.groups[group].len();
            let number = self.program.length;
            self.program.length += 1;
            let early = self.early && number < EARLY_SPLITS;
            let action = match self.random.below(100) {
                _ if early => self.split(group, groups),
                0..12 if ranks > 1 => self.messages(ranks),
                12..26 if ranks > 1 => self.exchange(ranks),
                26..38 if self.program.groups.len() < GROUPS => self.split(group, groups),
                38..41 if groups.len() > 1 => {
                    groups.retain(|other| *other != group);
                    Action::Free
                }
                41..46 if may_fork && groups.len() > 1 => {
                    steps.push(self.threads(number, groups));
                    continue;
                }
                _ => self.collective(ranks),
            };
            steps.push(Step { number, group, action });
        }
        steps
    }

    fn collective(&mut self, ranks: usize) -> Action {
        let verb = self.random.pick(&Verb::ALL);
        let dtype = Dtype::any(&mut self.random);
        let mut count = self.count(dtype);
        match verb {
            Verb::AllGather if count > ranks => count /= ranks,
            Verb::SumScatter | Verb::AllToAll => count = count.next_multiple_of(ranks),
            Verb::Barrier => count = 0,
            _ => {}
        }
        let root = self.random.below(ranks);
        let in_place = verb != Verb::AllToAll && self.random.one_in(2);
        Action::Collective { verb, dtype, count, root, in_place }
    }

    /// How many elements.
    fn count(&mut self, dtype: Dtype) -> usize {
        let size = dtype.size();
        match self.random.below(160) {
            0..16 => 0,
            16..32 => 1,
            32..64 => {
                (self.random.pick(&THRESHOLDS) / size + self.random.below(3)).saturating_sub(1)
            }
            64..72 => self.random.log_uniform(4 << 20) / size,
            72 => self.random.log_uniform(16 << 20) / size,
            _ => self.random.log_uniform(128 << 10).div_ceil(size),
        }
    }

    fn messages(&mut self, ranks: usize) -> Action {
        let dtype = Dtype::any(&mut self.random);
        let from = self.random.below(ranks);
        let to = (from + 1 + self.random.below(ranks - 1)) % ranks;
        let messages = 1 + self.random.below(4);
        let counts = (0..messages).map(|_| self.count(dtype)).collect();
        Action::Messages { dtype, from, to, counts }
    }

    fn exchange(&mut self, ranks: usize) -> Action {
        let dtype = Dtype::any(&mut self.random);
        let to = match self.random.one_in(2) {
            true => self.random.permutation(ranks),
            false => {
                let shift = 1 + self.random.below(ranks - 1);
                (0..ranks).map(|rank| (rank + shift) % ranks).collect()
            }
        };
        let counts = (0..ranks).map(|_| self.count(dtype)).collect();
        Action::Exchange { dtype, to, counts }
    }

    fn split(&mut self, group: usize, groups: &mut Vec<usize>) -> Action {
        let members = self.program.groups[group].clone();
        let colors: Vec<i32> = match self.random.below(4) {
            0 => vec![0; members.len()],
            kinds => members.iter().map(|_| self.random.below(kinds + 2) as i32 - 1).collect(),
        };
        let keys: Vec<i32> = members.iter().map(|_| self.random.below(8) as i32 - 2).collect();
        let mut parts = Vec::new();
        for color in 0..=4 {
            let mut part: Vec<usize> = (0..members.len()).filter(|r| colors[*r] == color).collect();
            part.sort_by_key(|rank| if keys[*rank] < 0 { *rank as i32 } else { keys[*rank] });
            if !part.is_empty() {
                parts.push(self.program.groups.len());
                self.program.groups.push(part.into_iter().map(|rank| members[rank]).collect());
            }
        }
        groups.extend(&parts);
        Action::Split { colors, keys, parts }
    }

    /// Two of the groups go on beside each other for a while.
    fn threads(&mut self, number: usize, groups: &mut Vec<usize>) -> Step {
        let chosen = self.random.permutation(groups.len());
        let chosen = [groups[chosen[0]], groups[chosen[1]]];
        groups.retain(|group| !chosen.contains(group));
        let tracks = chosen.map(|group| {
            let mut own = vec![group];
            let steps = self.steps(THREAD_STEPS, &mut own, false);
            groups.extend(own);
            steps
        });
        Step { number, group: chosen[0], action: Action::Threads(tracks) }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {} (group {}): ", self.number, self.group)?;
        match &self.action {
            Action::Collective { verb, dtype, count, root, in_place } => {
                write!(f, "{verb:?} of {count} {}", dtype.name())?;
                if *verb == Verb::Broadcast {
                    write!(f, " from rank {root}")?;
                }
                if *in_place { write!(f, ", in place") } else { Ok(()) }
            }
            Action::Messages { dtype, from, to, counts } => {
                write!(f, "messages of {counts:?} {} from rank {from} to rank {to}", dtype.name())
            }
            Action::Exchange { dtype, to, counts } => {
                write!(f, "each to {to:?}, {counts:?} {}", dtype.name())
            }
            Action::Split { colors, keys, .. } => {
                write!(f, "split by colours {colors:?} and keys {keys:?}")
            }
            Action::Free => write!(f, "free"),
            Action::Threads(tracks) => {
                let first = |track: &[Step]| track.first().map_or(0, |step| step.number);
                write!(f, "threads, from steps {} and {} on", first(&tracks[0]), first(&tracks[1]))
            }
        }
    }
}

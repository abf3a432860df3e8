//! A round: what its seed says of the world, besides the program.

use std::fmt;
use std::time::Duration;

use crate::program::Program;
use crate::random::Random;

/// How the ranks reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Shm,
    Tcp,
    /// Some share memory, others do not.
    Mixed,
}

/// When the victim kills itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// So long after it was launched.
    Launch(Duration),
    /// So long after it came to the step of this number or a later one.
    Step(usize, Duration),
}

#[derive(Clone, Debug)]
pub struct Round {
    pub seed: u64,
    pub ranks: usize,
    pub transport: Transport,
    /// Connections that a hostfile gives each rank; without one the ranks meet at a coordinator's.
    pub lanes: Option<usize>,
    /// Per rank its pretended host, if the transport is mixed.
    pub hosts: Vec<usize>,
    /// Whether the ranks have a secret, a flight recorder, and checksums.
    pub secret: bool,
    pub recorder: bool,
    pub checksums: bool,
    /// A rank that the system stops for a while: so long after the launch, for so long.
    pub pause: Option<(usize, [Duration; 2])>,
    /// Every second round has a victim.
    pub victim: Option<(usize, Moment)>,
    pub program: Program,
}

impl Round {
    pub fn new(seed: u64) -> Round {
        let mut random = Random::new(&[seed, 0]);
        // Where a rank is killed others are to go on.
        let killed = seed % 2 == 1;
        let ranks = if killed { 3 + random.below(4) } else { 2 + random.below(5) };
        let transport = random.pick(&[Transport::Shm, Transport::Tcp, Transport::Mixed]);
        let lanes = random.one_in(3).then(|| 1 + random.below(3));
        let hosts = (0..ranks).map(|_| random.below(3)).collect();
        let (secret, recorder, checksums) = (random.one_in(4), random.one_in(4), random.one_in(3));
        let milliseconds = |some: usize| Duration::from_millis(some as u64);
        let pause = random.one_in(4).then(|| {
            let (after, time) = (random.log_uniform(400), 20 + random.log_uniform(200));
            (random.below(ranks), [after, time].map(milliseconds))
        });
        let program = Program::new(seed, ranks);
        let victim = killed.then(|| {
            let moment = match random.below(4) {
                0 => Moment::Launch(Duration::from_micros(random.log_uniform(200_000) as u64)),
                _ => Moment::Step(
                    random.below(program.length),
                    Duration::from_micros(random.log_uniform(8_000) as u64),
                ),
            };
            (random.below(ranks), moment)
        });
        Round {
            seed,
            ranks,
            transport,
            lanes,
            hosts,
            secret,
            recorder,
            checksums,
            pause,
            victim,
            program,
        }
    }

    /// What ranks do each in its own way follows from this.
    pub fn random(&self, rank: usize, step: usize) -> Random {
        Random::new(&[self.seed, 2, rank as u64, step as u64])
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Round { seed, ranks, transport, lanes, hosts, pause, victim, .. } = self;
        write!(f, "seed {seed}: {ranks} ranks over {transport:?}")?;
        if *transport == Transport::Mixed {
            write!(f, " on hosts {hosts:?}")?;
        }
        if let Some(lanes) = lanes {
            write!(f, ", {lanes} connections each")?;
        }
        if let Some((rank, [after, time])) = pause {
            write!(f, ", rank {rank} stopped after {after:?} for {time:?}")?;
        }
        match victim {
            Some((rank, Moment::Launch(after))) => {
                write!(f, ", rank {rank} killed {after:?} after launch")
            }
            Some((rank, Moment::Step(step, after))) => {
                write!(f, ", rank {rank} killed {after:?} after step {step}")
            }
            None => Ok(()),
        }
    }
}

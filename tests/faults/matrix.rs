//! A cell of the matrix: which fault, while the ranks are in what, over which transport; and what must
//! come of it.

use std::fmt;
use std::time::Duration;

use libtest_mimic::Failed;
use mlxd::capi::*;
use rustix::process::Signal;

use crate::namespaces::Network;
use crate::processes::{End, LIMIT, Rank, free_port, names_rank, now};
use crate::table;

/// How long a rank is waited for that this test silences.
const SILENCE_MS: u64 = 1000;
/// And in all other tests: longer than any waits, so that what is found is not found by silence.
const NEVER_MS: u64 = 10 * 60 * 1000;
/// Ranks that wait are left alone for so long before it happens.
const SETTLE: Duration = Duration::from_millis(150);

/// What happens to one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// `kill -9`.
    Kill,
    /// `SIGSTOP`: as silent as a host that hangs.
    Stop,
    /// `exit(0)` in the middle: it leaves in good order, but is needed.
    Exit,
    /// `_exit(0)`: it says goodbye to nobody.
    QuickExit,
    /// Its cable is pulled: nothing comes or goes any more, and nobody says so.
    Cut,
    /// It shuts all its connections down for writing, and goes on.
    HalfClose,
    /// It calls `mlxd_group_abort`.
    Abort,
}

impl Fault {
    pub const ALL: [Fault; 7] = [
        Fault::Kill,
        Fault::Stop,
        Fault::Exit,
        Fault::QuickExit,
        Fault::Cut,
        Fault::HalfClose,
        Fault::Abort,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Fault::Kill => "kill",
            Fault::Stop => "stop",
            Fault::Exit => "exit",
            Fault::QuickExit => "quick_exit",
            Fault::Cut => "cut",
            Fault::HalfClose => "half_close",
            Fault::Abort => "abort",
        }
    }

    /// Whether the rank is silent rather than gone.
    fn is_silent(self) -> bool {
        matches!(self, Fault::Stop | Fault::Cut)
    }
}

/// What the ranks are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// The start: one rank has not come yet.
    Start,
    /// An all_sum of few bytes, which the victim does not call.
    SmallSum,
    /// All_sums of 64 MiB in turn, which the victim calls too.
    LargeSum,
    /// A receive; one of them from the victim, the others from each other.
    Recv,
    /// A barrier, which the victim does not call.
    Barrier,
    /// All_sums on a stream.
    Stream,
    /// An all_sum of a group from split, in another order.
    Split,
}

impl Phase {
    pub const ALL: [Phase; 7] = [
        Phase::Start,
        Phase::SmallSum,
        Phase::LargeSum,
        Phase::Recv,
        Phase::Barrier,
        Phase::Stream,
        Phase::Split,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Phase::Start => "start",
            Phase::SmallSum => "small_sum",
            Phase::LargeSum => "large_sum",
            Phase::Recv => "recv",
            Phase::Barrier => "barrier",
            Phase::Stream => "stream",
            Phase::Split => "split",
        }
    }
}

/// How the ranks reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    Shm,
    Tcp,
    /// Some share memory, others do not.
    Mixed,
}

impl Transport {
    pub const ALL: [Transport; 3] = [Transport::Shm, Transport::Tcp, Transport::Mixed];

    pub fn name(self) -> &'static str {
        match self {
            Transport::Shm => "shm",
            Transport::Tcp => "tcp",
            Transport::Mixed => "mixed",
        }
    }
}

/// A test of the matrix.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    pub fault: Fault,
    pub phase: Phase,
    pub transport: Transport,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cell { fault, phase, transport } = self;
        write!(f, "{}::{}::{}", fault.name(), phase.name(), transport.name())
    }
}

/// The ranks of a test, in the order of their numbers.
const RANKS: usize = 4;

impl Cell {
    /// A group can be aborted once it is there.
    pub fn makes_sense(self) -> bool {
        !(self.fault == Fault::Abort && self.phase == Phase::Start)
    }

    pub fn test(self) -> Result<(), Failed> {
        let rounds = std::env::var("MLXD_TEST_ROUNDS").ok().and_then(|n| n.parse().ok());
        // Rank 0 is not like others in a start; rank 2 is alone on its host where there are several.
        for victim in [0, 2].into_iter().cycle().take(rounds.unwrap_or(2)) {
            let slowest = self.once(victim).map_err(|e| format!("victim {victim}: {e}"))?;
            table::add(self, slowest);
        }
        Ok(())
    }

    /// One world, one fault: seconds until the last survivor knew.
    fn once(self, victim: usize) -> Result<f64, String> {
        let network = match self.fault {
            Fault::Cut => Some(Network::new(self.transport, victim)?),
            _ => None,
        };
        let port = free_port();
        let coordinator = network.as_ref().map_or("127.0.0.1", |n| n.address(0)).to_owned();
        // The last rank never comes to the start.
        let present = if self.phase == Phase::Start { RANKS - 1 } else { RANKS };
        let mut ranks: Vec<Rank> = (0..present)
            .map(|rank| {
                let mut variables = vec![
                    ("MLXD_COORDINATOR", format!("{coordinator}:{port}")),
                    ("MLXD_WORLD_SIZE", RANKS.to_string()),
                    ("MLXD_RANK", rank.to_string()),
                ];
                let patience = if self.fault.is_silent() { SILENCE_MS } else { NEVER_MS };
                variables.push(("MLXD_PEER_TIMEOUT_MS", patience.to_string()));
                let transport = match self.transport {
                    Transport::Mixed => "auto",
                    transport => transport.name(),
                };
                variables.push(("MLXD_TRANSPORT", transport.to_owned()));
                if self.transport == Transport::Mixed && network.is_none() {
                    variables.push(("MLXD_HOST_ID", "aaba"[rank..=rank].to_owned()));
                }
                let role = format!("{} {victim}", self.phase.name());
                Rank::start(&role, &variables, network.as_ref().map(|n| n.namespace(rank)))
            })
            .collect();
        for (rank, process) in ranks.iter().enumerate() {
            process.ready().map_err(|e| format!("rank {rank}: {e}"))?;
        }
        if self.phase == Phase::Start {
            self.await_guests(&ranks[0])?;
            // Their handshakes are under way: a rank that is lost before their end is waited for.
            std::thread::sleep(4 * SETTLE);
        }
        std::thread::sleep(SETTLE);
        let happened = now();
        match (self.fault, &network) {
            (Fault::Kill, _) => ranks[victim].signal(Signal::KILL),
            (Fault::Stop, _) => ranks[victim].signal(Signal::STOP),
            (Fault::HalfClose, _) => ranks[victim].half_close(),
            (Fault::Cut, Some(network)) => network.cut()?,
            _ => ranks[victim].tell(self.fault.name()),
        }
        let mut slowest: f64 = 0.0;
        for (rank, process) in ranks.iter().enumerate().filter(|(rank, _)| *rank != victim) {
            let end = process.end().ok_or_else(|| format!("rank {rank} never knew"))?;
            self.check(&end, victim).map_err(|e| format!("rank {rank}: {e}: {end:?}"))?;
            slowest = slowest.max(end.at - happened);
        }
        for (rank, process) in ranks.iter_mut().enumerate().filter(|(rank, _)| *rank != victim) {
            match process.exit() {
                Some(status) if status.success() => {}
                other => return Err(format!("rank {rank} ended with {other:?}")),
            }
        }
        Ok(slowest)
    }

    /// Waits until all ranks but the last have come to rank 0.
    fn await_guests(self, rank_0: &Rank) -> Result<(), String> {
        // Where it listens, and its mailbox.
        let own = if self.transport == Transport::Tcp { 1 } else { 2 };
        let deadline = now() + LIMIT.as_secs_f64();
        while rank_0.sockets().len() < own + RANKS - 2 {
            if now() > deadline {
                return Err("the ranks do not come to rank 0".to_owned());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn check(self, end: &End, victim: usize) -> Result<(), String> {
        let expected =
            if self.fault == Fault::Abort { MLXD_ERROR_ABORTED } else { MLXD_ERROR_PEER_LOST };
        if end.status != expected {
            return Err(format!("status {}, not {expected}", end.status));
        }
        // The group from split has the ranks the other way round.
        let number = match self.phase {
            Phase::Split => RANKS - 1 - victim,
            _ => victim,
        };
        // Where all ranks are behind the same cable, any may be missed first.
        let any = self.fault == Fault::Cut && self.transport == Transport::Shm;
        if !any && !names_rank(&end.message, number) {
            return Err(format!("rank {number} is not named"));
        }
        Ok(())
    }
}

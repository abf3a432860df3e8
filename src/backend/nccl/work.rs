//! Operations that are under way on the device: what they came to, and how long they have been at it.

use std::sync::Weak;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Shared;
use crate::backend::End;
use crate::call::Call;
use crate::cuda::{Event, Pending};
use crate::error::{Error, Result, Status, fail};

/// 100 ms: as on the ring, long for a healthy network and short for a person; then others are told.
const FIRST_NOTICE: Duration = Duration::from_millis(100);
/// Between later notices.
const NEXT_NOTICE: Duration = Duration::from_secs(1);
/// 1 s: how long what a rank did before it left may still be on its way.
const GONE: Duration = Duration::from_secs(1);

/// Whom an operation needs.
#[derive(Clone, Copy, Debug)]
pub enum Needs {
    /// All ranks, in this call.
    All(Call),
    /// The receiver of a message and the sender of one.
    Peers([Option<usize>; 2]),
}

/// How long an operation may go on, and whom it tells.
#[derive(Debug)]
pub struct Patience {
    limit: Option<Duration>,
    since: Instant,
    notice: Duration,
    gone: Option<Instant>,
}

impl Patience {
    /// For `limit` from now on.
    pub fn new(limit: Option<Duration>) -> Patience {
        Patience { limit, since: Instant::now(), notice: FIRST_NOTICE, gone: None }
    }

    /// There was progress.
    pub fn renew(&mut self) {
        *self = Patience::new(self.limit);
    }

    /// Called now and then: the error of having waited too long, or in vain.
    pub fn wears_off(&mut self, shared: &Shared, needs: &Needs) -> Result<()> {
        let waited = self.since.elapsed();
        if waited >= self.notice {
            self.notice = waited + NEXT_NOTICE;
            if let Needs::All(call) = needs {
                shared.world.announce_stall(&shared.member, *call);
            }
        }
        if waited >= FIRST_NOTICE {
            self.look_for_the_gone(shared, needs)?;
        }
        match self.limit {
            Some(limit) if waited >= limit => {
                fail!(Timeout, "no progress for {} ms", limit.as_millis())
            }
            _ => Ok(()),
        }
    }

    /// A rank that has left does nothing any more, but what it did may still be on its way.
    fn look_for_the_gone(&mut self, shared: &Shared, needs: &Needs) -> Result<()> {
        let is_gone = |rank: &usize| shared.world.is_gone(shared.member.ranks[*rank]);
        let first = match needs {
            Needs::All(_) => (0..shared.member.ranks.len()).find(is_gone),
            Needs::Peers(peers) => peers.iter().flatten().copied().find(is_gone),
        };
        let Some(rank) = first else { return Ok(()) };
        if self.gone.get_or_insert_with(Instant::now).elapsed() < GONE {
            return Ok(());
        }
        let name = shared.world.name_as(rank, shared.member.ranks[rank]);
        fail!(PeerLost, "{name} has left, but is still needed")
    }
}

/// One operation between its two marks in a stream.
pub struct Work {
    shared: Weak<Shared>,
    name: &'static str,
    /// Whether nobody waits for it in a call, which would say where its failure was.
    streamed: bool,
    needs: Needs,
    start: Option<Event>,
    /// What it takes of the device's queue of commands.
    pub commands: usize,
    /// Where later work may wait for it.
    pub end: Event,
    state: Mutex<State>,
    known: AtomicBool,
}

struct State {
    limit: Option<Duration>,
    /// From when the device came to it.
    patience: Option<Patience>,
    outcome: Option<Result<()>>,
    told: Option<End>,
}

impl Work {
    /// An operation of this name, of so many commands, which runs after `start` and is done at `end`; `told` is told then.
    pub fn new(
        shared: Weak<Shared>,
        (name, commands): (&'static str, usize),
        needs: Needs,
        limit: Option<Duration>,
        marks: (Option<Event>, Event),
        told: Option<End>,
    ) -> Work {
        let (start, end) = marks;
        let streamed = told.is_some();
        let state = Mutex::new(State { limit, patience: None, outcome: None, told });
        let known = AtomicBool::new(false);
        Work { shared, name, commands, streamed, needs, start, end, state, known }
    }

    fn settle(&self, outcome: Result<()>) -> Result<()> {
        let mut state = self.state.lock();
        if let Some(first) = &state.outcome {
            return first.clone();
        }
        state.outcome = Some(outcome.clone());
        let told = state.told.take();
        self.known.store(true, Ordering::Release);
        drop(state);
        // May drop the group.
        if let Some(told) = told {
            told(outcome.is_ok());
        }
        outcome
    }

    /// Called now and then while it goes on: the error of having waited too long, or in vain.
    pub fn attend(&self, shared: &Shared) -> Result<()> {
        let mut state = self.state.lock();
        if state.outcome.is_some() {
            return Ok(());
        }
        if state.patience.is_none() {
            if let Some(start) = &self.start
                && !start.is_done()?
            {
                return Ok(());
            }
            state.patience = Some(Patience::new(state.limit));
        }
        match &mut state.patience {
            Some(patience) => patience.wears_off(shared, &self.needs),
            None => Ok(()),
        }
    }

    fn find_out(&self) -> Option<Result<()>> {
        let Some(shared) = self.shared.upgrade() else {
            return Some(Err(Error::new(Status::Aborted, "the group was freed")));
        };
        let inside = shared.context.enter();
        let outcome = match inside.and_then(|_inside| self.end.is_done()) {
            Ok(true) => shared.verdict().or_else(|| shared.has_given_up())?,
            Ok(false) => shared.has_given_up()?,
            Err(e) => Err(shared.fail_now(e)),
        };
        Some(match self.streamed {
            true => outcome.map_err(|e| e.at(shared.scene(self.name))),
            false => outcome,
        })
    }
}

impl Pending for Work {
    fn look(&self) -> Option<Result<()>> {
        if !self.is_known() {
            let outcome = self.find_out()?;
            return Some(self.settle(outcome));
        }
        self.state.lock().outcome.clone()
    }

    fn is_known(&self) -> bool {
        self.known.load(Ordering::Acquire)
    }
}

//! Collectives, at the board or over links.

use super::{Ground, Linked};
use crate::backend::{Collective, Limits};
use crate::call::{Call, Header, Verb, mismatch};
use crate::collective::board::Runner;
use crate::collective::board::wait::Waiting;
use crate::collective::drive::{Patience, drive};
use crate::collective::engine::{Engine, Job};
use crate::collective::links::Links;
use crate::collective::{choose_at_board, plan, reduction, streams};
use crate::error::Result;
use crate::reduce::kernel;
use crate::thread::quietly;

impl Linked {
    /// Runs a collective.
    ///
    /// # Safety
    /// As for [`Backend::run`](crate::backend::Backend::run).
    pub(super) unsafe fn collective(
        &self,
        call: Call,
        collective: &Collective,
        limits: Limits,
    ) -> Result<()> {
        let (before, wrong) = self.member.calls.begin(call);
        if let Some((peer, theirs)) = wrong {
            return Err(self.failed(mismatch(self.rank, &call, peer, &theirs), None));
        }
        if call.count == 0 && call.verb != Verb::Barrier {
            return Ok(());
        }
        let header = Header { call, before };
        let job = Job {
            input: collective.input,
            output: collective.output,
            size: collective.dtype.size(),
            kernel: reduction(call.verb).map(|reduction| kernel(reduction, collective.dtype)),
            rank: self.rank,
            sent: header,
            expected: header,
        };
        // SAFETY: the caller vouches for the memory.
        unsafe {
            match &mut *self.ground.lock() {
                Ground::Board(runner) => self.at_board(runner, &job, limits),
                Ground::Links(engine, links) => self.over_links(engine, links, job, limits),
            }
        }
    }

    unsafe fn at_board(&self, runner: &mut Runner, job: &Job, limits: Limits) -> Result<()> {
        let (call, size) = (&job.sent.call, self.member.ranks.len());
        let waiting = Waiting {
            limit: limits.operation,
            spin: self.spin,
            health: &self.member.health,
            notify: &|| self.world.announce_stall(&self.member, *call),
            has_left: &|peer| self.world.is_gone(self.member.ranks[peer]),
        };
        let pattern = choose_at_board(call, size, runner.slot_bytes());
        let outcome = quietly(|| {
            // SAFETY: the caller vouches for the memory; patterns stay within it.
            unsafe { runner.run(job, pattern, streams(call, size), &waiting) }
        });
        outcome.unwrap_or_else(Err).map_err(|e| self.failed(e, runner.broke_with()))
    }

    unsafe fn over_links(
        &self,
        engine: &mut Engine,
        links: &mut Links,
        job: Job,
        limits: Limits,
    ) -> Result<()> {
        let call = job.sent.call;
        let schedule = plan(&call, self.rank, self.member.ranks.len(), self.topology);
        let notify = || {
            self.world.announce_stall(&self.member, call);
            self.look_around();
        };
        let mut patience = Patience::new(limits.operation, &notify);
        // A panic must leave no posts behind that point into the caller's memory.
        let outcome = quietly(|| {
            self.connect(links, &schedule.peers(), patience.deadline())?;
            engine.begin(&schedule, job, links)?;
            // SAFETY: the caller vouches for the memory; schedules stay within it.
            unsafe { drive(engine, links, &self.member.health, &mut patience, self.spin) }
        });
        outcome.unwrap_or_else(Err).map_err(|e| self.broken(e, engine, links))
    }
}

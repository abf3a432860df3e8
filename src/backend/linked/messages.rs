//! Messages: sends and receives, over lanes of their own.

use super::Linked;
use crate::backend::{Limits, Message};
use crate::call::{Call, Header, Verb};
use crate::collective::drive::{Patience, drive};
use crate::collective::engine::Job;
use crate::collective::links::{Links, Way};
use crate::collective::schedule::{Buffer, Schedule, Span, Step};
use crate::control::Purpose;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::thread::quietly;

impl Linked {
    /// A send, a receive, or both at once.
    ///
    /// # Safety
    /// As for [`Backend::run`](crate::backend::Backend::run).
    pub(super) unsafe fn exchange(
        &self,
        dtype: Dtype,
        send: Option<Message<*const u8>>,
        recv: Option<Message<*mut u8>>,
        limits: Limits,
    ) -> Result<()> {
        let notify = || {
            if let Some(send) = send {
                self.world.announce_send(&self.member, send.peer);
            }
            if let Some(recv) = recv {
                self.world.announce_recv(&self.member, recv.peer);
            }
            self.look_around();
        };
        let limit = if send.is_none() { limits.recv } else { limits.operation };
        let mut patience = Patience::new(limit, &notify);
        let mut links = Links::new(self.fabric.lanes());
        let mut schedule = Schedule::default();
        let all = |buffer, len| Span { buffer, start: 0, len };
        if let Some(send) = send {
            let known = self.lanes.lock().remove(&(send.peer, Way::Out));
            let lanes = match known {
                Some(lanes) => lanes,
                None => self
                    .call(send.peer, Purpose::Message, patience.deadline())
                    .map_err(|e| self.failed(e, Some(send.peer)))?,
            };
            links.add(send.peer, &[Way::Out], lanes);
            schedule.steps.push(Step::Send { to: send.peer, from: all(Buffer::Input, send.count) });
        }
        if let Some(recv) = recv {
            let known = self.lanes.lock().remove(&(recv.peer, Way::In));
            let lanes = match known {
                Some(lanes) => lanes,
                None => self
                    .await_call(recv.peer, Purpose::Message)
                    .map_err(|e| self.failed(e, Some(recv.peer)))?,
            };
            links.add(recv.peer, &[Way::In], lanes);
            let into = all(Buffer::Output, recv.count);
            schedule.steps.push(Step::Recv { from: recv.peer, into });
        }
        let call = |sequence, count: usize| {
            let (dtype, count) = (dtype as u8, count as u64);
            let call = Call { sequence, verb: Verb::Message, dtype, root: -1, count };
            Header { call, before: None }
        };
        let job = Job {
            input: send.map_or(std::ptr::null(), |m| m.memory),
            output: recv.map_or(std::ptr::null_mut(), |m| m.memory),
            size: dtype.size(),
            kernel: None,
            rank: self.rank,
            sent: send.map_or(call(0, 0), |m| call(m.sequence, m.count)),
            expected: recv.map_or(call(0, 0), |m| call(m.sequence, m.count)),
        };
        let mut engine = self.engines.lock().pop().unwrap_or_default();
        let outcome = quietly(|| {
            engine.begin(&schedule, job, &links)?;
            // SAFETY: the caller vouches for the memory of both messages.
            unsafe { drive(&mut engine, &mut links, &self.member.health, &mut patience, self.spin) }
        });
        outcome.unwrap_or_else(Err).map_err(|e| self.broken(e, &engine, &mut links))?;
        self.engines.lock().push(engine);
        let mut used = links.take().into_iter();
        let mut known = self.lanes.lock();
        let ends = [send.map(|m| (m.peer, Way::Out)), recv.map(|m| (m.peer, Way::In))];
        for end in ends.into_iter().flatten() {
            known.insert(end, used.by_ref().take(self.fabric.lanes()).collect());
        }
        Ok(())
    }
}

//! How an operation gets on a stream: one at a time, behind the group's last one, between two marks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::work::{Needs, Patience, Work};
use crate::backend::{Collective, End, Limits, Message, Operation};
use crate::call::{Call, Header, Verb};
use crate::control::Topic;
use crate::cuda::{Pending, Stream, StreamHandle, pause};
use crate::dtype::Dtype;
use crate::error::{Result, fail};
use crate::wait::Deadline;

/// 400 commands of a group: a device's queue takes about 1000, then the next one blocks; one group is not to be what
/// fills it, since a call that blocks in the driver returns only when the device goes on. Three groups on one stream
/// can; the abort of a group that fails does not wait for such a call, unless that is NCCL's own.
const UNDER_WAY: usize = 400;
/// Commands of an operation: the call of NCCL's, its marks, a wait for another stream.
const COMMANDS: usize = 4;
/// How often one that waits for its turn looks whether the group has failed meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// What is known of the last launch.
#[derive(Default)]
pub struct Launch {
    last: Option<(StreamHandle, Arc<Work>)>,
}

impl Shared {
    /// What an operation comes to that the device has no part in, or before it has: a split, whose bytes go
    /// over the control plane; a call that differs from other ranks'. `None` if it is to be launched.
    pub(super) fn on_the_host(&self, operation: &Operation, limits: Limits) -> Option<Result<()>> {
        match operation {
            Operation::Collective { sequence, collective } => {
                let call = collective.call(*sequence);
                let (before, wrong) = self.member.calls.begin(call);
                if let Some((peer, theirs)) = wrong {
                    return Some(Err(crate::call::mismatch(self.rank, &call, peer, &theirs)));
                }
                let deadline = Deadline::after(limits.operation);
                if self.check
                    && let Err(e) = self.compare_calls(Header { call, before }, deadline)
                {
                    return Some(Err(e));
                }
                let is_split = collective.verb == Verb::Split;
                is_split.then(|| self.tell_all(*sequence, collective, deadline))
            }
            Operation::Exchange { dtype, send, recv } => {
                if self.check
                    && let Err(e) = self.compare_messages(*dtype, *send, *recv, limits)
                {
                    return Some(Err(e));
                }
                None
            }
        }
    }

    /// A gather of what each rank gives to a split.
    fn tell_all(&self, sequence: u64, collective: &Collective, deadline: Deadline) -> Result<()> {
        let bytes = collective.count * collective.dtype.size();
        let (health, topic) = (&self.member.health, Topic::Split(sequence));
        // SAFETY: `split::agree` gives so many bytes of its own.
        let own = unsafe { std::slice::from_raw_parts(collective.input, bytes) };
        let all = self.world.exchange(&self.member, topic, own, health, deadline)?;
        for (rank, theirs) in all.iter().enumerate() {
            if theirs.len() != bytes {
                fail!(Internal, "rank {rank} told {} bytes in a split", theirs.len());
            }
            // SAFETY: and has room for as many of each rank.
            unsafe { collective.output.add(rank * bytes).copy_from(theirs.as_ptr(), bytes) };
        }
        Ok(())
    }

    /// MLXD_CHECK: fails where another rank of the group calls something else at this place.
    fn compare_calls(&self, ours: Header, deadline: Deadline) -> Result<()> {
        let (health, topic) = (&self.member.health, Topic::Call(ours.call.sequence));
        let all = self.world.exchange(&self.member, topic, &ours.encode(), health, deadline)?;
        for (peer, theirs) in all.iter().enumerate() {
            match theirs.as_slice().try_into().ok().and_then(Header::decode) {
                Some(theirs) if theirs == ours => {}
                Some(theirs) => return Err(ours.mismatch(self.rank, peer, &theirs)),
                None => fail!(Mismatch, "rank {peer} told no call"),
            }
        }
        Ok(())
    }

    /// MLXD_CHECK: fails where the message that a peer sends is not what is received.
    fn compare_messages(
        &self,
        dtype: Dtype,
        send: Option<Message<*const u8>>,
        recv: Option<Message<*mut u8>>,
        limits: Limits,
    ) -> Result<()> {
        let (deadline, health) =
            (Deadline::after(self.limit_of(&send, limits)), &self.member.health);
        let header = |sequence, count: usize| {
            let (dtype, count) = (dtype as u8, count as u64);
            Header {
                call: Call { sequence, verb: Verb::Message, dtype, root: -1, count },
                before: None,
            }
        };
        let sent = send.map(|m| (m.peer, header(m.sequence, m.count)));
        let awaited = recv.map(|m| (m.peer, header(m.sequence, m.count)));
        let tell = |(peer, ours): (usize, Header), topic: fn(u64) -> Topic| {
            self.world.tell_record(
                &self.member,
                &[peer],
                topic(ours.call.sequence),
                &ours.encode(),
            );
        };
        sent.iter().for_each(|side| tell(*side, Topic::Send));
        awaited.iter().for_each(|side| tell(*side, Topic::Recv));
        let hear = |(peer, ours): (usize, Header), topic: fn(u64) -> Topic| {
            let topic = topic(ours.call.sequence);
            let told = self.world.await_record(&self.member, peer, topic, health, deadline)?;
            match told.as_slice().try_into().ok().and_then(Header::decode) {
                Some(theirs) => Ok((peer, ours, theirs)),
                None => fail!(Mismatch, "rank {peer} told no call"),
            }
        };
        if let Some(side) = sent {
            let (peer, ours, theirs) = hear(side, Topic::Recv)?;
            if theirs != ours {
                return Err(theirs.mismatch(peer, self.rank, &ours));
            }
        }
        if let Some(side) = awaited {
            let (peer, ours, theirs) = hear(side, Topic::Send)?;
            if theirs != ours {
                return Err(ours.mismatch(self.rank, peer, &theirs));
            }
        }
        Ok(())
    }

    fn limit_of(&self, send: &Option<Message<*const u8>>, limits: Limits) -> Option<Duration> {
        if send.is_none() { limits.recv } else { limits.operation }
    }

    /// Puts an operation on a stream: the caller's, or ours, which goes on when the legacy default stream has
    /// come to where it is now. What is under way then; `None` if nothing is.
    ///
    /// # Safety
    /// The operation's memory is the device's until what is returned is known, or this has failed.
    pub(super) unsafe fn launch(
        self: &Arc<Self>,
        operation: &Operation,
        limits: Limits,
        stream: Option<&Stream>,
        mut told: Option<End>,
    ) -> Result<Option<Arc<Work>>> {
        let commands = self.commands(operation);
        let prepared = self.await_turn(commands).and_then(|turn| Ok((turn, self.context.enter()?)));
        let (mut turn, _inside) = match prepared {
            Ok(prepared) => prepared,
            Err(e) => {
                told.into_iter().for_each(|told| told(false));
                return Err(e);
            }
        };
        let (limit, needs) = match operation {
            Operation::Collective { sequence, collective } => {
                (limits.operation, Needs::All(collective.call(*sequence)))
            }
            Operation::Exchange { send, recv, .. } => {
                let peers = [send.map(|m| m.peer), recv.map(|m| m.peer)];
                (self.limit_of(send, limits), Needs::Peers(peers))
            }
        };
        let handle = stream.map_or(self.stream, |stream| stream.handle);
        let begun = self.begin(&turn, handle, stream.is_none(), limit.is_some());
        let (start, issued) = match begun {
            // SAFETY: as this function's contract says.
            Ok(start) => (start, unsafe { self.issue(operation, handle, limit, &needs) }),
            Err(e) => (None, Err(e)),
        };
        // What is on the stream already must be known to be over, also after a failure; and NCCL, which may be
        // about to put more there, is done with it once the communicator has ended.
        let cause = issued.err().map(|e| self.failed(e));
        let given_up = cause.as_ref().and_then(|_| self.await_release().err());
        let end = match self.events.record(handle) {
            Ok(end) => end,
            Err(e) => {
                told.into_iter().for_each(|told| told(false));
                return Err(cause.unwrap_or_else(|| self.failed(e)));
            }
        };
        let (weak, name) = (Arc::downgrade(self), operation.name());
        let answer = if cause.is_some() { None } else { told.take() };
        let work = Arc::new(Work::new(weak, (name, commands), needs, limit, (start, end), answer));
        turn.last = Some((handle, work.clone()));
        drop(turn);
        self.watch(work.clone());
        let Some(cause) = cause else { return Ok(Some(work)) };
        let outcome = self.wait_for(&work);
        told.into_iter().for_each(|told| told(false));
        // The same cause, which may add that the device still has the buffers.
        Err(given_up.or(outcome.err()).unwrap_or(cause))
    }

    /// What an operation takes of the device's queue at once, at most.
    fn commands(&self, operation: &Operation) -> usize {
        match operation {
            Operation::Collective { collective, .. } => COMMANDS + self.staged_commands(collective),
            Operation::Exchange { .. } => COMMANDS,
        }
    }

    /// Waits until the communicator of a group that has failed has ended; fails if that takes too long.
    fn await_release(&self) -> Result<()> {
        let since = Instant::now();
        while !self.comm.is_gone() {
            if let Some(outcome) = self.has_given_up() {
                return outcome;
            }
            pause(since, false);
        }
        Ok(())
    }

    /// The place behind the group's last operation, when there is room for one of so many commands.
    fn await_turn(&self, commands: usize) -> Result<parking_lot::MutexGuard<'_, Launch>> {
        let turn = loop {
            self.member.health.check()?;
            if let Some(turn) = self.launch.try_lock_for(LOOK) {
                break turn;
            }
        };
        let since = Instant::now();
        loop {
            let under_way = {
                let mut pending = self.pending.lock();
                if pending.commands + commands > UNDER_WAY {
                    pending.prune();
                }
                if pending.commands + commands <= UNDER_WAY || pending.work.is_empty() {
                    return Ok(turn);
                }
                pending.work.clone()
            };
            self.member.health.check()?;
            // Those after the first that goes on do so, too.
            if under_way.iter().take_while(|work| work.look().is_some()).count() == 0 {
                pause(since, self.world.has_core_each);
            }
        }
    }

    /// Waits until the device has come to what was put on the stream so far.
    pub(super) fn catch_up(
        &self,
        stream: StreamHandle,
        patience: &mut Patience,
        needs: &Needs,
    ) -> Result<()> {
        let (mark, since) = (self.events.record(stream)?, Instant::now());
        while !mark.is_done()? {
            self.member.health.check()?;
            patience.wears_off(self, needs)?;
            pause(since, false);
        }
        patience.renew();
        Ok(())
    }

    /// Orders what comes next on this stream, and marks where it starts.
    fn begin(
        &self,
        turn: &Launch,
        handle: StreamHandle,
        after_legacy: bool,
        marked: bool,
    ) -> Result<Option<crate::cuda::Event>> {
        if after_legacy {
            self.events.record(StreamHandle::LEGACY)?.hold_up(handle)?;
        }
        if let Some((last, work)) = &turn.last
            && *last != handle
            && !work.is_known()
        {
            work.end.hold_up(handle)?;
        }
        marked.then(|| self.events.record(handle)).transpose()
    }

    /// Asks NCCL for it, if there is anything to do.
    unsafe fn issue(
        &self,
        operation: &Operation,
        stream: StreamHandle,
        limit: Option<Duration>,
        needs: &Needs,
    ) -> Result<()> {
        let mut patience = Patience::new(limit);
        // SAFETY: as for `launch`.
        unsafe {
            match operation {
                Operation::Collective { collective, .. }
                    if collective.count == 0 && collective.verb != Verb::Barrier =>
                {
                    Ok(())
                }
                Operation::Collective { collective, .. } => {
                    self.collective(collective, stream, &mut patience, needs)
                }
                Operation::Exchange { dtype, send, recv } => {
                    self.exchange(*dtype, *send, *recv, stream, &mut patience, needs)
                }
            }
        }
    }

    /// Waits for work that is watched.
    pub(super) fn wait_for(&self, work: &Work) -> Result<()> {
        let since = Instant::now();
        loop {
            if let Some(outcome) = work.look() {
                return outcome;
            }
            pause(since, self.world.has_core_each);
        }
    }
}

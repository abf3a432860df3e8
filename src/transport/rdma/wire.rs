//! A wire's life: from a queue pair that nobody knows to one that is at its end.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::buffers::{MOST, ROOMS, Rooms, Slabs};
use super::channel::Channel;
use super::control::Control;
use super::greeting::Orphan;
use super::message::Kind as Said;
use super::{BUFFER, CONTROL, Introduction, WIRE_RECEIVES};
use crate::error::{Error, Result, Status, fail};
use crate::verbs::abi::{ibv_sge, ibv_wc};
use crate::verbs::device::Device;
use crate::verbs::lending::Lease;
use crate::verbs::queue_pair::{Kind, Plan, Queue, QueuePair, Remote};
use crate::wait::Deadline;

/// 256 bytes: what most headers of calls with the data of small ones take.
const INLINE: u32 = 256;
/// How long a queue pair that was stopped may take to give back the next of what was posted.
pub(super) const FLUSH: Duration = Duration::from_millis(20);
/// Between two looks meanwhile.
pub(super) const PAUSE: Duration = Duration::from_micros(200);

/// A queue pair with its buffers, which knows no other end yet.
pub struct Stub {
    pair: QueuePair,
    device: Arc<Device>,
    state: State,
    first_packet: u32,
    probes: bool,
}

/// What a wire's threads share.
pub(super) struct State {
    pub(super) slabs: Slabs,
    pub(super) rooms: Rooms,
    pub(super) channels: HashMap<u32, Channel>,
    /// The channel that is none of those.
    pub(super) control: Control,
    /// Whether a probe is under way.
    pub(super) probing: bool,
    /// The number of the next channel: never one that was there before.
    pub(super) next: u32,
    /// Messages sent and received.
    pub(super) sent: u32,
    pub(super) heard: u32,
    /// Whether the peer has said hello, and this end.
    pub(super) met: bool,
    pub(super) greeted: bool,
    /// Whether the peer has said goodbye, and this end.
    pub(super) left: bool,
    pub(super) said: bool,
    /// This end is to say goodbye, as soon as it can.
    pub(super) leaving: bool,
    /// Why it is of no more use.
    pub(super) end: Option<Error>,
    /// Receives to post again.
    pub(super) reposts: Vec<(u64, ibv_sge)>,
    /// Channels whose last message waits for a room.
    pub(super) closing: Vec<u32>,
    /// Channels that were given up before the peer told its number.
    pub(super) orphans: Vec<Orphan>,
    /// When something was answered last, or sent while nothing was under way.
    pub(super) answered: Instant,
    /// What was sent.
    pub(super) bytes: Bytes,
    /// Memory of callers that the device did not give back.
    pub(super) stranded: Vec<Lease>,
}

/// Data that was sent over a wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// From rooms that it was copied to.
    pub copied: u64,
    /// From where it was.
    pub lent: u64,
}

/// What is registered for a wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registered {
    /// Memory regions.
    pub regions: usize,
    /// Their bytes.
    pub bytes: usize,
}

impl Stub {
    /// A queue pair on this device, `None`: of type rc, unless the device has no such.
    pub fn new(device: &Arc<Device>, kind: Option<Kind>) -> Result<Stub> {
        Stub::of_at_most(None, device, kind)
    }

    /// The same, if this process has less than `most` on the device.
    pub fn spare(most: usize, device: &Arc<Device>, kind: Option<Kind>) -> Result<Stub> {
        Stub::of_at_most(Some(most), device, kind)
    }

    fn of_at_most(
        queue_pairs: Option<usize>,
        device: &Arc<Device>,
        kind: Option<Kind>,
    ) -> Result<Stub> {
        let most = MOST.min(device.max_requests as usize).min(device.max_completions as usize);
        // Beside them there is a probe.
        let sends = (ROOMS + 1).min(device.max_requests as usize);
        let sends = sends.min(device.max_completions as usize);
        let rooms = sends.saturating_sub(1).max(1);
        let plan = Plan {
            kind,
            most: queue_pairs,
            sends: sends as u32,
            recvs: most as u32,
            inline_bytes: INLINE,
        };
        let pair = QueuePair::new(device, plan)?;
        let first_packet =
            getrandom::u32().map_err(|e| Error::new(Status::System, format!("getrandom: {e}")))?;
        let state = State {
            slabs: Slabs::new(most),
            rooms: Rooms::new(device, rooms)?,
            channels: HashMap::new(),
            control: Control::new(),
            probing: false,
            next: CONTROL + 1,
            sent: 0,
            heard: 0,
            met: false,
            greeted: false,
            left: false,
            said: false,
            leaving: false,
            end: None,
            reposts: Vec::new(),
            closing: Vec::new(),
            orphans: Vec::new(),
            answered: Instant::now(),
            bytes: Bytes::default(),
            stranded: Vec::new(),
        };
        let first_packet = first_packet & 0xff_ffff;
        let probes = sends > rooms;
        let mut stub = Stub { pair, device: device.clone(), state, first_packet, probes };
        let Some(requests) = stub.state.slabs.promise(device, WIRE_RECEIVES)? else {
            fail!(Unavailable, "{} takes no receives", device.name);
        };
        // SAFETY: the slabs are in the state, which goes after the queue pair; a buffer is touched only
        // once its receive has completed.
        unsafe { stub.pair.post_recvs(&requests)? };
        Ok(stub)
    }

    /// The name of its device.
    pub fn device(&self) -> &str {
        &self.device.name
    }

    /// What the other end must know of it.
    pub fn introduction(&self) -> Introduction {
        Introduction {
            kind: self.pair.kind,
            partition: self.device.partition,
            remote: Remote {
                number: self.pair.number(),
                first_packet: self.first_packet,
                address: self.device.address,
                mtu: self.device.mtu,
            },
        }
    }

    /// Connects it. Nothing may be sent before the other end has done the same. `peer` is the other end,
    /// for messages: `rank 1 (10.0.0.2:5001)`.
    pub fn connect(self, theirs: &Introduction, peer: &str) -> Result<Wire> {
        self.introduction().require_match(theirs)?;
        self.pair.connect(self.first_packet, &theirs.remote).map_err(|e| {
            e.at(format_args!("from {} to {}", self.device.address, theirs.remote.address))
        })?;
        let Stub { pair, device, state, .. } = self;
        let name = format!("{peer} over {}", device.name);
        let probes = self.probes;
        Ok(Wire { name, pair, device, state: Mutex::new(state), probes })
    }
}

/// One queue pair to one peer, shared by all channels to it.
pub struct Wire {
    /// The far end and the way there, for messages: `rank 1 (10.0.0.2:5001) over rxe0`.
    pub(super) name: String,
    // In this order: the device must not use memory that is gone.
    pub(super) pair: QueuePair,
    pub(super) state: Mutex<State>,
    pub(super) device: Arc<Device>,
    /// Whether there is a place for a probe beside the rooms.
    pub(super) probes: bool,
}

impl Wire {
    /// The type of its queue pair.
    pub fn kind(&self) -> Kind {
        self.pair.kind
    }

    /// The name of its device.
    pub fn device(&self) -> &str {
        &self.device.name
    }

    /// What is registered for it now.
    pub fn registered(&self) -> Registered {
        let state = self.state.lock();
        let buffers = state.slabs.total() + state.rooms.total();
        Registered { regions: state.slabs.regions() + 1, bytes: buffers * BUFFER }
    }

    /// Sends the first message, once the other end can receive: what was connected need not lead
    /// anywhere.
    pub fn say_hello(&self) {
        let mut state = self.state.lock();
        if !std::mem::replace(&mut state.greeted, true) {
            self.say(&mut state, Said::Hello);
        }
    }

    /// Whether the other end's has come; else its coming makes the descriptor ready.
    pub fn has_met(&self) -> Result<bool> {
        let mut state = self.state.lock();
        self.answer_events(&mut state);
        if let Err(e) = self.pair.arm(Queue::Recv) {
            self.fail(&mut state, e);
        }
        self.look(&mut state);
        match &state.end {
            Some(end) => Err(end.clone()),
            None => Ok(state.met),
        }
    }

    /// It leads nowhere: nobody uses it any more.
    pub fn give_up(&self, cause: Error) {
        let mut state = self.state.lock();
        self.fail(&mut state, cause);
    }

    /// Tells the peer that nothing more comes; the end of all channels. Where nothing can be sent now,
    /// [`Wire::settle`] does.
    pub fn say_goodbye(&self) {
        let mut state = self.state.lock();
        state.leaving = true;
        self.leave(&mut state);
    }

    /// Says goodbye where this end is to, behind records that wait, as far as they can go.
    fn leave(&self, state: &mut State) {
        self.look(state);
        if state.leaving && !state.is_over() {
            state.said = self.say(state, Said::Goodbye);
        }
    }

    /// Whether the peer has said goodbye.
    pub fn has_left(&self) -> bool {
        let mut state = self.state.lock();
        self.look(&mut state);
        state.left
    }

    /// Waits until the peer's device has what was sent, or nobody is there to have it.
    pub fn settle(&self, deadline: Deadline) {
        loop {
            let mut state = self.state.lock();
            if state.end.is_none()
                && let Err(e) = self.free_rooms(&mut state)
            {
                self.fail(&mut state, e);
            }
            self.leave(&mut state);
            let all_said = state.said || !state.leaving;
            let all_sent = all_said && state.rooms.free() == state.rooms.total();
            if all_sent || state.left || state.end.is_some() {
                return;
            }
            if deadline.passed() {
                let word = if all_said { "sent" } else { "said" };
                return log::warn!("the goodbye to {} was not {word} in time", self.name);
            }
            drop(state);
            std::thread::sleep(PAUSE);
        }
    }
}

impl AsFd for Wire {
    /// Ready to read once a queue that was armed has something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pair.as_fd()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // Once stopped, it gives back all that is posted; then there is nothing that the device could
        // still write to.
        let state = self.state.get_mut();
        let Bytes { copied, lent } = state.bytes;
        log::debug!("sent to {}: {copied} bytes were copied, {lent} lent", self.name);
        if let Err(e) = self.pair.stop() {
            log::debug!("queue pair to {}: {e}", self.name);
            return;
        }
        // Buffers that have landed are not posted.
        let landed: usize = state.channels.values().map(|channel| channel.landed.len()).sum();
        let sending = state.rooms.total() - state.rooms.free() + usize::from(state.probing);
        let mut left = (state.slabs.total() + sending).saturating_sub(landed);
        let mut deadline = Deadline::after(Some(FLUSH));
        let mut done = [ibv_wc::default(); 16];
        while left > 0 && !deadline.passed() {
            let mut poll = |queue| self.pair.poll(queue, &mut done).unwrap_or(0);
            match poll(Queue::Recv) + poll(Queue::Send) {
                0 => std::thread::sleep(PAUSE),
                count => {
                    left = left.saturating_sub(count);
                    deadline = Deadline::after(Some(FLUSH));
                }
            }
        }
    }
}

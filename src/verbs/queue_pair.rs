//! A queue pair with its two completion queues, and the channel by which they wake who waits.

use std::ffi::{c_int, c_uint};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::abi::*;
use super::address::{AddressKind, PortAddress};
use super::device::{Device, check};
use super::tally::Counted;
use crate::error::{Error, Result, Status, fail};

/// 2^16 x 4.096 us, 0.27 s and by the standard up to 1 s, without an answer before a packet is sent again, 6 times: so a peer whose
/// host is busy is not given up for that. That one is gone is noticed elsewhere, and sooner.
const TIMEOUT: u8 = 16;
/// Times to send again: 7, the most, is without end to Soft-RoCE.
const RETRIES: u8 = 6;
/// Without end, where a receiver says that it is not ready: by credits it always is.
const NOT_READY_RETRIES: u8 = 7;
/// 0.64 ms, by InfiniBand's table, before the sender tries again then.
const NOT_READY_TIMER: u8 = 12;
/// Hops between the networks of RoCE v2 and of global addresses.
const HOPS: u8 = 64;
/// 24 bits: how far packets are numbered.
const PACKET_NUMBERS: u32 = 0xff_ffff;
/// Pieces of memory that a message is made of, where devices allow: a header and the caller's bytes.
const SEND_PIECES: u32 = 2;

/// What drivers say to a queue pair that they cannot make, whatever is free.
const REFUSED: [i32; 4] = [libc::EINVAL, libc::ENOSYS, libc::EOPNOTSUPP, libc::EPROTONOSUPPORT];

/// Whether the hardware sends again what was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reliable connection: it does.
    Rc,
    /// Unreliable connection: it does not; Thunderbolt has no other.
    Uc,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Rc => "rc",
            Kind::Uc => "uc",
        })
    }
}

/// What a queue pair is to be.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// `None`: reliable, unless the device has no such.
    pub kind: Option<Kind>,
    /// Queue pairs that this process may have on the device then, if it is not to have any number.
    pub most: Option<usize>,
    /// Sends under way at once, at most.
    pub sends: u32,
    /// Receives posted at once, at most.
    pub recvs: u32,
    /// Bytes that may go inside a request, where the device takes them.
    pub inline_bytes: u32,
}

/// One of the two completion queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// What was received.
    Recv,
    /// What was sent.
    Send,
}

/// The other end, as it tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Its queue pair.
    pub number: u32,
    /// With which packet number it begins.
    pub first_packet: u32,
    /// How it is reached.
    pub address: PortAddress,
    /// How long packets may be, as `enum ibv_mtu` counts.
    pub mtu: u32,
}

/// A queue pair. Its memory must outlive it: see [`QueuePair::post_recvs`].
pub struct QueuePair {
    pub(super) qp: NonNull<ibv_qp>,
    /// Whether it is reliable.
    pub kind: Kind,
    /// Bytes that may go inside a request.
    pub inline_bytes: usize,
    /// Pieces of memory that a message may be made of: 1 or 2.
    pub send_pieces: u32,
    queues: Queues,
    _counted: Counted,
}

// SAFETY: verbs may be called from any thread; the rest is plain data.
unsafe impl Send for QueuePair {}
// SAFETY: as above.
unsafe impl Sync for QueuePair {}

/// Completion queues: they go after the queue pair.
struct Queues {
    recv: NonNull<ibv_cq>,
    send: NonNull<ibv_cq>,
    channel: Channel,
}

/// The way to wake who waits: it goes after the completion queues.
struct Channel {
    channel: NonNull<ibv_comp_channel>,
    device: Arc<Device>,
}

impl Channel {
    fn new(device: &Arc<Device>) -> Result<Channel> {
        // SAFETY: the context is open as long as the device is there.
        let made = unsafe { (device.functions.create_comp_channel)(device.context.as_ptr()) };
        let Some(channel) = NonNull::new(made) else {
            return Err(failed(device, "ibv_create_comp_channel"));
        };
        let channel = Channel { channel, device: device.clone() };
        let flags = fcntl_getfl(channel.as_fd()).map_err(|e| Error::system("F_GETFL", e))?;
        fcntl_setfl(channel.as_fd(), flags | OFlags::NONBLOCK)
            .map_err(|e| Error::system("F_SETFL", e))?;
        Ok(channel)
    }

    /// A completion queue that tells this channel.
    fn queue(&self, entries: u32) -> Result<NonNull<ibv_cq>> {
        let entries = entries.min(self.device.max_completions) as c_int;
        let (context, none) = (self.device.context.as_ptr(), std::ptr::null_mut());
        // SAFETY: context and channel are open as long as this is there.
        let made = unsafe {
            (self.device.functions.create_cq)(context, entries, none, self.channel.as_ptr(), 0)
        };
        NonNull::new(made).ok_or_else(|| failed(&self.device, "ibv_create_cq"))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel's descriptor is open as long as it is.
        unsafe { BorrowedFd::borrow_raw(self.channel.as_ref().fd) }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: made by us, ended once, after the completion queues.
        unsafe { (self.device.functions.destroy_comp_channel)(self.channel.as_ptr()) };
    }
}

impl Drop for Queues {
    fn drop(&mut self) {
        // SAFETY: made by us, ended once, after the queue pair; every event was acknowledged.
        unsafe {
            (self.channel.device.functions.destroy_cq)(self.send.as_ptr());
            (self.channel.device.functions.destroy_cq)(self.recv.as_ptr());
        }
    }
}

fn failed(device: &Device, what: &str) -> Error {
    let e = std::io::Error::last_os_error();
    Error::new(Status::Backend, format!("{what} on {}: {e}", device.name))
}

impl QueuePair {
    /// A new one, ready to have receives posted.
    pub fn new(device: &Arc<Device>, plan: Plan) -> Result<QueuePair> {
        let most = plan.most.unwrap_or(usize::MAX);
        let Some(counted) = Counted::new(&device.name, most) else {
            fail!(
                Unavailable,
                "all {most} queue pairs of this process on {} are in use",
                device.name
            );
        };
        let channel = Channel::new(device)?;
        let recv = channel.queue(plan.recvs)?;
        let send = match channel.queue(plan.sends) {
            Ok(send) => send,
            Err(e) => {
                // SAFETY: made above, and nothing uses it.
                unsafe { (device.functions.destroy_cq)(recv.as_ptr()) };
                return Err(e);
            }
        };
        let queues = Queues { recv, send, channel };
        let kinds: &[Kind] = match plan.kind {
            Some(Kind::Rc) => &[Kind::Rc],
            Some(Kind::Uc) => &[Kind::Uc],
            None => &[Kind::Rc, Kind::Uc],
        };
        let mut why = Error::new(Status::Internal, "no type");
        for kind in kinds {
            // A driver that cannot take so many bytes inline, or pieces, refuses the whole.
            let (inline, pieces) = (plan.inline_bytes, device.max_pieces.clamp(1, SEND_PIECES));
            for (inline, pieces) in [(inline, pieces), (0, pieces), (inline, 1), (0, 1)] {
                let e =
                    match queues.queue_pair(*kind, Plan { inline_bytes: inline, ..plan }, pieces) {
                        Ok((qp, inline)) => {
                            let pair = QueuePair {
                                qp,
                                kind: *kind,
                                inline_bytes: inline,
                                send_pieces: pieces,
                                queues,
                                _counted: counted,
                            };
                            pair.initialise()?;
                            return Ok(pair);
                        }
                        Err(e) => e,
                    };
                let refused = e.raw_os_error().is_some_and(|number| REFUSED.contains(&number));
                let what = format!("no queue pair of type {kind} on {}: {e}", device.name);
                why = Error::new(Status::Backend, what);
                // What failed for another reason would fail again, or must not pass unseen.
                if !refused {
                    return Err(why);
                }
            }
            log::warn!("{why}");
        }
        Err(why)
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        // SAFETY: it is there until this is dropped; nobody changes its number.
        unsafe { self.qp.as_ref() }.qp_num
    }

    pub(super) fn device(&self) -> &Device {
        &self.queues.channel.device
    }

    fn modify(&self, mut attributes: ibv_qp_attr, mask: c_uint, to: &str) -> Result<()> {
        // SAFETY: the queue pair is there; the attributes of the mask are set.
        let code = unsafe {
            (self.device().functions.modify_qp)(self.qp.as_ptr(), &mut attributes, mask as c_int)
        };
        check(&format!("ibv_modify_qp to {to} on {}", self.device().name), code)
    }

    fn initialise(&self) -> Result<()> {
        // Probes write nothing, and nothing is registered that could be written.
        let for_probes = if self.kind == Kind::Rc { IBV_ACCESS_REMOTE_WRITE } else { 0 };
        let attributes = ibv_qp_attr {
            qp_state: IBV_QPS_INIT,
            pkey_index: self.device().pkey_index,
            port_num: self.device().port,
            qp_access_flags: IBV_ACCESS_LOCAL_WRITE | for_probes,
            ..ibv_qp_attr::default()
        };
        let mask = IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS;
        self.modify(attributes, mask, "INIT")
    }

    /// Connects it with the other end: what that sends is received from now on, and this end, which
    /// begins with `first_packet`, may send once the other end has done the same.
    pub fn connect(&self, first_packet: u32, remote: &Remote) -> Result<()> {
        let device = self.device();
        let sl = device.marks.service_level;
        let mut way = ibv_ah_attr { sl, port_num: device.port, ..ibv_ah_attr::default() };
        if remote.address.kind == AddressKind::Lid {
            way.dlid = remote.address.lid;
        } else {
            way.is_global = 1;
            way.dlid = remote.address.lid;
            way.grh.dgid = remote.address.gid;
            way.grh.sgid_index = device.gid_index;
            way.grh.hop_limit = HOPS;
            way.grh.traffic_class = device.marks.traffic_class;
        }
        let mut mask = IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN;
        if self.kind == Kind::Rc {
            mask |= IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
        }
        let to_receive = ibv_qp_attr {
            qp_state: IBV_QPS_RTR,
            path_mtu: device.mtu.min(remote.mtu),
            dest_qp_num: remote.number,
            rq_psn: remote.first_packet & PACKET_NUMBERS,
            max_dest_rd_atomic: 1,
            min_rnr_timer: NOT_READY_TIMER,
            ah_attr: way,
            ..ibv_qp_attr::default()
        };
        self.modify(to_receive, mask, "RTR")?;
        let mut mask = IBV_QP_STATE | IBV_QP_SQ_PSN;
        if self.kind == Kind::Rc {
            mask |= IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC;
        }
        let to_send = ibv_qp_attr {
            qp_state: IBV_QPS_RTS,
            sq_psn: first_packet & PACKET_NUMBERS,
            timeout: TIMEOUT,
            retry_cnt: RETRIES,
            rnr_retry: NOT_READY_RETRIES,
            max_rd_atomic: 1,
            ..ibv_qp_attr::default()
        };
        self.modify(to_send, mask, "RTS")
    }

    /// Stops it: all that is posted completes, with an error.
    pub fn stop(&self) -> Result<()> {
        let attributes = ibv_qp_attr { qp_state: IBV_QPS_ERR, ..ibv_qp_attr::default() };
        self.modify(attributes, IBV_QP_STATE, "ERR")
    }

    fn queue(&self, queue: Queue) -> NonNull<ibv_cq> {
        match queue {
            Queue::Recv => self.queues.recv,
            Queue::Send => self.queues.send,
        }
    }

    /// Takes what has completed, as many as there is room for: how many.
    pub fn poll(&self, queue: Queue, room: &mut [ibv_wc]) -> Result<usize> {
        let queue = self.queue(queue);
        // SAFETY: the queue's context is open as long as it is.
        let Some(poll) = (unsafe { (*queue.as_ref().context).ops.poll_cq }) else {
            fail!(Backend, "the driver of {} polls no completions", self.device().name);
        };
        // SAFETY: there is room for as many completions as are asked for.
        let count = unsafe { poll(queue.as_ptr(), room.len() as c_int, room.as_mut_ptr()) };
        match usize::try_from(count) {
            Ok(count) => Ok(count.min(room.len())),
            Err(_) => fail!(Backend, "ibv_poll_cq on {}: {count}", self.device().name),
        }
    }

    /// Has the next completion wake those who wait at this descriptor ([`AsFd`]).
    pub fn arm(&self, queue: Queue) -> Result<()> {
        let queue = self.queue(queue);
        // SAFETY: the queue's context is open as long as it is.
        let Some(arm) = (unsafe { (*queue.as_ref().context).ops.req_notify_cq }) else {
            fail!(Backend, "the driver of {} tells of no completions", self.device().name);
        };
        // SAFETY: the queue is there; 0 is for every completion.
        check("ibv_req_notify_cq", unsafe { arm(queue.as_ptr(), 0) })
    }

    /// Takes one event off the descriptor, if there is one: of which queue.
    pub fn take_event(&self) -> Option<Queue> {
        let mut queue = std::ptr::null_mut();
        let mut context = std::ptr::null_mut();
        let (functions, channel) = (self.device().functions, &self.queues.channel);
        // SAFETY: the channel is open and does not block; both results go to memory of ours.
        let code =
            unsafe { (functions.get_cq_event)(channel.channel.as_ptr(), &mut queue, &mut context) };
        if code != 0 || queue.is_null() {
            return None;
        }
        // SAFETY: the queue that was just given, of which one event was taken.
        unsafe { (functions.ack_cq_events)(queue, 1) };
        Some(if queue == self.queues.send.as_ptr() { Queue::Send } else { Queue::Recv })
    }
}

impl Queues {
    /// A queue pair on these queues, and how many bytes it takes inline.
    fn queue_pair(
        &self,
        kind: Kind,
        plan: Plan,
        pieces: u32,
    ) -> std::io::Result<(NonNull<ibv_qp>, usize)> {
        let device = &self.channel.device;
        let mut wanted = ibv_qp_init_attr {
            qp_context: std::ptr::null_mut(),
            send_cq: self.send.as_ptr(),
            recv_cq: self.recv.as_ptr(),
            srq: std::ptr::null_mut(),
            cap: ibv_qp_cap {
                max_send_wr: plan.sends.min(device.max_requests),
                max_recv_wr: plan.recvs.min(device.max_requests),
                max_send_sge: pieces,
                max_recv_sge: 1,
                max_inline_data: plan.inline_bytes,
            },
            qp_type: match kind {
                Kind::Rc => IBV_QPT_RC,
                Kind::Uc => IBV_QPT_UC,
            },
            sq_sig_all: 0,
        };
        // SAFETY: protection domain and queues are there; the request is ours.
        let made = unsafe { (device.functions.create_qp)(device.pd.as_ptr(), &mut wanted) };
        match NonNull::new(made) {
            Some(qp) => Ok((qp, wanted.cap.max_inline_data.min(plan.inline_bytes) as usize)),
            None => Err(std::io::Error::last_os_error()),
        }
    }
}

impl AsFd for QueuePair {
    /// Ready to read once a queue that was armed has something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queues.channel.as_fd()
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // SAFETY: made by us, ended once; from then on the device touches no memory of its requests.
        unsafe { (self.device().functions.destroy_qp)(self.qp.as_ptr()) };
    }
}

//! How requests are handed to the driver: in lists, each in one call.

use std::ffi::{c_int, c_uint};

use super::abi::*;
use super::device::check;
use super::queue_pair::QueuePair;
use crate::error::{Result, fail};

/// Requests of a list.
const BATCH: usize = 16;

/// A message to send, of one piece of memory or two.
#[derive(Clone, Copy, Debug)]
pub struct SendRequest {
    /// The number under which it completes.
    pub id: u64,
    pieces: [ibv_sge; 2],
}

impl SendRequest {
    /// A message of `first` and, if there is such, `second`: see [`QueuePair::send_pieces`].
    pub fn new(id: u64, first: ibv_sge, second: Option<ibv_sge>) -> SendRequest {
        SendRequest { id, pieces: [first, second.unwrap_or_default()] }
    }

    fn pieces(&self) -> &[ibv_sge] {
        let count = if self.pieces[1].length > 0 { 2 } else { 1 };
        &self.pieces[..count]
    }
}

/// Makes requests of all these, as links of lists, and posts each list. `fill` makes one, given where the
/// next one is; `post` is given where the first one is.
fn in_lists<T, R: Copy>(
    all: &[T],
    blank: R,
    fill: impl Fn(&mut R, &T, *mut R),
    mut post: impl FnMut(*mut R) -> Result<()>,
) -> Result<()> {
    for some in all.chunks(BATCH) {
        let mut requests = [blank; BATCH];
        let first = requests.as_mut_ptr();
        for (at, one) in some.iter().enumerate() {
            let next = match at + 1 < some.len() {
                true => first.wrapping_add(at + 1),
                false => std::ptr::null_mut(),
            };
            // SAFETY: `at` is less than BATCH.
            fill(unsafe { &mut *first.add(at) }, one, next);
        }
        post(first)?;
    }
    Ok(())
}

/// A request that sends nothing yet.
fn send_wr(wr_id: u64, opcode: c_uint) -> ibv_send_wr {
    ibv_send_wr {
        wr_id,
        next: std::ptr::null_mut(),
        sg_list: std::ptr::null_mut(),
        num_sge: 0,
        opcode,
        send_flags: IBV_SEND_SIGNALED,
        imm_data: 0,
        wr: [0; 4],
        qp_type: 0,
        bind_mw: [0; 6],
    }
}

/// As verbs take pieces, which they only read.
fn listed(pieces: &[ibv_sge]) -> (*mut ibv_sge, c_int) {
    (pieces.as_ptr().cast_mut(), pieces.len() as c_int)
}

impl QueuePair {
    /// Posts receives, each with its number.
    ///
    /// # Safety
    /// The pieces are of registered memory that outlives this queue pair, and nobody touches one until
    /// its number has been polled.
    pub unsafe fn post_recvs(&self, all: &[(u64, ibv_sge)]) -> Result<()> {
        // SAFETY: the queue pair's context is open as long as it is.
        let Some(post) = (unsafe { (*self.qp.as_ref().context).ops.post_recv }) else {
            fail!(Backend, "the driver of {} posts no receives", self.device().name);
        };
        let (next, sg_list) = (std::ptr::null_mut(), std::ptr::null_mut());
        let blank = ibv_recv_wr { wr_id: 0, next, sg_list, num_sge: 0 };
        let fill = |request: &mut ibv_recv_wr, (id, piece): &(u64, ibv_sge), next| {
            let (sg_list, num_sge) = listed(std::slice::from_ref(piece));
            *request = ibv_recv_wr { wr_id: *id, next, sg_list, num_sge };
        };
        in_lists(all, blank, fill, |first| {
            let mut bad = std::ptr::null_mut();
            // SAFETY: the requests are linked, and live with their pieces until it returns; the caller
            // vouches for their memory.
            check("ibv_post_recv", unsafe { post(self.qp.as_ptr(), first, &mut bad) })
        })
    }

    /// Posts sends, each of which completes under its number.
    ///
    /// # Safety
    /// The pieces are of registered memory that stays registered, and nobody writes one, until the number
    /// has been polled or this queue pair has ended.
    pub unsafe fn post_sends(&self, all: &[SendRequest]) -> Result<()> {
        let blank = send_wr(0, IBV_WR_SEND);
        let fill = |request: &mut ibv_send_wr, one: &SendRequest, next| {
            let (sg_list, num_sge) = listed(one.pieces());
            let inline = num_sge == 1 && one.pieces[0].length as usize <= self.inline_bytes;
            let send_flags = blank.send_flags | if inline { IBV_SEND_INLINE } else { 0 };
            *request = ibv_send_wr { wr_id: one.id, next, sg_list, num_sge, send_flags, ..blank };
        };
        // SAFETY: the requests are linked, and live with their pieces until it returns; the caller vouches
        // for their memory.
        in_lists(all, blank, fill, |first| unsafe { self.post_list("ibv_post_send", first) })
    }

    /// Posts a write of nothing, which completes under this number once the other end's device has
    /// answered it, whether anybody looks at that or not. It meets no receive, and changes no memory.
    pub fn post_probe(&self, id: u64) -> Result<()> {
        let mut request = send_wr(id, IBV_WR_RDMA_WRITE);
        // SAFETY: the request lives until it returns, and has no memory.
        unsafe { self.post_list("ibv_post_send of a probe", &mut request) }
    }

    /// # Safety
    /// This is the first of a list of requests that are there until this returns; their memory is as
    /// [`QueuePair::post_sends`] says.
    unsafe fn post_list(&self, what: &str, first: *mut ibv_send_wr) -> Result<()> {
        // SAFETY: the queue pair's context is open as long as it is.
        let Some(post) = (unsafe { (*self.qp.as_ref().context).ops.post_send }) else {
            fail!(Backend, "the driver of {} posts no sends", self.device().name);
        };
        let mut bad = std::ptr::null_mut();
        // SAFETY: as this function's contract says.
        check(what, unsafe { post(self.qp.as_ptr(), first, &mut bad) })
    }
}

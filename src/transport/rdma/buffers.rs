//! A wire's buffers in registered memory: those that receives are posted with, in slabs that are added
//! as more are promised, and the rooms to send from.

use std::sync::Arc;

use super::BUFFER;
use crate::error::{Result, fail};
use crate::verbs::abi::ibv_sge;
use crate::verbs::device::Device;
use crate::verbs::memory::Memory;
use crate::verbs::posting::SendRequest;

/// 32 buffers, 2 MiB: the first slab; enough for a group's collectives and messages both ways.
const FIRST_SLAB: usize = 32;
/// 512 buffers, 32 MiB, in all slabs: each is as large as all before it, so that they are 5 regions at
/// most, and 10 queue pairs stay within 100.
pub const MOST: usize = 512;
/// 16 rooms, 1 MiB: twice what one channel may have under way.
pub const ROOMS: usize = 16;

/// A buffer that a receive is posted with, or was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    slab: u16,
    place: u16,
}

impl Buffer {
    /// The number of its work request.
    fn id(self) -> u64 {
        u64::from(self.slab) << 16 | u64::from(self.place)
    }
}

/// The receiving side.
pub struct Slabs {
    slabs: Vec<Memory>,
    /// Buffers of all slabs: receives that are posted, or have landed and will be posted again.
    total: usize,
    /// Receives that were promised.
    promised: usize,
    /// As many as the queue pair takes.
    most: usize,
}

impl Slabs {
    /// None yet, `most` later.
    pub fn new(most: usize) -> Slabs {
        Slabs { slabs: Vec::new(), total: 0, promised: 0, most }
    }

    /// Promises so many receives more: the requests to post for that first. `None` if there cannot be
    /// so many.
    pub fn promise(
        &mut self,
        device: &Arc<Device>,
        receives: usize,
    ) -> Result<Option<Vec<(u64, ibv_sge)>>> {
        let needed = self.promised + receives;
        if needed > self.most {
            return Ok(None);
        }
        let mut requests = Vec::new();
        if self.total < needed {
            let count = self.total.max(FIRST_SLAB).min(self.most - self.total);
            if count < needed - self.total {
                fail!(Internal, "{receives} receives at once, a slab has {count}");
            }
            let (slab, memory) =
                (self.slabs.len() as u16, Memory::register(device, count * BUFFER)?);
            for place in 0..count {
                let buffer = Buffer { slab, place: place as u16 };
                requests.push((buffer.id(), memory.piece(place * BUFFER, BUFFER)));
            }
            self.slabs.push(memory);
            self.total += count;
        }
        self.promised = needed;
        Ok(Some(requests))
    }

    /// So many receives are not promised any more.
    pub fn release(&mut self, receives: usize) {
        self.promised -= receives.min(self.promised);
    }

    /// The buffer of a completed request.
    pub fn landed(&self, id: u64) -> Result<Buffer> {
        let buffer = Buffer { slab: (id >> 16) as u16, place: id as u16 };
        let slab = self.slabs.get(usize::from(buffer.slab));
        if buffer.id() != id
            || slab.is_none_or(|slab| usize::from(buffer.place) >= slab.len() / BUFFER)
        {
            fail!(Internal, "the receive {id} completed, but was never posted");
        }
        Ok(buffer)
    }

    /// Where its bytes are.
    pub fn bytes(&self, buffer: Buffer) -> *mut u8 {
        self.slabs[usize::from(buffer.slab)].at(usize::from(buffer.place) * BUFFER, BUFFER)
    }

    /// The request that posts it again.
    pub fn request(&self, buffer: Buffer) -> (u64, ibv_sge) {
        let memory = &self.slabs[usize::from(buffer.slab)];
        (buffer.id(), memory.piece(usize::from(buffer.place) * BUFFER, BUFFER))
    }

    /// Buffers.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Regions.
    pub fn regions(&self) -> usize {
        self.slabs.len()
    }
}

/// The sending side.
pub struct Rooms {
    memory: Memory,
    free: Vec<u16>,
    /// For each room the channel whose caller's memory is sent behind it, if such is.
    lent: Vec<Option<u32>>,
}

impl Rooms {
    /// Rooms of a new wire.
    pub fn new(device: &Arc<Device>, count: usize) -> Result<Rooms> {
        let memory = Memory::register(device, count * BUFFER)?;
        Ok(Rooms { memory, free: (0..count as u16).collect(), lent: vec![None; count] })
    }

    /// Rooms in all.
    pub fn total(&self) -> usize {
        self.memory.len() / BUFFER
    }

    /// Rooms that nothing is sent from.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// One of them, until its send has completed.
    pub fn take(&mut self) -> Option<u16> {
        self.free.pop()
    }

    /// Memory of a caller is sent behind it, over this channel.
    pub fn lend(&mut self, room: u16, channel: u32) {
        self.lent[usize::from(room)] = Some(channel);
    }

    /// It is free again: the channel whose caller's memory was sent behind it, if such was.
    pub fn give_back(&mut self, room: u64) -> Result<Option<u32>> {
        let place = room as u16;
        if room >= self.total() as u64 || self.free.contains(&place) {
            fail!(Internal, "the send {room} completed, but was never posted");
        }
        self.free.push(place);
        Ok(self.lent[usize::from(place)].take())
    }

    /// Where its bytes are.
    pub fn bytes(&self, room: u16) -> *mut u8 {
        self.memory.at(usize::from(room) * BUFFER, BUFFER)
    }

    /// The request that sends its first bytes, and then what is lent.
    pub fn request(&self, room: u16, len: usize, lent: Option<ibv_sge>) -> SendRequest {
        let piece = self.memory.piece(usize::from(room) * BUFFER, len);
        SendRequest::new(room.into(), piece, lent)
    }
}

//! Runs a schedule over links: several steps in flight, resumable at any byte.
//!
//! Every transfer is posted as soon, and as far, as the steps before it allow. Where two steps touch
//! the same memory, the later one may advance up to the byte that the earlier one has reached: so a
//! block is passed on while it still arrives, and no step has a size of its own. The engine never
//! waits; its caller does, between two calls of [`Engine::advance`].

use std::cell::UnsafeCell;

use super::lending::lent;
use super::links::{Links, Way};
use super::schedule::{Buffer, Schedule, Span, Step};
use crate::call::{HEADER_BYTES, Header};
use crate::error::{Error, Result, Status, fail};
use crate::reduce::Kernel;
use crate::transport::{Landing, Lent};

/// 64 KiB: with more bytes than this, a transfer is spread over all lanes to its peer. Less does not
/// fill one.
const SPREAD: usize = 64 << 10;
/// 256 KiB: a local copy pauses after so much to let the links go on.
const COPY_CHUNK: usize = 256 << 10;
/// No part.
const NONE: u32 = u32::MAX;

/// What a schedule is run on: memory, the shape of its elements, and the call it belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// To read.
    pub input: *const u8,
    /// To write, and to read what was written.
    pub output: *mut u8,
    /// Bytes of an element.
    pub size: usize,
    /// The reduction, where the schedule has one.
    pub kernel: Option<Kernel>,
    /// This rank in the group, for messages.
    pub rank: usize,
    /// Travels in front of the data to every peer.
    pub sent: Header,
    /// Must come in front of the data from every peer.
    pub expected: Header,
}

/// What a call of [`Engine::advance`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advance {
    /// The schedule has run.
    Done,
    /// Something moved.
    Moved,
    /// Nothing can move until a link can.
    Stuck,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Send,
    Recv,
    Reduce { own_first: bool },
    Copy,
}

/// The part of a step that runs over one lane; or a local copy.
#[derive(Clone, Copy, Debug)]
struct Part {
    kind: Kind,
    /// The address that is read: sent, copied, or the own operand of a reduction.
    read: Option<usize>,
    /// The address that is written.
    write: Option<usize>,
    len: usize,
    /// Bytes that are finished.
    done: usize,
    /// Bytes that the link was told of.
    posted: usize,
    /// Bytes on the lane before this part, counted from the start of the call.
    position: u64,
    /// What it needs: `needs[first..end]`.
    needs: (u32, u32),
    /// The next part on the same direction of the same lane.
    next: u32,
}

/// A later part may pass `from` only as far as an earlier one has come.
#[derive(Clone, Copy, Debug)]
struct Need {
    earlier: u32,
    /// The later part's offset at which they meet.
    from: usize,
    /// By how much the earlier part's offset of a byte is less than the later part's.
    ahead: isize,
    /// The earlier part's offset at which they part.
    until: usize,
}

/// One direction of one lane in this call.
#[derive(Clone, Copy, Debug)]
struct Direction {
    link: usize,
    peer: usize,
    sending: bool,
    /// Its last part.
    last: u32,
    /// Its first part that is not fully posted.
    posting: u32,
    /// Its first part that is not finished.
    current: u32,
    /// The link's counter at the start of the call.
    base: u64,
    /// Bytes that all its parts take, with the header.
    length: u64,
    /// Where the header is: in `headers`.
    header: usize,
    header_posted: bool,
    header_passed: bool,
}

/// The state of one call; kept from call to call for its memory.
#[derive(Default)]
pub struct Engine {
    job: Option<Job>,
    parts: Vec<Part>,
    needs: Vec<Need>,
    directions: Vec<Direction>,
    /// Each link of `directions` once.
    links: Vec<usize>,
    /// One for each direction; links read and write them through raw pointers.
    headers: Vec<UnsafeCell<[u8; HEADER_BYTES]>>,
    copies: Vec<u32>,
    scratch: Vec<u8>,
    /// The memory that is sent from, buffer by buffer.
    lent: Vec<Lent>,
    unfinished: usize,
    /// The peer whose link broke.
    broke_with: Option<usize>,
}

// SAFETY: the addresses in it are used in `advance` only, whose callers vouch for them.
unsafe impl Send for Engine {}

impl Engine {
    /// Prepares to run `schedule`. All its peers are connected and their links idle.
    pub fn begin(&mut self, schedule: &Schedule, job: Job, links: &Links) -> Result<()> {
        self.job = Some(job);
        self.parts.clear();
        self.needs.clear();
        self.directions.clear();
        self.links.clear();
        self.copies.clear();
        self.broke_with = None;
        let scratch = schedule.scratch * job.size;
        if self.scratch.len() < scratch {
            if self.scratch.try_reserve_exact(scratch - self.scratch.len()).is_err() {
                fail!(System, "no memory for {scratch} bytes of scratch space");
            }
            self.scratch.resize(scratch, 0);
        }
        let scratch = self.scratch.as_mut_ptr() as usize;
        let place = |span: Span| {
            let base = match span.buffer {
                Buffer::Input => job.input as usize,
                Buffer::Output => job.output as usize,
                Buffer::Scratch => scratch,
            };
            Some(base + span.start * job.size)
        };
        self.lent.clear();
        self.lent.extend(lent(schedule, job.size, |span| place(span).unwrap_or(0) as *const u8));
        for step in &schedule.steps {
            match *step {
                Step::Send { to, from } => {
                    self.add_transfer(Kind::Send, to, place(from), None, from.len, links)?;
                }
                Step::Recv { from, into } => {
                    self.add_transfer(Kind::Recv, from, None, place(into), into.len, links)?;
                }
                Step::Reduce { from, own, into, own_first } => {
                    let kind = Kind::Reduce { own_first };
                    self.add_transfer(kind, from, place(own), place(into), into.len, links)?;
                }
                Step::Copy { from, into } => {
                    let (read, write) = (place(from), place(into));
                    if read != write && from.len > 0 {
                        let copy = self.add_part(Kind::Copy, read, write, from.len * job.size, 0);
                        self.copies.push(copy);
                    }
                }
            }
        }
        self.unfinished = self.parts.len();
        self.headers.clear();
        for direction in &mut self.directions {
            direction.header = self.headers.len();
            self.headers.push(UnsafeCell::new(job.sent.encode()));
            if !self.links.contains(&direction.link) {
                self.links.push(direction.link);
            }
        }
        Ok(())
    }

    /// Adds a transfer of `count` elements with a peer, spread over its lanes if it is long.
    fn add_transfer(
        &mut self,
        kind: Kind,
        peer: usize,
        read: Option<usize>,
        write: Option<usize>,
        count: usize,
        links: &Links,
    ) -> Result<()> {
        let size = self.job.map_or(1, |job| job.size);
        let spread = if count * size > SPREAD { links.lanes() } else { 1 };
        for lane in 0..spread {
            let share = Span::block(Buffer::Input, lane, count, spread);
            let (offset, len) = (share.start * size, share.len * size);
            let way = if kind == Kind::Send { Way::Out } else { Way::In };
            let Some(link) = links.number(peer, way, lane) else {
                fail!(Internal, "a schedule for rank {peer}, which is not connected");
            };
            let at = self.direction(link, peer, way, links);
            let Direction { last, length, .. } = self.directions[at];
            let part = self.add_part(
                kind,
                read.map(|r| r + offset),
                write.map(|w| w + offset),
                len,
                length,
            );
            match self.parts.get_mut(last as usize) {
                Some(last) => last.next = part,
                None => {
                    self.directions[at].posting = part;
                    self.directions[at].current = part;
                }
            }
            self.directions[at].last = part;
            self.directions[at].length += len as u64;
        }
        Ok(())
    }

    /// The index of this direction of a lane, made when it is first needed.
    fn direction(&mut self, link: usize, peer: usize, way: Way, links: &Links) -> usize {
        let sending = way == Way::Out;
        let known = |d: &Direction| d.link == link && d.sending == sending;
        if let Some(at) = self.directions.iter().position(known) {
            return at;
        }
        let counted = links.get(link);
        self.directions.push(Direction {
            link,
            peer,
            sending,
            last: NONE,
            posting: NONE,
            current: NONE,
            base: if sending { counted.sent() } else { counted.landed() },
            length: HEADER_BYTES as u64,
            header: 0,
            header_posted: false,
            // Only what is received is compared.
            header_passed: sending,
        });
        self.directions.len() - 1
    }

    /// Adds a part with what it needs of those before it.
    fn add_part(
        &mut self,
        kind: Kind,
        read: Option<usize>,
        write: Option<usize>,
        len: usize,
        position: u64,
    ) -> u32 {
        let first = self.needs.len() as u32;
        for (index, earlier) in self.parts.iter().enumerate() {
            let touching = [(read, earlier.write), (write, earlier.write), (write, earlier.read)];
            for (mine, theirs) in touching {
                let (Some(mine), Some(theirs)) = (mine, theirs) else { continue };
                let meet = mine.max(theirs);
                let part = (mine + len).min(theirs + earlier.len);
                if meet < part {
                    self.needs.push(Need {
                        earlier: index as u32,
                        from: meet - mine,
                        ahead: theirs as isize - mine as isize,
                        until: part - theirs,
                    });
                }
            }
        }
        let needs = (first, self.needs.len() as u32);
        let part = Part { kind, read, write, len, done: 0, posted: 0, position, needs, next: NONE };
        self.parts.push(part);
        self.parts.len() as u32 - 1
    }

    /// How far a part may go now.
    fn limit(&self, part: &Part) -> usize {
        let mut limit = part.len;
        for need in &self.needs[part.needs.0 as usize..part.needs.1 as usize] {
            let reached = self.parts[need.earlier as usize].done;
            if reached < need.until {
                limit = limit.min(need.from.max(reached.saturating_add_signed(need.ahead)));
            }
        }
        match (part.kind, self.job) {
            (Kind::Reduce { .. }, Some(job)) => limit - limit % job.size,
            _ => limit,
        }
    }

    /// Goes on as far as the links allow without waiting.
    ///
    /// # Safety
    /// The memory of the job is valid for the schedule's spans, and nobody else uses it, from
    /// [`Engine::begin`] until this has returned `Done` or the links were cancelled.
    pub unsafe fn advance(&mut self, links: &mut Links) -> Result<Advance> {
        for at in 0..self.directions.len() {
            // SAFETY: as this function's contract says.
            unsafe { self.post(at, links)? };
        }
        let mut moved = false;
        for link in &self.links {
            match links.get_mut(*link).progress() {
                Ok(some) => moved |= some,
                Err(e) => {
                    let direction = self.directions.iter().find(|d| d.link == *link);
                    self.broke_with = direction.map(|direction| direction.peer);
                    return Err(e);
                }
            }
        }
        for at in 0..self.directions.len() {
            self.count(at, links);
        }
        // SAFETY: as this function's contract says.
        moved |= unsafe { self.copy_some() };
        if self.unfinished == 0 && !self.lent.is_empty() {
            for direction in self.directions.iter().filter(|d| d.sending) {
                // SAFETY: nothing is lent.
                unsafe { links.get_mut(direction.link).lend(&[]) };
            }
        }
        Ok(match (self.unfinished, moved) {
            (0, _) => Advance::Done,
            (_, true) => Advance::Moved,
            (_, false) => Advance::Stuck,
        })
    }

    /// Posts what may be posted now.
    unsafe fn post(&mut self, at: usize, links: &mut Links) -> Result<()> {
        let Some(job) = self.job else { return Ok(()) };
        let direction = self.directions[at];
        let link = links.get_mut(direction.link);
        if !direction.header_posted {
            self.directions[at].header_posted = true;
            if direction.sending && !self.lent.is_empty() {
                // SAFETY: as this function's contract says; it is taken back when all was sent.
                unsafe { link.lend(&self.lent) };
            }
            let header = self.headers[direction.header].get().cast::<u8>();
            // SAFETY: `headers` does not change until the next call begins, when this one has run
            // or its links were cancelled; a header is looked at again only after it has landed.
            unsafe {
                match direction.sending {
                    true => link.post_send(header, HEADER_BYTES),
                    false => link.post_recv(Landing::Copy { into: header }, HEADER_BYTES),
                }
            }
        }
        if !direction.header_passed {
            if link.landed() - direction.base < HEADER_BYTES as u64 {
                return Ok(());
            }
            self.check_header(at, &job)?;
        }
        while let Some(&part) = self.parts.get(self.directions[at].posting as usize) {
            let limit = self.limit(&part);
            if limit > part.posted {
                let (offset, len) = (part.posted, limit - part.posted);
                let read = part.read.map_or(std::ptr::null(), |at| (at + offset) as *const u8);
                let into = part.write.map_or(std::ptr::null_mut(), |at| (at + offset) as *mut u8);
                // SAFETY: the part's memory is valid, and no earlier step will use these bytes any
                // more, as `advance`'s contract and the part's needs say.
                unsafe {
                    match (part.kind, job.kernel) {
                        (Kind::Send, _) => link.post_send(read, len),
                        (Kind::Reduce { own_first }, Some(kernel)) => {
                            let (own, size) = (read, job.size);
                            link.post_recv(
                                Landing::Reduce { into, own, kernel, size, own_first },
                                len,
                            );
                        }
                        _ => link.post_recv(Landing::Copy { into }, len),
                    }
                }
                self.parts[self.directions[at].posting as usize].posted = limit;
            }
            if limit < part.len {
                break;
            }
            self.directions[at].posting = part.next;
        }
        Ok(())
    }

    /// Compares what a peer called with what this rank did: its data lands only after that.
    fn check_header(&mut self, at: usize, job: &Job) -> Result<()> {
        let direction = &mut self.directions[at];
        // SAFETY: the header has landed, so that the link does not write it any more.
        let header = unsafe { *self.headers[direction.header].get() };
        match Header::decode(&header) {
            Some(theirs) if theirs == job.expected => {
                direction.header_passed = true;
                Ok(())
            }
            Some(theirs) => Err(job.expected.mismatch(job.rank, direction.peer, &theirs)),
            None => Err(Error::new(
                Status::Internal,
                format!("what came from rank {} is not the beginning of a call", direction.peer),
            )),
        }
    }

    /// Counts what has moved in one direction.
    fn count(&mut self, at: usize, links: &Links) {
        let direction = &mut self.directions[at];
        let link = links.get(direction.link);
        let counter = if direction.sending { link.sent() } else { link.landed() };
        let moved = counter - direction.base;
        if moved < HEADER_BYTES as u64 || !direction.header_passed {
            return;
        }
        while let Some(part) = self.parts.get_mut(direction.current as usize) {
            part.done = (moved.saturating_sub(part.position) as usize).min(part.len);
            if part.done < part.len {
                break;
            }
            direction.current = part.next;
            self.unfinished -= 1;
        }
    }

    /// Goes on with one local copy; whether it came further.
    unsafe fn copy_some(&mut self) -> bool {
        let Some(&index) = self.copies.last() else {
            return false;
        };
        let part = self.parts[index as usize];
        let end = self.limit(&part).min(part.done + COPY_CHUNK);
        if let (Some(read), Some(write)) = (part.read, part.write) {
            let from = (read + part.done) as *const u8;
            // SAFETY: the part's memory is valid as `advance`'s contract says.
            unsafe { std::ptr::copy(from, (write + part.done) as *mut u8, end - part.done) };
        }
        self.parts[index as usize].done = end;
        if end == part.len {
            self.copies.pop();
            self.unfinished -= 1;
        }
        end > part.done
    }

    /// The peer whose link broke, after an error.
    pub fn broke_with(&self) -> Option<usize> {
        self.broke_with
    }

    /// The numbers of the links in use.
    pub fn links(&self) -> &[usize] {
        &self.links
    }

    /// Who is waited for, and how far it has come: for messages.
    pub fn waits_for(&self) -> String {
        let open = |direction: &&Direction| self.parts.get(direction.current as usize).is_some();
        let receiving = self.directions.iter().filter(open).find(|d| !d.sending);
        let Some(direction) = receiving.or_else(|| self.directions.iter().find(open)) else {
            return "waiting for nobody".to_owned();
        };
        let part = &self.parts[direction.current as usize];
        let (done, len) = (part.done, part.len);
        let (verb, whom) = if direction.sending { ("sent", "to") } else { ("received", "from") };
        format!("{verb} {done} of {len} bytes {whom} rank {}", direction.peer)
    }
}

//! One call at the board: its stages, a block at a time.

use super::pattern::{Kind, Pattern};
use super::wait::Waiting;
use super::{Runner, TILE};
use crate::call::{Call, Header};
use crate::collective::engine::Job;
use crate::error::{Error, Result, Status};
use crate::transport::board::{Board, DEPTH};
use crate::transport::copy::stream;

/// 4 KiB: with less in a call, the fence of a ring costs more than whoever sleeps loses by a later one.
const FEW: usize = 4 << 10;

/// One call on its way.
pub struct Run<'a, 'w> {
    pub runner: &'a mut Runner,
    pub job: &'a Job,
    pub pattern: Pattern,
    pub waiting: &'a Waiting<'w>,
    /// Its first block.
    pub first: u64,
    /// Whether its output is too large to stay in the caches.
    pub streams: bool,
}

impl Run<'_, '_> {
    /// Something was posted. Of few bytes the bell is rung once, at the end or before this rank waits
    /// for long: the ring's fence would hold up its first look at what the others have posted.
    fn posted(&self) {
        self.runner.unrung.set(true);
        if self.pattern.block(0).len() * self.job.size > FEW {
            self.runner.ring();
        }
    }

    /// Waits for `peer`.
    fn wait(&mut self, peer: usize, block: u64, ready: impl Fn(&Board) -> bool) -> Result<()> {
        let (board, pattern, size) = (&self.runner.board, &self.pattern, self.job.size);
        let what =
            || format!("received {} bytes from rank {peer}", pattern.block(block).start * size);
        let ring = || self.runner.ring();
        let waited = self.waiting.until(board, peer, || ready(board), ring, what);
        if waited.is_err() {
            self.runner.broke_with = Some(peer);
        }
        waited
    }

    fn input(&self, element: usize) -> *const u8 {
        self.job.input.wrapping_add(element * self.job.size)
    }

    fn output(&self, element: usize) -> *mut u8 {
        self.job.output.wrapping_add(element * self.job.size)
    }

    /// A rank's slot for a block, from this element on.
    fn slot(&self, rank: usize, block: u64, element: usize) -> *mut u8 {
        let elements = match self.pattern.kind {
            Kind::ReducePieces | Kind::MovePieces => usize::MAX / self.job.size,
            _ => self.pattern.block(block).len(),
        };
        let data = self.runner.board.data(rank, self.first + block, elements * self.job.size);
        data.wrapping_add(element * self.job.size)
    }

    /// Copies elements.
    unsafe fn copy(&self, into: *mut u8, from: *const u8, elements: usize, streams: bool) {
        // SAFETY: the caller vouches for both.
        unsafe { copy(into, from, elements * self.job.size, streams) }
    }

    /// Stage 1: posts what others need of this rank's input.
    ///
    /// # Safety
    /// As for [`Runner::run`], and so for the other stages.
    pub unsafe fn post(&mut self, block: u64) -> Result<()> {
        let number = self.first + block;
        // The slot's last block must have been read by everybody.
        let read = (number + 1).saturating_sub(DEPTH);
        let rank = self.runner.board.rank();
        for peer in self.pattern.others(rank) {
            if self.runner.done[peer] < read {
                self.wait(peer, block, |board| board.done(peer) >= read)?;
                self.runner.done[peer] = self.runner.board.done(peer);
            }
        }
        let all = self.pattern.block(block);
        // SAFETY: the job's memory is as the pattern takes it; the slot holds a block.
        unsafe {
            match self.pattern.kind {
                Kind::ReduceAll | Kind::Gather => {
                    self.copy(self.slot(rank, block, 0), self.input(all.start), all.len(), false);
                }
                Kind::ReduceSlices => {
                    let own = self.pattern.slice(block, rank);
                    for part in [all.start..own.start, own.end..all.end] {
                        let into = self.slot(rank, block, part.start - all.start);
                        self.copy(into, self.input(part.start), part.len(), false);
                    }
                }
                Kind::ReducePieces | Kind::MovePieces => {
                    for peer in self.pattern.others(rank) {
                        let piece = self.pattern.piece(block, peer);
                        let into = self.slot(rank, block, self.pattern.piece_in_slot(peer));
                        self.copy(into, self.input(piece.start), piece.len(), false);
                    }
                }
                Kind::Broadcast { root } if root == rank => {
                    self.copy(self.slot(rank, block, 0), self.output(all.start), all.len(), false);
                }
                Kind::Broadcast { .. } => {}
            }
        }
        self.runner.board.post(number, (block == 0).then_some(&self.job.sent));
        self.posted();
        Ok(())
    }

    /// Waits for a rank's slot, and makes sure that it belongs to the same call.
    fn await_post(&mut self, peer: usize, block: u64) -> Result<()> {
        let number = self.first + block;
        self.wait(peer, block, |board| board.has_posted(peer, number))?;
        if block == 0 {
            let (board, ours) = (&self.runner.board, &self.job.expected);
            let theirs = board.header(peer, number);
            if theirs != ours.words() {
                return Err(match Header::from_words(theirs) {
                    Some(theirs) => ours.mismatch(self.job.rank, peer, &theirs),
                    None => not_in_step(self.job.rank, &ours.call, peer),
                });
            }
            // It began this call, so it has read all it needed before.
            self.runner.done[peer] = self.runner.done[peer].max(self.first);
        }
        Ok(())
    }

    /// Stage 2: reduces or copies what this rank needs of the others' slots.
    ///
    /// # Safety
    /// As for [`Run::post`].
    pub unsafe fn combine(&mut self, block: u64) -> Result<()> {
        let (rank, all) = (self.runner.board.rank(), self.pattern.block(block));
        // SAFETY: the job's memory is as the pattern takes it; others' slots were posted.
        unsafe {
            match self.pattern.kind {
                Kind::ReduceAll | Kind::ReduceSlices | Kind::ReducePieces => {
                    for peer in self.pattern.sources(rank) {
                        self.await_post(peer, block)?;
                    }
                    self.reduce(block);
                }
                Kind::Gather | Kind::MovePieces => {
                    self.store(block, rank, false);
                    for peer in self.pattern.sources(rank) {
                        self.await_post(peer, block)?;
                        self.store(block, peer, true);
                    }
                }
                Kind::Broadcast { .. } => {
                    for root in self.pattern.sources(rank) {
                        self.await_post(root, block)?;
                        let from = self.slot(root, block, 0);
                        self.copy(self.output(all.start), from, all.len(), self.streams);
                    }
                }
            }
        }
        if self.pattern.stages() == 3 {
            self.runner.board.post_result(self.first + block);
        } else {
            self.runner.board.post_done(self.first + block + 1);
        }
        self.posted();
        Ok(())
    }

    /// Stores what `peer` contributes to this rank's output: from its slot, or from the own input.
    unsafe fn store(&self, block: u64, peer: usize, posted: bool) {
        let rank = self.runner.board.rank();
        let into = self.output(self.pattern.piece(block, peer).start);
        let (from, in_slot, elements) = match self.pattern.kind {
            Kind::MovePieces => {
                let piece = self.pattern.piece(block, rank);
                (piece.start, self.pattern.piece_in_slot(rank), piece.len())
            }
            _ => (self.pattern.block(block).start, 0, self.pattern.block(block).len()),
        };
        let from =
            if posted { self.slot(peer, block, in_slot).cast_const() } else { self.input(from) };
        // Gathered in place, the own part is there.
        if from != into.cast_const() {
            // SAFETY: the caller vouches for the job's memory, and that the slot was posted.
            unsafe { self.copy(into, from, elements, self.streams) };
        }
    }

    /// Reduces this rank's part of a block, always in the order of ranks: everybody who reduces an
    /// element gets the same bytes.
    unsafe fn reduce(&mut self, block: u64) {
        let (rank, all) = (self.runner.board.rank(), self.pattern.block(block));
        let (own, in_slot, into) = match self.pattern.kind {
            Kind::ReduceAll => (all.clone(), 0, all.start),
            Kind::ReduceSlices => {
                let own = self.pattern.slice(block, rank);
                (own.clone(), own.start - all.start, own.start)
            }
            _ => (self.pattern.piece(block, rank), self.pattern.piece_in_slot(rank), all.start),
        };
        let result = (self.pattern.stages() == 3)
            .then(|| self.runner.board.result_data(rank, self.first + block));
        let (bytes, input, output) =
            (own.len() * self.job.size, self.input(own.start), self.output(into));
        let tile = self.runner.tile.0.as_mut_ptr();
        let Some(kernel) = self.job.kernel else { return };
        let ranks = self.runner.board.ranks();
        for at in (0..bytes).step_by(TILE) {
            let len = TILE.min(bytes - at);
            let source = |peer: usize| match peer == rank {
                true => input.wrapping_add(at),
                false => self.slot(peer, block, in_slot).wrapping_add(at).cast_const(),
            };
            let out = output.wrapping_add(at);
            let last = match result {
                Some(result) => result.wrapping_add(at),
                None if self.streams => tile,
                None => out,
            };
            let mut left = source(0);
            for peer in 1..ranks {
                let into = if peer + 1 == ranks { last } else { tile };
                // SAFETY: the caller vouches for the job's memory, and that slots were posted; `into`
                // is one of the operands or apart from both.
                unsafe { kernel(into, left, source(peer), len / self.job.size) };
                left = tile;
            }
            if last != out {
                // SAFETY: as above.
                unsafe { copy(out, last, len, self.streams) };
            }
        }
    }

    /// Stage 3: copies the others' results.
    ///
    /// # Safety
    /// As for [`Run::post`].
    pub unsafe fn collect(&mut self, block: u64) -> Result<()> {
        let number = self.first + block;
        for peer in self.pattern.others(self.runner.board.rank()) {
            self.wait(peer, block, |board| board.has_result(peer, number))?;
            let slice = self.pattern.slice(block, peer);
            let from = self.runner.board.result_data(peer, number);
            // SAFETY: the result was posted; the caller vouches for the output.
            unsafe { self.copy(self.output(slice.start), from, slice.len(), self.streams) };
        }
        self.runner.board.post_done(number + 1);
        self.posted();
        Ok(())
    }
}

/// What a peer has at the place of a call belongs to the middle of another one.
fn not_in_step(rank: usize, ours: &Call, peer: usize) -> Error {
    let message = format!(
        "rank {rank} called {ours}, and rank {peer} is in another call; all ranks must make the same \
         calls in the same order"
    );
    Error::new(Status::Mismatch, message)
}

/// Copies bytes, past the cache if asked to: then a [`fence`] must follow at the end.
///
/// # Safety
/// As for [`stream`].
unsafe fn copy(into: *mut u8, from: *const u8, len: usize, streams: bool) {
    // SAFETY: the caller vouches for both ranges.
    unsafe {
        match streams {
            true => stream(into, from, len),
            false => std::ptr::copy_nonoverlapping(from, into, len),
        }
    }
}

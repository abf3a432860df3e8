//! Collectives of ranks that meet at a board.

#[cfg(test)]
mod model;
pub mod pattern;
mod run;
#[cfg(test)]
mod tests;
pub mod wait;

use std::cell::Cell;

use crate::collective::engine::Job;
use crate::error::Result;
use crate::reduce::environment::Environment;
use crate::transport::board::Board;
use crate::transport::copy::fence;
use pattern::Pattern;
use run::Run;
use wait::Waiting;

/// 8 KiB: what is reduced before it is stored elsewhere, so that it is still in the first cache.
const TILE: usize = 8 << 10;

/// A tile that kernels reach with aligned accesses.
#[repr(align(128))]
struct Tile([u8; TILE]);

/// Runs calls at a board, one after the other.
pub struct Runner {
    board: Board,
    /// The first block of the next call.
    next: u64,
    /// Per rank how many blocks it is known to be done with.
    done: Vec<u64>,
    tile: Box<Tile>,
    broke_with: Option<usize>,
    /// Whether something was posted since the bell was last rung.
    unrung: Cell<bool>,
}

impl Runner {
    /// For a board at which nobody has worked yet.
    pub fn new(board: Board) -> Runner {
        let done = vec![0; board.ranks()];
        Runner {
            board,
            next: 0,
            done,
            tile: Box::new(Tile([0; TILE])),
            broke_with: None,
            unrung: Cell::new(false),
        }
    }

    /// The rank that a failed call waited for.
    pub fn broke_with(&self) -> Option<usize> {
        self.broke_with
    }

    /// Bytes that a slot of the board holds.
    pub fn slot_bytes(&self) -> usize {
        self.board.slot_bytes()
    }

    /// Runs one call. After an error the board is of no more use.
    ///
    /// # Safety
    /// The job's memory is as the pattern takes it, and nobody else uses it meanwhile.
    pub unsafe fn run(
        &mut self,
        job: &Job,
        pattern: Pattern,
        streams: bool,
        waiting: &Waiting<'_>,
    ) -> Result<()> {
        let _environment = Environment::standard();
        let (blocks, stages, first) = (pattern.blocks(), pattern.stages(), self.next);
        self.next += blocks;
        let mut run = Run { runner: self, job, pattern, waiting, first, streams };
        for turn in 0..blocks + stages - 1 {
            // SAFETY: the caller vouches for the job's memory.
            unsafe {
                if turn < blocks {
                    run.post(turn)?;
                }
                if turn > 0 && turn <= blocks {
                    run.combine(turn - 1)?;
                }
                if turn > 1 && stages == 3 {
                    run.collect(turn - 2)?;
                }
            }
        }
        run.runner.ring();
        if streams {
            // Whatever thread the caller tells of its output must see it.
            fence();
        }
        Ok(())
    }

    /// Rings the bell if something was posted since.
    fn ring(&self) {
        if self.unrung.replace(false) {
            self.board.ring();
        }
    }
}

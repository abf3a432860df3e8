//! How it is found out what a device and this machine charge.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::prices::{LARGE, Prices, SMALL};
use crate::error::Result;
use crate::verbs::device::Device;
use crate::verbs::memory::{Mapping, Memory, Registered};

/// What is copied at once, into memory that stays in the cache: as into a room.
const ROOM: usize = 64 << 10;
/// Times each is measured; the shortest counts, since all that can disturb makes it longer.
const TIMES: usize = 5;

/// What this device and machine charge.
pub fn measure(device: &Arc<Device>) -> Result<Prices> {
    let (from, room) = (Mapping::new(LARGE)?, Memory::register(device, ROOM)?);
    // SAFETY: the mapping has so many bytes, and is ours.
    unsafe { std::ptr::write_bytes(from.base, 1, LARGE) };
    let register = |len| shortest(|| Registered::new(device, from.base, len).map(drop));
    let (small, large) = (register(SMALL)?, register(LARGE)?);
    let copy = shortest(|| {
        for at in (0..LARGE).step_by(ROOM) {
            // SAFETY: both have so many bytes there, and nobody else uses them.
            unsafe {
                std::ptr::copy_nonoverlapping(from.base.add(at), room.at(0, ROOM), ROOM);
            }
        }
        Ok(())
    })?;
    Ok(Prices::of(small, large, copy))
}

fn shortest(work: impl Fn() -> Result<()>) -> Result<Duration> {
    let mut shortest = Duration::MAX;
    for _ in 0..TIMES {
        let start = Instant::now();
        work()?;
        shortest = shortest.min(start.elapsed());
    }
    Ok(shortest)
}

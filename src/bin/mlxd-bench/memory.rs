//! The memory that calls work on: aligned, touched before it counts, warm or cold.

use std::fs;

use crate::operation::LINE;

/// Bytes between the buffers of one call and those of the next in cold mode, at least: no line and no
/// page of the next call comes with those of this one.
const COLD_STEP: usize = 4096 + LINE;

/// Calls' buffers that rotate in cold mode, at least.
const COLD_LEAST: usize = 4;

/// One piece of memory that all measurements use in turn: fresh memory costs more than what is done
/// in it.
pub struct Memory {
    bytes: Vec<u8>,
    /// Bytes by which every buffer misses its alignment.
    offset: usize,
    /// Bytes through which cold calls rotate, at least.
    cold: Option<usize>,
}

/// The buffers of successive calls, all alike.
pub struct Places<'a> {
    bytes: &'a mut [u8],
    step: usize,
    length: usize,
    /// How many there are.
    pub count: usize,
}

impl Memory {
    /// Nothing yet. In cold mode calls rotate through this many bytes.
    pub fn new(offset: usize, cold: Option<usize>) -> Memory {
        Memory { bytes: Vec::new(), offset, cold }
    }

    /// Room for calls of this many bytes each; what is in it is not said.
    pub fn places(&mut self, length: usize) -> Result<Places<'_>, String> {
        let Some((step, count)) = rotation(length, self.cold) else {
            return Err(format!("no memory for calls of {length} bytes"));
        };
        let needed = (step * count).checked_add(LINE + self.offset);
        let needed = needed.ok_or_else(|| format!("no memory for calls of {length} bytes"))?;
        if self.bytes.len() < needed {
            // The old piece goes first: both might not fit.
            self.bytes = Vec::new();
            self.bytes
                .try_reserve_exact(needed)
                .map_err(|error| format!("no memory for {count} times {length} bytes: {error}"))?;
            // Not with zeros, which the kernel would give without touching the pages.
            self.bytes.resize(needed, 1);
        }
        let start = self.bytes.as_ptr().align_offset(LINE) + self.offset;
        let bytes = &mut self.bytes[start..start + step * count];
        Ok(Places { bytes, step, length, count })
    }
}

impl Places<'_> {
    /// The buffers of call number `number`.
    pub fn get(&mut self, number: usize) -> &mut [u8] {
        let start = (number % self.count) * self.step;
        &mut self.bytes[start..start + self.length]
    }

    /// Copies what the buffers of the first call hold to those of all others.
    pub fn spread(&mut self) {
        for number in 1..self.count {
            self.bytes.copy_within(..self.length, number * self.step);
        }
    }
}

/// The bytes that cold calls rotate through when so many were asked for: twice the last-level cache
/// at least.
pub fn cold_bytes(asked: usize) -> usize {
    asked.max(2 * last_level_cache().unwrap_or(0))
}

/// How far calls of so many bytes lie apart, and how many there are before the first comes again.
fn rotation(length: usize, cold: Option<usize>) -> Option<(usize, usize)> {
    let step = length.max(1).checked_next_multiple_of(LINE)?;
    let Some(cold) = cold else {
        return Some((step, 1));
    };
    let step = step.max(COLD_STEP);
    let count = cold.div_ceil(step).max(COLD_LEAST);
    step.checked_mul(count).map(|_| (step, count))
}

/// Bytes of the last-level cache of the first processor, where the kernel tells.
pub fn last_level_cache() -> Option<usize> {
    (0..8)
        .filter_map(|index| {
            let folder = format!("/sys/devices/system/cpu/cpu0/cache/index{index}");
            let level: u32 =
                fs::read_to_string(format!("{folder}/level")).ok()?.trim().parse().ok()?;
            let size = fs::read_to_string(format!("{folder}/size")).ok()?;
            Some((level, parse_cache_size(size.trim())?))
        })
        .max()
        .map(|(_, size)| size)
}

/// A size as the kernel writes it: `32768K`.
fn parse_cache_size(text: &str) -> Option<usize> {
    let unit = match text.chars().last()? {
        'K' => 1 << 10,
        'M' => 1 << 20,
        _ => return text.parse().ok(),
    };
    text[..text.len() - 1].parse::<usize>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_up_to_the_offset() {
        for offset in [0, 1, 8, 100] {
            let mut memory = Memory::new(offset, None);
            for length in [1, 64, 100_000, 3] {
                let mut places = memory.places(length).unwrap();
                let place = places.get(7);
                assert_eq!((place.len(), place.as_ptr() as usize % LINE), (length, offset % LINE));
            }
        }
    }

    #[test]
    fn warm_calls_share_one_place_and_cold_ones_rotate() {
        assert_eq!(rotation(100, None), Some((128, 1)));
        assert_eq!(rotation(4, Some(1 << 20)), Some((4160, 253)));
        assert_eq!(rotation(1 << 20, Some(1 << 20)), Some((1 << 20, 4)));
        assert_eq!(rotation(usize::MAX, Some(1)), None);
        let mut memory = Memory { bytes: Vec::new(), offset: 0, cold: Some(1 << 20) };
        let mut places = memory.places(1000).unwrap();
        let mut at = |number| places.get(number).as_ptr() as usize;
        let places: Vec<usize> = (0..254).map(&mut at).collect();
        assert!(places.windows(2).take(252).all(|pair| pair[1] >= pair[0] + COLD_STEP));
        assert_eq!(places[253], places[0]);
    }

    #[test]
    fn all_calls_begin_with_what_the_first_holds() {
        let mut memory = Memory::new(5, Some(100_000));
        let mut places = memory.places(3000).unwrap();
        places.get(0).fill(7);
        places.spread();
        for number in 0..places.count {
            assert!(places.get(number).iter().all(|&byte| byte == 7), "{number}");
        }
    }

    #[test]
    fn cache_sizes_have_units() {
        assert_eq!(parse_cache_size("32768K"), Some(32 << 20));
        assert_eq!(parse_cache_size("4M"), Some(4 << 20));
        assert_eq!(parse_cache_size("512"), Some(512));
        assert_eq!(parse_cache_size("much"), None);
        assert_eq!(parse_cache_size(""), None);
    }
}

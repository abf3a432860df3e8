//! Operations under way: their memory, and the streams that they are on.

use mlxd::capi::*;

use crate::area::Area;

/// An operation, until its result was looked at.
pub struct Flight {
    /// What it is, for people.
    pub label: String,
    pub group: usize,
    pub areas: Vec<Area>,
}

impl Flight {
    /// After a success.
    pub fn check(&self) -> Result<(), String> {
        let wrong = |e| format!("{}: {e}", self.label);
        self.areas.iter().try_for_each(Area::check).map_err(wrong)
    }

    /// After a failure: whatever is in the output, nobody writes there any more.
    pub fn remains(self) -> Remains {
        let bytes = self.areas.iter().map(|area| area.bytes().to_vec()).collect();
        Remains { flight: self, bytes }
    }
}

/// An operation that failed, and what was in its memory when it said so.
pub struct Remains {
    flight: Flight,
    bytes: Vec<Vec<u8>>,
}

impl Remains {
    pub fn check(&self) -> Result<(), String> {
        let Flight { label, areas, .. } = &self.flight;
        for (area, bytes) in areas.iter().zip(&self.bytes) {
            let right = if area.is_input() { area.check() } else { area.check_guards() };
            right.map_err(|e| format!("{label}, after it failed: {e}"))?;
            if area.bytes() != bytes {
                return Err(format!("{label}: its memory was written after it had failed"));
            }
        }
        Ok(())
    }
}

/// A stream and what is on it.
pub struct Lane {
    pub stream: *mut mlxd_stream,
    pub flights: Vec<Flight>,
}
// SAFETY: any thread may use a stream, says the header; the rest is plain memory.
unsafe impl Send for Lane {}

impl Lane {
    pub fn new() -> Lane {
        let stream = mlxd_stream_new();
        assert!(!stream.is_null());
        Lane { stream, flights: Vec::new() }
    }
}

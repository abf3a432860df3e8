//! How many queue pairs this process has on each device: several worlds share one, each of which has
//! opened it for itself.

use std::collections::BTreeMap;

use crate::per_process::PerProcess;

static TALLY: PerProcess<BTreeMap<String, usize>> = PerProcess::new(BTreeMap::new());
/// What who holds it is at.
const COUNTING: &str = "counting queue pairs";

/// One queue pair's place in the tally, until it is dropped.
pub struct Counted {
    device: String,
}

impl Counted {
    /// Counts one more, unless there are `most` on this device.
    pub fn new(device: &str, most: usize) -> Option<Counted> {
        let mut tally = TALLY.lock(COUNTING).inspect_err(|e| log::warn!("{e}")).ok()?;
        let count = tally.entry(device.to_owned()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Counted { device: device.to_owned() })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Ok(mut tally) = TALLY.lock(COUNTING)
            && let Some(count) = tally.get_mut(&self.device)
        {
            *count -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_counted_apart_and_places_come_back() {
        let [a, b] = ["tally test a", "tally test b"];
        let first = Counted::new(a, 2);
        let beyond = Counted::new(a, usize::MAX);
        assert!(first.is_some() && beyond.is_some());
        assert!(Counted::new(a, 2).is_none());
        assert!(Counted::new(b, 1).is_some());
        drop(first);
        assert!(Counted::new(a, 2).is_some());
    }
}

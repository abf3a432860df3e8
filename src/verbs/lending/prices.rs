//! What it costs on a device to register memory, and to copy it, and when that pays.

use std::time::Duration;

/// The sizes that are registered: a small one for what a registration costs at all, and one that is large
/// against it; both within the usual limit on locked memory, 8 MiB.
pub const SMALL: usize = 64 << 10;
/// The large one.
pub const LARGE: usize = 2 << 20;

/// Nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prices {
    /// To register and deregister memory, however little.
    pub base: f64,
    /// And for each byte.
    pub per_byte: f64,
    /// To copy a byte.
    pub copy: f64,
}

impl Prices {
    /// From what it took to register memory of both sizes, and to copy the large one.
    pub fn of(small: Duration, large: Duration, copy: Duration) -> Prices {
        let nanos = |time: Duration| time.as_nanos() as f64;
        let per_byte = (nanos(large) - nanos(small)).max(0.0) / (LARGE - SMALL) as f64;
        let base = (nanos(small) - per_byte * SMALL as f64).max(0.0);
        Prices { base, per_byte, copy: nanos(copy) / LARGE as f64 }
    }

    /// Whether it takes less time to register `len` bytes for a call than to copy the `sent` bytes that
    /// are sent from them.
    pub fn pays(&self, len: usize, sent: u64) -> bool {
        self.base + self.per_byte * (len as f64) < self.copy * sent as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_often_enough_pays() {
        let micros = Duration::from_micros;
        let prices = Prices::of(micros(10), micros(72), micros(200));
        assert!((prices.base - 8000.0).abs() < 10.0 && (prices.per_byte - 0.03125).abs() < 1e-3);
        // 8 us and 31 us for a MiB, against 100 us.
        assert!(prices.pays(1 << 20, 1 << 20) && !prices.pays(64 << 10, 64 << 10));
        assert!(!prices.pays(16 << 20, 1 << 20) && prices.pays(1 << 20, 7 << 20));
        // Larger memory that was registered in no more time.
        let odd = Prices::of(micros(10), micros(9), micros(1));
        assert!(odd.per_byte == 0.0 && odd.base == 10_000.0 && !odd.pays(1 << 20, 1 << 20));
    }
}

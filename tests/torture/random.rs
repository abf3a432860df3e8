//! Numbers that follow from a seed: splitmix64.

pub struct Random(u64);

impl Random {
    /// The numbers that belong to these, in this order.
    pub fn new(of: &[u64]) -> Random {
        let mut random = Random(0);
        for part in of {
            random.0 = random.next() ^ part;
        }
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// 0 to `end` - 1.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// True once in so many times.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// 1 to `most`, each power of two as likely as the next.
    pub fn log_uniform(&mut self, most: usize) -> usize {
        let digits = self.below(most.ilog2() as usize + 1) as u32;
        (1 << digits).max(self.below(2 << digits)).min(most)
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// 0 to `count` - 1 in some order.
    pub fn permutation(&mut self, count: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            all.swap(last, self.below(last + 1));
        }
        all
    }
}

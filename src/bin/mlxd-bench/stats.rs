//! Order statistics of the times of a call.

use serde::{Deserialize, Serialize};

/// Microseconds of one size: how the calls of rank 0 are spread, and the slowest rank's median.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// Half of rank 0's calls took no longer: the figure that is printed.
    pub median: f64,
    /// Rank 0's fastest call.
    pub min: f64,
    /// A tenth of rank 0's calls took no longer.
    pub p10: f64,
    /// Nine tenths took no longer.
    pub p90: f64,
    /// Of a hundred, 99 took no longer.
    pub p99: f64,
    /// Rank 0's slowest call.
    pub max: f64,
    /// The longest of all ranks' medians.
    pub slowest_median: f64,
    /// The rank that has it.
    pub slowest_rank: usize,
}

impl Times {
    /// Of calls that took so many microseconds on this rank, as if it were the only one.
    pub fn new(mut times: Vec<f64>) -> Times {
        if times.is_empty() {
            return Times::default();
        }
        times.sort_unstable_by(f64::total_cmp);
        let last = times.len() - 1;
        let at = |percent: usize| times[(times.len() * percent / 100).min(last)];
        let median = at(50);
        Times {
            median,
            min: times[0],
            p10: at(10),
            p90: at(90),
            p99: at(99),
            max: times[last],
            slowest_median: median,
            slowest_rank: 0,
        }
    }

    /// Notes the slowest of all ranks, given each one's median.
    pub fn note_slowest(&mut self, medians: &[f64]) {
        for (rank, &median) in medians.iter().enumerate() {
            if rank == 0 || median > self.slowest_median {
                (self.slowest_median, self.slowest_rank) = (median, rank);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_hundred() {
        let times = Times::new((0..100).rev().map(f64::from).collect());
        let got = [times.min, times.p10, times.median, times.p90, times.p99, times.max];
        assert_eq!(got, [0.0, 10.0, 50.0, 90.0, 99.0, 99.0]);
    }

    #[test]
    fn one_call_is_all_of_them() {
        let times = Times::new(vec![3.0]);
        assert_eq!([times.min, times.p10, times.median, times.p99, times.max], [3.0; 5]);
        assert_eq!(Times::new(Vec::new()), Times::default());
    }

    #[test]
    fn the_slowest_rank_is_found() {
        let mut times = Times::new(vec![3.0]);
        times.note_slowest(&[3.0, 5.0, 4.0]);
        assert_eq!((times.slowest_median, times.slowest_rank, times.median), (5.0, 1, 3.0));
    }
}

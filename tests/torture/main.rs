//! Random programs of every operation on random worlds and groups, byte for byte against the header's
//! contract; in every second round a rank is killed at a random moment. All of a round follows from its
//! seed, the interleaving of its processes excepted.
//!
//! `MLXD_TEST_SEED=n` runs round n alone, as often as `MLXD_TEST_ROUNDS` says; `MLXD_TEST_LONG=1` runs
//! 500 rounds.

#[path = "../common/processes.rs"]
mod processes;
#[path = "../common/scratch.rs"]
mod scratch;

mod area;
mod flight;
mod groups;
mod operate;
mod program;
mod random;
mod rank;
mod round;
mod tally;
mod values;
mod verdict;
mod watch;

use libtest_mimic::{Arguments, Trial};

use round::Round;

/// Rounds of the short form and of the long one.
const ROUNDS: [u64; 2] = [30, 500];

fn main() {
    if let Some(role) = processes::role() {
        return rank::main(&role);
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let long = std::env::var_os("MLXD_TEST_LONG").is_some();
    let seeds = match number("MLXD_TEST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..ROUNDS[usize::from(long)],
    };
    let times = number("MLXD_TEST_ROUNDS").unwrap_or(1);
    let trials = seeds.map(|seed| {
        let test = move || (0..times).try_for_each(|_| Ok(watch::run(&Round::new(seed))?));
        Trial::test(format!("round::{seed}"), test)
    });
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials.collect());
    tally::print();
    conclusion.exit();
}

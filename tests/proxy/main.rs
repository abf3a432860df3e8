//! A proxy stands between the ranks, on every connection that they make, and delays, splits, truncates,
//! corrupts, doubles, drops, resets, or falls silent. What must come of it: right bytes or an error, never
//! wrong bytes, never a hang. `MLXD_TEST_LONG=1` draws many more cases; a case draws everything from the
//! seed in its name, and runs alone as `cargo test --test proxy -- --exact NAME`.

#[path = "../common/processes.rs"]
mod processes;
#[path = "../common/scratch.rs"]
mod scratch;

mod between;
mod case;
mod fault;
mod placed;
mod program;

use libtest_mimic::{Arguments, Trial};

use case::Case;
use fault::Kind;

/// Seeds for each kind of fault and transport; so many times as many with `MLXD_TEST_LONG`.
const SEEDS: u64 = 6;
const LONG: u64 = 20;

fn main() {
    if let Some(role) = processes::role() {
        return program::main(&role);
    }
    let mut arguments = Arguments::from_args();
    // They wait most of the time.
    arguments.test_threads.get_or_insert(4);
    let long = std::env::var("MLXD_TEST_LONG").is_ok_and(|v| !v.is_empty());
    let seeds = if long { SEEDS * LONG } else { SEEDS };
    let mut trials = placed::trials();
    for kind in Kind::ALL {
        for transport in ["tcp", "shm"] {
            for seed in 0..seeds {
                let case = Case { kind, transport, seed };
                trials.push(Trial::test(case.to_string(), move || case.test()));
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

//! How long it took until the last survivor knew, by fault and phase.

use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::matrix::{Cell, Fault, Phase};

static TIMES: Mutex<BTreeMap<(Fault, Phase), Vec<f64>>> = Mutex::new(BTreeMap::new());

/// Notes the time of one world.
pub fn add(cell: Cell, seconds: f64) {
    TIMES.lock().unwrap().entry((cell.fault, cell.phase)).or_default().push(seconds);
}

/// The table of all that ran, in milliseconds.
pub fn print() {
    let times = TIMES.lock().unwrap();
    if times.is_empty() {
        return;
    }
    print!("until the last survivor knew, all transports, median/worst ms\n\n| fault |");
    for phase in Phase::ALL {
        print!(" {} |", phase.name());
    }
    println!("\n|---|{}", "---|".repeat(Phase::ALL.len()));
    for fault in Fault::ALL {
        print!("| {} |", fault.name());
        for phase in Phase::ALL {
            let Some(all) = times.get(&(fault, phase)) else {
                print!(" |");
                continue;
            };
            let mut sorted: Vec<f64> = all.iter().map(|seconds| seconds * 1e3).collect();
            sorted.sort_by(f64::total_cmp);
            print!(" {:.0}/{:.0} |", sorted[sorted.len() / 2], sorted[sorted.len() - 1]);
        }
        println!();
    }
}

//! Every fault in every phase over every transport, on ranks that are processes of their own: the
//! survivors' status, who is named, and how soon they know. One test for each; the table of times
//! follows the tests. `MLXD_TEST_ROUNDS=10` repeats each, for figures.

#[path = "../common/processes.rs"]
mod processes;

mod matrix;
mod namespaces;
mod rank;
mod restarts;
mod table;

use libtest_mimic::{Arguments, Trial};

use matrix::{Cell, Fault, Phase, Transport};

fn main() {
    if let Some(role) = processes::role() {
        return rank::main(&role);
    }
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    let may_cut = namespaces::available();
    if let Err(why) = &may_cut {
        eprintln!("cables are not cut here: {why}");
    }
    for fault in Fault::ALL {
        for phase in Phase::ALL {
            for transport in Transport::ALL {
                let cell = Cell { fault, phase, transport };
                let left_out = fault == Fault::Cut && may_cut.is_err();
                // Asked to run what is ignored, it would fail.
                if cell.makes_sense() && !(left_out && arguments.include_ignored) {
                    let trial = Trial::test(cell.to_string(), move || cell.test());
                    trials.push(trial.with_ignored_flag(left_out));
                }
            }
        }
    }
    trials.extend(restarts::trials());
    let conclusion = libtest_mimic::run(&arguments, trials);
    table::print();
    conclusion.exit();
}

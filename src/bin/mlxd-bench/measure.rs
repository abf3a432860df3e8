//! One measurement: calls of one shape, timed and then checked.

use std::io::Write;
use std::time::Instant;

use crate::check::{check, fill};
use crate::document::Record;
use crate::group::Group;
use crate::memory::Memory;
use crate::operation::{Operation, Shape};
use crate::progress::Progress;
use crate::stats::Times;

/// How often a shape is called.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Calls before the first that counts.
    pub warmup: usize,
    /// Calls that are timed.
    pub iterations: usize,
    /// Whether one more is made, whose result is checked.
    pub check: bool,
}

/// Times calls of a shape on all ranks. Rank 0's record is the one to print.
pub fn measure(
    group: &Group,
    shape: &Shape,
    effort: Effort,
    memory: &mut Memory,
    progress: &mut Progress,
) -> Result<Record, String> {
    // step 0: every page of every buffer is written to
    let mut places = memory.places(shape.layout().bytes)?;
    fill(shape, places.get(0));
    places.spread();
    progress.begin(shape);

    // step 1: calls, each timed by itself
    let takes_part = shape.operation != Operation::PingPong || shape.rank < 2;
    let calls = if takes_part { effort.warmup + effort.iterations } else { 0 };
    // There and back is two messages.
    let unit = if shape.operation == Operation::PingPong { 0.5e6 } else { 1e6 };
    let mut times = Vec::with_capacity(effort.iterations);
    for number in 0..calls {
        let place = places.get(number);
        let start = Instant::now();
        group.call(shape, place)?;
        let end = Instant::now();
        if number >= effort.warmup {
            times.push((end - start).as_secs_f64() * unit);
        }
        progress.step(number + 1, calls, end);
    }
    let mut times = Times::new(times);
    times.note_slowest(&group.gather(times.median)?);

    // step 2: one more, into an output that holds nothing right
    let wrong = if effort.check {
        let place = places.get(0);
        fill(shape, place);
        group.call(shape, place)?;
        let found = check(shape, place);
        if let Some(first) = found.first {
            // Where stderr is closed the exit status has to do.
            let _ = writeln!(
                std::io::stderr(),
                "mlxd-bench: {}: {} elements wrong on rank {} of {}: {first}",
                shape.name(),
                found.wrong,
                shape.rank,
                shape.ranks
            );
        }
        Some(group.sum(found.wrong as i64)? as u64)
    } else {
        None
    };
    Ok(Record::new(shape, effort.iterations, times, wrong))
}

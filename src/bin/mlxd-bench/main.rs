//! Times the library's operations and checks their results, in the manner of nccl-tests.
//!
//! The words: a *shape* is an operation with its element type and size, as one rank calls it; a
//! *record* is what was measured of one; the *document* is all records of a run; a *series* is one
//! curve of the plot. `operation` says what can be timed, `values` and `check` what must come out,
//! `memory` where it lies, `group` calls the library, `measure` times; `report`, `document` and
//! `plot` tell.

mod check;
mod document;
mod files;
mod group;
mod host;
mod measure;
mod memory;
mod operation;
mod options;
mod plot;
mod progress;
mod report;
mod scale;
mod series;
mod stats;
mod values;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use document::Document;
use files::Files;
use group::Group;
use measure::{Effort, measure};
use memory::Memory;
use operation::{Operation, Shape};
use options::Options;
use progress::Progress;

/// A wrong result, or a failed call.
const STATUS_FAILED: u8 = 1;
/// A wrong command line.
const STATUS_USAGE: u8 = 2;

/// Why the program ends early.
struct Failure {
    status: u8,
    /// Nothing where another rank or an earlier line says it.
    message: Option<String>,
}

impl Failure {
    fn usage(message: String) -> Failure {
        Failure { status: STATUS_USAGE, message: Some(message) }
    }

    fn told(status: u8) -> Failure {
        Failure { status, message: None }
    }

    /// Says it, if there is something to say.
    fn tell(&self) {
        if let Some(message) = &self.message {
            // Where stderr is closed the exit status has to do.
            let _ = writeln!(std::io::stderr(), "mlxd-bench: {message}");
        }
    }
}

impl From<String> for Failure {
    fn from(message: String) -> Failure {
        Failure { status: STATUS_FAILED, message: Some(message) }
    }
}

fn main() -> ExitCode {
    let Err(failure) = run(&Options::parse()) else {
        return ExitCode::SUCCESS;
    };
    failure.tell();
    ExitCode::from(failure.status)
}

/// What to time, and on rank 0 the files to write.
fn prepare(options: &Options, group: &Group) -> Result<(Vec<Operation>, Files), Failure> {
    let operations = options.operations(group.size()).map_err(Failure::usage)?;
    let files = if group.rank() == 0 { Files::open(options)? } else { Files::default() };
    Ok((operations, files))
}

fn run(options: &Options) -> Result<(), Failure> {
    // step 0: what can be known to be wrong before there is a group
    let sizes = options.sizes().map_err(Failure::usage)?;
    if options.plot_only {
        return Ok(Files::open(options)?.write(None)?);
    }

    // step 1: the group, and what all its ranks find possible
    let group = Group::init(options.backend != "any", &options.backend)?;
    let first = group.rank() == 0;
    let prepared = prepare(options, &group);
    if let (Err(failure), true) = (&prepared, first) {
        failure.tell();
    }
    // Only then does any rank end: a launcher ends the others with it.
    let status = prepared.as_ref().map_or_else(|failure| failure.status, |_| 0);
    let worst = group.sum(i64::from(status))?;
    let (operations, files) = prepared.map_err(|failure| Failure::told(failure.status))?;
    if worst > 0 {
        return Err(Failure::told(STATUS_FAILED));
    }

    // step 2: measure
    let label = options.label.clone().unwrap_or_else(|| format!("mlxd-{}", group.backend()));
    let mut document = Document::new(options, &label, &group.backend(), group.size());
    let shapes = shapes(options, &operations, &sizes, (group.rank(), group.size()));
    measure_all(&group, options, &shapes, &mut document)?;

    // step 3: tell
    if first {
        files.write(Some(&document))?;
    }
    if document.wrong() > 0 { Err(Failure::told(STATUS_FAILED)) } else { Ok(()) }
}

/// Every shape of the run, in order; sizes that rounding makes equal come once.
fn shapes(
    options: &Options,
    operations: &[Operation],
    sizes: &[usize],
    place: (usize, usize),
) -> Vec<Shape> {
    let mut shapes: Vec<Shape> = Vec::new();
    for &operation in operations {
        for &dtype in &options.datatype.0 {
            for &bytes in sizes {
                let shape = Shape {
                    root: options.root,
                    in_place: options.in_place,
                    ..Shape::new(operation, dtype, bytes, place)
                };
                let barrier = operation == Operation::Barrier;
                let again = |last: &Shape| {
                    if barrier { last.operation == operation } else { *last == shape }
                };
                if !shapes.last().is_some_and(again) {
                    shapes.push(shape);
                }
            }
        }
    }
    shapes
}

/// Measures every shape, and prints as it goes.
fn measure_all(
    group: &Group,
    options: &Options,
    shapes: &[Shape],
    document: &mut Document,
) -> Result<(), String> {
    let first = group.rank() == 0;
    let effort = |shape: &Shape| Effort {
        warmup: options.warmup_iters as usize,
        iterations: options.iterations(shape.bytes()),
        check: options.check,
    };
    let calls = |shape: &Shape| effort(shape).warmup + effort(shape).iterations;
    let total = shapes.iter().map(|shape| progress::cost(shape, calls(shape)));
    let mut progress = Progress::new(first, total.sum());
    let mut memory = Memory::new(options.align as usize, document.options.cold_bytes);
    let say = |progress: &Progress, text: String| {
        if first { progress.aside(|| print(&text)) } else { Ok(()) }
    };
    say(&progress, report::header(options, document))?;
    for shape in shapes {
        let record = measure(group, shape, effort(shape), &mut memory, &mut progress)?;
        say(&progress, report::row(options, document, &record))?;
        document.results.push(record);
    }
    say(&progress, report::footer(options, document))
}

fn print(text: &str) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| format!("cannot write the result: {error}"))
}

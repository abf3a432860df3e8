//! Reads what the flight recorders of a world's ranks wrote, and says who is behind and in what.
//!
//! The words: a *document* is one rank's view of one group; a *case* is one group with the documents
//! of its ranks; a *finding* is one sentence about it. `files` reads documents and sorts them into
//! cases, `analysis` finds, `wording` names things, `report` prints.

mod analysis;
mod files;
mod report;
mod wording;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Something is wrong in some group.
const STATUS_PROBLEM: u8 = 1;
/// A wrong command line, or nothing to read.
const STATUS_USAGE: u8 = 2;

/// Say which rank is behind, in which operation, and where ranks diverge.
#[derive(Parser)]
#[command(
    version,
    after_help = "\
The files are those that ranks write to the folder MLXD_FLIGHT_RECORDER when a group fails, or that \
mlxd_group_dump() writes; bring those of all ranks together. Of several files of one rank and group \
the newest counts. Operations are numbered from 0: collectives in the order of the group's calls, \
messages in the order of those from one rank to another.

Exit status: 0 when nothing is wrong; 1 when a group has failed, a rank's file is missing, or ranks \
wait for each other; 2 for a wrong command line, or when no file can be read."
)]
struct Options {
    /// Print one JSON document
    #[arg(long)]
    json: bool,

    /// Folders, whose *.json are read, and files
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let found = files::read(&options.paths);
    for (path, reason) in &found.skipped {
        // `eprintln!` would panic where stderr is closed.
        let _ = writeln!(std::io::stderr(), "mlxd-inspect: skipped {}: {reason}", path.display());
    }
    if found.cases.is_empty() {
        let _ = writeln!(std::io::stderr(), "mlxd-inspect: no file of a flight recorder to read");
        return ExitCode::from(STATUS_USAGE);
    }
    let results: Vec<_> = found.cases.iter().map(analysis::analyse).collect();
    let problem = results.iter().any(analysis::Analysis::is_problem);
    let text = if options.json {
        report::json(&found, &results)
    } else {
        report::text(&found.cases, &results)
    };
    // Whoever closes the pipe has read enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if problem { ExitCode::from(STATUS_PROBLEM) } else { ExitCode::SUCCESS }
}

//! Lines on stderr about what the library does, if asked for.

use std::io::Write;

use log::{LevelFilter, Log, Metadata, Record};

use crate::error::{Result, fail};

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            // One write for one line, so that those of several ranks do not mix. There is nobody
            // to tell if it fails.
            let (process, level) = (std::process::id(), record.level().as_str().to_lowercase());
            let line = format!("mlxd[{process}] {level}: {}\n", record.args());
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// Shows lines of this level and above, in the whole process.
pub fn enable(level: &str) -> Result<()> {
    let Ok(filter) = level.parse::<LevelFilter>() else {
        fail!(Config, "MLXD_LOG={level:?} is not error, warn, info, debug, trace or off");
    };
    // A Rust program that has a logger keeps it.
    let _ = log::set_logger(&Stderr);
    log::set_max_level(filter);
    Ok(())
}

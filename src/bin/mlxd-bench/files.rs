//! The files that rank 0 reads before and writes after the measurement.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::document::Document;
use crate::options::Options;
use crate::series::{self, Series};
use crate::{plot, report};

/// What goes where, found to be possible before anything is measured.
#[derive(Default)]
pub struct Files {
    json: Option<Output>,
    csv: Option<Output>,
    plot: Option<Output>,
    compare: Vec<Series>,
}

/// A file that could be opened for writing; as it was until it is written.
struct Output {
    path: PathBuf,
    file: File,
}

impl Files {
    /// Opens the outputs and reads what is compared with.
    pub fn open(options: &Options) -> Result<Files, String> {
        let operation = options.op.list[0];
        let mut compare = Vec::new();
        for path in &options.compare {
            compare.extend(series::read(path, operation)?);
        }
        let open = |path: &Option<PathBuf>| path.as_deref().map(Output::open).transpose();
        Ok(Files {
            json: open(&options.json)?,
            csv: open(&options.csv)?,
            plot: open(&options.plot)?,
            compare,
        })
    }

    /// Writes all of them; without a document (nothing was measured) the plot alone.
    pub fn write(self, document: Option<&Document>) -> Result<(), String> {
        if let (Some(output), Some(document)) = (self.json, document) {
            output.write(&document.text()?)?;
        }
        if let (Some(output), Some(document)) = (self.csv, document) {
            output.write(&report::csv(document))?;
        }
        let Some(output) = self.plot else {
            return Ok(());
        };
        let mut all = document.map(series::of_document).unwrap_or_default();
        all.extend(self.compare);
        if all.is_empty() {
            return Err(format!("{}: nothing was measured that has a size", output.path.display()));
        }
        let about = document.map_or(String::new(), |document| {
            let Document { host, version, .. } = document;
            format!("{}, {} cores, Linux {}; mlxd {version}", host.cpu, host.cores, host.kernel)
        });
        output.write(&plot::draw(&all, &about))
    }
}

impl Output {
    fn open(path: &Path) -> Result<Output, String> {
        match OpenOptions::new().write(true).create(true).truncate(false).open(path) {
            Ok(file) => Ok(Output { path: path.to_owned(), file }),
            Err(error) => Err(format!("{}: cannot be written: {error}", path.display())),
        }
    }

    fn write(mut self, text: &str) -> Result<(), String> {
        // What was longer before is cut; devices and pipes have no length.
        let regular = self.file.metadata().is_ok_and(|metadata| metadata.is_file());
        let cut = if regular { self.file.set_len(0) } else { Ok(()) };
        cut.and_then(|()| self.file.write_all(text.as_bytes()))
            .map_err(|error| format!("{}: cannot be written: {error}", self.path.display()))
    }
}

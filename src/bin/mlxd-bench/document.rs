//! What was measured, as `--json` writes it and `--compare` reads it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::host::{Host, environment};
use crate::memory::cold_bytes;
use crate::operation::{Operation, Shape};
use crate::options::Options;
use crate::stats::Times;

/// The number in `format`: rises when a field changes its meaning or goes.
const FORMAT: u32 = 1;

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Document {
    /// [`FORMAT`]
    pub format: u32,
    /// The library's version.
    pub version: String,
    /// What `--label` says.
    pub label: String,
    /// The backend that came up.
    pub backend: String,
    /// The size of the group.
    pub ranks: usize,
    /// Rank 0's machine.
    #[serde(default)]
    pub host: Host,
    /// The library's settings in rank 0's environment.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// How it was measured.
    #[serde(default)]
    pub options: Settings,
    /// In the order in which they were measured.
    pub results: Vec<Record>,
}

/// What holds for all results of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Settings {
    /// Calls before the first that counts.
    pub warmup_iters: u32,
    /// Whether results were checked.
    pub check: bool,
    /// Whether `--in-place` was asked for.
    pub in_place: bool,
    /// Bytes through which calls rotated, at least; none in warm mode.
    pub cold_bytes: Option<usize>,
    /// Bytes behind a multiple of 64.
    pub align: u32,
}

/// One size of one operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The operation's name.
    pub op: String,
    /// The element type's name; `none` for a barrier.
    pub dtype: String,
    /// The root, where there is one.
    pub root: Option<usize>,
    /// Whether the input lay in the output.
    pub in_place: bool,
    /// The size.
    pub bytes: usize,
    /// Elements, as the library's call counts them.
    pub count: usize,
    /// Calls that were timed.
    pub iterations: usize,
    /// Microseconds.
    pub time_us: Times,
    /// The size over the median, in 10^9 bytes per second.
    pub algbw_gbps: f64,
    /// The same times the operation's factor.
    pub busbw_gbps: f64,
    /// Wrong elements on all ranks; none if nothing was checked.
    pub wrong: Option<u64>,
}

impl Document {
    /// A run that has measured nothing yet.
    pub fn new(options: &Options, label: &str, backend: &str, ranks: usize) -> Document {
        Document {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            label: label.to_owned(),
            backend: backend.to_owned(),
            ranks,
            host: Host::here(),
            environment: environment(),
            options: Settings {
                warmup_iters: options.warmup_iters,
                check: options.check,
                in_place: options.in_place,
                cold_bytes: options.cold.then(|| cold_bytes(options.cold_bytes)),
                align: options.align,
            },
            results: Vec::new(),
        }
    }

    /// The run that a text tells of.
    pub fn parse(text: &str) -> Result<Document, String> {
        let document: Document = serde_json::from_str(text)
            .map_err(|error| format!("no document of mlxd-bench: {error}"))?;
        match document.format {
            FORMAT => Ok(document),
            other => Err(format!("has format {other}; this mlxd-bench reads {FORMAT}")),
        }
    }

    /// The text of it.
    pub fn text(&self) -> Result<String, String> {
        let text = serde_json::to_string_pretty(self);
        text.map(|text| text + "\n").map_err(|error| format!("cannot make the document: {error}"))
    }

    /// Wrong elements of all results.
    pub fn wrong(&self) -> u64 {
        self.results.iter().filter_map(|record| record.wrong).sum()
    }
}

impl Record {
    /// What came of a shape.
    pub fn new(shape: &Shape, iterations: usize, times: Times, wrong: Option<u64>) -> Record {
        let algbw = bandwidth(shape.bytes(), times.median);
        Record {
            op: shape.operation.name().to_owned(),
            dtype: match shape.operation {
                Operation::Barrier => "none".to_owned(),
                _ => shape.dtype.name().to_owned(),
            },
            root: shape.root(),
            in_place: shape.in_place,
            bytes: shape.bytes(),
            count: shape.count(),
            iterations,
            time_us: times,
            algbw_gbps: algbw,
            busbw_gbps: algbw * shape.operation.bus_factor(shape.ranks),
            wrong,
        }
    }
}

/// 10^9 bytes per second, of so many bytes in so many microseconds.
pub fn bandwidth(bytes: usize, microseconds: f64) -> f64 {
    if microseconds > 0.0 { bytes as f64 / microseconds / 1e3 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use mlxd::dtype::Dtype;

    use super::*;

    #[test]
    fn bandwidths_follow_from_time_and_factor() {
        let shape = Shape::new(Operation::AllSum, Dtype::Float32, 4_000_000, (0, 4));
        let record = Record::new(&shape, 1, Times::new(vec![1000.0]), Some(0));
        assert_eq!((record.algbw_gbps, record.busbw_gbps), (4.0, 6.0));
        assert_eq!(bandwidth(8, 0.0), 0.0);
    }

    #[test]
    fn other_formats_are_refused() {
        let text = |format| {
            format!(
                r#"{{"format":{format},"version":"1","label":"a","backend":"b","ranks":2,"results":[]}}"#
            )
        };
        assert_eq!(Document::parse(&text(1)).unwrap().ranks, 2);
        assert!(Document::parse(&text(2)).unwrap_err().contains("format 2"));
        assert!(Document::parse("{}").is_err());
    }
}

//! The curves of a plot, and where they come from: this run, documents, other programs' lines.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::document::{Document, bandwidth};
use crate::operation::Operation;

/// One curve.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Who was measured.
    pub label: String,
    /// The operation's name.
    pub op: String,
    /// The element type's name, where it is known.
    pub dtype: Option<String>,
    /// The size of the group.
    pub ranks: usize,
    /// Whether the input lay in the output.
    pub in_place: bool,
    /// By size.
    pub points: Vec<Point>,
}

/// One size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// The size.
    pub bytes: usize,
    /// The time of one call in microseconds.
    pub time: f64,
    /// 10^9 bytes per second.
    pub busbw: f64,
}

/// The curves of one run. A barrier has no size, and no place in a plot.
pub fn of_document(document: &Document) -> Vec<Series> {
    let mut all: Vec<Series> = Vec::new();
    for record in document.results.iter().filter(|record| record.bytes > 0) {
        let dtype = Some(record.dtype.clone());
        let at = all.iter().position(|series| {
            series.op == record.op && series.dtype == dtype && series.in_place == record.in_place
        });
        let at = at.unwrap_or_else(|| {
            all.push(Series {
                label: document.label.clone(),
                op: record.op.clone(),
                dtype,
                ranks: document.ranks,
                in_place: record.in_place,
                points: Vec::new(),
            });
            all.len() - 1
        });
        let (time, busbw) = (record.time_us.median, record.busbw_gbps);
        all[at].points.push(Point { bytes: record.bytes, time, busbw });
    }
    for series in &mut all {
        series.points.sort_by_key(|point| point.bytes);
    }
    all
}

/// The curves of a file: a document, or lines that time this operation.
pub fn read(path: &Path, operation: Operation) -> Result<Vec<Series>, String> {
    let at = |message: String| format!("{}: {message}", path.display());
    let text = fs::read_to_string(path).map_err(|error| at(format!("cannot be read: {error}")))?;
    if text.trim_start().starts_with('{') {
        return Document::parse(&text).map(|document| of_document(&document)).map_err(at);
    }
    of_lines(&text, operation).map_err(at)
}

/// The curves of lines `label ranks bytes microseconds`, of several rounds perhaps: a point is the
/// median of its rounds. Empty lines and those that begin with # say nothing.
fn of_lines(text: &str, operation: Operation) -> Result<Vec<Series>, String> {
    let mut rounds: BTreeMap<(&str, usize, usize), Vec<f64>> = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (key, time) = parse_line(line).ok_or_else(|| {
            format!("line {}: must be `label ranks bytes microseconds`", number + 1)
        })?;
        rounds.entry(key).or_default().push(time);
    }
    let mut all: Vec<Series> = Vec::new();
    for ((label, ranks, bytes), mut times) in rounds {
        times.sort_unstable_by(f64::total_cmp);
        let time = times[times.len() / 2];
        let busbw = bandwidth(bytes, time) * operation.bus_factor(ranks);
        let point = Point { bytes, time, busbw };
        match all.last_mut() {
            Some(series) if series.label == label && series.ranks == ranks => {
                series.points.push(point)
            }
            _ => all.push(Series {
                label: label.to_owned(),
                op: operation.name().to_owned(),
                dtype: None,
                ranks,
                in_place: false,
                points: vec![point],
            }),
        }
    }
    if all.is_empty() { Err("has no lines".to_owned()) } else { Ok(all) }
}

fn parse_line(line: &str) -> Option<((&str, usize, usize), f64)> {
    let mut words = line.split_whitespace();
    let label = words.next()?;
    let ranks: usize = words.next()?.parse().ok()?;
    let bytes: usize = words.next()?.parse().ok()?;
    let time: f64 = words.next()?.parse().ok()?;
    let right = words.next().is_none() && ranks > 0 && bytes > 0 && time.is_finite() && time > 0.0;
    right.then_some(((label, ranks, bytes), time))
}

/// What distinguishes each curve, and what all have in common: the legend's names, and the title.
pub fn names(all: &[Series]) -> (Vec<String>, String) {
    let parts = |series: &Series| {
        [
            Some(series.label.clone()),
            Some(series.op.clone()),
            series.dtype.clone(),
            Some(format!("{} rank{}", series.ranks, if series.ranks == 1 { "" } else { "s" })),
            Some(if series.in_place { "in place" } else { "out of place" }.to_owned()),
        ]
    };
    let parts: Vec<_> = all.iter().map(parts).collect();
    let differs = |part: usize| {
        let mut known = parts.iter().filter_map(|parts| parts[part].as_ref());
        let first = known.next();
        known.any(|other| Some(other) != first)
    };
    let mut differing: [bool; 5] = std::array::from_fn(differs);
    // A name is never empty.
    differing[0] |= !differing.contains(&true);
    let names = parts.iter().map(|parts| {
        let own = parts.iter().zip(differing).filter(|(_, differs)| *differs);
        let own = own.filter_map(|(part, _)| part.as_deref());
        own.collect::<Vec<_>>().join(", ")
    });
    let common = (0..5).filter(|&part| !differing[part]);
    let common = common.filter_map(|part| parts.iter().find_map(|parts| parts[part].as_deref()));
    (names.collect(), common.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_several_rounds_become_medians() {
        let text =
            "# a comment\nmpi 4 1024 3\nmpi 4 1024 9\n\nmpi 4 1024 5\nmpi 4 64 1\nmlx 4 64 2\n";
        let all = of_lines(text, Operation::AllSum).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!((all[1].label.as_str(), all[1].points.len()), ("mpi", 2));
        let point = all[1].points[1];
        assert_eq!((point.bytes, point.time), (1024, 5.0));
        assert!((point.busbw - 1.5 * 1024.0 / 5e3).abs() < 1e-12);
    }

    #[test]
    fn lines_that_are_none_are_named() {
        for wrong in ["", "mpi 4 1024", "mpi 4 1024 x", "mpi 0 4 1", "mpi 4 4 1 1", "mpi 4 4 -1"] {
            assert!(of_lines(wrong, Operation::AllSum).is_err(), "{wrong}");
        }
        let error = of_lines("mpi 4 4 1\nnothing\n", Operation::AllSum).unwrap_err();
        assert!(error.starts_with("line 2: "), "{error}");
    }

    #[test]
    fn names_tell_what_differs_and_the_title_the_rest() {
        let series = |label: &str, op: &str, dtype: Option<&str>, ranks| Series {
            label: label.to_owned(),
            op: op.to_owned(),
            dtype: dtype.map(str::to_owned),
            ranks,
            in_place: false,
            points: Vec::new(),
        };
        let (names, title) = names(&[
            series("mlxd", "all_sum", Some("float32"), 2),
            series("mpi", "all_sum", None, 2),
            series("mlxd", "all_sum", Some("float32"), 4),
        ]);
        assert_eq!(names, ["mlxd, 2 ranks", "mpi, 2 ranks", "mlxd, 4 ranks"]);
        assert_eq!(title, "all_sum, float32, out of place");
        let (names, title) = super::names(&[
            series("mlxd", "all_sum", Some("int8"), 2),
            series("mlxd", "barrier", Some("int8"), 2),
        ]);
        assert_eq!(names, ["all_sum", "barrier"]);
        assert_eq!(title, "mlxd, int8, 2 ranks, out of place");
        let (names, title) = super::names(&[series("mlxd", "all_sum", None, 1)]);
        assert_eq!((names[0].as_str(), title.as_str()), ("mlxd", "all_sum, 1 rank, out of place"));
    }
}

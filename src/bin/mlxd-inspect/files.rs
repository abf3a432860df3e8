//! Documents from files, sorted into cases.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use mlxd::recorder::document::{Document, FORMAT, FORMAT_VERSION};
use serde::Deserialize;

/// One group with what its ranks wrote.
pub struct Case {
    /// The group's ranks.
    pub size: usize,
    /// By rank.
    pub documents: BTreeMap<usize, Document>,
}

/// What was read.
#[derive(Default)]
pub struct Found {
    /// In the order of worlds, newest last, then of groups.
    pub cases: Vec<Case>,
    /// What could not be read, and why.
    pub skipped: Vec<(PathBuf, String)>,
}

/// What every file of a flight recorder begins with, of whatever version.
#[derive(Deserialize)]
struct Kind {
    format: String,
    format_version: u32,
}

/// Reads these files, and those in these folders.
pub fn read(paths: &[PathBuf]) -> Found {
    let mut found = Found::default();
    let mut documents = Vec::new();
    for path in paths {
        match list(path) {
            Ok(files) => {
                for file in files {
                    match document(&file) {
                        Ok(document) => documents.push(document),
                        Err(reason) => found.skipped.push((file, reason)),
                    }
                }
            }
            Err(reason) => found.skipped.push((path.clone(), reason)),
        }
    }
    found.cases = sort(documents);
    found
}

/// The file itself, or a folder's `*.json` in the order of their names.
fn list(path: &Path) -> Result<Vec<PathBuf>, String> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(|e| e.to_string())? {
        let file = entry.map_err(|e| e.to_string())?.path();
        if file.extension().is_some_and(|extension| extension == "json") {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn document(path: &Path) -> Result<Document, String> {
    let text = fs::read(path).map_err(|e| e.to_string())?;
    parse(&text)
}

fn parse(text: &[u8]) -> Result<Document, String> {
    match serde_json::from_slice::<Kind>(text) {
        Ok(kind) if kind.format != FORMAT => return Err("not of a flight recorder".to_owned()),
        Ok(kind) if kind.format_version != FORMAT_VERSION => {
            return Err(format!(
                "of version {} of the format; this program reads version {FORMAT_VERSION}",
                kind.format_version
            ));
        }
        Ok(_) => {}
        Err(e) if e.is_data() => return Err("not of a flight recorder".to_owned()),
        Err(e) => return Err(format!("damaged: {e}")),
    }
    let document: Document = serde_json::from_slice(text).map_err(|e| format!("damaged: {e}"))?;
    let Document { rank, size, ranks, .. } = &document;
    if rank >= size || ranks.len() != *size {
        return Err(format!("damaged: rank {rank} of {size}, with {} ranks", ranks.len()));
    }
    Ok(document)
}

/// The documents of each group together; of several of one rank the newest.
pub fn sort(documents: Vec<Document>) -> Vec<Case> {
    let mut cases: BTreeMap<(String, String), Case> = BTreeMap::new();
    for document in documents {
        let key = (document.world.clone(), document.group.clone());
        let case = cases
            .entry(key)
            .or_insert_with(|| Case { size: document.size, documents: BTreeMap::new() });
        case.size = case.size.max(document.size);
        let newer = case.documents.get(&document.rank).is_none_or(|known| {
            // What was written when the group failed shows what ranks were in; later, all have ended.
            let (known, new) = (order(known), order(&document));
            known < new
        });
        if newer {
            case.documents.insert(document.rank, document);
        }
    }
    let mut cases: Vec<Case> = cases.into_values().collect();
    let begun = |case: &Case| case.documents.values().map(|d| d.written_us).min();
    let world = |case: &Case| case.documents.values().next().map(|d| d.world.clone());
    let mut worlds: BTreeMap<Option<String>, Option<u64>> = BTreeMap::new();
    for case in &cases {
        let first = worlds.entry(world(case)).or_insert(begun(case));
        *first = (*first).min(begun(case));
    }
    // The sort is stable: groups of a world stay in their order.
    cases.sort_by_key(|case| worlds.get(&world(case)).copied().flatten());
    cases
}

/// Of one rank's documents of one group the greatest counts.
fn order(document: &Document) -> (bool, u64) {
    let at_failure = document.failure.as_ref().is_some_and(|failure| failure.at_us.is_some());
    (at_failure, document.written_us)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_and_damaged_files_are_told_apart() {
        let reason = |text: &str| parse(text.as_bytes()).unwrap_err();
        assert_eq!(reason("[1, 2]"), "not of a flight recorder");
        assert_eq!(reason(r#"{"name": "package"}"#), "not of a flight recorder");
        assert_eq!(reason(r#"{"format": "x", "format_version": 1}"#), "not of a flight recorder");
        assert!(reason(r#"{"format": "mlxd-flight-rec"#).starts_with("damaged: "));
        assert!(reason("").starts_with("damaged: "));
        let newer = format!(r#"{{"format": "{FORMAT}", "format_version": 99}}"#);
        assert!(reason(&newer).contains("version 99"), "{}", reason(&newer));
        let empty = format!(r#"{{"format": "{FORMAT}", "format_version": {FORMAT_VERSION}}}"#);
        assert!(reason(&empty).starts_with("damaged: missing field"), "{}", reason(&empty));
    }
}

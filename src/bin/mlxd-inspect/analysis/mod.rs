//! What is wrong with one group, from what its ranks wrote.

mod collectives;
mod messages;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use mlxd::recorder::State;
use mlxd::recorder::document::{Document, Entry};
use serde::Serialize;

use crate::files::Case;
use crate::wording::ranks;

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Ranks that wrote no file.
    Missing,
    /// Ranks called different things.
    Diverge,
    /// A rank for which others wait.
    Behind,
    /// Ranks that wait in a collective.
    Waits,
    /// A message that one side waits for.
    Message,
}

/// One sentence.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What it is about.
    pub kind: Kind,
    /// Whom.
    pub ranks: Vec<usize>,
    /// Whether something is wrong, rather than under way.
    pub problem: bool,
    /// The sentence.
    pub text: String,
}

/// What failed the group, as some ranks have it.
#[derive(Clone, Debug, Serialize)]
pub struct Cause {
    /// Who.
    pub ranks: Vec<usize>,
    /// The one of them that knew it before all others, if that can be told.
    pub first: Option<usize>,
    /// As in mlxd.h.
    pub status: String,
    /// The sentence.
    pub message: String,
}

/// All that is to be said of one group.
#[derive(Clone, Debug, Serialize)]
pub struct Analysis {
    /// What ranks do, and where they part.
    pub findings: Vec<Finding>,
    /// What failed the group; the first cause comes first.
    pub causes: Vec<Cause>,
}

impl Analysis {
    /// Whether something is wrong.
    pub fn is_problem(&self) -> bool {
        !self.causes.is_empty() || self.findings.iter().any(|finding| finding.problem)
    }
}

/// Compares what the ranks of a group wrote.
pub fn analyse(case: &Case) -> Analysis {
    let mut findings = Vec::new();
    let missing: Vec<usize> =
        (0..case.size).filter(|rank| !case.documents.contains_key(rank)).collect();
    if !missing.is_empty() {
        let text = format!("{} wrote no file (killed, or left in good order?)", ranks(&missing));
        findings.push(Finding { kind: Kind::Missing, problem: true, text, ranks: missing });
    }
    findings.extend(collectives::find(case));
    findings.extend(messages::find(case));
    Analysis { findings, causes: causes(case) }
}

/// The causes that the ranks know, each once.
fn causes(case: &Case) -> Vec<Cause> {
    let mut known: BTreeMap<(String, String), Vec<usize>> = BTreeMap::new();
    for (rank, document) in &case.documents {
        if let Some(failure) = &document.failure {
            let key = (failure.status.clone(), failure.message.clone());
            known.entry(key).or_default().push(*rank);
        }
    }
    let first = first_to_know(case);
    let mut causes: Vec<Cause> = known
        .into_iter()
        .map(|((status, message), ranks)| {
            let first = first.filter(|rank| ranks.contains(rank));
            Cause { ranks, first, status, message }
        })
        .collect();
    causes.sort_by_key(|cause| cause.first.is_none());
    causes
}

/// Who knew of the failure before all others: told by the clock of one host, which all ranks share.
fn first_to_know(case: &Case) -> Option<usize> {
    let mut hosts = case.documents.values().map(|document| &document.host);
    let host = hosts.next()?;
    if case.documents.len() < 2 || hosts.any(|other| other != host) {
        return None;
    }
    let mut times = Vec::new();
    for (rank, document) in &case.documents {
        if let Some(failure) = &document.failure {
            times.push((failure.at_us?, *rank));
        }
    }
    times.sort_unstable();
    match times.as_slice() {
        [(first, rank), (second, _), ..] if first < second => Some(*rank),
        _ => None,
    }
}

/// Whether this rank is in the operation, or was until the group failed: its turn came, and it did not
/// end well.
fn is_in(entry: &Entry) -> bool {
    entry.started_ms.is_some() && matches!(entry.state, State::Running | State::Failed)
}

/// What a rank does, or did last: the oldest operation that has not ended well, else the newest.
fn current(document: &Document) -> Option<&Entry> {
    let unfinished = document.operations.iter().find(|entry| entry.state != State::Done);
    unfinished.or(document.operations.last())
}

//! Which rank is behind, and at which collective ranks diverge.

use std::collections::BTreeMap;

use mlxd::recorder::State;
use mlxd::recorder::document::{Document, Entry};

use super::{Finding, Kind, current, is_in};
use crate::files::Case;
use crate::wording::{call, duration, operation, ranks, seconds};

/// Where a rank is among the group's collectives; the smaller, the further behind.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// The first collective that has not ended well here.
    sequence: u64,
    step: Step,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    NotCalled,
    Queued,
    Running,
}

/// What the ranks' collectives tell.
pub fn find(case: &Case) -> Vec<Finding> {
    let places: BTreeMap<usize, (Place, Option<&Entry>)> =
        case.documents.iter().map(|(rank, document)| (*rank, place(document))).collect();
    let mut findings: Vec<Finding> = divergence(case).into_iter().collect();
    let least = places.values().map(|(place, _)| *place).min();
    let waits = |place: Place| place.step == Step::Running && Some(place) > least;
    // Who is ahead and waits for nothing has no quarrel with those behind.
    let someone_waits = places.values().any(|(place, _)| waits(*place));
    if findings.is_empty() && someone_waits {
        let behind = places.iter().filter(|(_, (place, _))| Some(*place) == least);
        for (rank, (place, entry)) in behind {
            findings.push(behind_at(*rank, &case.documents[rank], *place, *entry));
        }
    }
    findings.extend(waiting(case, &places));
    findings
}

fn place(document: &Document) -> (Place, Option<&Entry>) {
    let unfinished = document
        .operations
        .iter()
        .filter(|entry| entry.sequence.is_some() && entry.state != State::Done)
        .min_by_key(|entry| entry.sequence);
    let Some(entry) = unfinished else {
        let place = Place { sequence: document.collectives.called, step: Step::NotCalled };
        return (place, None);
    };
    let step = if is_in(entry) { Step::Running } else { Step::Queued };
    (Place { sequence: entry.sequence.unwrap_or_default(), step }, Some(entry))
}

/// The first collective that ranks called differently, as far back as the files go.
fn divergence(case: &Case) -> Option<Finding> {
    let mut by_sequence: BTreeMap<u64, BTreeMap<String, Vec<usize>>> = BTreeMap::new();
    for (rank, document) in &case.documents {
        for entry in &document.operations {
            if let Some(sequence) = entry.sequence {
                let calls = by_sequence.entry(sequence).or_default();
                calls.entry(call(entry)).or_default().push(*rank);
            }
        }
    }
    let (sequence, calls) = by_sequence.into_iter().find(|(_, calls)| calls.len() > 1)?;
    let mut calls: Vec<(String, Vec<usize>)> = calls.into_iter().collect();
    calls.sort_by_key(|(_, callers)| callers.first().copied());
    let sides: Vec<String> =
        calls.iter().map(|(call, callers)| format!("{} called {call}", ranks(callers))).collect();
    let text = format!("ranks diverge at collective #{sequence}: {}", sides.join(", "));
    let mut all: Vec<usize> = calls.into_iter().flat_map(|(_, callers)| callers).collect();
    all.sort_unstable();
    Some(Finding { kind: Kind::Diverge, problem: true, text, ranks: all })
}

fn behind_at(rank: usize, document: &Document, place: Place, entry: Option<&Entry>) -> Finding {
    let text = match entry {
        Some(entry) => {
            let doing = if place.step == Step::Running { "running" } else { "queued" };
            let (what, time) = (operation(entry), duration(document, entry));
            format!("its operation is {what}, {doing} for {time}")
        }
        None => {
            let now = current(document).map_or_else(String::new, |entry| last(document, entry));
            format!("it has not called collective #{}{now}", place.sequence)
        }
    };
    let text = format!("rank {rank} is behind: {text}");
    Finding { kind: Kind::Behind, problem: true, text, ranks: vec![rank] }
}

/// `; its last operation is all_sum #40 (5 float32), done 12.3 s before`
fn last(document: &Document, entry: &Entry) -> String {
    let what = operation(entry);
    match entry.state {
        State::Queued => format!("; it waits for the turn of {what}"),
        State::Running => format!("; it is in {what} for {}", duration(document, entry)),
        State::Done | State::Failed => {
            let end = entry.ended_ms.unwrap_or_default();
            let before = seconds((document.written_us / 1000).saturating_sub(end));
            let how = if entry.state == State::Done { "done" } else { "failed" };
            format!("; its last operation is {what}, {how} {before} before")
        }
    }
}

/// Who is in which collective.
fn waiting(case: &Case, places: &BTreeMap<usize, (Place, Option<&Entry>)>) -> Vec<Finding> {
    let least = places.values().map(|(place, _)| *place).min();
    // Without others behind, all of these are in the same one: it is shown in any case.
    let all_equal = places.values().all(|(place, _)| Some(*place) == least);
    let mut by_operation: BTreeMap<(u64, String), (Vec<usize>, u64)> = BTreeMap::new();
    for (rank, (place, entry)) in places {
        let Some(entry) = entry.filter(|_| place.step == Step::Running) else { continue };
        if !all_equal && Some(*place) == least {
            continue;
        }
        let document = &case.documents[rank];
        let end = entry.ended_ms.unwrap_or(document.written_us / 1000);
        let time = end.saturating_sub(entry.started_ms.unwrap_or(end));
        let (callers, longest) =
            by_operation.entry((place.sequence, operation(entry))).or_default();
        callers.push(*rank);
        *longest = time.max(*longest);
    }
    by_operation
        .into_iter()
        .map(|((_, what), (callers, longest))| {
            let verb = if callers.len() == 1 { "waits" } else { "wait" };
            let text = format!("{} {verb} in {what} for {}", ranks(&callers), seconds(longest));
            Finding { kind: Kind::Waits, problem: false, text, ranks: callers }
        })
        .collect()
}

//! Messages that one side waits for.

use mlxd::recorder::document::{Document, Entry, PeerTally, Side};

use super::{Finding, Kind, current, is_in};
use crate::files::Case;
use crate::wording::{count, duration, one_side, operation};

/// What the ranks' messages tell.
pub fn find(case: &Case) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (rank, document) in &case.documents {
        for entry in document.operations.iter().filter(|entry| is_in(entry)) {
            for (side, sends) in [(&entry.send, true), (&entry.recv, false)] {
                if let Some(side) = side {
                    findings.extend(one(case, *rank, entry, side, sends));
                }
            }
        }
    }
    findings
}

/// What is to be said of this side of a message that `rank` is in.
fn one(case: &Case, rank: usize, entry: &Entry, side: &Side, sends: bool) -> Option<Finding> {
    let document = case.documents.get(&rank)?;
    let peer = side.peer;
    let scene = format!(
        "rank {rank} waits in {} for {}",
        one_side(entry, side, sends),
        duration(document, entry)
    );
    let finding = |kind, problem, text| {
        let ranks = vec![rank.min(peer), rank.max(peer)];
        Some(Finding { kind, problem, text, ranks })
    };
    let Some(other) = case.documents.get(&peer) else {
        return finding(Kind::Message, true, format!("{scene}; rank {peer} wrote no file"));
    };
    let tallies = if sends { &other.recvs } else { &other.sends };
    let called = tallies.iter().find(|tally| tally.peer == rank);
    let called = called.map_or(0, |PeerTally { called, .. }| *called);
    if called <= side.sequence {
        let has = if sends {
            format!("has asked for {} from it", count(called, "message"))
        } else {
            format!("has sent {} to it", count(called, "message"))
        };
        let text = format!("{scene}; rank {peer} {has}{}", meanwhile(other));
        return finding(Kind::Message, true, text);
    }
    let (theirs, its) = counterpart(other, rank, side.sequence, !sends)?;
    // What both are in is told of once, by the rank that receives.
    if sends && is_in(theirs) {
        return None;
    }
    if (its.count, &theirs.dtype) != (side.count, &entry.dtype) {
        let (ours, others) = (elements(entry, side), elements(theirs, its));
        let text = if sends {
            divergence(side.sequence, (rank, &ours), (peer, &others))
        } else {
            divergence(side.sequence, (peer, &others), (rank, &ours))
        };
        return finding(Kind::Diverge, true, text);
    }
    let state = if is_in(theirs) {
        "is in it, too"
    } else if theirs.started_ms.is_none() {
        "has called it, but other operations come first"
    } else {
        "has done its part"
    };
    finding(Kind::Message, false, format!("{scene}; rank {peer} {state}"))
}

/// `9 int8`
fn elements(entry: &Entry, side: &Side) -> String {
    format!("{} {}", side.count, entry.dtype.as_deref().unwrap_or("elements"))
}

fn divergence(sequence: u64, from: (usize, &str), to: (usize, &str)) -> String {
    let ((sender, sent), (receiver, received)) = (from, to);
    format!(
        "ranks diverge at message #{sequence} from rank {sender} to rank {receiver}: \
         rank {sender} sends {sent}, rank {receiver} receives {received}"
    )
}

/// The other side of a message, if it is recorded.
fn counterpart(
    other: &Document,
    rank: usize,
    sequence: u64,
    sends: bool,
) -> Option<(&Entry, &Side)> {
    other.operations.iter().find_map(|entry| {
        let side = if sends { &entry.send } else { &entry.recv };
        let side = side.as_ref()?;
        (side.peer == rank && side.sequence == sequence).then_some((entry, side))
    })
}

/// `, and is in barrier #4`: what a rank does instead.
fn meanwhile(document: &Document) -> String {
    match current(document).filter(|entry| is_in(entry)) {
        Some(entry) => format!(", and is in {}", operation(entry)),
        None => String::new(),
    }
}

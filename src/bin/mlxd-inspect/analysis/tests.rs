//! Analyses of records made by hand.

use mlxd::recorder::document::{FORMAT, FORMAT_VERSION, Failure, PeerTally, Tally};

use super::*;
use crate::files::sort;
use crate::report;
use mlxd::recorder::document::Side;

/// When all documents were written, in milliseconds.
const WRITTEN: u64 = 1_000_000;

fn document(rank: usize, size: usize, operations: Vec<Entry>) -> Document {
    let collectives = operations.iter().filter(|entry| entry.sequence.is_some());
    let called = collectives.clone().map(|entry| entry.sequence.unwrap() + 1).max().unwrap_or(0);
    let ended = collectives.filter(|entry| !entry.state.is_pending()).count() as u64;
    let tallies = |side: fn(&Entry) -> &Option<Side>| {
        let mut tallies: Vec<PeerTally> = Vec::new();
        for entry in &operations {
            let Some(Side { peer, sequence, .. }) = *side(entry) else { continue };
            tallies.retain(|tally| tally.peer != peer);
            tallies.push(PeerTally { peer, called: sequence + 1, ended: 0 });
        }
        tallies
    };
    Document {
        format: FORMAT.to_owned(),
        format_version: FORMAT_VERSION,
        version: "0.1.0".to_owned(),
        world: "00000000000000ab".to_owned(),
        group: "0".to_owned(),
        backend: "ring".to_owned(),
        rank,
        size,
        ranks: (0..size).collect(),
        host: "here".to_owned(),
        pid: 100 + rank as u32,
        written_us: WRITTEN * 1000,
        failure: None,
        called: operations.len() as u64,
        collectives: Tally { called, ended },
        sends: tallies(|entry| &entry.send),
        recvs: tallies(|entry| &entry.recv),
        operations,
    }
}

/// An operation that ended, runs, or waits for its turn, for 12.34 s.
fn entry(operation: &str, state: State) -> Entry {
    let begin = WRITTEN - 12_340;
    Entry {
        number: 0,
        operation: operation.to_owned(),
        sequence: None,
        dtype: None,
        count: None,
        root: None,
        send: None,
        recv: None,
        state,
        called_ms: begin,
        started_ms: (state != State::Queued).then_some(begin),
        ended_ms: (state == State::Done).then_some(begin),
    }
}

fn sum(sequence: u64, count: u64, state: State) -> Entry {
    let (sequence, count) = (Some(sequence), Some(count));
    Entry { sequence, count, dtype: Some("float32".to_owned()), ..entry("all_sum", state) }
}

fn barrier(sequence: u64, state: State) -> Entry {
    Entry { sequence: Some(sequence), ..entry("barrier", state) }
}

fn side(peer: usize, sequence: u64, count: u64) -> Option<Side> {
    Some(Side { peer, sequence, count })
}

fn message(operation: &str, send: Option<Side>, recv: Option<Side>, state: State) -> Entry {
    Entry { dtype: Some("int8".to_owned()), send, recv, ..entry(operation, state) }
}

fn failed(document: Document, message: &str, at_us: u64) -> Document {
    let (status, message) = ("MLXD_ERROR_TIMEOUT".to_owned(), message.to_owned());
    Document { failure: Some(Failure { status, message, at_us: Some(at_us) }), ..document }
}

/// The report of these documents, which are of one group.
fn report(documents: Vec<Document>) -> (bool, Vec<String>) {
    let cases = sort(documents);
    assert_eq!(cases.len(), 1);
    let results = [analyse(&cases[0])];
    let text = report::text(&cases, &results);
    (results[0].is_problem(), text.lines().map(|line| line.trim().to_owned()).collect())
}

fn title(size: usize) -> String {
    format!("group 0 of world 00000000000000ab (the world, {size} ranks, ring):")
}

#[test]
fn healthy_ranks() {
    let ranks = |rank| document(rank, 3, vec![sum(0, 5, State::Done), barrier(1, State::Done)]);
    let (problem, lines) = report((0..3).map(ranks).collect());
    assert!(!problem);
    assert_eq!(lines, [title(3), "nothing is wrong; 2 collectives called".to_owned()]);
}

#[test]
fn who_is_ahead_and_waits_for_nothing_has_no_quarrel() {
    let behind = document(0, 2, vec![sum(0, 5, State::Done)]);
    let ahead = document(1, 2, vec![sum(0, 5, State::Done), sum(1, 5, State::Done)]);
    assert!(!report(vec![behind, ahead]).0);
}

#[test]
fn all_in_one_operation_are_no_problem_by_themselves() {
    let ranks = |rank| document(rank, 2, vec![sum(0, 5, State::Running)]);
    let (problem, lines) = report((0..2).map(ranks).collect());
    assert!(!problem);
    assert_eq!(lines[1], "ranks 0, 1 wait in all_sum #0 (5 float32) for 12.3 s");
}

#[test]
fn a_rank_that_is_still_in_an_operation_is_behind() {
    let ahead = |rank| document(rank, 4, vec![sum(41, 9, State::Done), sum(42, 7, State::Running)]);
    let behind = document(2, 4, vec![sum(40, 9, State::Done), sum(41, 9, State::Running)]);
    let (problem, lines) = report(vec![ahead(0), ahead(1), behind, ahead(3)]);
    assert!(problem);
    let expected = [
        title(4),
        "rank 2 is behind: its operation is all_sum #41 (9 float32), running for 12.3 s".to_owned(),
        "ranks 0, 1, 3 wait in all_sum #42 (7 float32) for 12.3 s".to_owned(),
    ];
    assert_eq!(lines, expected);
}

#[test]
fn a_rank_that_does_not_call_is_behind() {
    let ahead = |rank| document(rank, 3, vec![sum(4, 9, State::Done), sum(5, 7, State::Failed)]);
    let idle = document(1, 3, vec![sum(4, 9, State::Done)]);
    let lines = report(vec![ahead(0), idle, ahead(2)]).1;
    let expected = "rank 1 is behind: it has not called collective #5; its last operation is \
                    all_sum #4 (9 float32), done 12.3 s before";
    assert_eq!(lines[1], expected);
    assert_eq!(lines[2], "ranks 0, 2 wait in all_sum #5 (7 float32) for 12.3 s");
    // One that never called anything, one that is elsewhere, and one whose stream holds it up.
    let nothing = document(1, 3, Vec::new());
    let first = |rank| document(rank, 3, vec![barrier(0, State::Running)]);
    let lines = report(vec![first(0), nothing, first(2)]).1;
    assert_eq!(lines[1], "rank 1 is behind: it has not called collective #0");
    let recv = message("recv", None, side(0, 3, 9), State::Running);
    let lines = report(vec![first(0), document(1, 3, vec![recv]), first(2)]).1;
    let expected = "rank 1 is behind: it has not called collective #0; it is in \
                    recv #3 from rank 0 (9 int8) for 12.3 s";
    assert_eq!(lines[1], expected);
    let queued = document(1, 3, vec![barrier(0, State::Queued)]);
    let lines = report(vec![first(0), queued, first(2)]).1;
    assert_eq!(lines[1], "rank 1 is behind: its operation is barrier #0, queued for 12.3 s");
}

#[test]
fn ranks_that_diverge_are_named_with_their_calls() {
    let sums = |rank| document(rank, 3, vec![sum(16, 5, State::Done), sum(17, 5, State::Failed)]);
    let other = document(2, 3, vec![sum(16, 5, State::Done), barrier(17, State::Failed)]);
    let (problem, lines) = report(vec![sums(0), sums(1), other]);
    assert!(problem);
    let expected = "ranks diverge at collective #17: ranks 0, 1 called all_sum of 5 float32, \
                    rank 2 called barrier";
    assert_eq!(lines[1], expected);
    // The first of several, also where it ended well on one side.
    let one = document(0, 2, vec![sum(3, 5, State::Done), barrier(4, State::Running)]);
    let two = document(1, 2, vec![sum(3, 6, State::Done), sum(4, 6, State::Running)]);
    let expected = "ranks diverge at collective #3: rank 0 called all_sum of 5 float32, \
                    rank 1 called all_sum of 6 float32";
    assert_eq!(report(vec![one, two]).1[1], expected);
}

#[test]
fn missing_files_and_causes_are_named() {
    let sums = |rank| document(rank, 4, vec![sum(8, 5, State::Running)]);
    let first = failed(sums(2), "lost rank 1", 77);
    let others = [failed(sums(0), "lost rank 1", 99), failed(sums(3), "too late", 78)];
    let [zero, three] = others;
    let (problem, lines) = report(vec![zero, first, three]);
    assert!(problem);
    let expected = [
        title(4),
        "rank 1 wrote no file (killed, or left in good order?)".to_owned(),
        "ranks 0, 2, 3 wait in all_sum #8 (5 float32) for 12.3 s".to_owned(),
        "rank 2 failed first, then rank 0: MLXD_ERROR_TIMEOUT: lost rank 1".to_owned(),
        "rank 3 failed: MLXD_ERROR_TIMEOUT: too late".to_owned(),
    ];
    assert_eq!(lines, expected);
    // Clocks of two hosts are not compared.
    let elsewhere = Document { host: "there".to_owned(), ..failed(sums(0), "lost rank 1", 99) };
    let lines = report(vec![elsewhere, failed(sums(2), "lost rank 1", 77)]).1;
    assert_eq!(lines[3], "ranks 0, 2 failed: MLXD_ERROR_TIMEOUT: lost rank 1");
}

#[test]
fn messages_that_do_not_come_are_named() {
    let recv = |sequence| message("recv", None, side(0, sequence, 9), State::Running);
    let sends = |count| (0..count).map(|n| message("send", side(1, n, 9), None, State::Done));
    let sender = document(0, 2, sends(3).collect());
    let (problem, lines) = report(vec![sender, document(1, 2, vec![recv(3)])]);
    assert!(problem);
    let expected = "rank 1 waits in recv #3 from rank 0 (9 int8) for 12.3 s; \
                    rank 0 has sent 3 messages to it";
    assert_eq!(lines[1..], [expected]);
    // It does something else instead.
    let busy = sends(1).chain([barrier(0, State::Running)]).collect();
    let lines = report(vec![document(0, 2, busy), document(1, 2, vec![recv(1)])]).1;
    assert!(lines.contains(
        &"rank 1 waits in recv #1 from rank 0 (9 int8) for 12.3 s; rank 0 has sent 1 message to it, \
          and is in barrier #0"
            .to_owned()
    ));
    // The sizes differ; the message is under way; nobody receives; no file.
    let send = |count| message("send", side(1, 3, count), None, State::Running);
    let lines = report(vec![document(0, 2, vec![send(8)]), document(1, 2, vec![recv(3)])]).1;
    let expected = "ranks diverge at message #3 from rank 0 to rank 1: \
                    rank 0 sends 8 int8, rank 1 receives 9 int8";
    assert_eq!(lines[1..], [expected]);
    let (problem, lines) =
        report(vec![document(0, 2, vec![send(9)]), document(1, 2, vec![recv(3)])]);
    assert!(!problem);
    assert!(lines[1].ends_with("rank 0 is in it, too"), "{lines:?}");
    let (problem, lines) = report(vec![document(0, 2, vec![send(9)]), document(1, 2, Vec::new())]);
    assert!(problem);
    assert!(lines[1].ends_with("rank 1 has asked for 0 messages from it"), "{lines:?}");
    let lines = report(vec![document(1, 2, vec![recv(3)])]).1;
    assert!(lines[2].ends_with("rank 0 wrote no file"), "{lines:?}");
}

#[test]
fn messages_of_unequal_sizes_diverge() {
    let send = message("send", side(1, 0, 8), None, State::Done);
    let both = message("send_recv", side(0, 0, 1), side(0, 0, 9), State::Failed);
    let cases = sort(vec![document(0, 2, vec![send]), document(1, 2, vec![both])]);
    let findings = analyse(&cases[0]).findings;
    let diverge: Vec<_> = findings.iter().filter(|f| f.kind == Kind::Diverge).collect();
    assert_eq!(diverge.len(), 1);
    assert_eq!(diverge[0].ranks, [0, 1]);
    let expected = "ranks diverge at message #0 from rank 0 to rank 1: \
                    rank 0 sends 8 int8, rank 1 receives 9 int8";
    assert_eq!(diverge[0].text, expected);
}

#[test]
fn of_several_files_the_one_of_the_failure_counts() {
    let before = document(0, 2, vec![sum(0, 5, State::Running)]);
    let at = failed(document(0, 2, vec![sum(1, 5, State::Running)]), "too late", 5);
    let after = Document { written_us: WRITTEN * 2000, ..before.clone() };
    for order in [[before.clone(), at.clone(), after.clone()], [after, at, before]] {
        let cases = sort(order.into());
        assert_eq!(cases[0].documents.len(), 1);
        assert_eq!(cases[0].documents[&0].operations[0].sequence, Some(1));
    }
}

#[test]
fn groups_and_worlds_are_kept_apart() {
    let group = |world: &str, group: &str, written_us| Document {
        world: world.to_owned(),
        group: group.to_owned(),
        written_us,
        ..document(0, 1, Vec::new())
    };
    let cases = sort(vec![group("b", "1", 4), group("a", "0", 5), group("b", "0", 6)]);
    let names: Vec<(&str, &str)> = cases
        .iter()
        .map(|case| (case.documents[&0].world.as_str(), case.documents[&0].group.as_str()))
        .collect();
    assert_eq!(names, [("b", "0"), ("b", "1"), ("a", "0")]);
}

//! Faults at chosen places. A bit of the data itself: without checksums it arrives wrong, and nobody knows;
//! with them everybody does. And what random faults have found.

use libtest_mimic::{Failed, Trial};
use mlxd::capi::*;
use mlxd::control::Purpose;

use crate::case::{World, is_ok, is_ok_or_told};
use crate::fault::{Fault, Kind};
use crate::program;

/// 1.6 MB in one all_sum of two ranks: the byte below is data, whichever way it goes.
const COUNT: usize = 200_000;
const AT: u64 = 300_001;

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::test("placed::without_checksums_a_changed_bit_arrives", || unseen(false)),
        Trial::test("placed::without_checksums_a_changed_bit_arrives_back", || unseen(true)),
        Trial::test("placed::with_checksums_it_fails_all_ranks", || seen(false)),
        Trial::test("placed::with_checksums_it_fails_all_ranks_back", || seen(true)),
        Trial::test("placed::a_rank_that_heard_changed_news_says_so", changed_news),
    ]
}

fn flip(back: bool) -> Fault {
    let (kind, purpose) = (Kind::Corrupt, Purpose::Collective);
    Fault { kind, purpose, from: 0, to: 1, back, at: AT, len: 1, bit: 3 }
}

/// The other side of the tests here: the proxy does change data, and the ranks do compare it.
fn unseen(back: bool) -> Result<(), Failed> {
    let (reports, happened) = World::pair(COUNT, false).run(flip(back), 0)?;
    let seen = reports.iter().filter(|report| program::wrong(report).is_some()).count();
    let others = reports.iter().filter(|report| is_ok(report).is_ok()).count();
    match happened && seen > 0 && seen + others == reports.len() {
        true => Ok(()),
        false => Err(format!("no wrong bytes, or an error: {reports:?}").into()),
    }
}

fn seen(back: bool) -> Result<(), Failed> {
    let (reports, happened) = World::pair(COUNT, true).run(flip(back), 0)?;
    for (rank, report) in reports.iter().enumerate() {
        let sender = if back { 1 } else { 0 };
        let message = report["message"].as_str().unwrap_or_default();
        let told = [format!("what came from rank {sender}"), "bytes 26".to_owned()];
        let right =
            report["status"] == MLXD_ERROR_SYSTEM && told.iter().all(|t| message.contains(t));
        if !happened || !right {
            return Err(format!("rank {rank}: {report}, happened {happened}").into());
        }
    }
    Ok(())
}

/// Rank 0's first words, behind its challenge: rank 1 says what it was, and does not come again beside itself.
fn changed_news() -> Result<(), Failed> {
    let (kind, purpose) = (Kind::Corrupt, Purpose::Join);
    let fault = Fault { kind, purpose, from: 1, to: 0, back: true, at: 77, len: 1, bit: 4 };
    let (reports, _) = World::short_pair(COUNT).run(fault, 0)?;
    match reports.iter().find(|report| is_ok_or_told(report).is_err()) {
        None => Ok(()),
        Some(report) => Err(format!("{report} among {reports:?}").into()),
    }
}

//! What the ranks of a round told, and whether that may be.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use mlxd::capi::*;

use crate::processes::names_rank;
use crate::program::{Action, Step};
use crate::round::Round;
use crate::tally;

/// A call that did not return OK.
#[derive(Debug)]
pub struct Failure {
    pub rank: usize,
    /// Of these one has failed.
    pub groups: Vec<usize>,
    pub status: mlxd_status,
    pub message: String,
    pub label: String,
}

/// All that was told.
pub struct Told {
    /// Results that are not as they should be.
    pub wrong: Vec<String>,
    pub failures: Vec<Failure>,
    /// Ranks whose start failed, and how.
    pub no_world: Vec<(usize, mlxd_status, String)>,
    /// Groups that a rank of theirs does not have.
    pub abandoned: BTreeSet<usize>,
    /// Ranks that did not end, and the steps that their threads are in.
    pub hung: Vec<usize>,
    pub places: Vec<(usize, Vec<usize>)>,
    /// Per rank whether it came to its end, said all, and what the kernel says.
    pub done: Vec<bool>,
    pub ended: Vec<bool>,
    pub exits: Vec<Option<ExitStatus>>,
}

impl Told {
    pub fn new(ranks: usize) -> Told {
        Told {
            wrong: Vec::new(),
            failures: Vec::new(),
            no_world: Vec::new(),
            abandoned: BTreeSet::new(),
            hung: Vec::new(),
            places: Vec::new(),
            done: vec![false; ranks],
            ended: vec![false; ranks],
            exits: vec![None; ranks],
        }
    }

    /// Says all that should not be.
    pub fn judge(&self, round: &Round) -> Result<(), String> {
        let mut faults = self.wrong.clone();
        for rank in &self.hung {
            faults.push(format!("rank {rank} hangs{}", self.place(round, *rank)));
        }
        let killed = self.killed(round);
        self.count(killed);
        for failure in self.failures.iter().filter(|f| !self.is_excused(f, killed, round)) {
            let Failure { rank, groups, status, message, label } = failure;
            let ranks: Vec<_> = groups.iter().map(|g| (g, &round.program.groups[*g])).collect();
            faults.push(format!(
                "rank {rank}: {label}: status {status}: {message}; groups and their ranks: {ranks:?}"
            ));
        }
        for (rank, status, message) in &self.no_world {
            let may_be = killed.is_some_and(|victim| match *status {
                MLXD_ERROR_PEER_LOST => names_rank(message, victim),
                // It was killed before it came.
                status => status == MLXD_ERROR_TIMEOUT,
            });
            if !may_be {
                faults.push(format!("rank {rank}: no world: status {status}: {message}"));
            }
        }
        for rank in (0..round.ranks).filter(|rank| killed != Some(*rank)) {
            let exit = self.exits[rank];
            let has_world = self.no_world.iter().all(|(other, ..)| *other != rank);
            if !exit.is_some_and(|exit| exit.success()) || has_world && !self.done[rank] {
                faults.push(format!("rank {rank} did not come to its end: {exit:?}"));
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) }
    }

    fn count(&self, killed: Option<usize>) {
        tally::ROUNDS.add(1);
        tally::KILLED.add(killed.iter().count());
        tally::NO_WORLD.add(self.no_world.len());
        tally::FAILED.add(self.failures.iter().filter(|f| f.groups.len() == 1).count());
        tally::ABANDONED.add(self.abandoned.len());
    }

    /// The victim, if it was killed before its end.
    fn killed(&self, round: &Round) -> Option<usize> {
        let (victim, _) = round.victim?;
        let signal = self.exits[victim].and_then(|exit| exit.signal());
        (signal == Some(libc::SIGKILL) && !self.hung.contains(&victim)).then_some(victim)
    }

    /// Whether the victim's end, which the message names, is the cause; or that some rank never had
    /// the group.
    fn is_excused(&self, failure: &Failure, killed: Option<usize>, round: &Round) -> bool {
        let Failure { groups, status, message, .. } = failure;
        let Some(victim) = killed else { return false };
        groups.iter().any(|group| {
            let number = round.program.groups[*group].iter().position(|rank| *rank == victim);
            let lost = *status == MLXD_ERROR_PEER_LOST;
            let named = number.is_some_and(|number| names_rank(message, number));
            let alone = self.abandoned.contains(group);
            lost && (named || alone)
        })
    }

    /// The steps that a rank's threads are in.
    fn place(&self, round: &Round, rank: usize) -> String {
        let mut text = String::new();
        for (_, at) in self.places.iter().filter(|(other, _)| *other == rank) {
            for number in at {
                if let Some(step) = find(&round.program.steps, *number) {
                    let ranks = &round.program.groups[step.group];
                    let _ = write!(text, "\n    in {step}, whose ranks are {ranks:?}");
                }
            }
        }
        text
    }
}

fn find(steps: &[Step], number: usize) -> Option<&Step> {
    steps.iter().find_map(|step| match &step.action {
        _ if step.number == number => Some(step),
        Action::Threads(tracks) => tracks.iter().find_map(|track| find(track, number)),
        _ => None,
    })
}

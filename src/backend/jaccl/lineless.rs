//! How the wires of a world without lines come up: their ends introduce themselves by the caller's
//! all-gather, and tell by more of them that they can receive, and that they were reached.
//!
//! Later there is nothing by which ends could introduce themselves. So ranks to which the devices file
//! names no device have a wire from the start as well, a *spare* one, as far as queue pairs go. Whether
//! it leads anywhere is found out; one that does not is done without.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::wiring::{GREETING, Wiring};
use super::{Map, Opened, QUEUE_PAIRS};
use crate::control::{Exchange, REPORT_BYTES, Report};
use crate::error::{Error, Result, Status, fail};
use crate::transport::rdma::{INTRODUCTION_BYTES, Introduction, NOBODY, Stub, Wire};
use crate::wait::Deadline;

/// How long the first message over a spare wire may take.
const SPARE_GREETING: Duration = Duration::from_secs(2);

/// This rank's wires, by peer.
type Wires = HashMap<usize, Vec<Arc<Wire>>>;

/// An end of a wire that is not connected yet: to which rank, which of several.
struct Half {
    peer: usize,
    number: usize,
    stub: Stub,
}

impl Map {
    /// The ranks to which a rank has spare wires, and on which of its devices: of all ranks that have none,
    /// in order, those where both have queue pairs left on the device that suits best.
    fn spare(&self, rank: usize) -> Vec<(usize, &str)> {
        let size = self.devices.size();
        let mut taken: HashMap<(usize, &str), usize> = HashMap::new();
        for (a, b) in (0..size).flat_map(|a| self.wired(a).map(move |b| (a, b))) {
            for name in self.devices.wires(a, b) {
                *taken.entry((a, name)).or_default() += 1;
            }
        }
        let mut spare = Vec::new();
        for (a, b) in (0..size).flat_map(|a| (a + 1..size).map(move |b| (a, b))) {
            let best = |from, to| self.devices_towards(from, to).first().copied();
            let (Some(here), Some(there)) = (best(a, b), best(b, a)) else { continue };
            let ends = [(a, here), (b, there)];
            let left = |end| taken.get(end).is_none_or(|taken| *taken < QUEUE_PAIRS);
            if self.are_wired(a, b) || !ends.iter().all(left) {
                continue;
            }
            ends.iter().for_each(|end| *taken.entry(*end).or_default() += 1);
            if rank == a {
                spare.push((b, here));
            } else if rank == b {
                spare.push((a, there));
            }
        }
        spare
    }
}

impl Wiring<'_> {
    /// This rank's wires. All ranks do this at once; what fails on one fails the start for all.
    pub fn connect_by_gathers(&self, devices: &Opened, exchange: &Exchange) -> Result<Wires> {
        let halves = self.halves(devices);
        let report = Report::of(&halves);
        let mut own = report.encode();
        own.resize(REPORT_BYTES + self.place(self.world.size, 0), 0);
        for Half { peer, number, stub } in halves.iter().flatten() {
            let at = REPORT_BYTES + self.place(*peer, *number);
            own[at..at + INTRODUCTION_BYTES].copy_from_slice(&stub.introduction().encode());
        }
        let all = exchange.gather(&own)?;
        exchange.sum_up(&report, &all)?;
        // What is sent to an end that is not ready would be lost.
        let wires = halves.and_then(|halves| self.meet_all(halves, &all));
        let mut wires = self.agree(exchange, wires)?;
        let greeted = self.greet_all(&mut wires);
        self.agree(exchange, greeted.map(|()| wires))
    }

    /// This rank's ends.
    fn halves(&self, devices: &Opened) -> Result<Vec<Half>> {
        let (rank, mut halves) = (self.world.rank, Vec::new());
        let device = |name: &String| match devices.get(name) {
            Some(device) => Ok(device),
            None => fail!(Internal, "{name} was not opened"),
        };
        for peer in self.map.wired(rank) {
            for (number, name) in self.map.devices.wires(rank, peer).iter().enumerate() {
                let stub = device(name).and_then(|device| Stub::new(device, self.kind));
                let stub = stub.map_err(|e| self.on_way_to(peer, name, e))?;
                halves.push(Half { peer, number, stub });
            }
        }
        for (peer, name) in self.map.spare(rank) {
            let Some(device) = devices.get(name) else { continue };
            match Stub::spare(QUEUE_PAIRS, device, self.kind) {
                Ok(stub) => halves.push(Half { peer, number: 0, stub }),
                Err(e) => self.do_without(peer, &e),
            }
        }
        Ok(halves)
    }

    fn do_without(&self, peer: usize, why: &Error) {
        log::info!("rank {} has no wire to rank {peer}: {why}", self.world.rank);
    }

    /// Where an end's introduction lies behind the report of its rank.
    fn place(&self, peer: usize, number: usize) -> usize {
        (peer * self.map.most_wires() + number) * INTRODUCTION_BYTES
    }

    /// Connects each end with the one that introduced itself to it.
    fn meet_all(&self, halves: Vec<Half>, all: &[Vec<u8>]) -> Result<Wires> {
        let mut wires = Wires::new();
        for Half { peer, number, stub } in halves {
            let name = stub.device().to_owned();
            let at = REPORT_BYTES + self.place(self.world.rank, number);
            let theirs = std::array::from_fn(|i| all[peer][at + i]);
            let met = match theirs {
                NOBODY => Err(Error::new(Status::Unavailable, "it has no queue pair for it")),
                theirs => Introduction::decode(&theirs)
                    .and_then(|theirs| stub.connect(&theirs, &self.world.name_of(peer))),
            };
            match met {
                Ok(wire) => wires.entry(peer).or_default().push(Arc::new(wire)),
                Err(e) if self.is_spare(peer) => self.do_without(peer, &e),
                Err(e) => return Err(self.on_way_to(peer, &name, e)),
            }
        }
        Ok(wires)
    }

    fn is_spare(&self, peer: usize) -> bool {
        !self.map.are_wired(self.world.rank, peer)
    }

    /// Tells all ranks how this one fared, and with which it has wires now: those remain that both ends
    /// have.
    fn agree(&self, exchange: &Exchange, wires: Result<Wires>) -> Result<Wires> {
        let report = Report::of(&wires);
        let mut own = report.encode();
        let has = |peer| wires.as_ref().is_ok_and(|wires| wires.contains_key(&peer));
        own.extend((0..self.world.size).map(|peer| u8::from(has(peer))));
        let all = exchange.gather(&own)?;
        exchange.sum_up(&report, &all)?;
        let mut wires = wires?;
        wires.retain(|peer, _| all[*peer][REPORT_BYTES + self.world.rank] == 1);
        Ok(wires)
    }

    /// Sends a first message over each wire, and waits for the peers'; spare ones that bring none go.
    fn greet_all(&self, wires: &mut Wires) -> Result<()> {
        wires.values().flatten().for_each(|wire| wire.say_hello());
        let (spare, wired): (Wires, Wires) =
            std::mem::take(wires).into_iter().partition(|(peer, _)| self.is_spare(*peer));
        // From here on: others may have been slower.
        let wiring = Wiring { deadline: Deadline::after(Some(GREETING)), ..*self };
        wiring.greet(&wired)?;
        *wires = wired;
        let deadline = Deadline::after(Some(SPARE_GREETING));
        for (peer, some) in spare {
            let met =
                some.iter().try_fold(true, |all, wire| Ok(self.hears(wire, deadline)? && all));
            match met {
                Ok(true) => drop(wires.insert(peer, some)),
                Ok(false) => {
                    self.do_without(peer, &Error::new(Status::Timeout, "nothing comes over it"));
                }
                Err(e) => self.do_without(peer, &e),
            }
            self.member.health.check()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::map;
    use super::*;
    use crate::config::Topology;

    fn ring(size: usize) -> Map {
        map(size, Topology::Ring)
    }

    #[test]
    fn spare_wires_lead_both_ways_as_far_as_queue_pairs_go() {
        assert_eq!(ring(4).spare(1), [(3, "a")]);
        assert_eq!(ring(5).spare(0), [(2, "a"), (3, "a")]);
        assert!(ring(3).spare(0).is_empty());
        for size in 4..20 {
            let map = ring(size);
            for rank in 0..size {
                let spare = map.spare(rank);
                let back = |(peer, _): &(usize, &str)| map.spare(*peer).contains(&(rank, "a"));
                assert!(spare.iter().all(back), "{size}");
                assert!(!spare.iter().any(|(peer, _)| map.are_wired(rank, *peer)));
                // All others, if they are no more than ten.
                let all = spare.len() + 2;
                assert!(if size <= 11 { all == size - 1 } else { all <= 10 }, "{size}: {all}");
            }
        }
    }
}

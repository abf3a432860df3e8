//! How the wires of a world without lines come up: their ends introduce themselves by the caller's
//! all-gather, and tell by more of them that they can receive, and have been reached.

use std::collections::HashMap;
use std::sync::Arc;

use super::Opened;
use super::wiring::Wiring;
use crate::control::{Gatherer, WORD_BYTES, Word};
use crate::error::{Result, fail};
use crate::transport::rdma::{INTRODUCTION_BYTES, Introduction, Stub, Wire};

/// An end of a wire that is not connected yet: to which rank, which of several.
struct Half {
    peer: usize,
    number: usize,
    stub: Stub,
}

impl Wiring<'_> {
    /// This rank's wires, by peer. All ranks do this at once; what fails on one fails the start for all.
    pub fn connect_by_gathers(
        &self,
        devices: &Opened,
        gatherer: &Gatherer,
    ) -> Result<HashMap<usize, Vec<Arc<Wire>>>> {
        let halves = self.halves(devices);
        let mut own = Word::of(&halves).encode();
        own.resize(WORD_BYTES + self.place(self.world.size, 0), 0);
        for Half { peer, number, stub } in halves.iter().flatten() {
            let at = WORD_BYTES + self.place(*peer, *number);
            own[at..at + INTRODUCTION_BYTES].copy_from_slice(&stub.introduction().encode());
        }
        let all = gatherer.gather(&own)?;
        let words: Vec<_> = all.iter().map(|each| each[..WORD_BYTES].to_vec()).collect();
        gatherer.sum_up(&words)?;
        // What is sent to an end that is not ready would be lost.
        let wires = self.meet_all(halves?, &all);
        gatherer.agree(&Word::of(&wires))?;
        let wires = wires?;
        gatherer.agree(&Word::of(&self.greet(&wires)))?;
        Ok(wires)
    }

    /// This rank's ends.
    fn halves(&self, devices: &Opened) -> Result<Vec<Half>> {
        let (rank, mut halves) = (self.world.rank, Vec::new());
        for peer in self.map.wired(rank) {
            for (number, name) in self.map.devices.wires(rank, peer).iter().enumerate() {
                let Some(device) = devices.get(name) else {
                    fail!(Internal, "a device that was not opened");
                };
                let stub = Stub::new(device, self.kind);
                let stub = stub.map_err(|e| self.on_way_to(peer, name, e))?;
                halves.push(Half { peer, number, stub });
            }
        }
        Ok(halves)
    }

    /// Where an end's introduction lies behind the word of its rank.
    fn place(&self, peer: usize, number: usize) -> usize {
        (peer * self.map.most_wires() + number) * INTRODUCTION_BYTES
    }

    /// Connects each end with the one that introduced itself to it.
    fn meet_all(
        &self,
        halves: Vec<Half>,
        all: &[Vec<u8>],
    ) -> Result<HashMap<usize, Vec<Arc<Wire>>>> {
        let mut wires: HashMap<usize, Vec<Arc<Wire>>> = HashMap::new();
        for Half { peer, number, stub } in halves {
            let name = stub.device().to_owned();
            let at = WORD_BYTES + self.place(self.world.rank, number);
            let theirs = std::array::from_fn(|i| all[peer][at + i]);
            let wire = Introduction::decode(&theirs)
                .and_then(|theirs| stub.connect(&theirs, &self.world.name_of(peer)));
            let wire = wire.map_err(|e| self.on_way_to(peer, &name, e))?;
            wires.entry(peer).or_default().push(Arc::new(wire));
        }
        Ok(wires)
    }
}

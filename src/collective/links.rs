//! The links that one run of a schedule uses, by peer and direction.

use crate::transport::Link;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// To the peer.
    Out,
    /// From the peer.
    In,
}

/// For each peer that was connected so far its lanes, which follow one another.
pub struct Links {
    all: Vec<Box<dyn Link>>,
    /// Which peer and way begin at which link.
    first: Vec<(usize, Way, usize)>,
    lanes: usize,
}

impl Links {
    /// No links yet; every peer will have this number of lanes.
    pub fn new(lanes: usize) -> Links {
        Links { all: Vec::new(), first: Vec::new(), lanes }
    }

    /// Whether bytes can go this way between this rank and a peer.
    pub fn has(&self, peer: usize, way: Way) -> bool {
        self.number(peer, way, 0).is_some()
    }

    /// Adds the lanes of a peer, to be used these ways.
    pub fn add(&mut self, peer: usize, ways: &[Way], lanes: Vec<Box<dyn Link>>) {
        debug_assert_eq!(lanes.len(), self.lanes);
        self.first.extend(ways.iter().map(|way| (peer, *way, self.all.len())));
        self.all.extend(lanes);
    }

    /// Lanes of each peer.
    pub fn lanes(&self) -> usize {
        self.lanes
    }

    /// The number of a lane, if the peer is connected.
    pub fn number(&self, peer: usize, way: Way, lane: usize) -> Option<usize> {
        let here = |(p, w, _): &&(usize, Way, usize)| *p == peer && *w == way;
        self.first.iter().find(here).map(|(_, _, first)| first + lane)
    }

    /// A link by its number.
    pub fn get(&self, number: usize) -> &dyn Link {
        self.all[number].as_ref()
    }

    /// A link by its number.
    pub fn get_mut(&mut self, number: usize) -> &mut dyn Link {
        self.all[number].as_mut()
    }

    /// Takes the links out, in the order in which they were added.
    pub fn take(&mut self) -> Vec<Box<dyn Link>> {
        self.first.clear();
        std::mem::take(&mut self.all)
    }

    /// Drops every link, with all that is posted.
    pub fn close(&mut self) {
        self.all.iter_mut().for_each(|link| link.cancel());
        self.take();
    }
}

//! The jaccl backend: links over RDMA verbs, in a mesh or a ring of wires. It is the group of
//! `backend/linked` on another fabric; the control plane stays on TCP, or there is none.

mod lineless;
mod wiring;

use std::collections::HashMap;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::linked::{Fabric, Lane, Linked, segment_bytes};
use crate::config::{Devices, JacclStart, Meeting, QueuePairType, Settings, Topology};
use crate::control::{self, LaneKey, Member, Reactor, Seat, Started, World};
use crate::error::{Error, Result, Status, fail};
use crate::transport::Link;
use crate::transport::checked::CheckedLink;
use crate::transport::late::{Arrival, LateLink};
use crate::transport::rdma::{self, Approach, Name, Opening, Prospect, Stub, Ways, Wire};
use crate::verbs::device::{Device, Marks, Wanted};
use crate::verbs::lending::{Lender, Registrations};
use crate::verbs::queue_pair::Kind;
use crate::wait::Deadline;
use wiring::Wiring;

/// How long a wire that fails at the start waits for the control plane to say why.
const WHY: Duration = Duration::from_secs(1);
/// How long a start that failed may take to tell the others why.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// 10 queue pairs of a process on a device are what Thunderbolt has: beyond them none is made on demand.
const QUEUE_PAIRS: usize = 10;
/// How long the last of what was sent may take to reach ranks that are there: it may have to be sent again.
const LAST_SENDS: Duration = Duration::from_secs(3);

/// Devices by name.
type Opened = HashMap<String, Arc<Device>>;

/// Starts a world, of two ranks at least.
pub fn start(
    plan: &JacclStart,
    reactor: &Arc<Reactor>,
    registrations: &Arc<Registrations>,
) -> Result<Linked> {
    let deadline = Deadline::after(plan.control.connect_timeout);
    let map = Map { devices: plan.devices.clone(), topology: plan.topology };
    let devices = open(plan, &map, registrations);
    let (started, devices) = meet(plan, reactor, devices)?;
    let Started { world, member, exchange } = started;
    // A caller's all-gather takes as long as ranks take to come to it.
    let deadline = match plan.control.meeting {
        Meeting::AllGather(_) => Deadline::after(plan.control.connect_timeout),
        _ => deadline,
    };
    let kind = plan.queue_pair.map(|wanted| match wanted {
        QueuePairType::Rc => Kind::Rc,
        QueuePairType::Uc => Kind::Uc,
    });
    let wiring = Wiring { world: &world, member: &member, map: &map, kind, deadline };
    let wires = match exchange {
        Some(exchange) => wiring.connect_by_gathers(&devices, &exchange),
        None => wiring.connect(&devices),
    };
    let wires = wires.map_err(|e| failed(&world, &member, reactor, e))?;
    let wires = Wires {
        world: Arc::clone(&world),
        lanes: map.most_wires(),
        map,
        wires,
        prospects: Mutex::default(),
        devices,
        kind,
        left: AtomicBool::new(false),
        checksums: plan.control.checksums,
    };
    wires.log(&world);
    // Ranks of jaccl share no memory but what their devices do.
    Linked::start(world, member, None, Arc::new(wires))
}

/// Tells the others why this rank cannot start, if they are to meet by the caller's all-gather; whether they
/// are.
pub fn decline(settings: &Settings, why: &Error) -> bool {
    let Some((all_gather, rank, size)) = settings.jaccl_all_gather() else { return false };
    control::decline_by_all_gather(all_gather, rank, size, why);
    true
}

/// The world before it has wires, and this rank's devices. What is wrong with these is told to all who come,
/// but first of all to this rank.
fn meet(
    plan: &JacclStart,
    reactor: &Arc<Reactor>,
    devices: Result<Opened>,
) -> Result<(Started, Opened)> {
    if let Meeting::AllGather(all_gather) = plan.control.meeting {
        let (ready, member) =
            (devices.as_ref().map(|_| ()).map_err(Error::clone), || Member::of_world(plan.size));
        let started =
            control::start_by_all_gather(&plan.control, all_gather, reactor, ready, member)?;
        return Ok((started, devices?));
    }
    let member = Member::of_world(plan.size)?;
    let met = control::start(&plan.control, reactor, member.clone(), segment_bytes);
    match (met, devices) {
        (Ok((world, _)), Ok(devices)) => Ok((Started { world, member, exchange: None }, devices)),
        (Ok((world, _)), Err(e)) => Err(failed(&world, &member, reactor, e)),
        (Err(_), Err(e)) | (Err(e), Ok(_)) => Err(e),
    }
}

/// Fails the start everywhere with this error, or what caused it, and returns that.
fn failed(world: &Seat, member: &Member, reactor: &Arc<Reactor>, error: Error) -> Error {
    if error.status == Status::PeerLost {
        // Only waits for another cause.
        world.has_left(world.rank, &member.health, WHY);
    }
    // Whoever waits for this rank learns why at once, and where: the process may end next.
    let told = error.clone().at(format_args!("on rank {}", world.rank));
    world.fail_group(member.group, &told, true);
    world.leave();
    reactor.settle(LAST_WORDS);
    match member.health.check() {
        Err(cause) if cause != told => cause,
        _ => error,
    }
}

/// The devices that this rank's wires need, by name.
fn open(plan: &JacclStart, map: &Map, registrations: &Arc<Registrations>) -> Result<Opened> {
    let JacclStart { port, pkey_index, service_level, traffic_class, .. } = *plan;
    let wanted = Wanted {
        port,
        gid_index: plan.gid_index.map(u32::from),
        pkey_index,
        marks: Marks { service_level, traffic_class },
    };
    let mut devices = HashMap::new();
    for peer in map.wired(plan.rank) {
        for name in map.devices.wires(plan.rank, peer) {
            if !devices.contains_key(name) {
                let mut device = Device::open(name, wanted)?;
                device.lender = Lender::new(registrations, plan.register);
                devices.insert(name.clone(), Arc::new(device));
            }
        }
    }
    Ok(devices)
}

/// Which ranks have wires between them.
struct Map {
    devices: Devices,
    topology: Topology,
}

impl Map {
    /// Whether two ranks of the world have wires between them.
    fn are_wired(&self, a: usize, b: usize) -> bool {
        let size = self.devices.size();
        let beside = [1, size - 1].contains(&((a + size - b) % size));
        a != b && (self.topology == Topology::Mesh || beside)
    }

    /// The ranks that a rank has wires to.
    fn wired(&self, rank: usize) -> impl Iterator<Item = usize> {
        (0..self.devices.size()).filter(move |peer| self.are_wired(rank, *peer))
    }

    /// The devices that a rank's wires need, in the order of its row.
    fn devices_of(&self, rank: usize) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for name in self.wired(rank).flat_map(|peer| self.devices.wires(rank, peer)) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    }

    /// On which of a rank's devices to try a wire to a rank to which the file names none, best first:
    /// where networks are apart, devices of one name are mostly in the same one. Of those, both ends
    /// prefer the same.
    fn devices_towards(&self, rank: usize, peer: usize) -> Vec<&str> {
        let (lower, higher) = (self.devices_of(rank.min(peer)), self.devices_of(rank.max(peer)));
        let mut names: Vec<&str> = lower.into_iter().filter(|name| higher.contains(name)).collect();
        let others = self.devices_of(rank).into_iter().filter(|name| !names.contains(name));
        names.extend(others.collect::<Vec<_>>());
        names
    }

    /// The most wires that two ranks have.
    fn most_wires(&self) -> usize {
        let ranks = 0..self.devices.size();
        let wires = ranks.flat_map(|rank| {
            self.wired(rank).map(move |peer| self.devices.wires(rank, peer).len())
        });
        wires.max().unwrap_or(1)
    }

    /// How the ranks of a group are connected: where its ranks are no ring of neighbours, each of its
    /// algorithms has to go another way now and then, and the quickest do so least.
    fn topology(&self, ranks: &[usize]) -> Topology {
        let wired = |a: usize, b: usize| ranks[a] == ranks[b] || self.are_wired(ranks[a], ranks[b]);
        let size = ranks.len();
        let is_ring = (0..size).all(|rank| wired(rank, (rank + 1) % size));
        let is_mesh = (0..size).all(|a| (0..size).all(|b| wired(a, b)));
        if is_ring && !is_mesh { Topology::Ring } else { Topology::Mesh }
    }
}

/// This rank's wires.
struct Wires {
    world: Arc<World>,
    map: Map,
    /// By peer.
    wires: HashMap<usize, Vec<Arc<Wire>>>,
    /// Wires to other ranks, where they were needed, or may be.
    prospects: Mutex<HashMap<usize, Arc<Prospect>>>,
    /// What those are made on, by name.
    devices: HashMap<String, Arc<Device>>,
    kind: Option<Kind>,
    lanes: usize,
    /// Whether this rank has said goodbye.
    left: AtomicBool,
    /// Whether what goes over links carries checksums of ours, beside the hardware's.
    checksums: bool,
}

impl Wires {
    fn all(&self) -> impl Iterator<Item = &Arc<Wire>> {
        self.wires.values().flatten()
    }

    /// Those to some ranks.
    fn to(&self, ranks: &[usize]) -> impl Iterator<Item = &Arc<Wire>> {
        ranks.iter().filter_map(|rank| self.wires.get(rank)).flatten()
    }

    /// What this start takes of the devices.
    fn log(&self, world: &Seat) {
        let registered: Vec<_> = self.all().map(|wire| wire.registered()).collect();
        let regions: usize = registered.iter().map(|some| some.regions).sum();
        let bytes: usize = registered.iter().map(|some| some.bytes).sum();
        let mut ways: Vec<String> = self
            .devices
            .values()
            .map(|d| format!("{} port {} ({}, MTU {})", d.name, d.port, d.address, 128 << d.mtu))
            .collect();
        ways.sort_unstable();
        let kind = self.all().next().map_or("no", |wire| match wire.kind() {
            Kind::Rc => "rc",
            Kind::Uc => "uc",
        });
        log::info!(
            "jaccl: rank {} of {}, a {}: {} queue pair(s) of type {kind}, {regions} memory regions, \
             {bytes} bytes registered, on {}",
            world.rank,
            world.size,
            self.map.topology,
            registered.len(),
            ways.join(", ")
        );
    }
}

impl Fabric for Wires {
    fn name(&self) -> &'static str {
        "jaccl"
    }

    fn lanes(&self) -> usize {
        self.lanes
    }

    fn topology(&self, ranks: &[usize]) -> Topology {
        self.map.topology(ranks)
    }

    fn link(&self, stream: TcpStream, lane: Lane) -> Result<Box<dyn Link>> {
        let Lane { peer, name, number, sends, receives, .. } = lane;
        let ways = Ways { sends, receives };
        let arrival: Box<dyn Arrival> = match self.wires.get(&peer) {
            Some(wires) => {
                let wire = wires[number % wires.len()].clone();
                Box::new(Opening::new(stream, name.clone(), Some(wire), ways)?)
            }
            None => Box::new(Approach::new(stream, name.clone(), self.prospect(peer), ways)?),
        };
        Ok(self.sum_up(LateLink::new(arrival), name))
    }

    fn direct_link(&self, key: LaneKey, lane: Lane) -> Result<Box<dyn Link>> {
        let Lane { peer, name, number, sends, receives, .. } = lane;
        let Some(wires) = self.wires.get(&peer) else {
            let (here, topology) = (self.world.rank, self.map.topology);
            fail!(
                Unavailable,
                "rank {here} and rank {peer} of this {topology} have no wire between them, and do not \
                 reach each other over TCP, which would stand in for it: let MLX_IBV_DEVICES name a \
                 device for them, or let them reach each other over TCP"
            );
        };
        let key = Name {
            group: key.group,
            from: key.from as u32,
            purpose: key.purpose as u8,
            lane: key.lane,
        };
        let wire = &wires[number % wires.len()];
        let link = rdma::open(wire, key, name.clone(), Ways { sends, receives })?;
        Ok(self.sum_up(link, name))
    }

    fn tell_failure(&self, group: u64, ranks: &[usize], cause: &Error) {
        self.to(ranks).for_each(|wire| wire.tell_failure(group, cause));
    }

    fn watch(&self, group: u64, ranks: &[usize]) -> Result<()> {
        let mut outcome = Ok(());
        for peer in ranks {
            for wire in self.wires.get(peer).into_iter().flatten() {
                // One that nobody uses may have led nowhere for long.
                if !self.map.are_wired(self.world.rank, *peer) && !wire.is_used() {
                    continue;
                }
                outcome = outcome.and(wire.watch(group));
                let Some(e) = wire.lost().filter(|e| e.status == Status::PeerLost) else {
                    continue;
                };
                // Nobody may call anything in the other groups that this fails.
                for failed in self.world.lose(*peer, &e.message, false) {
                    if let (true, Err(cause)) = (failed.group != group, failed.health.check()) {
                        self.tell_failure(failed.group, &failed.ranks, &cause);
                    }
                }
            }
        }
        outcome
    }

    fn forget(&self, group: u64, ranks: &[usize]) {
        self.to(ranks).for_each(|wire| wire.forget_group(group));
    }

    fn has_left(&self, peer: usize) -> bool {
        self.wires.get(&peer).is_some_and(|wires| wires.iter().any(|wire| wire.has_left()))
    }

    fn leave(&self) {
        let prospects = self.prospects.lock();
        // Each group of a world that ends asks for it, and so does the last to go; under the lock, so
        // that whoever comes second waits for the first.
        if self.left.swap(true, Ordering::Relaxed) {
            return;
        }
        let deadline = Deadline::after(Some(LAST_SENDS));
        let made = prospects.iter().filter_map(|(peer, p)| Some((*peer, p.wire()?)));
        let known =
            self.wires.iter().flat_map(|(peer, wires)| wires.iter().map(|w| (*peer, w.clone())));
        // A rank that is lost takes nothing any more.
        let wires: Vec<_> =
            known.chain(made).filter(|(peer, _)| !self.world.is_lost(*peer)).collect();
        wires.iter().for_each(|(_, wire)| wire.say_goodbye());
        wires.iter().for_each(|(_, wire)| wire.settle(deadline));
    }
}

impl Wires {
    /// This rank's end of a wire to a rank to which the devices file names no device.
    fn prospect(&self, peer: usize) -> Arc<Prospect> {
        let mut prospects = self.prospects.lock();
        prospects.entry(peer).or_insert_with(|| Arc::new(Prospect::new(self.stub(peer)))).clone()
    }

    /// A queue pair for such a wire, on the best device of this rank that has one to spare. The peer
    /// looks at its own: whether the two reach each other shows with their first messages.
    fn stub(&self, peer: usize) -> Option<Stub> {
        let names = self.map.devices_towards(self.world.rank, peer);
        let devices = names.into_iter().filter_map(|name| self.devices.get(name));
        let stub = |device| {
            let stub = Stub::spare(QUEUE_PAIRS, device, self.kind);
            stub.inspect_err(|e| log::info!("no wire to rank {peer} on demand: {e}")).ok()
        };
        devices.filter_map(stub).next()
    }

    /// The link, with checksums if they are wanted.
    fn sum_up<L: Link + 'static>(&self, link: L, peer: String) -> Box<dyn Link> {
        match self.checksums {
            true => Box::new(CheckedLink::new(link, peer)),
            false => Box::new(link),
        }
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn map(size: usize, topology: Topology) -> Map {
        let row = |rank| -> Vec<Option<&str>> {
            (0..size).map(|peer| (peer != rank).then_some("a")).collect()
        };
        let rows: Vec<_> = (0..size).map(row).collect();
        let devices = Devices::parse(&serde_json::to_string(&rows).unwrap()).unwrap();
        Map { devices, topology }
    }

    #[test]
    fn in_a_ring_neighbours_have_wires() {
        let ring = map(5, Topology::Ring);
        assert_eq!(ring.wired(0).collect::<Vec<_>>(), [1, 4]);
        assert_eq!(ring.wired(3).collect::<Vec<_>>(), [2, 4]);
        assert_eq!(map(2, Topology::Ring).wired(1).collect::<Vec<_>>(), [0]);
        assert_eq!(map(4, Topology::Mesh).wired(1).collect::<Vec<_>>(), [0, 2, 3]);
    }

    #[test]
    fn on_demand_both_ends_prefer_the_device_of_one_name() {
        // A ring of cables, each a network of its own; rank 3 calls its devices otherwise.
        let text = r#"[[null, "a", null, ["b", "c"]], ["b", null, "a", null],
                       [null, "b", null, "a"], ["a", null, "x", null]]"#;
        let devices = Devices::parse(text).unwrap();
        let map = Map { devices, topology: Topology::Ring };
        assert_eq!(map.devices_of(0), ["a", "b", "c"]);
        assert_eq!(map.devices_of(1), ["b", "a"]);
        assert_eq!(map.devices_towards(0, 2), ["a", "b", "c"]);
        assert_eq!(map.devices_towards(2, 0), ["a", "b"]);
        assert_eq!(map.devices_towards(1, 3), ["a", "b"]);
        assert_eq!(map.devices_towards(3, 1), ["a", "x"]);
    }

    #[test]
    fn parts_of_a_ring_are_rings_only_if_their_ranks_are_neighbours() {
        let ring = map(6, Topology::Ring);
        assert_eq!(ring.topology(&[0, 1, 2, 3, 4, 5]), Topology::Ring);
        assert_eq!(ring.topology(&[5, 4, 3, 2, 1, 0]), Topology::Ring);
        assert_eq!(ring.topology(&[0, 1, 2, 3]), Topology::Mesh);
        assert_eq!(ring.topology(&[0, 2, 4]), Topology::Mesh);
        assert_eq!(ring.topology(&[3]), Topology::Mesh);
        assert_eq!(map(6, Topology::Mesh).topology(&[0, 1, 2, 3, 4, 5]), Topology::Mesh);
        assert_eq!(map(3, Topology::Ring).topology(&[0, 1, 2]), Topology::Mesh);
    }
}

//! How the wires of a world come up: both ends of each introduce themselves over a lane of the control
//! plane, connect their queue pairs, and tell each other once that is done.

use std::collections::HashMap;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::Map;
use crate::control::{LaneKey, Member, Purpose, Seat};
use crate::error::{Error, Result, fail};
use crate::transport::rdma::{INTRODUCTION_BYTES, Introduction, Stub, Wire};
use crate::verbs::device::Device;
use crate::verbs::queue_pair::Kind;
use crate::wait::{Deadline, interest, wait};

/// How long the first message over a wire may take.
pub const GREETING: Duration = Duration::from_secs(10);
/// What an end says once it can receive.
const READY: [u8; 1] = [1];

/// A world whose wires are not up yet.
pub struct Wiring<'a> {
    /// The world.
    pub world: &'a Seat,
    /// Its group of all ranks.
    pub member: &'a Member,
    /// Who has wires to whom.
    pub map: &'a Map,
    /// The type of queue pairs that is wanted.
    pub kind: Option<Kind>,
    /// When the start is given up.
    pub deadline: Deadline,
}

/// An end of a wire that is not connected yet, and the lane to the other.
struct Half {
    peer: usize,
    stub: Stub,
    stream: TcpStream,
}

impl Wiring<'_> {
    /// This rank's wires, by peer. All ranks do this at once: the lower of two calls.
    pub fn connect(
        &self,
        devices: &HashMap<String, Arc<Device>>,
    ) -> Result<HashMap<usize, Vec<Arc<Wire>>>> {
        let rank = self.world.rank;
        let peers: Vec<usize> = self.map.wired(rank).collect();
        // Calls are let in by the other rank's control thread, so nobody waits for a rank that waits.
        let (lower, higher) = peers.split_at(peers.partition_point(|peer| *peer < rank));
        let mut halves = Vec::new();
        for peer in higher.iter().chain(lower) {
            for (number, name) in self.map.devices.wires(rank, *peer).iter().enumerate() {
                let half = self.half(*peer, number, devices.get(name));
                halves.push(half.map_err(|e| self.on_way_to(*peer, name, e))?);
            }
        }
        let mut wires: HashMap<usize, Vec<Arc<Wire>>> = HashMap::new();
        let mut ready = Vec::new();
        for Half { peer, stub, stream } in halves {
            let name = stub.device().to_owned();
            let wire =
                self.meet(stub, peer, &stream).map_err(|e| self.on_way_to(peer, &name, e))?;
            ready.push((peer, name, stream));
            wires.entry(peer).or_default().push(Arc::new(wire));
        }
        // What is sent to an end that is not ready would be lost.
        for (peer, name, stream) in &ready {
            self.hear(stream, &mut [0; READY.len()]).map_err(|e| self.on_way_to(*peer, name, e))?;
        }
        self.greet(&wires)?;
        Ok(wires)
    }

    /// Sends a first message over each wire, and waits for the peer's.
    pub(super) fn greet(&self, wires: &HashMap<usize, Vec<Arc<Wire>>>) -> Result<()> {
        let all = || wires.iter().flat_map(|(peer, wires)| wires.iter().map(move |w| (*peer, w)));
        all().for_each(|(_, wire)| wire.say_hello());
        let deadline = self.deadline.or(Deadline::after(Some(GREETING)));
        for (peer, wire) in all() {
            if !self.hears(wire, deadline)? {
                fail!(
                    Backend,
                    "nothing comes from {} over the wire of {}, which is up: see that its devices \
                     are connected as the devices file says, and that nothing on the way holds \
                     RDMA back (RoCE v2 is UDP port 4791)",
                    self.world.name_of(peer),
                    wire.device()
                );
            }
        }
        Ok(())
    }

    /// Waits for the peer's first message over a wire: whether it comes in time.
    pub(super) fn hears(&self, wire: &Wire, deadline: Deadline) -> Result<bool> {
        let health = &self.member.health;
        while !wire.has_met().map_err(|e| e.at("the first message"))? {
            let fds =
                &mut [interest(wire.as_fd(), true, false), interest(health.as_fd(), true, false)];
            let in_time = wait(fds, deadline)?;
            health.check()?;
            if !in_time {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn on_way_to(&self, peer: usize, device: &str, e: Error) -> Error {
        e.at(format_args!("no wire from {device} to {}", self.world.name_of(peer)))
    }

    /// One end of a wire, which has introduced itself.
    fn half(&self, peer: usize, number: usize, device: Option<&Arc<Device>>) -> Result<Half> {
        let Some(device) = device else {
            fail!(Internal, "a device that was not opened");
        };
        let rank = self.world.rank;
        let from = rank.min(peer);
        let key =
            LaneKey { group: self.member.group, from, purpose: Purpose::Wire, lane: number as u16 };
        let stub = Stub::new(device, self.kind)?;
        let stream = match rank == from {
            true => self.world.call_peer(key, peer, &self.member.health, self.deadline)?,
            false => self.await_call(key)?,
        };
        stream.set_nonblocking(true).map_err(|e| Error::system("cannot unblock a socket", e))?;
        self.say(&stream, &stub.introduction().encode())?;
        Ok(Half { peer, stub, stream })
    }

    /// Connects an end with the other, which has introduced itself, and says so.
    fn meet(&self, stub: Stub, peer: usize, stream: &TcpStream) -> Result<Wire> {
        let mut theirs = [0; INTRODUCTION_BYTES];
        self.hear(stream, &mut theirs)?;
        let theirs = Introduction::decode(&theirs)?;
        let wire = stub.connect(&theirs, &self.world.name_of(peer))?;
        self.say(stream, &READY)?;
        Ok(wire)
    }

    /// A lane that the other rank calls.
    fn await_call(&self, key: LaneKey) -> Result<TcpStream> {
        let wake = self.world.expect_lane(key)?;
        loop {
            // First: what comes after the look wakes again.
            wake.clear();
            if let Some(stream) = self.world.take_lane(key)? {
                return Ok(stream);
            }
            self.sleep(wake.as_fd(), (true, false))?;
        }
    }

    /// Sends a few bytes.
    fn say(&self, stream: &TcpStream, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match send(stream, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(Errno::AGAIN | Errno::INTR) => self.sleep(stream.as_fd(), (false, true))?,
                Err(e) => fail!(PeerLost, "{}", std::io::Error::from(e)),
            }
        }
        Ok(())
    }

    /// Receives a few bytes.
    fn hear(&self, stream: &TcpStream, mut bytes: &mut [u8]) -> Result<()> {
        while !bytes.is_empty() {
            match recv(stream, &mut *bytes, RecvFlags::DONTWAIT) {
                Ok((0, _)) => fail!(PeerLost, "it has given up"),
                Ok((count, _)) => bytes = &mut bytes[count..],
                Err(Errno::AGAIN | Errno::INTR) => self.sleep(stream.as_fd(), (true, false))?,
                Err(e) => fail!(PeerLost, "{}", std::io::Error::from(e)),
            }
        }
        Ok(())
    }

    /// Sleeps until a descriptor can be read, or written.
    fn sleep(&self, fd: std::os::fd::BorrowedFd<'_>, (read, write): (bool, bool)) -> Result<()> {
        let health = &self.member.health;
        let mut fds = [interest(fd, read, write), interest(health.as_fd(), true, false)];
        let in_time = wait(&mut fds, self.deadline)?;
        health.check()?;
        if !in_time {
            fail!(Timeout, "its end did not come up in time");
        }
        Ok(())
    }
}

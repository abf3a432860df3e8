//! The proxy: a listener in front of each rank's, and a thread for each connection, which carries bytes
//! both ways and does what the fault says.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;

use crate::fault::{Fault, Kind, Random};
use crate::processes::free_port;

/// Where the proxy listens, and where the ranks do, at the same ports: Linux has all of 127.0.0.0/8.
const FRONT: Ipv4Addr = Ipv4Addr::LOCALHOST;
pub const BEHIND: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// A connection begins with so many bytes that say who calls whom, for what.
const HELLO: usize = 64;
/// How often a thread looks whether the proxy ends.
const LOOK: Duration = Duration::from_millis(50);
/// Between the end of a connection that is closed in order and the resets that may come of what was
/// not read.
const IN_ORDER: Duration = Duration::from_millis(20);
/// The most that is read at once.
const CHUNK: usize = 64 << 10;

/// What its threads share.
struct Shared {
    fault: Fault,
    seed: u64,
    over: AtomicBool,
    /// Whether the fault has happened: to one connection, once.
    happened: AtomicBool,
}

/// A proxy in front of some ranks; its connections end with it.
pub struct Proxy {
    ports: Vec<u16>,
    shared: Arc<Shared>,
    doors: Vec<JoinHandle<()>>,
}

impl Proxy {
    pub fn new(ranks: usize, fault: Fault, seed: u64) -> Proxy {
        let (over, happened) = (AtomicBool::new(false), AtomicBool::new(false));
        let shared = Arc::new(Shared { fault, seed, over, happened });
        let listeners: Vec<TcpListener> = (0..ranks).map(|_| listener()).collect();
        let ports = listeners.iter().map(|l| l.local_addr().unwrap().port()).collect();
        let door = |listener| {
            let shared = shared.clone();
            std::thread::spawn(move || stand_at(&listener, &shared))
        };
        Proxy { ports, doors: listeners.into_iter().map(door).collect(), shared }
    }

    /// For each rank the address at which others find it.
    pub fn hostfile(&self) -> String {
        let rows = self.ports.iter().map(|port| vec![format!("{FRONT}:{port}")]);
        serde_json::to_string(&rows.collect::<Vec<_>>()).unwrap()
    }

    /// A name that no other proxy has now.
    pub fn name(&self) -> String {
        self.ports[0].to_string()
    }

    /// Whether the fault has happened.
    pub fn has_happened(&self) -> bool {
        self.shared.happened.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        for door in self.doors.drain(..) {
            let _ = door.join();
        }
    }
}

fn listener() -> TcpListener {
    let listener = TcpListener::bind((FRONT, free_port())).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

/// Takes connections until the proxy ends.
fn stand_at(listener: &TcpListener, shared: &Arc<Shared>) {
    let port = listener.local_addr().unwrap().port();
    let mut connections = Vec::new();
    while !shared.over.load(Ordering::Relaxed) {
        sleep_until([(listener.as_fd(), PollFlags::IN)]);
        while let Ok((caller, _)) = listener.accept() {
            let shared = shared.clone();
            connections.push(std::thread::spawn(move || {
                // One that breaks breaks for both ends.
                let _ = Connection::open(caller, port, &shared).map(|c| c.carry(&shared));
            }));
        }
    }
    connections.into_iter().for_each(|connection| connection.join().unwrap());
}

fn sleep_until<'a>(what: impl IntoIterator<Item = (std::os::fd::BorrowedFd<'a>, PollFlags)>) {
    let mut fds: Vec<PollFd> =
        what.into_iter().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)).collect();
    let limit = Timespec::try_from(LOOK).unwrap();
    let _ = poll(&mut fds, Some(&limit));
}

/// One way of a connection.
#[derive(Default)]
struct Way {
    /// Bytes read.
    seen: u64,
    /// What is still to be written.
    pending: Vec<u8>,
    /// Bytes that the fault still takes away.
    to_drop: usize,
    /// Nothing more is read.
    ended: bool,
    /// The end was passed on.
    told: bool,
}

struct Connection {
    /// Who called, and who was called.
    ends: [TcpStream; 2],
    ways: [Way; 2],
    /// The way that the fault is on, and what is done to the connection.
    faulty: Option<usize>,
    doomed: Option<Kind>,
    random: Random,
}

impl Connection {
    /// Reads who calls whom, and calls that rank.
    fn open(mut caller: TcpStream, port: u16, shared: &Shared) -> std::io::Result<Connection> {
        let mut hello = [0; HELLO];
        caller.set_nonblocking(false)?;
        caller.set_read_timeout(Some(Duration::from_secs(10)))?;
        caller.read_exact(&mut hello)?;
        let called = TcpStream::connect((BEHIND, port))?;
        for end in [&caller, &called] {
            end.set_nonblocking(true)?;
            end.set_nodelay(true)?;
        }
        let rank = |at: usize| hello[at] as usize;
        let fault = &shared.fault;
        let here = !fault.kind.is_harmless()
            && (hello[6], rank(12), rank(32)) == (fault.purpose as u8, fault.from, fault.to);
        let connection = u64::from_le_bytes([hello[6], hello[12], hello[32], 0, 0, 0, 0, 1]);
        let mut opened = Connection {
            ends: [caller, called],
            ways: Default::default(),
            faulty: here.then_some(usize::from(fault.back)),
            doomed: None,
            random: Random(shared.seed ^ connection),
        };
        opened.take(0, &hello, shared);
        Ok(opened)
    }

    /// Until both ways have ended, or the connection has.
    fn carry(mut self, shared: &Shared) -> std::io::Result<()> {
        while !shared.over.load(Ordering::Relaxed) && !self.ways.iter().all(|way| way.told) {
            let silent = self.doomed == Some(Kind::Stall);
            let mut flags = [PollFlags::empty(); 2];
            for (at, way) in self.ways.iter().enumerate() {
                match way.pending.is_empty() {
                    false => flags[1 - at] |= PollFlags::OUT,
                    true if !way.ended && !silent => flags[at] |= PollFlags::IN,
                    true => {}
                }
            }
            // One that nothing is wanted of would still be reported once it is closed.
            let wanted = self.ends.iter().zip(flags).filter(|(_, flags)| !flags.is_empty());
            sleep_until(wanted.map(|(end, flags)| (end.as_fd(), flags)));
            for at in 0..2 {
                if let Err(e) = self.move_on(at, shared) {
                    self.reset();
                    return Err(e);
                }
            }
            if self.ways.iter().all(|way| way.pending.is_empty()) {
                match self.doomed {
                    Some(Kind::Reset) => {
                        self.reset();
                        break;
                    }
                    Some(Kind::Truncate) => {
                        self.close();
                        break;
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Both ends see the end in order, before they see that nobody reads any more.
    fn close(&self) {
        for end in &self.ends {
            let _ = end.shutdown(Shutdown::Write);
        }
        std::thread::sleep(IN_ORDER);
    }

    /// Closed from here, both ends are reset.
    fn reset(&self) {
        for end in &self.ends {
            let _ = SockRef::from(end).set_linger(Some(Duration::ZERO));
        }
    }

    /// Writes what is pending one way, then reads.
    fn move_on(&mut self, at: usize, shared: &Shared) -> std::io::Result<()> {
        let way = &mut self.ways[at];
        while !way.pending.is_empty() {
            match self.ends[1 - at].write(&way.pending) {
                Ok(written) => drop(way.pending.drain(..written)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        if way.ended {
            if !way.told && self.doomed != Some(Kind::Stall) {
                way.told = true;
                let _ = self.ends[1 - at].shutdown(Shutdown::Write);
            }
            return Ok(());
        }
        if self.doomed.is_some_and(|kind| kind != Kind::HalfClose) {
            return Ok(());
        }
        let mut chunk = [0; CHUNK];
        let most = self.most(at, shared.fault);
        match self.ends[at].read(&mut chunk[..most]) {
            Ok(0) => self.ways[at].ended = true,
            Ok(read) => self.take(at, &chunk[..read], shared),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// How much to read at once.
    fn most(&mut self, at: usize, fault: Fault) -> usize {
        let most = match (fault.kind, self.ways[at].seen) {
            (Kind::Split, ..4096) => 8,
            (Kind::Split, _) => 20_000,
            (Kind::Delay, _) => CHUNK,
            _ => return CHUNK,
        };
        1 + self.random.below(most as u64) as usize
    }

    /// Takes what has come one way, and does to it what the fault says.
    fn take(&mut self, at: usize, bytes: &[u8], shared: &Shared) {
        let fault = shared.fault;
        if fault.kind == Kind::Delay {
            // Few milliseconds, and often none.
            let wait = self.random.below(6).saturating_sub(2);
            std::thread::sleep(Duration::from_millis(wait));
        }
        let way = &mut self.ways[at];
        let before = way.seen;
        way.seen += bytes.len() as u64;
        let gone = way.to_drop.min(bytes.len());
        way.to_drop -= gone;
        way.pending.extend_from_slice(&bytes[gone..]);
        if self.faulty != Some(at) || way.seen <= fault.at {
            return;
        }
        self.faulty = None;
        if shared.happened.swap(true, Ordering::Relaxed) {
            return;
        }
        let (head, tail) = bytes.split_at((fault.at - before) as usize);
        way.pending.truncate(head.len());
        match fault.kind {
            Kind::Corrupt => {
                way.pending.extend_from_slice(tail);
                way.pending[head.len()] ^= 1 << fault.bit;
            }
            Kind::Duplicate => {
                way.pending.extend_from_slice(&tail[..fault.len.min(tail.len())]);
                way.pending.extend_from_slice(tail);
            }
            Kind::Drop => {
                let gone = fault.len.min(tail.len());
                way.to_drop = fault.len - gone;
                way.pending.extend_from_slice(&tail[gone..]);
            }
            Kind::HalfClose => {
                self.doomed = Some(Kind::HalfClose);
                way.ended = true;
            }
            kind => self.doomed = Some(kind),
        }
    }
}

//! Where connections come in: one socket for each address, shared by every start on it.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use socket2::{Domain, Protocol, Socket, Type};

use super::channel::Channel;
use super::handshake::Hello;
use super::lookup::resolve;
use crate::config::Address;
use crate::error::Result;
use crate::wait::{Deadline, Wake};

/// How long to try again while another socket has the address: a process that is about to end.
const IN_USE: Duration = Duration::from_secs(1);
/// Connections that the kernel holds until they are accepted: every rank may call at once.
const BACKLOG: i32 = 4096;

/// A rank that came to the start, after the handshake.
#[derive(Debug)]
pub struct Joiner {
    /// Who it says it is.
    pub hello: Hello,
    /// Its connection.
    pub channel: Channel,
}

/// A listening socket and those who came to join a start on it.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    /// Where it listens.
    pub address: SocketAddr,
    /// What callers must know.
    pub secret: Option<String>,
    /// Whether this is where the ranks of a world meet, rank 0's.
    pub is_meeting_place: bool,
    /// Held by rank 0 while it gathers the ranks of one start.
    pub gathering: Mutex<()>,
    lobby: Mutex<VecDeque<Joiner>>,
    /// Ready while somebody may be in the lobby.
    arrived: Wake,
}

/// A use of a listener: it is closed soon after the last use of its address has ended.
#[derive(Debug)]
pub struct Listening {
    listener: Arc<Listener>,
    /// The control thread's: it looks then which listeners are still used.
    thread: Arc<Wake>,
}

impl Listening {
    /// The first use of a listener.
    pub fn new(listener: Arc<Listener>, thread: Arc<Wake>) -> Listening {
        Listening { listener, thread }
    }
}

impl Deref for Listening {
    type Target = Listener;

    fn deref(&self) -> &Listener {
        &self.listener
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.thread.wake();
    }
}

impl Listener {
    /// Listens at an address, once no other socket has it any more.
    pub fn bind(
        address: SocketAddr,
        secret: Option<&str>,
        is_meeting_place: bool,
    ) -> std::io::Result<Listener> {
        let deadline = Deadline::after(Some(IN_USE));
        let socket = loop {
            match listen(address) {
                Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && !deadline.passed() => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                socket => break socket?,
            }
        };
        Ok(Listener {
            address: socket.local_addr()?,
            socket,
            secret: secret.map(str::to_owned),
            is_meeting_place,
            gathering: Mutex::new(()),
            lobby: Mutex::default(),
            arrived: Wake::new().map_err(std::io::Error::other)?,
        })
    }

    /// The next connection, if one is there.
    pub fn accept(&self) -> std::io::Result<Option<Channel>> {
        match self.socket.accept() {
            Ok((stream, _)) => Ok(Channel::new(stream).ok()),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Lets a rank wait for a start. Where too many wait, the one that came first goes: ranks come
    /// again, strangers should not hold what the program needs.
    pub fn admit(&self, joiner: Joiner) {
        let mut lobby = self.lobby.lock();
        if lobby.len() >= guests() {
            lobby.pop_front();
        }
        lobby.push_back(joiner);
        self.arrived.wake();
    }

    /// Those who came since the last time.
    pub fn take_joiners(&self) -> Vec<Joiner> {
        let mut lobby = self.lobby.lock();
        self.arrived.clear();
        lobby.drain(..).collect()
    }

    /// Ready to read while somebody may be in the lobby.
    pub fn arrivals(&self) -> BorrowedFd<'_> {
        self.arrived.as_fd()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// How many connections may wait to be let in: a quarter of what the process may have open, so that
/// strangers on the port leave the program its own; 4096 at most.
pub fn guests() -> usize {
    let open = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    open.map_or(4096, |open| (open / 4).clamp(16, 4096)) as usize
}

/// Where this host can listen for those who call `address`: the address itself if it is local. All
/// interfaces if it is not (it may be translated on the way), or if it is a name that means
/// loopback only here (as the own host name does in many an /etc/hosts).
pub fn local_candidates(address: &Address, deadline: Deadline) -> Result<Vec<SocketAddr>> {
    let all = [IpAddr::from(Ipv6Addr::UNSPECIFIED), Ipv4Addr::UNSPECIFIED.into()]
        .map(|ip| SocketAddr::new(ip, address.port));
    let mut candidates = match address.host.is_empty() {
        true => Vec::new(),
        false => resolve(address, deadline, None)?,
    };
    let by_name = address.ip().is_none() && address.host != "localhost";
    if by_name && candidates.iter().any(|candidate| candidate.ip().is_loopback()) {
        candidates.clear();
    }
    candidates.extend(all);
    Ok(candidates)
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

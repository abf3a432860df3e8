//! The control thread: one per process, for all its worlds. It lets connections in, hears and tells
//! what control messages say, takes in what comes to mailboxes, and notices ranks that are gone. It
//! runs while there is a listener or a connection to look after.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::channel::Channel;
use super::commands::{Command, CommandQueue};
use super::event_loop::EventLoop;
use super::listener::{Listener, Listening, local_candidates};
use super::lookup::resolve;
use super::world::World;
use crate::config::Address;
use crate::error::{Error, Result, Status, fail};
use crate::wait::Deadline;

/// Held while a start goes on.
pub type StartQueue = Arc<Mutex<()>>;

/// What a process has for its worlds: the control thread, and where it listens.
pub struct Reactor {
    commands: Arc<CommandQueue>,
    /// Those whose connections are let in.
    worlds: Mutex<Vec<Weak<World>>>,
    listeners: Mutex<HashMap<SocketAddr, Weak<Listening>>>,
    /// One for each address of a rank 0 and each rank of this process that joins there.
    starts: Mutex<HashMap<(String, usize), StartQueue>>,
}

impl std::fmt::Debug for Reactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reactor")
    }
}

impl Reactor {
    /// One without a thread, which starts when it is first needed.
    pub fn new() -> Result<Arc<Reactor>> {
        Ok(Arc::new(Reactor {
            commands: Arc::new(CommandQueue::new()?),
            worlds: Mutex::default(),
            listeners: Mutex::default(),
            starts: Mutex::default(),
        }))
    }

    /// Listens where `address` says, or where `bind` does, at its port.
    pub fn listen(
        self: &Arc<Self>,
        address: &Address,
        bind: Option<&str>,
        secret: Option<&str>,
        is_meeting_place: bool,
        deadline: Deadline,
    ) -> Result<Arc<Listening>> {
        let (candidates, given) = match bind {
            Some(host) => (resolve(&Address::new(host, address.port), deadline, None)?, true),
            None => (local_candidates(address, deadline)?, false),
        };
        let mut refused = None;
        for candidate in candidates {
            match self.listening(candidate, || Listener::bind(candidate, secret, is_meeting_place))
            {
                Ok(listener) if listener.secret.as_deref() != secret => {
                    fail!(Config, "MLXD_SECRET differs from that of another start at {candidate}")
                }
                Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => fail!(
                    Config,
                    "cannot listen at {candidate}: another program, or a second process with this \
                     rank, listens there already"
                ),
                Ok(listener) => return Ok(listener),
                Err(e) => refused = Some((candidate, e)),
            }
        }
        let Some((candidate, e)) = refused else {
            fail!(Config, "{address} has no address to listen at");
        };
        let hint = if given { " (MLXD_BIND must be an address of this host)" } else { "" };
        Err(Error::new(Status::Config, format!("cannot listen at {candidate}: {e}{hint}")))
    }

    /// The listener at `address`: the one that is there, or a new one, which is then watched.
    fn listening(
        self: &Arc<Self>,
        address: SocketAddr,
        open: impl FnOnce() -> std::io::Result<Listener>,
    ) -> std::io::Result<Arc<Listening>> {
        let mut listeners = self.listeners.lock();
        listeners.retain(|_, listener| listener.strong_count() > 0);
        if let Some(listening) = listeners.get(&address).and_then(Weak::upgrade) {
            return Ok(listening);
        }
        let listener = Arc::new(open()?);
        let listening = Arc::new(Listening::new(listener.clone(), self.commands.wake().clone()));
        let watch = Command::Watch(listener, Arc::downgrade(&listening));
        self.command(watch).map_err(std::io::Error::other)?;
        listeners.insert(listening.address, Arc::downgrade(&listening));
        Ok(listening)
    }

    /// To be held while `rank` joins a start at this address.
    pub fn starts(&self, rank_0: &str, rank: usize) -> StartQueue {
        let mut starts = self.starts.lock();
        // Those that nobody holds are made again when they are needed.
        starts.retain(|_, start| Arc::strong_count(start) > 1);
        starts.entry((rank_0.to_owned(), rank)).or_default().clone()
    }

    /// The way to the control thread.
    pub fn commands(&self) -> &Arc<CommandQueue> {
        &self.commands
    }

    /// Lets connections for this world in.
    pub fn serve(&self, world: &Arc<World>) {
        self.worlds.lock().push(Arc::downgrade(world));
        // It may be what a caller waits for.
        self.commands.wake().wake();
    }

    /// Looks after the control connection between this rank and `peer`, in a world that is served.
    pub fn add_line(self: &Arc<Self>, world: &World, peer: usize, channel: Channel) -> Result<()> {
        self.command(Command::Line { key: world.key(), peer, channel })?;
        world.line_up(peer);
        Ok(())
    }

    /// Waits until all that was asked for so far has been done.
    pub fn settle(&self, limit: Duration) {
        self.commands.settle(limit);
    }

    fn command(self: &Arc<Self>, command: Command) -> Result<()> {
        self.commands.put(command, || {
            let reactor = self.clone();
            crate::thread::spawn("mlxd-control", move || {
                // After a bug, what was looked after is closed, and the next command starts afresh.
                if crate::thread::quietly(|| reactor.run()).is_err() {
                    reactor.commands.broke();
                }
            })?;
            Ok(())
        })
    }

    fn run(&self) {
        let mut event_loop = EventLoop::default();
        loop {
            let commands = self.commands.take();
            // After the commands: a world is served before it has lines.
            event_loop.worlds = self.worlds();
            for command in commands {
                event_loop.obey(command);
            }
            event_loop.close_unused();
            // A world that has just been announced may be what a caller waits for.
            event_loop.greet();
            if !event_loop.is_idle() {
                event_loop.work(self.commands.wake());
            } else if self.commands.end() {
                return;
            }
        }
    }

    /// Those of the worlds that are still there.
    fn worlds(&self) -> Vec<Weak<World>> {
        let mut worlds = self.worlds.lock();
        worlds.retain(|world| world.strong_count() > 0);
        worlds.clone()
    }
}

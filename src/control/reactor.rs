//! The control thread: one per process, for all its worlds. It lets connections in, hears and tells
//! what control messages say, takes in what comes to mailboxes, and notices ranks that are gone. It
//! runs while there is a listener or a connection to look after.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::channel::Channel;
use super::greeting::{Greeting, Step};
use super::listener::{Listener, Listening, guests};
use super::mailbox::Mailbox;
use super::message::Message;
use super::world::World;
use crate::error::{Error, Result, Status};
use crate::wait::{Deadline, Wake, interest, wait};

/// How long a peer that was told goodbye may take to close its end.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long mailboxes are left alone when one cannot be looked into: out of descriptors, most likely.
const MAILBOX_REST: Duration = Duration::from_millis(100);

/// What the control thread is asked to do.
enum Command {
    Watch(Arc<Listener>, Weak<Listening>),
    Serve(Weak<World>),
    Line { world: Weak<World>, key: WorldKey, peer: usize, channel: Channel },
    Tell { key: WorldKey, peers: Vec<usize>, message: Message },
    Leave(WorldKey),
    Answer(SyncSender<()>),
}

/// Held while a start goes on.
pub type StartQueue = Arc<Mutex<()>>;

/// A world of this process: its id and this rank, since a process may hold several ranks of one.
pub type WorldKey = (u64, usize);

#[derive(Default)]
struct Queue {
    commands: VecDeque<Command>,
    running: bool,
}

/// The way to the control thread.
pub struct Reactor {
    queue: Mutex<Queue>,
    wake: Wake,
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
            queue: Mutex::default(),
            wake: Wake::new()?,
            listeners: Mutex::default(),
            starts: Mutex::default(),
        }))
    }

    /// The listener at `address`: the one that is there, or a new one, which is then watched.
    pub fn listening(
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
        let listening = Arc::new(Listening::new(listener.clone(), self.clone()));
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

    /// Lets connections for this world in.
    pub fn serve(self: &Arc<Self>, world: &Arc<World>) -> Result<()> {
        self.command(Command::Serve(Arc::downgrade(world)))
    }

    /// Looks after the control connection between this rank and `peer`.
    pub fn add_line(
        self: &Arc<Self>,
        world: &Arc<World>,
        peer: usize,
        channel: Channel,
    ) -> Result<()> {
        self.command(Command::Line {
            world: Arc::downgrade(world),
            key: world.key(),
            peer,
            channel,
        })
    }

    /// Tells some ranks of a world.
    pub fn tell(self: &Arc<Self>, key: WorldKey, peers: Vec<usize>, message: Message) {
        // Without a thread there is nobody left to tell.
        let _ = self.command(Command::Tell { key, peers, message });
    }

    /// Says goodbye to a world's other ranks.
    pub fn leave(self: &Arc<Self>, key: WorldKey) {
        let _ = self.command(Command::Leave(key));
    }

    /// Waits until all that was asked for so far has been done.
    pub fn settle(self: &Arc<Self>, limit: Duration) {
        if !self.queue.lock().running {
            return;
        }
        let (done, wait) = sync_channel(1);
        if self.command(Command::Answer(done)).is_ok() {
            let _ = wait.recv_timeout(limit);
        }
    }

    /// Makes the control thread look at what it watches.
    pub fn look_again(&self) {
        self.wake.wake();
    }

    fn command(self: &Arc<Self>, command: Command) -> Result<()> {
        let mut queue = self.queue.lock();
        if !queue.running {
            let reactor = self.clone();
            crate::thread::spawn("mlxd-control", move || {
                // After a bug, what was looked after is closed, and the next command starts afresh.
                if crate::thread::quietly(|| reactor.run()).is_err() {
                    reactor.queue.lock().running = false;
                }
            })?;
            queue.running = true;
        }
        queue.commands.push_back(command);
        self.wake.wake();
        Ok(())
    }

    fn run(&self) {
        let mut desk = Desk::default();
        loop {
            self.wake.clear();
            let commands = std::mem::take(&mut self.queue.lock().commands);
            for command in commands {
                desk.obey(command);
            }
            desk.close_unused();
            // A world that has just been announced may be what a caller waits for.
            desk.greet();
            desk.worlds.retain(|world| world.strong_count() > 0);
            if desk.is_idle() {
                let mut queue = self.queue.lock();
                if queue.commands.is_empty() {
                    queue.running = false;
                    return;
                }
                continue;
            }
            desk.work(&self.wake);
        }
    }
}

/// The control connection with one rank of one world.
struct Line {
    world: Weak<World>,
    key: WorldKey,
    peer: usize,
    channel: Channel,
    heard: Instant,
    spoke: Instant,
    /// Set once goodbye was said: when to stop waiting for the peer to close.
    leaving: Option<Deadline>,
}

/// All that the control thread looks after.
#[derive(Default)]
struct Desk {
    /// Each with its uses.
    listeners: Vec<(Arc<Listener>, Weak<Listening>)>,
    worlds: Vec<Weak<World>>,
    greetings: Vec<Greeting>,
    lines: Vec<Line>,
    /// While mailboxes are left alone: until when.
    mailbox_rest: Option<Deadline>,
}

impl Desk {
    fn is_idle(&self) -> bool {
        self.listeners.is_empty() && self.greetings.is_empty() && self.lines.is_empty()
    }

    /// Closes listeners that nobody uses any more, with those who are still to be let in.
    fn close_unused(&mut self) {
        self.listeners.retain(|(_, uses)| uses.strong_count() > 0);
        let listeners = &self.listeners;
        let open = |g: &Greeting| listeners.iter().any(|(l, _)| Arc::ptr_eq(l, &g.listener));
        self.greetings.retain(open);
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Watch(listener, uses) => self.listeners.push((listener, uses)),
            Command::Serve(world) => self.worlds.push(world),
            Command::Line { world, key, peer, channel } => {
                self.lines.push(Line::new(world, key, peer, channel));
            }
            Command::Tell { key, peers, message } => {
                for line in self.lines.iter_mut().filter(|line| line.key == key) {
                    if peers.contains(&line.peer) {
                        line.tell(&message);
                    }
                }
            }
            Command::Leave(key) => {
                for line in self.lines.iter_mut().filter(|line| line.key == key) {
                    line.tell(&Message::Bye);
                    line.leaving.get_or_insert(Deadline::after(Some(FAREWELL)));
                }
            }
            Command::Answer(done) => drop(done.try_send(())),
        }
    }

    /// Sleeps until something happens, then sees to it.
    fn work(&mut self, wake: &Wake) {
        let mailboxes = self.mailboxes();
        let mut fds = vec![interest(wake.as_fd(), true, false)];
        fds.extend(self.listeners.iter().map(|(l, _)| interest(l.as_fd(), true, false)));
        fds.extend(self.greetings.iter().map(Greeting::interest));
        fds.extend(
            self.lines
                .iter()
                .map(|line| interest(line.channel.as_fd(), true, line.channel.has_output())),
        );
        fds.extend(mailboxes.iter().map(|(_, m)| interest(m.as_fd(), true, false)));
        if let Err(e) = wait(&mut fds, self.next_duty()) {
            log::error!("{e}");
            std::thread::sleep(Duration::from_millis(100));
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut ready = ready.into_iter().skip(1);
        let calling: Vec<Arc<Listener>> = self
            .listeners
            .iter()
            .zip(ready.by_ref().take(self.listeners.len()))
            .filter(|(_, ready)| *ready)
            .map(|((listener, _), _)| listener.clone())
            .collect();
        let mut ready = ready.skip(self.greetings.len());
        self.lines.retain_mut(|line| match ready.next() {
            Some(false) if !line.next_duty().passed() => true,
            _ => line.attend(),
        });
        for ((world, mailbox), _) in mailboxes.iter().zip(ready).filter(|(_, ready)| *ready) {
            let taken = world.upgrade().is_none_or(|world| world.take_in(mailbox));
            if !taken {
                self.mailbox_rest = Some(Deadline::after(Some(MAILBOX_REST)));
            }
        }
        calling.iter().for_each(|listener| self.accept(listener));
        self.greet();
    }

    /// The mailboxes to be watched, each with its world; none while they are left alone.
    fn mailboxes(&mut self) -> Vec<(Weak<World>, Arc<Mailbox>)> {
        self.mailbox_rest.take_if(|rest| rest.passed());
        if self.mailbox_rest.is_some() {
            return Vec::new();
        }
        let mailbox = |weak: &Weak<World>| Some((weak.clone(), weak.upgrade()?.mailbox()?));
        self.worlds.iter().filter_map(mailbox).collect()
    }

    /// When something is due even if nothing comes.
    fn next_duty(&self) -> Deadline {
        let greetings = self.greetings.iter().map(|greeting| greeting.deadline);
        let lines = self.lines.iter().map(Line::next_duty);
        greetings.chain(lines).chain(self.mailbox_rest).fold(Deadline::NEVER, Deadline::or)
    }

    fn accept(&mut self, listener: &Arc<Listener>) {
        let room = guests();
        // So many at a time, that the lines are not left alone.
        for _ in 0..room {
            match listener.accept() {
                Ok(Some(channel)) => {
                    if self.greetings.len() >= room {
                        self.greetings.remove(0);
                    }
                    self.greetings.push(Greeting::new(channel, listener.clone()));
                }
                Ok(None) => return,
                Err(e) => {
                    log::warn!("cannot accept a connection at {}: {e}", listener.address);
                    // Out of descriptors, most likely: they come back when others are closed.
                    std::thread::sleep(Duration::from_millis(10));
                    return;
                }
            }
        }
    }

    fn greet(&mut self) {
        let worlds: Vec<Arc<World>> = self.worlds.iter().filter_map(Weak::upgrade).collect();
        for mut greeting in std::mem::take(&mut self.greetings) {
            match greeting.advance(&worlds) {
                Ok(Step::Wait) => self.greetings.push(greeting),
                Ok(Step::Join(joiner)) => greeting.listener.admit(joiner),
                Ok(Step::Line { world, peer, channel }) => {
                    self.lines.push(Line::new(Arc::downgrade(&world), world.key(), peer, channel));
                    world.line_up(peer);
                }
                Ok(Step::Lane { world, key, stream }) => world.deliver(key, stream),
                Err(e) => log::info!("turned away a connection: {e}"),
            }
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Also where a forked child still has the descriptor; what was written arrives before it.
        let _ = rustix::net::shutdown(&self.channel, rustix::net::Shutdown::Write);
    }
}

impl Line {
    fn new(world: Weak<World>, key: WorldKey, peer: usize, mut channel: Channel) -> Line {
        let now = Instant::now();
        if let Some(world) = world.upgrade() {
            channel.peer = world.name_of(peer);
        }
        Line { world, key, peer, channel, heard: now, spoke: now, leaving: None }
    }

    fn tell(&mut self, message: &Message) {
        self.spoke = Instant::now();
        // A connection that cannot be written to is noticed when it is read.
        if let Err(e) = self.channel.tell(message) {
            log::debug!("{e}");
        }
    }

    fn next_duty(&self) -> Deadline {
        if let Some(leaving) = self.leaving {
            return leaving;
        }
        let Some(world) = self.world.upgrade() else {
            return Deadline::NEVER;
        };
        let left = |limit: Duration, since: Instant| limit.saturating_sub(since.elapsed());
        let ping = world.ping.map(|limit| left(limit, self.spoke));
        let lost = world.peer_timeout.map(|limit| left(limit, self.heard));
        Deadline::after(ping).or(Deadline::after(lost))
    }

    /// Hears what came and does what is due; false once the line is of no more use.
    fn attend(&mut self) -> bool {
        let heard = loop {
            match self.channel.flush().and_then(|()| self.channel.hear()) {
                Ok(None) => break Ok(()),
                Ok(Some(Message::Bye)) => {
                    if let Some(world) = self.world.upgrade() {
                        world.left(self.peer);
                    }
                    return false;
                }
                Ok(Some(message)) => {
                    self.heard = Instant::now();
                    if let Some(world) = self.world.upgrade() {
                        world.heard(self.peer, message);
                    }
                }
                Err(e) => break Err(e),
            }
        };
        if let Some(leaving) = self.leaving {
            return heard.is_ok() && !leaving.passed();
        }
        let Some(world) = self.world.upgrade() else {
            return heard.is_ok();
        };
        let lost = match (heard, world.peer_timeout) {
            (Err(e), _) => e,
            (Ok(()), Some(limit)) if self.heard.elapsed() > limit => Error::new(
                Status::PeerLost,
                format!("{} was silent for {} ms", self.channel.peer, limit.as_millis()),
            ),
            (Ok(()), _) => {
                if world.ping.is_some_and(|limit| self.spoke.elapsed() >= limit) {
                    self.tell(&Message::Ping);
                }
                return true;
            }
        };
        world.line_lost(self.peer, lost);
        false
    }
}

//! The control thread's event loop: what it looks after, and how it goes about it.

use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::commands::{Command, WorldKey};
use super::greeting::{Greeting, Step};
use super::line::Line;
use super::listener::{Listener, Listening, guests};
use super::mailbox::Mailbox;
use super::world::World;
use crate::wait::{Deadline, Wake, interest, wait};

/// How long mailboxes are left alone when one cannot be looked into: out of descriptors, most likely.
const MAILBOX_REST: Duration = Duration::from_millis(100);

/// All that the control thread looks after.
#[derive(Default)]
pub struct EventLoop {
    /// Each with its uses.
    listeners: Vec<(Arc<Listener>, Weak<Listening>)>,
    /// Those whose connections are let in.
    pub worlds: Vec<Weak<World>>,
    greetings: Vec<Greeting>,
    lines: Vec<Line>,
    /// While mailboxes are left alone: until when.
    mailbox_rest: Option<Deadline>,
}

impl EventLoop {
    /// Whether there is nothing to look after.
    pub fn is_idle(&self) -> bool {
        self.listeners.is_empty() && self.greetings.is_empty() && self.lines.is_empty()
    }

    /// Closes listeners that nobody uses any more, with those who are still to be let in.
    pub fn close_unused(&mut self) {
        self.listeners.retain(|(_, uses)| uses.strong_count() > 0);
        let listeners = &self.listeners;
        let open = |g: &Greeting| listeners.iter().any(|(l, _)| Arc::ptr_eq(l, &g.listener));
        self.greetings.retain(open);
    }

    /// Does what it is asked to do.
    pub fn obey(&mut self, command: Command) {
        match command {
            Command::Watch(listener, uses) => self.listeners.push((listener, uses)),
            Command::Line { key, peer, channel } => {
                let world = self.world(key);
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
                    line.leave();
                }
            }
            Command::Answer(done) => drop(done.try_send(())),
        }
    }

    /// The world of this key; one that is gone already if there is none.
    fn world(&self, key: WorldKey) -> Weak<World> {
        let is_it = |world: &&Weak<World>| world.upgrade().is_some_and(|world| world.key() == key);
        self.worlds.iter().find(is_it).cloned().unwrap_or_default()
    }

    /// Sleeps until something happens, then sees to it.
    pub fn work(&mut self, wake: &Wake) {
        let mailboxes = self.mailboxes();
        let mut fds = vec![interest(wake.as_fd(), true, false)];
        fds.extend(self.listeners.iter().map(|(l, _)| interest(l.as_fd(), true, false)));
        fds.extend(self.greetings.iter().map(Greeting::interest));
        fds.extend(self.lines.iter().map(Line::interest));
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

    /// Goes on with those who are to be let in.
    pub fn greet(&mut self) {
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

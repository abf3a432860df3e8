//! The way to the control thread: what it is asked to do, in order.

use std::collections::VecDeque;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::channel::Channel;
use super::listener::{Listener, Listening};
use super::message::Message;
use crate::error::Result;
use crate::wait::Wake;

/// A world of this process: its id and this rank, since a process may hold several ranks of one.
pub type WorldKey = (u64, usize);

/// What the control thread is asked to do.
pub enum Command {
    /// To let connections in here while this is used.
    Watch(Arc<Listener>, Weak<Listening>),
    /// To look after the control connection with a rank.
    Line {
        /// The world of which this is.
        key: WorldKey,
        /// The rank.
        peer: usize,
        /// The connection.
        channel: Channel,
    },
    /// To tell some ranks of a world.
    Tell {
        /// Which world.
        key: WorldKey,
        /// The ranks.
        peers: Vec<usize>,
        /// What they are told.
        message: Message,
    },
    /// To say goodbye to a world's other ranks.
    Leave(WorldKey),
    /// To answer once all that was asked for before has been done.
    Answer(SyncSender<()>),
}

#[derive(Default)]
struct Queue {
    commands: VecDeque<Command>,
    /// Whether there is a thread.
    running: bool,
}

/// The commands that wait for the control thread.
pub struct CommandQueue {
    queue: Mutex<Queue>,
    wake: Arc<Wake>,
}

impl std::fmt::Debug for CommandQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CommandQueue")
    }
}

impl CommandQueue {
    /// Without commands, and without a thread.
    pub fn new() -> Result<CommandQueue> {
        Ok(CommandQueue { queue: Mutex::default(), wake: Arc::new(Wake::new()?) })
    }

    /// Tells some ranks of a world.
    pub fn tell(&self, key: WorldKey, peers: Vec<usize>, message: Message) {
        self.put_if_running(Command::Tell { key, peers, message });
    }

    /// Says goodbye to a world's other ranks.
    pub fn leave(&self, key: WorldKey) {
        self.put_if_running(Command::Leave(key));
    }

    /// Waits until all that was asked for so far has been done.
    pub fn settle(&self, limit: Duration) {
        let (done, wait) = sync_channel(1);
        if self.put_if_running(Command::Answer(done)) {
            let _ = wait.recv_timeout(limit);
        }
    }

    /// Puts a command last, after `start` has started the thread if there is none.
    pub fn put(&self, command: Command, start: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut queue = self.queue.lock();
        if !queue.running {
            start()?;
            queue.running = true;
        }
        queue.commands.push_back(command);
        self.wake.wake();
        Ok(())
    }

    /// The same for what concerns lines alone: without a thread there are none, and nobody to tell.
    fn put_if_running(&self, command: Command) -> bool {
        let mut queue = self.queue.lock();
        if queue.running {
            queue.commands.push_back(command);
            self.wake.wake();
        }
        queue.running
    }

    /// What wakes the thread.
    pub fn wake(&self) -> &Arc<Wake> {
        &self.wake
    }

    /// For the thread: what it is to do next.
    pub fn take(&self) -> VecDeque<Command> {
        self.wake.clear();
        std::mem::take(&mut self.queue.lock().commands)
    }

    /// For the thread, before it ends for want of work: whether it may.
    pub fn end(&self) -> bool {
        let mut queue = self.queue.lock();
        queue.running = !queue.commands.is_empty();
        !queue.running
    }

    /// The thread has ended because of a bug: the next command starts another.
    pub fn broke(&self) {
        self.queue.lock().running = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bye(peers: Vec<usize>) -> Command {
        Command::Tell { key: (1, 0), peers, message: Message::Bye }
    }

    #[test]
    fn without_a_thread_nobody_is_told() {
        let queue = CommandQueue::new().unwrap();
        queue.tell((1, 0), vec![1], Message::Bye);
        queue.leave((1, 0));
        queue.settle(Duration::ZERO);
        assert_eq!(queue.take().len(), 0);
        queue.put(bye(vec![1]), || Ok(())).unwrap();
        queue.leave((1, 0));
        queue.settle(Duration::ZERO);
        let commands: Vec<Command> = queue.take().into();
        assert!(matches!(
            commands[..],
            [Command::Tell { .. }, Command::Leave((1, 0)), Command::Answer(_)]
        ));
    }

    #[test]
    fn a_thread_is_started_where_there_is_none() {
        let queue = CommandQueue::new().unwrap();
        let mut starts = 0;
        let mut put = |queue: &CommandQueue| {
            let start = || {
                starts += 1;
                Ok(())
            };
            queue.put(bye(Vec::new()), start).unwrap();
            starts
        };
        assert_eq!((put(&queue), put(&queue)), (1, 1));
        assert!(!queue.end(), "two commands wait");
        assert_eq!((queue.take().len(), queue.end()), (2, true));
        assert_eq!(put(&queue), 2, "the thread has ended");
        queue.broke();
        assert_eq!(put(&queue), 3, "the thread has broken");
        let failed = || crate::error::fail!(System, "no thread");
        queue.broke();
        assert!(queue.put(bye(Vec::new()), failed).is_err());
        assert_eq!((queue.take().len(), put(&queue)), (2, 4), "what came before a failure stays");
    }
}

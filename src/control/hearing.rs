//! What another rank of a world says, and whose affair that is.

use std::sync::Arc;

use super::message::Message;
use super::world::World;

impl World {
    /// `peer` has said something.
    pub fn heard(self: &Arc<Self>, peer: usize, message: Message) {
        match message {
            Message::Ready { shares } => {
                self.shared.lock().ready.insert(peer, shares);
                self.changed.notify_all();
            }
            Message::Go { hosts } if peer == 0 && hosts.len() == self.size => {
                let mut shared = self.shared.lock();
                (shared.go, shared.hosts) = (true, hosts);
                drop(shared);
                self.changed.notify_all();
            }
            Message::Shared { group, segment } => self.told_of_segment(peer, group, segment),
            Message::Fail { group, cause } => self.told_of_failure(group, cause),
            Message::Lost { rank, cause } if rank < self.size => {
                self.lose(rank, &cause.message, false);
            }
            Message::Stalled { group, parent, wait } => {
                self.told_of_stall(peer, group, parent, wait);
            }
            Message::Absent { group, wait, cause } => {
                self.told_of_absence(peer, group, wait, &cause);
            }
            Message::Record { group, topic, bytes } => self.told(peer, group, topic, bytes),
            Message::Ping => {}
            other => log::debug!("rank {peer} said {other:?}, which means nothing here"),
        }
    }
}

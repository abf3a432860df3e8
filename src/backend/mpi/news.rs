//! What a rank knows of failures elsewhere: the groups that news may be about, and news of groups that
//! are not made yet.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::abi::Comm;
use super::functions::Functions;
use super::id::GroupId;
use crate::error::Error;
use crate::health::Health;

/// How many news are kept for groups that this rank has not made yet.
const KEPT: usize = 64;

/// One piece of news.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// The group that has failed.
    pub id: GroupId,
    /// Why.
    pub cause: Error,
}

/// The groups that news may be about, and where news come from.
#[derive(Debug, Default)]
pub struct News {
    /// `None` in a world of one.
    comm: Option<Comm>,
    board: Mutex<Board>,
    /// Held by who takes news in: a message that two have seen is there for one only.
    pub(super) listening: Mutex<()>,
    /// When somebody listened last, by the coarse clock.
    pub(super) heard: AtomicU64,
}

#[derive(Debug, Default)]
struct Board {
    groups: Vec<(GroupId, Weak<Health>)>,
    early: Vec<Failure>,
}

impl News {
    /// News that come on this communicator, which has all ranks.
    pub fn on(comm: Comm) -> News {
        News { comm: Some(comm), ..News::default() }
    }

    /// Where they come, which has all ranks.
    pub fn comm(&self) -> Option<Comm> {
        self.comm
    }

    /// Makes a group known, and fails it if news of it came already.
    pub fn enter(&self, id: GroupId, health: &Arc<Health>) {
        let mut board = self.board.lock();
        board.groups.retain(|(_, health)| health.strong_count() > 0);
        board.groups.push((id, Arc::downgrade(health)));
        let early = board.early.iter().position(|failure| failure.id == id);
        let early = early.map(|at| board.early.remove(at));
        drop(board);
        if let Some(failure) = early {
            health.fail(failure.cause);
        }
    }

    /// Fails a group that is known; news of another are kept until it is made.
    pub(super) fn deliver(&self, failure: Failure) {
        let mut board = self.board.lock();
        let known = board.groups.iter().find(|(id, _)| *id == failure.id);
        let Some((_, health)) = known else {
            if board.early.len() == KEPT {
                board.early.remove(0);
            }
            board.early.push(failure);
            return;
        };
        let health = health.upgrade();
        drop(board);
        if let Some(health) = health {
            health.fail(failure.cause);
        }
    }

    /// Frees the communicator; MPI ends next, or the program's own use of it.
    pub fn free(&self, functions: &Functions) {
        if let Some(mut comm) = self.comm {
            // SAFETY: ours, freed once, and nobody listens any more. A failure harms nobody.
            unsafe { (functions.comm_free)(&mut comm) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    #[test]
    fn news_wait_for_their_group() {
        let news = News::default();
        let id = |group| GroupId { world: 7, group };
        let cause = Error::new(Status::Aborted, "enough");
        let healths: Vec<_> = (0..2).map(|_| Arc::new(Health::new().unwrap())).collect();
        news.enter(id(0), &healths[0]);
        news.deliver(Failure { id: id(1), cause: cause.clone() });
        assert!(healths[0].check().is_ok());
        news.enter(id(1), &healths[1]);
        assert_eq!(healths[1].check().unwrap_err(), cause);
        news.deliver(Failure { id: id(0), cause: cause.clone() });
        assert_eq!(healths[0].check().unwrap_err(), cause);
    }
}

//! The order of a group's operations: each takes a ticket when it is called and runs at its turn.
//!
//! Collectives are one queue; so are the sends to each rank and the receives from each.

use std::collections::BTreeSet;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::error::Result;
use crate::health::Health;

/// 100 ms: how often one that waits for its turn looks whether the group has failed meanwhile.
const LOOK: Duration = Duration::from_millis(100);

/// A queue of operations that run one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Queue {
    /// All collectives, splits among them.
    Collectives,
    /// Sends to this rank.
    SendsTo(usize),
    /// Receives from this rank.
    RecvsFrom(usize),
}

/// A place in one queue, or in two at once.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    places: [Option<(Queue, u64)>; 2],
}

impl Ticket {
    /// Its place in a queue, counted from 0.
    pub fn place(&self, queue: Queue) -> u64 {
        let here = |(q, place): &(Queue, u64)| (*q == queue).then_some(*place);
        self.places.iter().flatten().find_map(here).unwrap_or(0)
    }
}

/// The tickets of one queue.
#[derive(Debug, Default)]
struct Counts {
    /// How many were given out.
    given: u64,
    /// How many of them, from the first on, are done with.
    done: u64,
    /// Those that are done with out of turn.
    early: BTreeSet<u64>,
}

impl Counts {
    fn finish(&mut self, place: u64) {
        if place != self.done {
            self.early.insert(place);
            return;
        }
        self.done += 1;
        while self.early.remove(&self.done) {
            self.done += 1;
        }
    }
}

/// All queues; those of ranks that no message went to or came from yet may be missing.
#[derive(Debug, Default)]
struct Queues {
    collectives: Counts,
    sends: Vec<Counts>,
    recvs: Vec<Counts>,
}

impl Queues {
    fn get(&mut self, queue: Queue) -> &mut Counts {
        let (counts, peer) = match queue {
            Queue::Collectives => return &mut self.collectives,
            Queue::SendsTo(peer) => (&mut self.sends, peer),
            Queue::RecvsFrom(peer) => (&mut self.recvs, peer),
        };
        if counts.len() <= peer {
            counts.resize_with(peer + 1, Counts::default);
        }
        &mut counts[peer]
    }
}

/// The queues of one group.
#[derive(Debug, Default)]
pub struct Order {
    queues: Mutex<Queues>,
    turned: Condvar,
}

impl Order {
    /// The next ticket of these queues; in both at once, so that two operations which share both
    /// can never wait for each other.
    pub fn ticket(&self, queues: [Option<Queue>; 2]) -> Ticket {
        give(&mut self.queues.lock(), queues)
    }

    /// Waits until everything before this ticket is done; what is returned ends the turn. The cause,
    /// and no turn, if the group fails before.
    ///
    /// No deadline: the operations before have theirs.
    pub fn turn(&self, ticket: Ticket, health: &Health) -> Result<Turn<'_>> {
        self.await_turn(self.queues.lock(), ticket, health)
    }

    /// The next ticket of these queues, and its turn.
    pub fn next_turn(&self, queues: [Option<Queue>; 2], health: &Health) -> Result<Turn<'_>> {
        let mut all = self.queues.lock();
        let ticket = give(&mut all, queues);
        self.await_turn(all, ticket, health)
    }

    fn await_turn<'a>(
        &'a self,
        mut all: MutexGuard<'a, Queues>,
        ticket: Ticket,
        health: &Health,
    ) -> Result<Turn<'a>> {
        let ready = |all: &mut Queues| {
            let next = |(queue, place): &(Queue, u64)| all.get(*queue).done == *place;
            ticket.places.iter().flatten().all(next)
        };
        // Whatever comes of it, the places are done with once this is dropped.
        let turn = Turn { order: self, ticket };
        while !ready(&mut all) {
            if let Err(cause) = health.check() {
                drop(all);
                return Err(cause);
            }
            self.turned.wait_for(&mut all, LOOK);
        }
        Ok(turn)
    }
}

fn give(all: &mut Queues, queues: [Option<Queue>; 2]) -> Ticket {
    let places = queues.map(|queue| {
        let queue = queue?;
        let counts = all.get(queue);
        counts.given += 1;
        Some((queue, counts.given - 1))
    });
    Ticket { places }
}

/// An operation's turn, until it is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    order: &'a Order,
    ticket: Ticket,
}

impl Turn<'_> {
    /// The operation's place in a queue, counted from 0.
    pub fn place(&self, queue: Queue) -> u64 {
        self.ticket.place(queue)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut all = self.order.queues.lock();
        for (queue, place) in self.ticket.places.iter().flatten() {
            all.get(*queue).finish(*place);
        }
        drop(all);
        self.order.turned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Status};
    use std::sync::Arc;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    #[test]
    fn turns_come_in_the_order_of_tickets() {
        let order = Arc::new(Order::default());
        let tickets: Vec<Ticket> =
            (0..4).map(|_| order.ticket([Some(Queue::Collectives), None])).collect();
        let (done, results) = channel();
        let threads: Vec<_> = tickets
            .into_iter()
            .enumerate()
            .rev()
            .map(|(number, ticket)| {
                let (order, done) = (order.clone(), done.clone());
                std::thread::spawn(move || {
                    let _turn = order.turn(ticket, &Health::new().unwrap()).unwrap();
                    std::thread::sleep(Duration::from_millis(5));
                    done.send(number).unwrap();
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        drop(done);
        assert_eq!(results.iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
    }

    #[test]
    fn queues_do_not_wait_for_each_other() {
        let (order, health) = (Order::default(), Health::new().unwrap());
        let recv = order.ticket([Some(Queue::RecvsFrom(1)), None]);
        let _waiting = order.turn(recv, &health).unwrap();
        for queue in [Queue::Collectives, Queue::SendsTo(1), Queue::RecvsFrom(2)] {
            let ticket = order.ticket([Some(queue), None]);
            assert_eq!(ticket.place(queue), 0);
            drop(order.turn(ticket, &health).unwrap());
        }
    }

    #[test]
    fn a_failed_group_lets_go_of_those_who_wait() {
        let (order, health) = (Order::default(), Health::new().unwrap());
        let ticket = || order.ticket([Some(Queue::Collectives), None]);
        let (first, second, third) = (ticket(), ticket(), ticket());
        let running = order.turn(first, &health).unwrap();
        health.fail(Error::new(Status::Aborted, "enough"));
        assert_eq!(order.turn(second, &health).unwrap_err().message, "enough");
        drop(running);
        // The place that was given up does not hold up those behind it.
        drop(order.turn(third, &health).unwrap());
    }
}

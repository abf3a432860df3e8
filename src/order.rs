//! The order of a group's operations: each takes a ticket when it is called and runs at its turn.
//!
//! Collectives are one queue; so are the sends to each rank and the receives from each. What passes
//! through is recorded under the same lock.

use std::collections::BTreeSet;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::error::Result;
use crate::health::Health;
use crate::recorder::{self, Operation, Places, Queue, Records, Slot, Snapshot};

/// 100 ms: how often one that waits for its turn looks whether the group has failed meanwhile.
const LOOK: Duration = Duration::from_millis(100);

/// What an operation is called by until it ends: where its record is, which has its places.
#[derive(Clone, Copy, Debug)]
pub struct Ticket(Slot);

/// How many tickets of a queue were given out, and how many are done with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Given out.
    pub given: u64,
    /// Done with, from the first on.
    pub done: u64,
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

    fn count(&self) -> Count {
        Count { given: self.given, done: self.done }
    }
}

/// All queues; those of ranks that no message went to or came from yet may be missing.
#[derive(Debug, Default)]
struct Queues {
    records: Records,
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

    fn ticket(&mut self, queues: [Option<Queue>; 2], operation: &Operation, now: u64) -> Ticket {
        let slot = self.records.call(operation, now);
        for (at, queue) in queues.into_iter().enumerate() {
            let Some(queue) = queue else { continue };
            let counts = self.get(queue);
            let place = counts.given;
            counts.given += 1;
            self.records.places(slot)[at] = Some((queue, place));
        }
        Ticket(slot)
    }

    /// Whether everything before this ticket is done.
    fn is_next(&mut self, Ticket(slot): Ticket) -> bool {
        (0..2).all(|at| match self.records.places(slot)[at] {
            Some((queue, place)) => self.get(queue).done == place,
            None => true,
        })
    }

    /// Done with these places.
    fn finish(&mut self, places: Places) {
        for (queue, place) in places.into_iter().flatten() {
            self.get(queue).finish(place);
        }
    }
}

/// The queues of one group.
#[derive(Debug, Default)]
pub struct Order {
    queues: Mutex<Queues>,
    turned: Condvar,
}

/// How far a group is.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Its last operations.
    pub records: Snapshot,
    /// Collectives, splits among them.
    pub collectives: Count,
    /// Sends per peer; may be shorter than the group.
    pub sends: Vec<Count>,
    /// Receives per peer; likewise.
    pub recvs: Vec<Count>,
}

impl Order {
    /// The next ticket of these queues; in both at once, so that two operations which share both
    /// can never wait for each other.
    pub fn ticket(&self, queues: [Option<Queue>; 2], operation: &Operation) -> Ticket {
        let now = recorder::now();
        self.queues.lock().ticket(queues, operation, now)
    }

    /// Waits until everything before this ticket is done; what is returned ends the turn. The cause,
    /// and no turn, if the group fails before.
    ///
    /// No deadline: the operations before have theirs.
    pub fn turn(&self, ticket: Ticket, health: &Health) -> Result<Turn<'_>> {
        let now = recorder::now();
        self.await_turn(self.queues.lock(), ticket, now, health)
    }

    /// The next ticket of these queues, and its turn.
    pub fn next_turn(
        &self,
        queues: [Option<Queue>; 2],
        operation: &Operation,
        health: &Health,
    ) -> Result<Turn<'_>> {
        let now = recorder::now();
        let mut all = self.queues.lock();
        let ticket = all.ticket(queues, operation, now);
        self.await_turn(all, ticket, now, health)
    }

    fn await_turn<'a>(
        &'a self,
        all: MutexGuard<'a, Queues>,
        ticket: Ticket,
        mut now: u64,
        health: &Health,
    ) -> Result<Turn<'a>> {
        let mut all = all;
        let places = *all.records.places(ticket.0);
        // Whatever comes of it, the places are done with once this is dropped.
        let turn = Turn { order: self, ticket, places, came_to: CameTo::Failure };
        while !all.is_next(ticket) {
            if let Err(cause) = health.check() {
                drop(all);
                return Err(cause);
            }
            self.turned.wait_for(&mut all, LOOK);
            now = recorder::now();
        }
        all.records.start(ticket.0, now);
        // Before the turn could end, which takes it again.
        drop(all);
        Ok(turn)
    }

    /// An operation whose turn was handed over has ended.
    pub fn ended(&self, ticket: Ticket, well: bool) {
        let now = recorder::now();
        self.queues.lock().records.end(ticket.0, !well, now);
    }

    /// How far the group is; waits for no operation.
    pub fn progress(&self) -> Progress {
        let all = self.queues.lock();
        let counts = |list: &[Counts]| list.iter().map(Counts::count).collect();
        Progress {
            records: all.records.snapshot(),
            collectives: all.collectives.count(),
            sends: counts(&all.sends),
            recvs: counts(&all.recvs),
        }
    }
}

/// An operation's turn, until it is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    order: &'a Order,
    ticket: Ticket,
    places: Places,
    came_to: CameTo,
}

/// How a turn ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CameTo {
    Success,
    Failure,
    /// The operation goes on without it.
    Nothing,
}

impl Turn<'_> {
    /// The places in the queues of the ticket, counted from 0; 0 where there was no queue.
    pub fn places(&self) -> [u64; 2] {
        self.places.map(|place| place.map_or(0, |(_, place)| place))
    }

    /// Ends the turn, as that of an operation that came to this.
    pub fn end<T>(mut self, outcome: Result<T>) -> Result<T> {
        self.came_to = if outcome.is_ok() { CameTo::Success } else { CameTo::Failure };
        outcome
    }

    /// From now on the operation ends by [`Order::ended`], whenever this turn does.
    pub fn hand_over(&mut self) -> Ticket {
        self.came_to = CameTo::Nothing;
        self.ticket
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let now = recorder::now();
        let mut all = self.order.queues.lock();
        if self.came_to != CameTo::Nothing {
            all.records.end(self.ticket.0, self.came_to == CameTo::Failure, now);
        }
        all.finish(self.places);
        drop(all);
        self.order.turned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Verb;
    use crate::dtype::Dtype;
    use crate::error::{Error, Status};
    use crate::recorder::State;
    use std::sync::Arc;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    const ANY: Operation =
        Operation { verb: Verb::Barrier, dtype: Dtype::Uint8, root: -1, count: [0; 2] };

    #[test]
    fn turns_come_in_the_order_of_tickets() {
        let order = Arc::new(Order::default());
        let tickets: Vec<Ticket> =
            (0..4).map(|_| order.ticket([Some(Queue::Collectives), None], &ANY)).collect();
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
        let recv = order.ticket([Some(Queue::RecvsFrom(1)), None], &ANY);
        let _waiting = order.turn(recv, &health).unwrap();
        for queue in [Queue::Collectives, Queue::SendsTo(1), Queue::RecvsFrom(2)] {
            let ticket = order.ticket([Some(queue), None], &ANY);
            let turn = order.turn(ticket, &health).unwrap();
            assert_eq!(turn.places(), [0, 0]);
        }
    }

    #[test]
    fn a_failed_group_lets_go_of_those_who_wait() {
        let (order, health) = (Order::default(), Health::new().unwrap());
        let ticket = || order.ticket([Some(Queue::Collectives), None], &ANY);
        let (first, second, third) = (ticket(), ticket(), ticket());
        let running = order.turn(first, &health).unwrap();
        health.fail(Error::new(Status::Aborted, "enough"));
        assert_eq!(order.turn(second, &health).unwrap_err().message, "enough");
        drop(running);
        // The place that was given up does not hold up those behind it.
        drop(order.turn(third, &health).unwrap());
    }

    #[test]
    fn what_passes_through_is_recorded() {
        let (order, health) = (Order::default(), Health::new().unwrap());
        let sends = [Some(Queue::SendsTo(2)), Some(Queue::RecvsFrom(0))];
        order
            .next_turn([Some(Queue::Collectives), None], &ANY, &health)
            .unwrap()
            .end(Ok(()))
            .unwrap();
        order.next_turn([sends[1], None], &ANY, &health).unwrap().end(Ok(())).unwrap();
        let running = order.next_turn(sends, &ANY, &health).unwrap();
        assert_eq!(running.places(), [0, 1]);
        let queued = order.ticket(sends, &ANY);
        let progress = order.progress();
        let states: Vec<State> = progress.records.records.iter().map(|r| r.state).collect();
        assert_eq!(states, [State::Done, State::Done, State::Running, State::Queued]);
        assert_eq!(progress.collectives, Count { given: 1, done: 1 });
        assert_eq!(
            progress.sends,
            [Count::default(), Count::default(), Count { given: 2, done: 0 }]
        );
        assert_eq!(progress.recvs, [Count { given: 3, done: 1 }]);
        health.fail(Error::new(Status::Aborted, "enough"));
        order.turn(queued, &health).unwrap_err();
        let cause: Result<()> = Err(Error::new(Status::Aborted, "enough"));
        running.end(cause).unwrap_err();
        let records = order.progress().records.records;
        assert!(records[2..].iter().all(|record| record.state == State::Failed));
        assert_eq!((records[2].started != 0, records[3].started), (true, 0));
    }
}

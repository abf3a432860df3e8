//! A group: checks arguments, keeps the order of calls, remembers its failure.

mod alone;
mod check;
mod request;

pub use request::{Request, Side};

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::backend::{Backend, Limits, Message, Operation, Track, refuse_cuda};
use crate::call::Verb;
use crate::cuda;
use crate::dtype::Dtype;
use crate::error::{Error, Result, Status};
use crate::health::Health;
use crate::order::{Order, Turn};
use crate::recorder::archive::{self, Archive, Will};
use crate::recorder::document::{Document, Failure, Identity};
use crate::recorder::{self, Queue};
use crate::stream::Stream;

/// Ranks that compute together.
pub struct Group {
    /// `None` on a group of one rank, which needs nobody.
    backend: Option<Box<dyn Backend>>,
    name: &'static str,
    rank: usize,
    size: usize,
    reach: Reach,
    identity: Arc<Identity>,
    order: Arc<Order>,
    /// Where the records go when a group fails.
    archive: Option<Archive>,
    /// The file that this one leaves then.
    will: Option<Will>,
    /// Held from taking a ticket to putting it on a stream.
    submitting: Mutex<()>,
    /// Of a group without a backend.
    health: Health,
    /// In milliseconds, 0 for no limit.
    timeout: AtomicU64,
    recv_timeout: AtomicU64,
}

/// Whose memory a group works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Host,
    /// That of a CUDA device, this one if it is known.
    Device(Option<i32>),
    /// A process alone copies whatever there is.
    Both,
}

impl Group {
    /// A group of the ranks that `backend` connects.
    pub fn new(
        backend: Box<dyn Backend>,
        limits: Limits,
        archive: Option<Archive>,
    ) -> Result<Group> {
        let identity = backend.identity();
        let device = backend.device();
        let backend = (backend.size() > 1).then_some(backend);
        let group = Group::with(backend, identity, limits, archive)?;
        Ok(match device {
            Some(device) => group.on_device(device),
            None => group,
        })
    }

    /// The same group of one rank, for memory of this CUDA device.
    pub fn on_device(self, device: i32) -> Group {
        Group { reach: Reach::Device(Some(device)), ..self }
    }

    /// A group of this process only.
    pub fn alone(name: &'static str, limits: Limits, archive: Option<Archive>) -> Result<Group> {
        let world =
            getrandom::u64().map_err(|e| Error::new(Status::System, format!("getrandom: {e}")))?;
        let identity = Identity { world, group: 0, backend: name, rank: 0, ranks: vec![0] };
        Group::with(None, identity, limits, archive)
    }

    fn with(
        backend: Option<Box<dyn Backend>>,
        identity: Identity,
        limits: Limits,
        archive: Option<Archive>,
    ) -> Result<Group> {
        let milliseconds =
            |limit: Option<Duration>| AtomicU64::new(limit.map_or(0, |l| l.as_millis() as u64));
        let reach = match identity.backend {
            "none" => Reach::Both,
            "nccl" => Reach::Device(None),
            _ => Reach::Host,
        };
        let mut group = Group {
            backend,
            reach,
            name: identity.backend,
            rank: identity.rank,
            size: identity.ranks.len(),
            identity: Arc::new(identity),
            order: Arc::default(),
            archive,
            will: None,
            submitting: Mutex::default(),
            health: Health::new()?,
            timeout: milliseconds(limits.operation),
            recv_timeout: milliseconds(limits.recv),
        };
        let watch = |archive: &Archive| {
            archive.watch(group.health(), group.order.clone(), group.identity.clone())
        };
        group.will = group.archive.as_ref().map(watch);
        Ok(group)
    }

    /// This process's rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Ranks.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The backend's name; `none` on a singleton.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Sets the limit of every operation that is called from now on, 0 for none.
    pub fn set_timeout(&self, milliseconds: u64) {
        self.timeout.store(milliseconds, Ordering::Relaxed);
        self.recv_timeout.store(milliseconds, Ordering::Relaxed);
    }

    fn limits(&self) -> Limits {
        let limit = |milliseconds: &AtomicU64| {
            let milliseconds = milliseconds.load(Ordering::Relaxed);
            (milliseconds > 0).then(|| Duration::from_millis(milliseconds))
        };
        Limits { operation: limit(&self.timeout), recv: limit(&self.recv_timeout) }
    }

    fn health(&self) -> &Health {
        self.backend.as_ref().map_or(&self.health, |backend| backend.health())
    }

    /// What failed the group, if anything did.
    pub fn status(&self) -> Result<()> {
        if let Some(backend) = &self.backend {
            backend.listen();
        }
        self.health().check().map_err(|e| e.at(self.scene("group")))
    }

    /// `[ring] all_sum on rank 2 of 4`
    fn scene(&self, what: &str) -> String {
        format!("[{}] {what} on rank {} of {}", self.name, self.rank, self.size)
    }

    /// Fails the group on all its ranks.
    pub fn abort(&self) {
        let cause = format!("aborted by rank {} of {} (mlxd_group_abort)", self.rank, self.size);
        let cause = Error::new(Status::Aborted, cause);
        match &self.backend {
            Some(backend) => backend.fail(&cause),
            None => drop(self.health.fail(cause)),
        }
    }

    /// Says goodbye to all other ranks of the world; the group answers ABORTED from now on.
    pub fn finalize(&self) {
        match &self.backend {
            Some(backend) => backend.leave(),
            None => self.health.close(Error::new(Status::Aborted, "mlxd_finalize was called")),
        }
    }

    /// Writes what the flight recorder has to this file; waits for no operation.
    pub fn dump(&self, path: &Path) -> Result<()> {
        let failure = self.health().check().err().map(|cause| Failure::new(&cause, None));
        let document = Document::new(&self.identity, &self.order.progress(), failure);
        archive::write(&document, path).map_err(|e| e.at(self.scene("dump")))
    }

    /// A failure of `what`, with the scene. If it is the group's, its file is written then:
    /// the caller may end the process next.
    fn told(&self, error: Error, what: &str) -> Error {
        if let (Some(will), Err(_)) = (&self.will, self.health().check()) {
            will.settle();
        }
        error.at(self.scene(what))
    }

    fn accepts(&self, track: Track<'_>) -> Result<()> {
        match &self.backend {
            Some(backend) => backend.accepts(track),
            None if self.reach == Reach::Host => refuse_cuda(self.name, track),
            None => Ok(()),
        }
    }

    /// Runs a request: at once, or on a stream.
    ///
    /// # Safety
    /// The request's memory is as its call says, and nobody else uses it until this returns or, on
    /// a stream, until the stream is synchronized.
    pub unsafe fn submit(
        self: &Arc<Self>,
        request: Request,
        stream: Option<&Stream>,
    ) -> Result<()> {
        let name = request.name();
        let track = stream.map_or(Track::Here, Stream::track);
        let accepted = self.check(&request).and_then(|()| self.accepts(track));
        accepted.map_err(|e| e.at(self.scene(name)))?;
        self.health().check().map_err(|e| self.told(e, name))?;
        // A message without a peer is refused above, so the ranks fit.
        let (queues, operation) = self.place(&request);
        let (limits, record) = (self.limits(), request.record());
        let stream = match stream {
            None => {
                let turn = self.order.next_turn(queues, &record, self.health());
                // SAFETY: as this function's contract says.
                return unsafe { self.execute(operation, turn, limits) };
            }
            Some(Stream::Cuda(stream)) => {
                let _one_at_a_time = self.submitting.lock();
                let turn = self.order.next_turn(queues, &record, self.health());
                // SAFETY: as this function's contract says.
                return unsafe { self.enqueue(operation, turn, limits, stream) };
            }
            Some(Stream::Queue(queue)) => queue,
        };
        // On one stream, tickets must come in the order in which they run.
        let _one_at_a_time = self.submitting.lock();
        let ticket = self.order.ticket(queues, &record);
        let group = self.clone();
        stream.push(move || {
            let turn = group.order.turn(ticket, group.health());
            // SAFETY: as this function's contract says.
            unsafe { group.execute(operation, turn, limits) }
        })
    }

    /// The queues that a request goes through, and the operation, whose places are not known yet.
    fn place(&self, request: &Request) -> ([Option<Queue>; 2], Operation) {
        match *request {
            Request::Collective(collective) => (
                [Some(Queue::Collectives), None],
                Operation::Collective { sequence: 0, collective },
            ),
            Request::Exchange { dtype, send, recv } => {
                let send = send.map(|side| Message {
                    peer: side.peer as usize,
                    count: side.count,
                    memory: side.memory,
                    sequence: 0,
                });
                let recv = recv.map(|side| Message {
                    peer: side.peer as usize,
                    count: side.count,
                    memory: side.memory,
                    sequence: 0,
                });
                let queues = [
                    send.map(|message| Queue::SendsTo(message.peer)),
                    recv.map(|message| Queue::RecvsFrom(message.peer)),
                ];
                (queues, Operation::Exchange { dtype, send, recv })
            }
        }
    }

    unsafe fn execute(
        &self,
        mut operation: Operation,
        turn: Result<Turn<'_>>,
        limits: Limits,
    ) -> Result<()> {
        let turn = turn.map_err(|e| self.told(e, operation.name()))?;
        operation.put_at(turn.places());
        let outcome = match (&self.backend, &operation) {
            // SAFETY: as for `submit`.
            (Some(backend), _) => unsafe { backend.run(&operation, limits) },
            // SAFETY: as for `submit`.
            (None, Operation::Collective { collective, .. }) => unsafe { self.copy(collective) },
            // Refused when it was checked: there is no other rank.
            (None, Operation::Exchange { .. }) => Ok(()),
        };
        turn.end(outcome).map_err(|e| self.told(e, operation.name()))
    }

    /// Puts an operation on a CUDA stream, whose turn ends then; its record ends when it does.
    unsafe fn enqueue(
        self: &Arc<Self>,
        mut operation: Operation,
        turn: Result<Turn<'_>>,
        limits: Limits,
        stream: &cuda::Stream,
    ) -> Result<()> {
        let mut turn = turn.map_err(|e| self.told(e, operation.name()))?;
        operation.put_at(turn.places());
        let outcome = match (&self.backend, &operation) {
            (Some(backend), _) => {
                let (group, ticket) = (self.clone(), turn.hand_over());
                // Keeps the group until the operation has run.
                let end = Box::new(move |well| group.order.ended(ticket, well));
                // SAFETY: as for `submit`.
                unsafe { backend.enqueue(&operation, limits, stream, end) }
            }
            (None, Operation::Collective { collective, .. }) => {
                // SAFETY: as for `submit`.
                turn.end(unsafe { self.copy_on(stream, collective) })
            }
            (None, Operation::Exchange { .. }) => turn.end(Ok(())),
        };
        outcome.map_err(|e| self.told(e, operation.name()))
    }

    /// Makes a group of the ranks that give the same colour; `None` for colour -1.
    pub fn split(&self, color: i32, key: i32) -> Result<Option<Group>> {
        let at = |e: Error| e.at(self.scene("split"));
        if color < -1 {
            return Err(at(Error::new(
                Status::InvalidArgument,
                format!("colour {color} is neither a colour (0 or more) nor -1, for no group"),
            )));
        }
        self.accepts(Track::Here).map_err(at)?;
        let record =
            recorder::Operation { verb: Verb::Split, dtype: Dtype::Int32, root: -1, count: [0; 2] };
        let told = |e: Error| self.told(e, "split");
        let turn = self.order.next_turn([Some(Queue::Collectives), None], &record, self.health());
        let turn = turn.map_err(told)?;
        let [place, _] = turn.places();
        turn.end(self.part(color, key, place)).map_err(told)
    }

    fn part(&self, color: i32, key: i32, place: u64) -> Result<Option<Group>> {
        self.health().check()?;
        let (limits, archive) = (self.limits(), self.archive.clone());
        let Some(backend) = &self.backend else {
            let alone = || Group::alone(self.name, limits, archive);
            let alone = || Ok(Group { reach: self.reach, ..alone()? });
            return if color < 0 { Ok(None) } else { alone().map(Some) };
        };
        let part = backend.split(color, key, place, limits)?;
        part.map(|part| Group::new(part, limits, archive)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Collective;

    pub(super) fn alone() -> Arc<Group> {
        Arc::new(Group::alone("none", Limits { operation: None, recv: None }, None).unwrap())
    }

    pub(super) fn collective(
        verb: Verb,
        input: *const u8,
        output: *mut u8,
        count: usize,
    ) -> Request {
        let dtype = Dtype::Int32;
        Request::Collective(Collective { verb, dtype, count, root: 0, input, output })
    }

    #[test]
    fn an_aborted_group_says_so() {
        let group = alone();
        group.abort();
        assert_eq!(group.status().unwrap_err().status, Status::Aborted);
        let request = collective(Verb::Barrier, std::ptr::null(), std::ptr::null_mut(), 0);
        // SAFETY: a barrier has no memory.
        let error = unsafe { group.submit(request, None) }.unwrap_err();
        assert!(error.message.contains("[none] barrier on rank 0 of 1: aborted"), "{error}");
    }
}

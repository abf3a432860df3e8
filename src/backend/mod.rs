//! What a group runs on: one interface of whole operations, and its makers.

pub mod jaccl;
mod linked;
pub mod mpi;
pub mod nccl;
pub mod ring;
mod split;

use std::time::Duration;

use crate::call::{Call, Verb};
use crate::cuda;
use crate::dtype::Dtype;
use crate::error::{Error, Result, fail};
use crate::health::Health;
use crate::recorder::document::Identity;

/// A collective with its memory: `input` and `output` as the C call of that name describes them.
#[derive(Clone, Copy, Debug)]
pub struct Collective {
    /// Which.
    pub verb: Verb,
    /// The elements' type.
    pub dtype: Dtype,
    /// Elements in `input`.
    pub count: usize,
    /// The root's rank, -1 where there is none.
    pub root: i32,
    /// To read.
    pub input: *const u8,
    /// To write; a broadcast's only buffer.
    pub output: *mut u8,
}

/// One side of a message.
#[derive(Clone, Copy, Debug)]
pub struct Message<P> {
    /// The other rank.
    pub peer: usize,
    /// Elements.
    pub count: usize,
    /// Where they are or go.
    pub memory: P,
    /// Its place among the messages that this rank sends to, or receives from, that peer.
    pub sequence: u64,
}

/// What a backend is asked to run.
#[derive(Clone, Copy, Debug)]
pub enum Operation {
    /// All ranks of the group take part.
    Collective {
        /// Its place among the group's collectives.
        sequence: u64,
        /// The rest.
        collective: Collective,
    },
    /// A send, a receive, or both at once.
    Exchange {
        /// The elements' type.
        dtype: Dtype,
        /// What is sent.
        send: Option<Message<*const u8>>,
        /// What is received.
        recv: Option<Message<*mut u8>>,
    },
}

// SAFETY: whoever makes an operation vouches for its memory until it has run, on whichever thread.
unsafe impl Send for Operation {}

impl Operation {
    /// Its places in the queues of its turn: a send's comes first.
    pub fn put_at(&mut self, [first, second]: [u64; 2]) {
        match self {
            Operation::Collective { sequence, .. } => *sequence = first,
            Operation::Exchange { send, recv, .. } => {
                if let Some(send) = send {
                    send.sequence = first;
                }
                if let Some(recv) = recv {
                    recv.sequence = second;
                }
            }
        }
    }

    /// The name of the call that it comes from.
    pub fn name(&self) -> &'static str {
        match self {
            Operation::Collective { collective, .. } => collective.verb.name(),
            Operation::Exchange { recv: None, .. } => "send",
            Operation::Exchange { send: None, .. } => "recv",
            Operation::Exchange { .. } => "send_recv",
        }
    }
}

/// How long to wait for progress; `None` is for ever.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// In everything but a receive that sends nothing.
    pub operation: Option<Duration>,
    /// In such a receive.
    pub recv: Option<Duration>,
}

/// Where an operation is to run.
#[derive(Clone, Copy)]
pub enum Track<'a> {
    /// On the caller's thread, which waits for it.
    Here,
    /// On the thread of a queue.
    Queue,
    /// On a CUDA stream of the caller's.
    Cuda(&'a cuda::Stream),
}

/// Told once whether an operation on a CUDA stream went well, by whatever thread comes to know it.
pub type End = Box<dyn FnOnce(bool) + Send>;

/// What a group of more than one rank runs on.
///
/// `Group` above sees to arguments and order: collectives come one at a time and in order, so do
/// the sends to each peer and the receives from each; but these may all be under way at once.
pub trait Backend: Send + Sync {
    /// Its name: `ring`.
    fn name(&self) -> &'static str;

    /// This process's rank in the group.
    fn rank(&self) -> usize;

    /// Ranks in the group.
    fn size(&self) -> usize;

    /// Which group it is, and its ranks.
    fn identity(&self) -> Identity;

    /// Failed with the first cause when the group fails, by whatever rank.
    fn health(&self) -> &Health;

    /// Refuses what may not be asked of it from there; touches nothing.
    fn accepts(&self, track: Track<'_>) -> Result<()> {
        refuse_cuda(self.name(), track)
    }

    /// The CUDA device whose memory it works on; `None` for the host's.
    fn device(&self) -> Option<i32> {
        None
    }

    /// Takes in what other ranks have said of the group's health, where no thread does that anyway.
    fn listen(&self) {}

    /// Runs one operation; returns when its memory will not be touched any more.
    ///
    /// # Safety
    /// The operation's memory is as its call says, and nobody else uses it until this returns.
    unsafe fn run(&self, operation: &Operation, limits: Limits) -> Result<()>;

    /// Puts one operation on a CUDA stream that it accepts; returns without waiting for it. `end` is told
    /// in any case.
    ///
    /// # Safety
    /// As for [`Backend::run`], until `end` was told.
    unsafe fn enqueue(
        &self,
        _operation: &Operation,
        _limits: Limits,
        _stream: &cuda::Stream,
        end: End,
    ) -> Result<()> {
        end(false);
        fail!(Internal, "{} has no place for operations on CUDA streams", self.name())
    }

    /// Makes a group of the ranks that give the same colour, ordered by key; `None` for colour -1.
    /// Takes its place among the collectives.
    fn split(
        &self,
        color: i32,
        key: i32,
        sequence: u64,
        limits: Limits,
    ) -> Result<Option<Box<dyn Backend>>>;

    /// Fails the group on all its ranks.
    fn fail(&self, cause: &Error);

    /// Says goodbye to all other ranks of the world; all groups on it answer ABORTED from now on.
    fn leave(&self);
}

/// Refuses CUDA streams.
pub fn refuse_cuda(name: &str, track: Track<'_>) -> Result<()> {
    match track {
        Track::Here | Track::Queue => Ok(()),
        Track::Cuda(_) => fail!(
            InvalidArgument,
            "a stream of mlxd_stream_from_cuda is for groups on nccl, and this one runs on {name}; \
             mlxd_stream_new makes a stream for it"
        ),
    }
}

impl Collective {
    /// What must agree between ranks.
    pub fn call(&self, sequence: u64) -> Call {
        Call {
            sequence,
            verb: self.verb,
            dtype: self.dtype as u8,
            root: self.root,
            count: self.count as u64,
        }
    }
}

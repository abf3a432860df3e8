//! What a caller asks of a group.

use crate::backend::Collective;
use crate::call::Verb;
use crate::dtype::Dtype;
use crate::recorder;

/// One side of a message, as it is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Side<P> {
    /// The other rank.
    pub peer: i32,
    /// Elements.
    pub count: usize,
    /// Where they are or go.
    pub memory: P,
}

/// What a caller asks for.
#[derive(Clone, Copy, Debug)]
pub enum Request {
    /// A collective, split excepted.
    Collective(Collective),
    /// A send, a receive, or both.
    Exchange {
        /// The elements' type.
        dtype: Dtype,
        /// What to send.
        send: Option<Side<*const u8>>,
        /// What to receive.
        recv: Option<Side<*mut u8>>,
    },
}

impl Request {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Request::Collective(collective) => collective.verb.name(),
            Request::Exchange { recv: None, .. } => "send",
            Request::Exchange { send: None, .. } => "recv",
            Request::Exchange { .. } => "send_recv",
        }
    }

    /// As the flight recorder has it.
    pub(super) fn record(&self) -> recorder::Operation {
        match *self {
            Request::Collective(Collective { verb, dtype, count, root, .. }) => {
                recorder::Operation { verb, dtype, root, count: [count, 0] }
            }
            Request::Exchange { dtype, send, recv } => {
                let count = [send.map_or(0, |side| side.count), recv.map_or(0, |side| side.count)];
                recorder::Operation { verb: Verb::Message, dtype, root: -1, count }
            }
        }
    }
}

//! The listener's side of a handshake, one step at a time.

use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::PollFd;

use super::channel::Channel;
use super::handshake::{
    self, ANSWER_BYTES, Challenge, HELLO_BYTES, Hello, LaneKey, PROOF_BYTES, Purpose, Side,
};
use super::listener::{Joiner, Listener};
use super::message::Message;
use super::world::World;
use crate::error::{Error, Result, Status, fail};
use crate::wait::{Deadline, interest};

/// For a hello and for a proof: a rank needs milliseconds, a stranger is not waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// For a world that this rank has not heard of yet: rank 0 may have told the caller first.
const PARKED: Duration = Duration::from_secs(60);

enum Stage {
    Hello,
    Proof(Hello, [u8; 16]),
    /// Proved; the world of this hello is not known yet.
    Parked(Hello),
}

/// A connection that has come in and not yet been let in.
pub struct Greeting {
    channel: Option<Channel>,
    stage: Stage,
    /// Where it came in.
    pub listener: Arc<Listener>,
    /// When it is turned away.
    pub deadline: Deadline,
}

/// What a greeting came to.
pub enum Step {
    /// More must come.
    Wait,
    /// A rank that comes to the start.
    Join(Joiner),
    /// The control connection with a rank.
    Line {
        /// Its world.
        world: Arc<World>,
        /// The rank.
        peer: usize,
        /// The connection.
        channel: Channel,
    },
    /// A lane of a group.
    Lane {
        /// Its world.
        world: Arc<World>,
        /// Which lane.
        key: LaneKey,
        /// The connection.
        stream: TcpStream,
    },
}

impl Greeting {
    /// A connection that has just come in.
    pub fn new(channel: Channel, listener: Arc<Listener>) -> Greeting {
        Greeting {
            channel: Some(channel),
            stage: Stage::Hello,
            listener,
            deadline: Deadline::after(Some(PATIENCE)),
        }
    }

    /// What to wait for.
    pub fn interest(&self) -> PollFd<'_> {
        match &self.channel {
            Some(channel) => interest(channel.as_fd(), true, channel.has_output()),
            None => interest(self.listener.arrivals(), false, false),
        }
    }

    /// Goes on as far as what has come allows; an error turns the connection away.
    pub fn advance(&mut self, worlds: &[Arc<World>]) -> Result<Step> {
        let Some(mut channel) = self.channel.take() else {
            fail!(Internal, "a greeting without a connection");
        };
        let outcome = self.advance_on(&mut channel, worlds);
        let outcome = outcome.map_err(|e| e.at(format_args!("from {}", channel.peer)))?;
        let Some(hello) = outcome else {
            if self.deadline.passed() {
                fail!(Timeout, "{} did not complete the handshake in time", channel.peer);
            }
            self.channel = Some(channel);
            return Ok(Step::Wait);
        };
        if hello.purpose == Purpose::Join {
            return Ok(Step::Join(Joiner { hello, channel }));
        }
        let Some(world) = world_of(&hello, worlds) else {
            fail!(PeerLost, "the world of {} ended during the handshake", channel.peer);
        };
        channel.tell(&Message::Welcome)?;
        let peer = hello.from as usize;
        Ok(match hello.purpose {
            Purpose::Join | Purpose::Control => Step::Line { world, peer, channel },
            purpose => Step::Lane {
                world,
                key: LaneKey { group: hello.group, from: peer, purpose, lane: hello.lane },
                stream: channel.into_stream()?,
            },
        })
    }

    /// The hello, once the caller has proved itself.
    fn advance_on(
        &mut self,
        channel: &mut Channel,
        worlds: &[Arc<World>],
    ) -> Result<Option<Hello>> {
        channel.flush()?;
        if let Stage::Hello = self.stage {
            let Some(frame) = channel.take::<HELLO_BYTES>()? else {
                return Ok(None);
            };
            // A stranger gets no answer; another version of ours learns which one this is, and a rank
            // whose hello was changed on its way learns that.
            let hello = Hello::decode(&frame).inspect_err(|e| {
                if frame[0..4] == handshake::CALLER || e.status == Status::System {
                    let _ = self.challenge(channel, None);
                }
            })?;
            if hello.purpose == Purpose::Join && !self.listener.is_meeting_place {
                fail!(Config, "a rank that looks for rank 0 where rank 0 does not listen");
            }
            let nonce = self.challenge(channel, Some(&hello))?;
            self.stage = Stage::Proof(hello, nonce);
        }
        if let Stage::Proof(hello, nonce) = self.stage {
            let Some(answer) = channel.take::<ANSWER_BYTES>()? else {
                return Ok(None);
            };
            let proof = handshake::decode_answer(&answer).inspect_err(|e| {
                // A rank that comes to the start comes again.
                if hello.purpose != Purpose::Join {
                    let _ = channel.tell(&Message::Refused(e.clone()));
                }
            })?;
            let secret = self.listener.secret.as_deref();
            let expected = handshake::proof(secret, Side::Caller, &hello, &nonce)?;
            if !handshake::equal(&expected, &proof) {
                let cause = "MLXD_SECRET differs; all ranks need the same";
                let cause = Error::new(Status::Auth, cause);
                let _ = channel.tell(&Message::Refused(cause.clone()));
                return Err(cause);
            }
            self.stage = Stage::Parked(hello);
            self.deadline = Deadline::after(Some(PARKED));
        }
        let Stage::Parked(hello) = self.stage else {
            return Ok(None);
        };
        if hello.purpose == Purpose::Join || world_of(&hello, worlds).is_some() {
            return Ok(Some(hello));
        }
        // The caller says nothing before it is welcome, unless it hangs up.
        match channel.take::<1>()? {
            None => Ok(None),
            Some(_) => fail!(Config, "bytes before the welcome"),
        }
    }

    fn challenge(&self, channel: &mut Channel, hello: Option<&Hello>) -> Result<[u8; 16]> {
        let nonce = handshake::nonce()?;
        let secret = self.listener.secret.as_deref();
        let proof = match hello {
            Some(hello) => handshake::proof(secret, Side::Listener, hello, &nonce)?,
            None => [0; PROOF_BYTES],
        };
        let challenge =
            Challenge { secret: secret.is_some(), garbled: hello.is_none(), nonce, proof };
        channel.send(&challenge.encode())?;
        Ok(nonce)
    }
}

fn world_of(hello: &Hello, worlds: &[Arc<World>]) -> Option<Arc<World>> {
    let fits = |world: &&Arc<World>| {
        world.key() == (hello.world, hello.to as usize)
            && world.size == hello.size as usize
            && (hello.from as usize) < world.size
            && hello.from != hello.to
    };
    worlds.iter().find(fits).cloned()
}

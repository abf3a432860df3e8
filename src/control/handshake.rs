//! How a connection begins, whatever it is for: who calls, for what, and proof of the secret.
//!
//! ```text
//! caller                                   listener
//! Hello: who, to whom, for what, nonce  ->
//!                                       <- Challenge: nonce, proof
//! Proof                                 ->
//!                                       <- Welcome, Refused, or (to Join) later World
//! ```
//!
//! Each of these has a fixed size, and its CRC-32 at the end. A proof is HMAC-SHA256 with the secret over
//! the side's name, the whole hello and the challenge's nonce, so neither side can use the other's;
//! without a secret it is zeros and nothing is proved. The bytes that follow are neither encrypted nor
//! authenticated.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::error::{Error, Result, Status, fail};
use crate::frame::{is_sealed, seal};

/// Opens a hello.
pub const CALLER: [u8; 4] = *b"mlxd";
/// Opens a challenge: not the same, so that nobody takes an echo for an answer.
const LISTENER: [u8; 4] = *b"MLXD";
/// Changes whenever ranks with and without a change could not work together.
pub const PROTOCOL: u16 = 6;

/// Bytes of a [`Hello`].
pub const HELLO_BYTES: usize = 64;
/// Bytes of a [`Challenge`].
pub const CHALLENGE_BYTES: usize = 60;
/// Bytes of a proof.
pub const PROOF_BYTES: usize = 32;
/// Bytes of a proof that travels by itself.
pub const ANSWER_BYTES: usize = PROOF_BYTES + 4;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Purpose {
    /// To come to rank 0 at the start; becomes the control connection with it.
    Join = 1,
    /// The control connection of two ranks.
    Control = 2,
    /// A lane of a group's collectives, both ways.
    Collective = 3,
    /// A lane of a group's messages from the caller to the listener.
    Message = 4,
    /// To introduce the ends of a wire to each other.
    Wire = 5,
}

/// Which of the lanes that other ranks made to this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LaneKey {
    /// The group it belongs to.
    pub group: u64,
    /// Who called: a rank of the world.
    pub from: usize,
    /// What for.
    pub purpose: Purpose,
    /// Which of several.
    pub lane: u16,
}

/// Who calls, whom, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// What for.
    pub purpose: Purpose,
    /// Which of several connections for the same.
    pub lane: u16,
    /// The world's id; 0 to join.
    pub world: u64,
    /// The group's id; 0 for the world.
    pub group: u64,
    /// The caller's rank in the world.
    pub from: u32,
    /// The listener's rank in the world.
    pub to: u32,
    /// Ranks in the world.
    pub size: u32,
    /// Never the same twice.
    pub nonce: [u8; 16],
}

impl Hello {
    /// As it travels, in the order: magic, protocol, purpose, spare, lane, spare, from, world,
    /// group, to, size, nonce, spare, CRC-32 (little endian).
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[0..4].copy_from_slice(&CALLER);
        bytes[4..6].copy_from_slice(&PROTOCOL.to_le_bytes());
        bytes[6] = self.purpose as u8;
        bytes[8..10].copy_from_slice(&self.lane.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.from.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.world.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.group.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.to.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.size.to_le_bytes());
        bytes[40..56].copy_from_slice(&self.nonce);
        seal(&mut bytes);
        bytes
    }

    /// The inverse; the error says why these bytes are no hello of ours.
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Hello> {
        check_opening(bytes, &CALLER)?;
        let short = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let int = |at: usize| u32::from(short(at)) | u32::from(short(at + 2)) << 16;
        let long = |at: usize| u64::from(int(at)) | u64::from(int(at + 4)) << 32;
        let purpose = match bytes[6] {
            1 => Purpose::Join,
            2 => Purpose::Control,
            3 => Purpose::Collective,
            4 => Purpose::Message,
            5 => Purpose::Wire,
            other => fail!(Config, "a hello for the unknown purpose {other}"),
        };
        let mut nonce = [0; 16];
        nonce.copy_from_slice(&bytes[40..56]);
        Ok(Hello {
            purpose,
            lane: short(8),
            from: int(12),
            world: long(16),
            group: long(24),
            to: int(32),
            size: int(36),
            nonce,
        })
    }
}

/// The listener's answer to a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// Whether the listener has a secret.
    pub secret: bool,
    /// Whether the hello was none that the listener understands.
    pub garbled: bool,
    /// Never the same twice.
    pub nonce: [u8; 16],
    /// That the listener knows the secret.
    pub proof: [u8; PROOF_BYTES],
}

impl Challenge {
    /// As it travels: magic, protocol, secret, garbled, nonce, proof, CRC-32.
    pub fn encode(&self) -> [u8; CHALLENGE_BYTES] {
        let mut bytes = [0; CHALLENGE_BYTES];
        bytes[0..4].copy_from_slice(&LISTENER);
        bytes[4..6].copy_from_slice(&PROTOCOL.to_le_bytes());
        bytes[6] = self.secret.into();
        bytes[7] = self.garbled.into();
        bytes[8..24].copy_from_slice(&self.nonce);
        bytes[24..56].copy_from_slice(&self.proof);
        seal(&mut bytes);
        bytes
    }

    /// The inverse; the error says why these bytes are no challenge of ours.
    pub fn decode(bytes: &[u8; CHALLENGE_BYTES]) -> Result<Challenge> {
        check_opening(bytes, &LISTENER)?;
        let (mut nonce, mut proof) = ([0; 16], [0; PROOF_BYTES]);
        nonce.copy_from_slice(&bytes[8..24]);
        proof.copy_from_slice(&bytes[24..56]);
        Ok(Challenge { secret: bytes[6] != 0, garbled: bytes[7] != 0, nonce, proof })
    }
}

fn check_opening(bytes: &[u8], magic: &[u8; 4]) -> Result<()> {
    if bytes[0..4] != *magic {
        // A stranger has no checksum of ours: then it was a rank's, and only the opening was changed.
        let mut ours = bytes.to_vec();
        ours[0..4].copy_from_slice(magic);
        if is_sealed(&ours) {
            return check_seal(bytes);
        }
        fail!(Config, "what answers there is no rank of this library");
    }
    let theirs = u16::from_le_bytes([bytes[4], bytes[5]]);
    // Versions from 5 on have a checksum: a number that only looks like another version has none.
    if theirs != PROTOCOL && is_sealed(bytes) {
        fail!(
            Config,
            "the peer speaks protocol {theirs}, this rank {PROTOCOL}; \
             all ranks need the same version of libmlxd"
        );
    }
    check_seal(bytes)
}

/// What a handshake is given up with whose checksum is wrong.
pub fn changed() -> Error {
    let message = "the handshake was changed on its way: its checksum is wrong";
    Error::new(Status::System, message)
}

fn check_seal(bytes: &[u8]) -> Result<()> {
    if !is_sealed(bytes) {
        return Err(changed());
    }
    Ok(())
}

/// The caller's proof as it travels.
pub fn encode_answer(proof: &[u8; PROOF_BYTES]) -> [u8; ANSWER_BYTES] {
    let mut bytes = [0; ANSWER_BYTES];
    bytes[..PROOF_BYTES].copy_from_slice(proof);
    seal(&mut bytes);
    bytes
}

/// The inverse.
pub fn decode_answer(bytes: &[u8; ANSWER_BYTES]) -> Result<[u8; PROOF_BYTES]> {
    check_seal(bytes)?;
    Ok(std::array::from_fn(|at| bytes[at]))
}

/// Bytes that nobody can foresee.
pub fn nonce() -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::new(Status::System, format!("getrandom: {e}")))?;
    Ok(bytes)
}

/// The same as 32 hexadecimal digits.
pub fn nonce_text() -> Result<String> {
    Ok(nonce()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Which side proves.
#[derive(Clone, Copy, Debug)]
pub enum Side {
    /// The one that calls.
    Caller,
    /// The one that listens.
    Listener,
}

/// The proof of `side` in this handshake; zeros without a secret.
pub fn proof(
    secret: Option<&str>,
    side: Side,
    hello: &Hello,
    challenge: &[u8; 16],
) -> Result<[u8; PROOF_BYTES]> {
    let Some(secret) = secret else {
        return Ok([0; PROOF_BYTES]);
    };
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes())
        .map_err(|e| Error::new(Status::Internal, format!("HMAC: {e}")))?;
    mac.update(match side {
        Side::Caller => b"caller  ",
        Side::Listener => b"listener",
    });
    mac.update(&hello.encode());
    mac.update(challenge);
    Ok(mac.finalize().into_bytes().into())
}

/// Compares in a time that tells nothing.
pub fn equal(a: &[u8; PROOF_BYTES], b: &[u8; PROOF_BYTES]) -> bool {
    a.ct_eq(b).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            purpose: Purpose::Message,
            lane: 3,
            world: u64::MAX - 1,
            group: 1 << 40,
            from: 5,
            to: 7,
            size: 1 << 20,
            nonce: [9; 16],
        }
    }

    #[test]
    fn frames_round_trip() {
        assert_eq!(Hello::decode(&hello().encode()).unwrap(), hello());
        let challenge = Challenge { secret: true, garbled: false, nonce: [1; 16], proof: [2; 32] };
        assert_eq!(Challenge::decode(&challenge.encode()).unwrap(), challenge);
        assert_eq!(decode_answer(&encode_answer(&[3; 32])).unwrap(), [3; 32]);
    }

    #[test]
    fn what_was_changed_on_its_way_is_neither_a_stranger_nor_another_secret() {
        let mut answer = encode_answer(&[3; 32]);
        let mut challenge =
            Challenge { secret: true, garbled: false, nonce: [1; 16], proof: [2; 32] }.encode();
        let mut hello = hello().encode();
        for (bytes, at) in [(&mut answer[..], 0), (&mut challenge, 1), (&mut hello, 30)] {
            bytes[at] ^= 1;
        }
        for error in [
            decode_answer(&answer).unwrap_err(),
            Challenge::decode(&challenge).unwrap_err(),
            Hello::decode(&hello).unwrap_err(),
        ] {
            assert_eq!(error.status, Status::System, "{error}");
        }
    }

    #[test]
    fn strangers_and_other_versions_are_told_apart() {
        let mut bytes = hello().encode();
        bytes[4] = 99;
        assert_eq!(Hello::decode(&bytes).unwrap_err().status, Status::System);
        seal(&mut bytes);
        assert!(Hello::decode(&bytes).unwrap_err().message.contains("protocol 99"));
        bytes[0] = b'G';
        assert_eq!(Hello::decode(&bytes).unwrap_err().status, Status::System);
        assert!(Hello::decode(&[b'G'; HELLO_BYTES]).unwrap_err().message.contains("no rank"));
    }

    #[test]
    fn a_proof_fits_one_side_one_secret_and_one_handshake() {
        let of = |secret, side, nonce: u8| proof(secret, side, &hello(), &[nonce; 16]).unwrap();
        let mine = of(Some("s"), Side::Caller, 1);
        assert!(equal(&mine, &of(Some("s"), Side::Caller, 1)));
        for other in [
            of(Some("t"), Side::Caller, 1),
            of(Some("s"), Side::Listener, 1),
            of(Some("s"), Side::Caller, 2),
            of(None, Side::Caller, 1),
        ] {
            assert!(!equal(&mine, &other));
        }
        assert_eq!(of(None, Side::Caller, 1), [0; 32]);
    }
}

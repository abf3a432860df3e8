//! What went wrong: a status number for programs and a sentence for people.

use std::ffi::CStr;
use std::fmt;

/// What a call came to, numbered as the C constants `MLXD_*`; numbers never change meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[repr(i32)]
pub enum Status {
    /// Success.
    Ok = 0,
    /// An argument is wrong; nothing was done.
    InvalidArgument = 1,
    /// The request is right, but not to be had here.
    Unsupported = 2,
    /// The backend's library or device is not on this machine.
    Unavailable = 3,
    /// Rank, hostfile and the like: missing or malformed.
    Config = 4,
    /// A deadline passed.
    Timeout = 5,
    /// Another rank died, left or fell silent.
    PeerLost = 6,
    /// `mlxd_group_abort` or `mlxd_finalize` was called.
    Aborted = 7,
    /// Ranks called different operations, counts, dtypes or roots.
    Mismatch = 8,
    /// A peer does not know the shared secret.
    Auth = 9,
    /// A call to the operating system failed, or the network changed what it carried.
    System = 10,
    /// MPI, CUDA, NCCL or verbs reported an error.
    Backend = 11,
    /// A bug in this library.
    Internal = 12,
}

impl Status {
    /// Every status, by number.
    pub const ALL: [Status; 13] = [
        Status::Ok,
        Status::InvalidArgument,
        Status::Unsupported,
        Status::Unavailable,
        Status::Config,
        Status::Timeout,
        Status::PeerLost,
        Status::Aborted,
        Status::Mismatch,
        Status::Auth,
        Status::System,
        Status::Backend,
        Status::Internal,
    ];

    /// The name of the C constant: `MLXD_ERROR_TIMEOUT`.
    pub fn name(self) -> &'static CStr {
        match self {
            Status::Ok => c"MLXD_OK",
            Status::InvalidArgument => c"MLXD_ERROR_INVALID_ARGUMENT",
            Status::Unsupported => c"MLXD_ERROR_UNSUPPORTED",
            Status::Unavailable => c"MLXD_ERROR_UNAVAILABLE",
            Status::Config => c"MLXD_ERROR_CONFIG",
            Status::Timeout => c"MLXD_ERROR_TIMEOUT",
            Status::PeerLost => c"MLXD_ERROR_PEER_LOST",
            Status::Aborted => c"MLXD_ERROR_ABORTED",
            Status::Mismatch => c"MLXD_ERROR_MISMATCH",
            Status::Auth => c"MLXD_ERROR_AUTH",
            Status::System => c"MLXD_ERROR_SYSTEM",
            Status::Backend => c"MLXD_ERROR_BACKEND",
            Status::Internal => c"MLXD_ERROR_INTERNAL",
        }
    }
}

/// A failure: its status and a sentence that says what was wrong, where, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Error {
    /// Its number.
    pub status: Status,
    /// Its sentence.
    pub message: String,
}

/// What fallible calls return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A failure with this status and sentence.
    pub fn new(status: Status, message: impl Into<String>) -> Error {
        Error { status, message: message.into() }
    }

    /// A failed call to the operating system: what was tried and what the system said.
    pub fn system(what: impl fmt::Display, cause: impl Into<std::io::Error>) -> Error {
        Error::new(Status::System, format!("{what}: {}", cause.into()))
    }

    /// The same failure with the scene put before its sentence.
    pub fn at(self, scene: impl fmt::Display) -> Error {
        Error { message: format!("{scene}: {}", self.message), ..self }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// `fail!(Config, "rank {rank} of {size}")`: returns that failure from the enclosing function.
macro_rules! fail {
    ($status:ident, $($message:tt)*) => {
        return Err($crate::error::Error::new($crate::error::Status::$status, format!($($message)*)))
    };
}
pub(crate) use fail;

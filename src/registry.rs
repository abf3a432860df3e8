//! From a backend's name to the world that was started on it.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Weak;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::error::{Error, Result, fail};
use crate::group::Group;

/// A backend as callers name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    /// The first that comes up.
    Any,
    /// Links between processes.
    Ring,
    /// An MPI library.
    Mpi,
    /// NVIDIA's library, between GPUs.
    Nccl,
    /// RDMA verbs.
    Jaccl,
}

impl Name {
    const ALL: [Name; 5] = [Name::Any, Name::Ring, Name::Mpi, Name::Nccl, Name::Jaccl];

    fn text(self) -> &'static str {
        match self {
            Name::Any => "any",
            Name::Ring => "ring",
            Name::Mpi => "mpi",
            Name::Nccl => "nccl",
            Name::Jaccl => "jaccl",
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Name> {
        match Name::ALL.into_iter().find(|name| name.text() == text) {
            Some(name) => Ok(name),
            None => fail!(
                InvalidArgument,
                "unknown backend {text:?}: it is one of any, ring, mpi, nccl and jaccl"
            ),
        }
    }
}

/// Worlds by the names that they were started under.
pub type Worlds = HashMap<Name, Weak<Group>>;

/// The worlds that were started.
#[derive(Default)]
pub struct Registry(Mutex<Worlds>);

impl Registry {
    /// The worlds, kept from others while this is held; `None` if they are held elsewhere for that long.
    pub fn hold(&self, limit: Duration) -> Option<MutexGuard<'_, Worlds>> {
        self.0.try_lock_for(limit)
    }

    /// Forgets all worlds.
    pub fn clear(&self) {
        // A start in another thread holds it, for a minute perhaps; its world is then new.
        if let Some(mut worlds) = self.hold(Duration::from_millis(100)) {
            worlds.clear();
        }
    }
}

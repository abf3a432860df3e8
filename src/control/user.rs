//! Whether the other end of a Unix socket is this process's user.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use rustix::net::sockopt::socket_peercred;

use crate::error::{Result, fail};

/// The user that the kernel shows instead of one that has no number here, unless it was told otherwise.
const NOBODY: u32 = 65534;

/// Fails where this process's user cannot be told from others.
pub fn require_number() -> Result<()> {
    let own = rustix::process::geteuid().as_raw();
    if own == overflow_uid() {
        fail!(System, "user {own} cannot be told from users without a number here");
    }
    Ok(())
}

/// Whether the other end is this process's user.
pub fn is_ours(socket: &OwnedFd) -> bool {
    let own = rustix::process::geteuid().as_raw();
    let is_own = |peer: u32| is_same_user(peer, own, overflow_uid());
    socket_peercred(socket).is_ok_and(|peer| is_own(peer.uid.as_raw()))
}

/// Whether two users are one. The overflow number says nothing: the kernel shows it for every user of
/// another user namespace who has no number in this one.
fn is_same_user(peer: u32, own: u32, overflow: u32) -> bool {
    peer == own && own != overflow
}

/// The number that the kernel shows for users who have none here.
fn overflow_uid() -> u32 {
    static UID: OnceLock<u32> = OnceLock::new();
    *UID.get_or_init(|| {
        let told = std::fs::read_to_string("/proc/sys/kernel/overflowuid");
        told.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(NOBODY)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overflow_user_is_nobody() {
        assert!(is_same_user(1000, 1000, 65534) && is_same_user(0, 0, 65534));
        assert!(!is_same_user(1000, 1001, 65534) && !is_same_user(65534, 1000, 65534));
        assert!(!is_same_user(65534, 65534, 65534) && is_same_user(65534, 65534, 7));
    }
}

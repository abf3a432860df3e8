//! A mailbox: where another rank of this host leaves a descriptor for this one.
//!
//! It is a listening Unix socket with an abstract name, so it leaves nothing behind in any folder. A
//! descriptor waits in the socket's queue until this rank looks; nobody listens in between. The name
//! can be seen by everybody on the host: both ends check that the other one is the same user.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind,
    connect, listen, recvmsg, sendmsg, socket_with,
};

use super::handshake;
use super::listener::guests;
use crate::error::{Error, Result, Status, fail};

/// Connections that the kernel holds until this rank looks: its usual limit.
const BACKLOG: u16 = 4096;
/// Bytes of a group's id, which a descriptor comes with.
const ID_BYTES: usize = size_of::<u64>();

/// A rank's mailbox; it is closed when this is dropped.
#[derive(Debug)]
pub struct Mailbox {
    name: String,
    socket: OwnedFd,
    contents: Mutex<Contents>,
}

/// What was taken from the socket and is not this rank's yet; the oldest goes when there is too much.
#[derive(Debug, Default)]
struct Contents {
    /// Connections over which nothing has come.
    silent: VecDeque<OwnedFd>,
    /// Descriptors by the group that they are for.
    kept: VecDeque<(u64, OwnedFd)>,
}

impl Mailbox {
    /// One with a name that nobody can foresee.
    pub fn open() -> Result<Mailbox> {
        let name = format!("mlxd-{}", handshake::nonce_text()?);
        let opened = unix_socket().and_then(|socket| {
            bind(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
            listen(&socket, BACKLOG.into())?;
            Ok(socket)
        });
        let socket =
            opened.map_err(|e| Error::system(format_args!("a Unix socket named @{name}"), e))?;
        Ok(Mailbox { name, socket, contents: Mutex::default() })
    }

    /// What others push to.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Leaves a descriptor in the mailbox named `door`. Does not wait: whoever has the mailbox finds
    /// it there from now on.
    pub fn push(door: &str, group: u64, fd: BorrowedFd<'_>) -> Result<()> {
        let failed = |e: Errno| Error::system(format_args!("the Unix socket @{door}"), e);
        let socket = unix_socket().map_err(failed)?;
        let address = SocketAddrUnix::new_abstract_name(door.as_bytes()).map_err(failed)?;
        connect(&socket, &address).map_err(failed)?;
        if !is_ours(&socket) {
            fail!(System, "the Unix socket @{door} belongs to another user");
        }
        let fds = [fd];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut with = SendAncillaryBuffer::new(&mut space);
        if !with.push(SendAncillaryMessage::ScmRights(&fds)) {
            fail!(Internal, "no space for one descriptor");
        }
        let id = group.to_le_bytes();
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        sendmsg(&socket, &[IoSlice::new(&id)], &mut with, flags).map_err(failed)?;
        Ok(())
    }

    /// The descriptor that was left for a group, if there is one. Those for other groups are kept, but
    /// for groups that are no more.
    pub fn take(&self, group: u64, is_over: impl Fn(u64) -> bool) -> Result<Option<OwnedFd>> {
        let mut contents = self.contents.lock();
        self.empty_into(&mut contents)?;
        contents.kept.retain(|(id, _)| !is_over(*id));
        let at = contents.kept.iter().position(|(id, _)| *id == group);
        Ok(at.and_then(|at| contents.kept.remove(at)).map(|(_, fd)| fd))
    }

    /// Closes what was left for a group that is no more.
    pub fn forget(&self, group: u64) {
        self.contents.lock().kept.retain(|(id, _)| *id != group);
    }

    /// Takes over whatever waits in the socket's queue.
    fn empty_into(&self, contents: &mut Contents) -> Result<()> {
        // What has been sent over connections that were silent the last time.
        for connection in std::mem::take(&mut contents.silent) {
            contents.hear(connection);
        }
        // No more than can have been waiting when this began: others may go on to come.
        for _ in 0..=BACKLOG {
            match accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(connection) if is_ours(&connection) => contents.hear(connection),
                Ok(_) => log::info!("turned away another user at the Unix socket @{}", self.name),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(e) => {
                    return Err(Error::system(format_args!("the Unix socket @{}", self.name), e));
                }
            }
        }
        Ok(())
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        // Also where a forked child still has the descriptor: nobody is to leave anything there.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}

impl Contents {
    /// Takes what a connection brought, and ends it; one that is still silent is kept.
    fn hear(&mut self, connection: OwnedFd) {
        match receive(&connection) {
            Ok(Some(left)) => push_bounded(&mut self.kept, left),
            Ok(None) => push_bounded(&mut self.silent, connection),
            Err(e) => log::info!("turned away a stranger at a Unix socket: {e}"),
        }
    }
}

/// Puts it last; the first goes if there are too many.
fn push_bounded<T>(queue: &mut VecDeque<T>, item: T) {
    if queue.len() >= guests() {
        queue.pop_front();
    }
    queue.push_back(item);
}

/// A socket that keeps messages apart and never blocks.
fn unix_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// Whether the other end is this process's user.
fn is_ours(socket: &OwnedFd) -> bool {
    socket_peercred(socket).is_ok_and(|peer| peer.uid == rustix::process::geteuid())
}

/// A group's id and its descriptor, once they are there.
fn receive(connection: &OwnedFd) -> Result<Option<(u64, OwnedFd)>> {
    // A byte more than fits, to notice what is too long.
    let mut bytes = [0; ID_BYTES + 1];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut with = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received =
        recvmsg(connection.as_fd(), &mut [IoSliceMut::new(&mut bytes)], &mut with, flags);
    let length = match received {
        Ok(message) => message.bytes,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
        Err(e) => return Err(Error::system("recvmsg", e)),
    };
    let mut fds = Vec::new();
    for message in with.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    match (<[u8; ID_BYTES]>::try_from(&bytes[..length]), fds.pop(), fds.is_empty()) {
        (Ok(id), Some(fd), true) => Ok(Some((u64::from_le_bytes(id), fd))),
        (_, last, _) => {
            let fds = fds.len() + usize::from(last.is_some());
            let what = format!("{length} bytes and {fds} descriptors mean nothing here");
            Err(Error::new(Status::Config, what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, memfd_create};

    /// A file of this many bytes, by which it is known again.
    fn file(bytes: u64) -> OwnedFd {
        let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, bytes).unwrap();
        fd
    }

    fn size(fd: Option<OwnedFd>) -> Option<i64> {
        fd.map(|fd| rustix::fs::fstat(fd).unwrap().st_size)
    }

    fn call(mailbox: &Mailbox) -> OwnedFd {
        let socket = unix_socket().unwrap();
        let address = SocketAddrUnix::new_abstract_name(mailbox.name().as_bytes()).unwrap();
        connect(&socket, &address).unwrap();
        socket
    }

    /// Sends these bytes with so many descriptors.
    fn send(socket: &OwnedFd, bytes: &[u8], many: usize) {
        let file = file(1);
        let fds = vec![file.as_fd(); many];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut with = SendAncillaryBuffer::new(&mut space);
        if many > 0 {
            assert!(with.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        sendmsg(socket, &[IoSlice::new(bytes)], &mut with, SendFlags::NOSIGNAL).unwrap();
    }

    #[test]
    fn what_is_left_is_found_by_its_group() {
        let (one, other) = (Mailbox::open().unwrap(), Mailbox::open().unwrap());
        assert_eq!(size(one.take(7, |_| false).unwrap()), None);
        for (mailbox, group, bytes) in
            [(&one, 7, 70), (&other, 7, 71), (&one, 8, 80), (&one, 9, 90)]
        {
            Mailbox::push(mailbox.name(), group, file(bytes).as_fd()).unwrap();
        }
        // Taken out of order, each once.
        assert_eq!(size(one.take(9, |_| false).unwrap()), Some(90));
        assert_eq!(size(one.take(7, |_| false).unwrap()), Some(70));
        assert_eq!(size(one.take(7, |_| false).unwrap()), None);
        one.forget(8);
        assert_eq!(size(one.take(8, |_| false).unwrap()), None);
        assert_eq!(size(other.take(7, |_| false).unwrap()), Some(71));
    }

    #[test]
    fn what_is_left_for_a_group_that_is_no_more_goes() {
        let mailbox = Mailbox::open().unwrap();
        for group in [7, 8, 9] {
            Mailbox::push(mailbox.name(), group, file(group).as_fd()).unwrap();
        }
        assert_eq!(size(mailbox.take(9, |group| group == 7).unwrap()), Some(9));
        let contents = mailbox.contents.lock();
        assert_eq!(contents.kept.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [8]);
    }

    #[test]
    fn strangers_leave_nothing() {
        let mailbox = Mailbox::open().unwrap();
        let id = 7u64.to_le_bytes();
        let callers: Vec<OwnedFd> = (0..6).map(|_| call(&mailbox)).collect();
        send(&callers[0], b"garbage", 1);
        send(&callers[1], &[id.as_slice(), b"!"].concat(), 1);
        send(&callers[2], &id, 0);
        send(&callers[3], &id, 2);
        send(&callers[4], &id, 8);
        assert_eq!(size(mailbox.take(7, |_| false).unwrap()), None);
        // The last one was only slow.
        assert_eq!(mailbox.contents.lock().silent.len(), 1);
        send(&callers[5], &id, 1);
        assert_eq!(size(mailbox.take(7, |_| false).unwrap()), Some(1));
        let contents = mailbox.contents.lock();
        assert_eq!((contents.silent.len(), contents.kept.len()), (0, 0));
    }

    #[test]
    fn many_strangers_are_not_kept() {
        let mailbox = Mailbox::open().unwrap();
        let left = file(5);
        let most = guests();
        for group in 0..most as u64 + 3 {
            drop(call(&mailbox));
            Mailbox::push(mailbox.name(), group, left.as_fd()).unwrap();
            if group % 64 == 0 {
                assert_eq!(size(mailbox.take(u64::MAX, |_| false).unwrap()), None);
            }
        }
        assert_eq!(size(mailbox.take(most as u64 + 2, |_| false).unwrap()), Some(5));
        assert_eq!(size(mailbox.take(0, |_| false).unwrap()), None, "the oldest has gone");
        let contents = mailbox.contents.lock();
        assert_eq!((contents.silent.len(), contents.kept.len()), (0, most - 1));
    }

    #[test]
    fn a_closed_mailbox_takes_nothing() {
        let mailbox = Mailbox::open().unwrap();
        let name = mailbox.name().to_owned();
        // As a forked child would.
        let child = mailbox.socket.try_clone().unwrap();
        drop(mailbox);
        let error = Mailbox::push(&name, 1, file(1).as_fd()).unwrap_err();
        assert_eq!(error.status, Status::System);
        assert!(error.message.contains(&name), "{error}");
        drop(child);
        assert!(Mailbox::push(&name, 1, file(1).as_fd()).is_err());
    }
}

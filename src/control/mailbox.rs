//! A mailbox: where another rank of this host leaves a descriptor for this one.
//!
//! It is a listening Unix socket with an abstract name, so it leaves nothing behind in any folder. The
//! name can be seen by everybody on the host: both ends check that the other one is the same user, and
//! the control thread takes in what comes, so that nobody keeps the socket's queue full. Which
//! descriptor is the right one is told over a line.

use std::collections::{HashSet, VecDeque};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind,
    connect, listen, recvmsg, sendmsg, socket_with,
};

use super::handshake;
use super::listener::guests;
use super::user::{self, is_ours};
use crate::error::{Error, Result, Status, fail};
use crate::transport::segment::SegmentId;

/// Connections that the kernel holds until they are taken in: its usual limit.
const BACKLOG: u16 = 4096;
/// Connections that are taken in at once; others may use the mailbox in between.
const AT_ONCE: u16 = 64;
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
        user::require_number()?;
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

    /// Leaves a descriptor in the mailbox named `door`; false if its queue is full just now. Does not
    /// wait: whoever has the mailbox finds it there from now on.
    pub fn push(door: &str, group: u64, fd: BorrowedFd<'_>) -> Result<bool> {
        let failed = |e: Errno| {
            let error = Error::system(format_args!("the Unix socket @{door}"), e);
            // Its rank is gone.
            let gone = matches!(e, Errno::CONNREFUSED | Errno::CONNRESET | Errno::PIPE);
            if gone { Error { status: Status::PeerLost, ..error } } else { error }
        };
        let socket = unix_socket().map_err(failed)?;
        let address = SocketAddrUnix::new_abstract_name(door.as_bytes()).map_err(failed)?;
        match connect(&socket, &address) {
            Err(Errno::AGAIN) => return Ok(false),
            connected => connected.map_err(failed)?,
        }
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
        Ok(true)
    }

    /// The descriptor of this segment, if it was left for this group; whatever else was left for the
    /// group is closed.
    pub fn take(&self, group: u64, segment: SegmentId) -> Result<Option<OwnedFd>> {
        let mut outcome = Ok(false);
        // No more than can have been waiting when this began: others may go on to come.
        for _ in 0..=BACKLOG / AT_ONCE {
            outcome = self.take_in();
            if outcome != Ok(false) {
                break;
            }
        }
        let mut contents = self.contents.lock();
        let (ours, others) = contents.kept.drain(..).partition(|(id, _)| *id == group);
        contents.kept = others;
        let ours: VecDeque<(u64, OwnedFd)> = ours;
        let is_it = |fd: &OwnedFd| SegmentId::of(fd).is_ok_and(|id| id == segment);
        match ours.into_iter().map(|(_, fd)| fd).find(is_it) {
            None => outcome.map(|_| None),
            found => Ok(found),
        }
    }

    /// Takes over what waits in the socket's queue, but only so much that it does not take long; true
    /// once the queue was empty.
    pub fn take_in(&self) -> Result<bool> {
        let mut contents = self.contents.lock();
        // What has been sent over connections that were silent the last time.
        for connection in std::mem::take(&mut contents.silent) {
            contents.hear(connection);
        }
        for _ in 0..AT_ONCE {
            match accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(connection) if is_ours(&connection) => contents.hear(connection),
                Ok(_) => log::info!("turned away another user at the Unix socket @{}", self.name),
                Err(Errno::AGAIN) => return Ok(true),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(e) => {
                    return Err(Error::system(format_args!("the Unix socket @{}", self.name), e));
                }
            }
        }
        Ok(false)
    }

    /// For which groups something was left.
    pub fn groups(&self) -> HashSet<u64> {
        self.contents.lock().kept.iter().map(|(id, _)| *id).collect()
    }

    /// Closes what was left for groups that are no more.
    pub fn forget(&self, is_over: impl Fn(u64) -> bool) {
        self.contents.lock().kept.retain(|(id, _)| !is_over(*id));
    }

    /// Closes it for all who have it: nobody is to leave anything there any more.
    pub fn close(&self) {
        // Also where a forked child still has the descriptor.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        *self.contents.lock() = Contents::default();
    }
}

impl AsFd for Mailbox {
    /// Ready to read while something waits to be taken in.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        self.close();
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

    fn id(fd: &OwnedFd) -> SegmentId {
        SegmentId::of(fd).unwrap()
    }

    /// Sends these bytes with so many descriptors of the file.
    fn send(socket: &OwnedFd, bytes: &[u8], file: &OwnedFd, many: usize) {
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
        let files: Vec<OwnedFd> = (1..=5).map(file).collect();
        assert_eq!(size(one.take(7, id(&files[0])).unwrap()), None);
        for (mailbox, group, at) in [(&one, 7, 0), (&other, 7, 1), (&one, 8, 2), (&one, 9, 3)] {
            assert!(Mailbox::push(mailbox.name(), group, files[at].as_fd()).unwrap());
        }
        // Taken out of order, each once.
        assert_eq!(size(one.take(9, id(&files[3])).unwrap()), Some(4));
        assert_eq!(size(one.take(7, id(&files[0])).unwrap()), Some(1));
        assert_eq!(size(one.take(7, id(&files[0])).unwrap()), None);
        one.forget(|group| group == 8);
        assert_eq!(size(one.take(8, id(&files[2])).unwrap()), None);
        assert_eq!(size(other.take(7, id(&files[1])).unwrap()), Some(2));
    }

    #[test]
    fn only_what_was_told_of_is_taken() {
        let mailbox = Mailbox::open().unwrap();
        // The right one is neither the first nor the last, and all look alike.
        let files: Vec<OwnedFd> = (0..3).map(|_| file(4)).collect();
        for fd in &files {
            assert!(Mailbox::push(mailbox.name(), 7, fd.as_fd()).unwrap());
        }
        assert!(Mailbox::push(mailbox.name(), 8, files[2].as_fd()).unwrap());
        let taken = mailbox.take(7, id(&files[1])).unwrap().unwrap();
        assert_eq!(id(&taken), id(&files[1]));
        // The others have been closed, but for those of another group.
        assert_eq!(size(mailbox.take(7, id(&files[0])).unwrap()), None);
        assert_eq!(size(mailbox.take(8, id(&files[2])).unwrap()), Some(4));
        assert!(Mailbox::push(mailbox.name(), 7, files[0].as_fd()).unwrap());
        assert_eq!(size(mailbox.take(7, id(&files[1])).unwrap()), None, "not the one told of");
    }

    #[test]
    fn what_is_left_for_a_group_that_is_no_more_goes() {
        let mailbox = Mailbox::open().unwrap();
        for group in [7, 8, 9] {
            assert!(Mailbox::push(mailbox.name(), group, file(group).as_fd()).unwrap());
        }
        assert!(mailbox.take_in().unwrap());
        mailbox.forget(|group| group == 7 || group == 9);
        assert_eq!(mailbox.groups(), [8].into());
    }

    #[test]
    fn strangers_leave_nothing() {
        let mailbox = Mailbox::open().unwrap();
        let group = 7u64.to_le_bytes();
        let file = file(1);
        let callers: Vec<OwnedFd> = (0..6).map(|_| call(&mailbox)).collect();
        send(&callers[0], b"garbage", &file, 1);
        send(&callers[1], &[group.as_slice(), b"!"].concat(), &file, 1);
        send(&callers[2], &group, &file, 0);
        send(&callers[3], &group, &file, 2);
        send(&callers[4], &group, &file, 8);
        assert_eq!(size(mailbox.take(7, id(&file)).unwrap()), None);
        // The last one was only slow.
        assert_eq!(mailbox.contents.lock().silent.len(), 1);
        send(&callers[5], &group, &file, 1);
        assert_eq!(size(mailbox.take(7, id(&file)).unwrap()), Some(1));
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
            assert!(Mailbox::push(mailbox.name(), group, left.as_fd()).unwrap());
            if group % 16 == 0 {
                assert!(mailbox.take_in().unwrap());
            }
        }
        assert_eq!(size(mailbox.take(most as u64 + 2, id(&left)).unwrap()), Some(5));
        assert_eq!(size(mailbox.take(0, id(&left)).unwrap()), None, "the oldest has gone");
        let contents = mailbox.contents.lock();
        assert_eq!((contents.silent.len(), contents.kept.len()), (0, most - 1));
    }

    #[test]
    fn a_full_mailbox_is_tried_again() {
        let mailbox = Mailbox::open().unwrap();
        let left = file(3);
        // The kernel may allow fewer.
        let mut callers = 0;
        while Mailbox::push(mailbox.name(), 1, left.as_fd()).unwrap() {
            callers += 1;
            assert!(callers <= u32::from(BACKLOG) + 1);
        }
        assert_eq!(mailbox.take_in().unwrap(), callers < u32::from(AT_ONCE));
        assert!(Mailbox::push(mailbox.name(), 2, left.as_fd()).unwrap());
        assert_eq!(size(mailbox.take(2, id(&left)).unwrap()), Some(3), "the last of all");
    }

    #[test]
    fn a_closed_mailbox_takes_nothing() {
        let mailbox = Mailbox::open().unwrap();
        let name = mailbox.name().to_owned();
        // As a forked child would.
        let child = mailbox.socket.try_clone().unwrap();
        drop(mailbox);
        let error = Mailbox::push(&name, 1, file(1).as_fd()).unwrap_err();
        assert_eq!(error.status, Status::PeerLost);
        assert!(error.message.contains(&name), "{error}");
        drop(child);
        assert!(Mailbox::push(&name, 1, file(1).as_fd()).is_err());
    }
}

//! The launcher's stdin, copied to every rank.

use std::fs::File;
use std::io::{self, PipeWriter, Read, Write};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// How far the slowest reader may be behind: a rank that leaves more unread holds the others up.
const BACKLOG: usize = 64 << 20;

/// How much is read at once.
const CHUNK: usize = 64 << 10;

/// One rank's stdin.
struct Reader {
    pipe: PipeWriter,
    /// How many bytes of the input it has been given.
    given: usize,
}

/// Copies `input` to all `pipes` until it ends or nobody reads any more.
///
/// A rank that closes its stdin, or ends, is left out from then on.
pub fn copy_to_all(mut input: File, pipes: Vec<PipeWriter>) -> io::Result<()> {
    let mut readers = Vec::with_capacity(pipes.len());
    for pipe in pipes {
        // A full pipe must not hold up the others.
        rustix::io::ioctl_fionbio(&pipe, true)?;
        readers.push(Reader { pipe, given: 0 });
    }
    let mut chunk = vec![0; CHUNK];
    // The bytes that some reader lacks; its first is number `start` of the input.
    let (mut backlog, mut start, mut ended) = (Vec::new(), 0, false);
    while !readers.is_empty() {
        let end = start + backlog.len();
        let slowest = readers.iter().map(|reader| reader.given).min().unwrap_or(end);
        // Half of it at a time: each byte is moved once on average.
        if slowest - start >= backlog.len() / 2 {
            backlog.drain(..slowest - start);
            start = slowest;
        }
        let more = !ended && end - slowest < BACKLOG;
        if wait(&input, more, &mut readers, end)? {
            match input.read(&mut chunk) {
                Ok(0) => ended = true,
                Ok(took) => backlog.extend_from_slice(&chunk[..took]),
                Err(error) if is_temporary(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let end = start + backlog.len();
        readers.retain_mut(|reader| {
            reader.give(&backlog[reader.given - start..]) && !(ended && reader.given == end)
        });
    }
    Ok(())
}

/// Waits until some reader who lacks bytes can take them, or has gone (it is left out then), or,
/// if `more` is wanted, the input has some: whether it has.
fn wait(input: &File, more: bool, readers: &mut Vec<Reader>, end: usize) -> io::Result<bool> {
    let mut fds: Vec<PollFd<'_>> = readers
        .iter()
        .map(|reader| {
            let lacks = reader.given < end;
            PollFd::new(&reader.pipe, if lacks { PollFlags::OUT } else { PollFlags::empty() })
        })
        .collect();
    if more {
        fds.push(PollFd::new(input, PollFlags::IN));
    }
    match poll(&mut fds, None) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    let found: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
    let mut flags = found.iter();
    readers.retain(|_| flags.next().is_some_and(|flags| !flags.contains(PollFlags::ERR)));
    Ok(more && found.last().is_some_and(|flags| !flags.is_empty()))
}

impl Reader {
    /// Writes what the pipe takes; false when nobody reads it any more.
    fn give(&mut self, bytes: &[u8]) -> bool {
        match self.pipe.write(bytes) {
            Ok(written) => {
                self.given += written;
                true
            }
            Err(error) => is_temporary(&error),
        }
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

//! The ranks' output: many pipes into one of ours, whole lines, each with its rank.

use std::fs::File;
use std::io::{self, IsTerminal, PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// A line is broken after this many bytes, so that a rank which never ends one fills no memory.
const LINE_LIMIT: usize = 64 << 10;

/// How much is read from a pipe at once: what a pipe holds by default.
const CHUNK: usize = 64 << 10;

/// How long to wait, once all ranks have ended, for processes that they left behind and which
/// still hold their pipes.
const DRAIN: Duration = Duration::from_secs(1);

/// What to do with the bytes of a pipe.
pub enum Form {
    /// Pass them on as they come.
    Raw,
    /// Pass whole lines on, each after this prefix.
    Lines(String),
}

/// One pipe, and the start of a line whose end has not come.
struct Source {
    pipe: PipeReader,
    form: Form,
    line: Vec<u8>,
}

/// Our stdout or stderr.
struct Sink {
    file: File,
    /// Held while writing where both outputs are one file: their lines must not mix either.
    turn: Arc<Mutex<()>>,
    /// A person is looking: lines that end in a carriage return (progress bars) are shown too.
    live: bool,
}

/// Moves what comes out of many pipes to one output, until all have ended.
pub struct Forwarder {
    sources: Vec<Source>,
    /// The launcher's own pipe: its messages; its end says that all ranks have ended.
    control: Option<Source>,
    sink: Sink,
}

impl Forwarder {
    /// A forwarder to our stdout and one to our stderr, with the pipes of all ranks for each, in
    /// rank order, and the launcher's own pipe.
    pub fn pair(
        stdout: (Vec<(PipeReader, Form)>, PipeReader),
        stderr: (Vec<(PipeReader, Form)>, PipeReader),
    ) -> io::Result<[Forwarder; 2]> {
        let first = Sink::new(io::stdout().as_fd().try_clone_to_owned()?);
        let mut second = Sink::new(io::stderr().as_fd().try_clone_to_owned()?);
        if same_file(&first.file, &second.file) {
            second.turn = Arc::clone(&first.turn);
        }
        Ok([Forwarder::new(stdout, first), Forwarder::new(stderr, second)])
    }

    fn new((sources, control): (Vec<(PipeReader, Form)>, PipeReader), sink: Sink) -> Forwarder {
        let source = |(pipe, form)| Source { pipe, form, line: Vec::new() };
        Forwarder {
            sources: sources.into_iter().map(source).collect(),
            control: Some(source((control, Form::Lines("mlxd-launch: ".to_owned())))),
            sink,
        }
    }

    /// Runs until every pipe has ended, or [`DRAIN`] after the control pipe has.
    ///
    /// An output that cannot be written ends it too; the ranks' pipes close then, and a rank that
    /// writes on is told by `SIGPIPE`, as if it had our output itself.
    pub fn run(mut self) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK];
        let mut deadline = None;
        while self.control.is_some() || !self.sources.is_empty() {
            let left = deadline.map(|at: Instant| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return self.leave(&mut chunk);
            }
            let (ready, control_ready) = self.poll(left)?;
            // From the last to the first, so that removal does not move those to come.
            for index in (0..self.sources.len()).rev().filter(|&index| ready[index]) {
                if !self.sources[index].forward(&mut chunk, &self.sink)? {
                    self.sources.remove(index);
                }
            }
            // After the ranks: their last words come before ours about them.
            if let Some(control) = self.control.as_mut().filter(|_| control_ready)
                && !control.forward(&mut chunk, &self.sink)?
            {
                self.control = None;
                deadline = Some(Instant::now() + DRAIN);
            }
        }
        Ok(())
    }

    /// Waits for input: which sources have some (or ended), and whether the control pipe has.
    fn poll(&self, timeout: Option<Duration>) -> io::Result<(Vec<bool>, bool)> {
        let timeout = timeout.and_then(|left| Timespec::try_from(left).ok());
        let mut fds: Vec<PollFd<'_>> = self
            .sources
            .iter()
            .chain(&self.control)
            .map(|source| PollFd::new(&source.pipe, PollFlags::IN))
            .collect();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let control_ready = self.control.is_some() && ready.pop().unwrap_or(false);
        Ok((ready, control_ready))
    }

    /// The drain is over: takes what lies in the pipes now, and leaves them.
    fn leave(mut self, chunk: &mut [u8]) -> io::Result<()> {
        for source in &mut self.sources {
            let mut waiting = rustix::io::ioctl_fionread(&source.pipe)?;
            while waiting > 0 {
                let limit = chunk.len().min(usize::try_from(waiting).unwrap_or(chunk.len()));
                let took = source.pipe.read(&mut chunk[..limit])?;
                if took == 0 {
                    break;
                }
                source.emit(&chunk[..took], &self.sink)?;
                waiting -= took as u64;
            }
            source.finish(&self.sink)?;
        }
        Ok(())
    }
}

impl Source {
    /// Moves one chunk on; false at the pipe's end.
    fn forward(&mut self, chunk: &mut [u8], sink: &Sink) -> io::Result<bool> {
        match self.pipe.read(chunk) {
            Ok(0) => self.finish(sink).map(|()| false),
            Ok(took) => self.emit(&chunk[..took], sink).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn emit(&mut self, bytes: &[u8], sink: &Sink) -> io::Result<()> {
        match &self.form {
            Form::Raw => sink.write(bytes),
            Form::Lines(prefix) => {
                let mut out = Vec::with_capacity(bytes.len() + 256);
                take_lines(prefix.as_bytes(), &mut self.line, bytes, sink.live, &mut out);
                sink.write(&out)
            }
        }
    }

    /// Writes a last line which has no end, with one.
    fn finish(&mut self, sink: &Sink) -> io::Result<()> {
        let mut out = Vec::new();
        if let Form::Lines(prefix) = &self.form
            && !self.line.is_empty()
        {
            put_line(prefix.as_bytes(), &mut self.line, b"\n", &mut out);
        }
        sink.write(&out)
    }
}

/// Appends `bytes` to `line` and moves every line that is whole now, prefixed, to `out`.
///
/// `live`: a carriage return that no newline follows ends a line too, and stays its end.
fn take_lines(prefix: &[u8], line: &mut Vec<u8>, bytes: &[u8], live: bool, out: &mut Vec<u8>) {
    let ends_piece = |&byte: &u8| byte == b'\n' || (live && byte == b'\r');
    for piece in bytes.split_inclusive(ends_piece) {
        if live && line.ends_with(b"\r") && piece != b"\n" {
            if line.len() > 1 {
                put_line(prefix, line, b"", out);
            }
            line.clear();
        }
        let (mut text, end) = match piece.strip_suffix(b"\n") {
            Some(text) => (text, true),
            None => (piece, false),
        };
        while line.len() + text.len() > LINE_LIMIT {
            let (head, tail) = text.split_at(LINE_LIMIT - line.len());
            line.extend_from_slice(head);
            put_line(prefix, line, b"\n", out);
            text = tail;
        }
        line.extend_from_slice(text);
        if end {
            put_line(prefix, line, b"\n", out);
        }
    }
}

fn put_line(prefix: &[u8], line: &mut Vec<u8>, end: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(prefix);
    out.append(line);
    out.extend_from_slice(end);
}

impl Sink {
    fn new(fd: OwnedFd) -> Sink {
        let file = File::from(fd);
        let live = file.is_terminal();
        Sink { file, turn: Arc::default(), live }
    }

    fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        while !bytes.is_empty() {
            match (&self.file).write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Whoever shares this output with us has made it non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match poll(&mut [PollFd::new(&self.file, PollFlags::OUT)], None) {
                        Ok(_) | Err(Errno::INTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn same_file(a: &File, b: &File) -> bool {
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]], live: bool) -> (String, String) {
        let (mut line, mut out) = (Vec::new(), Vec::new());
        for chunk in chunks {
            take_lines(b"[0] ", &mut line, chunk, live, &mut out);
        }
        (String::from_utf8(out).unwrap(), String::from_utf8(line).unwrap())
    }

    #[test]
    fn lines_are_put_together_from_chunks() {
        let (out, rest) = lines(&[b"a", b"b\n\nc", b"d\ne"], false);
        assert_eq!((out.as_str(), rest.as_str()), ("[0] ab\n[0] \n[0] cd\n", "e"));
    }

    #[test]
    fn a_long_line_is_broken_at_the_limit() {
        let long = vec![b'x'; 2 * LINE_LIMIT];
        let (out, rest) = lines(&[&long, b"\n"], false);
        let whole = format!("[0] {}\n", "x".repeat(LINE_LIMIT));
        assert_eq!(out, whole.repeat(2));
        assert!(rest.is_empty());
    }

    #[test]
    fn progress_bars_are_shown_to_a_person_only() {
        let chunks: [&[u8]; 4] = [b"\r1%\r2%", b"\r3%\r", b"\nend\r", b"\n"];
        let (out, _) = lines(&chunks, true);
        assert_eq!(out, "[0] 1%\r[0] 2%\r[0] 3%\r\n[0] end\r\n");
        let (out, _) = lines(&chunks, false);
        assert_eq!(out, "[0] \r1%\r2%\r3%\r\n[0] end\r\n");
    }
}

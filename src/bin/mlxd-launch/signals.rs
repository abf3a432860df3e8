//! The signals that the launcher takes: blocked everywhere, received by one wait.

use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

use rustix::process::Pid;

/// Signals that ask the whole launch to end.
pub const ENDING: [i32; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// Signals that are for the ranks alone and end nothing.
pub const PASSED_ON: [i32; 2] = [libc::SIGUSR1, libc::SIGUSR2];

/// The exit status that shells give to a process killed by `signal`.
pub fn exit_status(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// The blocked set, and the mask that was in force before it.
#[derive(Clone)]
pub struct Signals {
    set: libc::sigset_t,
    before: libc::sigset_t,
}

/// One signal that came.
pub struct Received {
    /// Its number.
    pub signal: i32,
    /// `SIGCHLD`: the child that it tells of, the first to die or stop since the last one was received.
    pub child: Option<Pid>,
}

impl Signals {
    /// Blocks the launcher's signals for this thread and for those which it starts afterwards.
    ///
    /// A signal that was ignored on entry (`nohup`, a shell's background job) stays ignored, here
    /// and in the ranks.
    pub fn take() -> io::Result<Signals> {
        default_sigchld()?;
        let mut set = empty_set()?;
        for signal in ENDING.into_iter().chain(PASSED_ON).chain([libc::SIGTSTP, libc::SIGCHLD]) {
            // A blocked signal is delivered to sigwaitinfo even if its disposition is "ignore".
            if !is_ignored(signal)? {
                // SAFETY: `set` was initialised by sigemptyset.
                check(unsafe { libc::sigaddset(&mut set, signal) })?;
            }
        }
        let mut before = empty_set()?;
        // SAFETY: both sets are initialised and live through the call.
        check_errno(unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut before) })?;
        Ok(Signals { set, before })
    }

    /// Waits for one of them, for at most `timeout` (`None`: for ever). `None`: none came.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Option<Received>> {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        let signal = match timeout {
            // SAFETY: the set is initialised; the kernel writes `info`.
            None => unsafe { libc::sigwaitinfo(&self.set, info.as_mut_ptr()) },
            Some(timeout) => {
                let limit = libc::timespec {
                    tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
                    tv_nsec: timeout.subsec_nanos().into(),
                };
                // SAFETY: the set and the limit are initialised; the kernel writes `info`.
                unsafe { libc::sigtimedwait(&self.set, info.as_mut_ptr(), &limit) }
            }
        };
        if signal < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => Ok(None),
                _ => Err(error),
            };
        }
        let child = (signal == libc::SIGCHLD)
            // SAFETY: zeroed, then written by the kernel; si_pid is a field of SIGCHLD's siginfo.
            .then(|| Pid::from_raw(unsafe { info.assume_init().si_pid() }))
            .flatten();
        Ok(Some(Received { signal, child }))
    }

    /// Puts back the mask that was in force before [`Signals::take`]: for a new rank, between
    /// fork and exec. It allocates nothing.
    pub fn restore(&self) -> io::Result<()> {
        // SAFETY: `before` was written by pthread_sigmask; a null old set is allowed.
        check_errno(unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut())
        })
    }
}

/// The usual name of a signal, `"signal 64"` where it has none.
pub fn name(signal: i32) -> String {
    let name = match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGUSR2 => "SIGUSR2",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGSTOP => "SIGSTOP",
        libc::SIGTSTP => "SIGTSTP",
        libc::SIGTTIN => "SIGTTIN",
        libc::SIGTTOU => "SIGTTOU",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        libc::SIGSYS => "SIGSYS",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

/// An ignored `SIGCHLD` would make the kernel throw the exit statuses away.
fn default_sigchld() -> io::Result<()> {
    // SAFETY: SIG_DFL is a valid disposition for SIGCHLD.
    if unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn is_ignored(signal: i32) -> io::Result<bool> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action only asks; the kernel writes `action`.
    check(unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) })?;
    // SAFETY: zeroed, then written by the successful call.
    Ok(unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN)
}

fn empty_set() -> io::Result<libc::sigset_t> {
    let mut set = MaybeUninit::zeroed();
    // SAFETY: sigemptyset writes the set.
    check(unsafe { libc::sigemptyset(set.as_mut_ptr()) })?;
    // SAFETY: initialised by the successful call.
    Ok(unsafe { set.assume_init() })
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn check_errno(errno: i32) -> io::Result<()> {
    if errno != 0 { Err(io::Error::from_raw_os_error(errno)) } else { Ok(()) }
}

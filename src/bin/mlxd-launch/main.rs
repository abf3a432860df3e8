//! Starts the ranks of a world on this host, gathers their output, and ends with them.
//!
//! The words: a *launch* is one run of this program, a *rank* one process that it starts, the
//! *world* all of them. `world` says what the ranks are told, `rank` starts one, `supervisor`
//! watches them and decides how the launch ends, `input` and `output` move the standard streams,
//! `signals` receives what the launcher is sent.

mod input;
mod output;
mod rank;
mod signals;
mod supervisor;
mod world;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal, PipeReader, PipeWriter, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use clap::Parser;

use output::{Form, Forwarder};
use rank::{Rank, Streams};
use signals::Signals;
use supervisor::Supervisor;
use world::World;

/// A failure of the launcher itself.
const STATUS_OWN: u8 = 1;
/// The program was found and could not be executed; the number that shells use.
const STATUS_NOT_EXECUTABLE: u8 = 126;
/// The program was not found; likewise.
const STATUS_NOT_FOUND: u8 = 127;

/// Start N ranks of a program on this host, joined by the ring backend.
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Each rank finds MLX_RANK (its number) and MLX_HOSTFILE (a JSON file with every rank's addresses on \
127.0.0.1; the empty list when there is one rank). Other variables that announce a world (of MLX, \
torchrun, Slurm steps, MPI launchers) are hidden from the ranks; settings pass.

Standard input is copied to every rank, unless it is a terminal: the ranks read end-of-file then. A \
rank that leaves more than 64 MiB unread holds the others up. Each rank's stdout and stderr come \
line by line to ours, after `[rank] `; a line of more than 64 KiB is broken.

SIGINT, SIGTERM, SIGHUP and SIGQUIT are passed on to the ranks and what they started; what runs \
after the grace period is killed, at once on a second SIGINT. SIGUSR1 and SIGUSR2 are passed on to \
the ranks alone, and SIGTSTP (Ctrl-Z) stops everything. When a rank fails, the others are sent \
SIGTERM, and SIGKILL after the grace period. A rank that is stopped is named; one that asks for the \
terminal itself (/dev/tty, as sudo and ssh do for a password), which ranks cannot have, has failed. \
When the launcher itself is killed by SIGKILL, so are the ranks, though not what they started.

Exit status: 0 when every rank's is 0; else that of the first rank that failed, 128 + N for one killed \
by signal N; 126 or 127 when the program cannot be executed or found; 2 for a wrong command line; 1 \
when the launch itself fails."
)]
struct Options {
    /// How many ranks to start
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1, alias = "repeat-hosts",
          value_parser = clap::value_parser!(u32).range(1..))]
    ranks: u32,

    /// Set a variable in the ranks' environment; may be repeated
    #[arg(long, value_name = "K=V", value_parser = parse_variable)]
    env: Vec<(String, String)>,

    /// Addresses, and so connections to each neighbour, per rank
    #[arg(long, value_name = "K", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..))]
    connections_per_ip: u32,

    /// Give the ranks the ports from P up [default: free ports drawn at random]
    #[arg(short = 'p', long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..))]
    starting_port: Option<u16>,

    /// Pass output on as it comes, without `[rank] `
    #[arg(long)]
    no_prefix: bool,

    /// Time between asking ranks to end and killing them
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = parse_seconds)]
    grace: Duration,

    /// Tell of each rank's start and end, and set MLX_RING_VERBOSE=1 for the ranks
    #[arg(long)]
    verbose: bool,

    /// The program to run, found as a shell finds it
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE")?;
    if name.is_empty() || name.contains('\0') || value.contains('\0') {
        return Err("must be NAME=VALUE".to_owned());
    }
    if world::OWN_NAMES.contains(&name) {
        return Err(format!("{name} is set by mlxd-launch"));
    }
    Ok((name.to_owned(), value.to_owned()))
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "must be a number of seconds")?;
    // A year: beyond it clocks may overflow, and nobody waits.
    if !(0.0..=3.2e7).contains(&seconds) {
        return Err("must be between 0 and 32000000 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn main() -> ExitCode {
    match launch(&Options::parse()) {
        Ok(status) => ExitCode::from(status),
        Err(message) => {
            say(&message);
            ExitCode::from(STATUS_OWN)
        }
    }
}

/// A message where no supervisor can give it; `eprintln!` would panic where stderr is closed.
fn say(message: &str) {
    let _ = writeln!(io::stderr(), "mlxd-launch: {message}");
}

/// From the first port to the last byte of output; the exit status.
fn launch(options: &Options) -> Result<u8, String> {
    // step 0: signals wait until somebody watches, in every thread to come
    let signals = Signals::take().map_err(|error| format!("cannot take signals: {error}"))?;
    // What a rank leaves behind becomes our child, so that it is reaped and its group empties.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| format!("cannot become a reaper of processes: {error}"))?;

    // step 1: what the ranks are told; the hostfile lasts until `world` is dropped
    let world = World::new(options.ranks, options.connections_per_ip, options.starting_port)?;

    // step 2: start them all; if one cannot be, those started are ended by the watch
    let pipes = |error| format!("cannot make a pipe: {error}");
    let (messages_read, messages) = io::pipe().map_err(pipes)?;
    rustix::io::ioctl_fionbio(&messages, true).map_err(|error| pipes(error.into()))?;
    let mut supervisor = Supervisor::new(options.grace, options.verbose, messages);
    let streams = start_ranks(options, &world, &signals, &mut supervisor);

    // step 3: move their input and output
    let (end_read, end) = io::pipe().map_err(pipes)?;
    let moving = move_streams(options, streams, end_read, messages_read)
        .map_err(|error| format!("cannot reach the standard streams: {error}"))?;

    // step 4: watch them to the end
    let status =
        supervisor.watch(&signals).map_err(|error| format!("cannot wait for signals: {error}"))?;

    // step 5: these pipes' ends tell the forwarders that all ranks have ended
    drop((supervisor, end));
    finish_output(moving, &signals, status)
}

/// Starts rank after rank, up to the first that cannot be; our ends of their streams.
fn start_ranks(
    options: &Options,
    world: &World,
    signals: &Signals,
    supervisor: &mut Supervisor,
) -> Vec<Streams> {
    let with_stdin = !io::stdin().is_terminal();
    let mut streams = Vec::new();
    for number in 0..options.ranks {
        let mut command = Command::new(&options.program[0]);
        command.args(&options.program[1..]);
        world.describe_to(&mut command, number);
        if options.verbose {
            command.env("MLX_RING_VERBOSE", "1");
        }
        command.envs(options.env.iter().map(|(name, value)| (name, value)));
        match Rank::start(command, signals, with_stdin) {
            Ok((rank, own)) => {
                supervisor.add(rank, world.addresses.get(number as usize));
                streams.push(own);
            }
            Err(error) => {
                let (reason, status) = start_failure(options, &error);
                supervisor.refuse(&reason, status);
                break;
            }
        }
    }
    streams
}

/// Why the program did not start, in words and as an exit status.
fn start_failure(options: &Options, error: &io::Error) -> (String, u8) {
    let program = options.program[0].to_string_lossy();
    match error.kind() {
        io::ErrorKind::NotFound if program.contains('/') => {
            (format!("{program}: no such program (or its interpreter)"), STATUS_NOT_FOUND)
        }
        io::ErrorKind::NotFound => {
            let here = Path::new(program.as_ref()).exists();
            let hint = if here { format!("; meant is perhaps ./{program}") } else { String::new() };
            (format!("{program}: not found in PATH{hint}"), STATUS_NOT_FOUND)
        }
        // What exec answers for a file that is there, not what fork or pipe answer.
        _ if matches!(
            error.raw_os_error(),
            Some(
                libc::EACCES
                    | libc::EPERM
                    | libc::ENOEXEC
                    | libc::EISDIR
                    | libc::ENOTDIR
                    | libc::ETXTBSY
                    | libc::ELOOP
                    | libc::E2BIG
                    | libc::ELIBBAD
            )
        ) =>
        {
            (format!("{program}: cannot be executed: {error}"), STATUS_NOT_EXECUTABLE)
        }
        _ => (format!("{program}: {error}"), STATUS_OWN),
    }
}

/// Starts the threads that copy our stdin to the ranks and their outputs to ours.
fn move_streams(
    options: &Options,
    streams: Vec<Streams>,
    end: PipeReader,
    messages: PipeReader,
) -> io::Result<[JoinHandle<io::Result<()>>; 2]> {
    let form = |number| {
        if options.no_prefix { Form::Raw } else { Form::Lines(format!("[{number}] ")) }
    };
    let mut stdins: Vec<PipeWriter> = Vec::new();
    let (mut stdouts, mut stderrs) = (Vec::new(), Vec::new());
    for (number, own) in streams.into_iter().enumerate() {
        stdins.extend(own.stdin);
        stdouts.push((own.stdout, form(number)));
        stderrs.push((own.stderr, form(number)));
    }
    if !stdins.is_empty() {
        let stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        // It ends with the process: a stdin that never ends holds nothing up.
        thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(|| input::copy_to_all(stdin, stdins))?;
    }
    let [out, err] = Forwarder::pair((stdouts, end), (stderrs, messages))?;
    let spawn = |name: &str, forwarder: Forwarder| {
        thread::Builder::new().name(name.to_owned()).spawn(|| forwarder.run())
    };
    Ok([spawn("stdout", out)?, spawn("stderr", err)?])
}

/// Waits until all output is written, however slow its reader, or a signal says not to.
fn finish_output(
    threads: [JoinHandle<io::Result<()>>; 2],
    signals: &Signals,
    mut status: u8,
) -> Result<u8, String> {
    let mut pause = Duration::from_micros(200);
    while !threads.iter().all(JoinHandle::is_finished) {
        let received = signals.wait(Some(pause)).map_err(|error| error.to_string())?;
        match received.map(|received| received.signal) {
            Some(signal) if signals::ENDING.contains(&signal) => {
                return Ok(if status == 0 { signals::exit_status(signal) } else { status });
            }
            Some(libc::SIGTSTP) => supervisor::stop_here(),
            _ => {}
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    let mut fail = |message: String| {
        say(&message);
        status = if status == 0 { STATUS_OWN } else { status };
    };
    for (thread, name) in threads.into_iter().zip(["stdout", "stderr"]) {
        match thread.join() {
            Ok(Ok(())) => {}
            // The reader left early, which is its right (`| head`).
            Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Ok(Err(error)) => fail(format!("cannot write to {name}: {error}")),
            Err(_) => fail(format!("the thread for {name} failed")),
        }
    }
    Ok(status)
}

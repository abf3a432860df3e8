//! Runs a round: starts its ranks, passes on what they must know of each other, and lets nothing hang.

use std::path::PathBuf;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::processes::{LIMIT, Rank};
use crate::round::{Moment, Round, Transport};
use crate::scratch::Scratch;
use crate::tally;
use crate::verdict::{Failure, Told};

/// No operation goes without progress for so long, on however busy a machine.
const OPERATION_MS: u64 = 30_000;
/// How long ranks wait in vain for one that was killed before it came.
const MISSING_MS: u64 = 2_500;
/// How long a rank that hangs may take to say where.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The round, from the launch to the judgement.
pub fn run(round: &Round) -> Result<(), String> {
    let folder = Scratch::new(&format!("torture-{}", round.seed));
    write_hostfile(round, &folder);
    let mut ranks: Vec<Rank> = (0..round.ranks)
        .map(|rank| {
            let variables = variables(round, rank, &folder);
            Rank::start(&format!("{} {rank}", round.seed), &variables, None)
        })
        .collect();
    let mut told = Told::new(round.ranks);
    let mut pause = Pause::of(round);
    let hung = !listen(&mut ranks, &mut told, &mut pause, LIMIT);
    if hung {
        ranks.iter_mut().for_each(|rank| rank.tell("where"));
        listen(&mut ranks, &mut told, &mut pause, LAST_WORDS);
        for (rank, process) in ranks.iter().enumerate().filter(|(rank, _)| !told.ended[*rank]) {
            told.hung.push(rank);
            process.signal(Signal::KILL);
        }
    }
    for (rank, process) in ranks.iter_mut().enumerate() {
        told.exits[rank] = process.exit();
    }
    told.judge(round).map_err(|e| format!("{round}\n{e}"))
}

/// Hears all ranks until they have ended; false if they have not in time.
fn listen(ranks: &mut [Rank], told: &mut Told, pause: &mut Pause, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while told.ended.contains(&false) {
        pause.go_on(ranks);
        let mut quiet = true;
        for (rank, process) in ranks.iter_mut().enumerate() {
            match process.poll() {
                Poll::Pending => continue,
                Poll::Ready(None) => {
                    told.ended[rank] = true;
                    continue;
                }
                Poll::Ready(Some(value)) => hear(told, rank, &value),
            }
            quiet = false;
        }
        if Instant::now() > deadline {
            return false;
        }
        if quiet {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    true
}

fn hear(told: &mut Told, rank: usize, value: &Value) {
    let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let number = |value: &Value| value.as_u64().unwrap_or(u64::MAX) as usize;
    let groups = |name: &str| value[name].as_array().into_iter().flatten().map(number).collect();
    if value.get("wrong").is_some() {
        told.wrong.push(format!("rank {rank}: {}", text("wrong")));
    } else if let Some(status) = value["failed"].as_i64() {
        let (message, label) = (text("message"), text("in"));
        let groups = groups("groups");
        told.failures.push(Failure { rank, groups, status: status as i32, message, label });
    } else if let Some(status) = value["no_world"].as_i64() {
        told.no_world.push((rank, status as i32, text("message")));
    } else if value.get("abandoned").is_some() {
        told.abandoned.insert(number(&value["abandoned"]));
    } else if value.get("at").is_some() {
        told.places.push((rank, groups("at")));
    } else if value.get("done").is_some() {
        told.done[rank] = true;
        tally::RIGHT.add(number(&value["right"]));
        tally::AFTER.add(number(&value["after"]));
    }
}

/// A loopback address of the round's own: nobody else listens or calls there.
fn address(round: &Round) -> String {
    let process = 1 + std::process::id() % 250;
    format!("127.{process}.{}.{}", round.seed / 250 % 250, 1 + round.seed % 250)
}

fn variables(round: &Round, rank: usize, folder: &Scratch) -> Vec<(&'static str, String)> {
    let transport = match round.transport {
        Transport::Shm => "shm",
        Transport::Tcp => "tcp",
        Transport::Mixed => "auto",
    };
    let mut variables = vec![
        ("MLXD_TRANSPORT", transport.to_owned()),
        ("MLXD_TIMEOUT_MS", OPERATION_MS.to_string()),
        ("MLXD_RECV_TIMEOUT_MS", OPERATION_MS.to_string()),
    ];
    if round.transport == Transport::Mixed {
        variables.push(("MLXD_HOST_ID", round.hosts[rank].to_string()));
    }
    let limit = match round.victim {
        Some((_, Moment::Launch(_))) => MISSING_MS,
        _ => OPERATION_MS,
    };
    variables.push(("MLXD_CONNECT_TIMEOUT_MS", limit.to_string()));
    if round.secret {
        variables.push(("MLXD_SECRET", "what nobody else knows".to_owned()));
    }
    if round.checksums {
        variables.push(("MLXD_CHECKSUM", "1".to_owned()));
    }
    if round.recorder {
        variables.push(("MLXD_FLIGHT_RECORDER", folder.0.display().to_string()));
    }
    variables.extend(match round.lanes {
        Some(_) => vec![
            ("MLX_HOSTFILE", hostfile(folder).display().to_string()),
            ("MLX_RANK", rank.to_string()),
        ],
        None => vec![
            ("MLXD_COORDINATOR", format!("{}:29000", address(round))),
            ("MLXD_WORLD_SIZE", round.ranks.to_string()),
            ("MLXD_RANK", rank.to_string()),
        ],
    });
    variables
}

fn hostfile(folder: &Scratch) -> PathBuf {
    folder.0.join("hosts.json")
}

fn write_hostfile(round: &Round, folder: &Scratch) {
    let of_rank = |rank| -> Vec<String> {
        let port = |lane: usize| 29_000 + 10 * rank + lane;
        (0..round.lanes.unwrap_or(0))
            .map(|lane| format!("{}:{}", address(round), port(lane)))
            .collect()
    };
    let all: Vec<_> = (0..round.ranks).map(of_rank).collect();
    std::fs::write(hostfile(folder), serde_json::json!(all).to_string()).unwrap();
}

/// A rank is stopped, and goes on.
struct Pause {
    rank: usize,
    /// What is still to come, and when.
    moments: Vec<(Instant, Signal)>,
}

impl Pause {
    fn of(round: &Round) -> Pause {
        let (rank, [after, time]) = round.pause.unwrap_or_default();
        let stop = Instant::now() + after;
        let mut moments = vec![(stop + time, Signal::CONT), (stop, Signal::STOP)];
        moments.retain(|_| round.pause.is_some());
        Pause { rank, moments }
    }

    fn go_on(&mut self, ranks: &[Rank]) {
        while let Some(&(at, signal)) = self.moments.last()
            && at <= Instant::now()
        {
            ranks[self.rank].signal(signal);
            self.moments.pop();
        }
    }
}

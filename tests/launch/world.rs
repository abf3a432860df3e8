//! What the ranks are told.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Stdio};

use rustix::process::Signal;

use crate::run::{run, send, wait};
use crate::scratch::Scratch;

#[test]
fn every_rank_has_its_number_and_the_same_hostfile() {
    let scratch = Scratch::new("hostfile");
    let ended = run(scratch.shell(
        &["-n", "4", "--connections-per-ip", "2"],
        "echo \"$MLX_RANK $(cat $MLX_HOSTFILE)\"",
    ));
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    let lines = ended.sorted();
    assert_eq!(lines.len(), 4);
    let hostfile = lines[0].strip_prefix("[0] 0 ").unwrap();
    for (rank, line) in lines.iter().enumerate() {
        assert_eq!(*line, format!("[{rank}] {rank} {hostfile}"));
    }
    let hosts: Vec<Vec<String>> = serde_json::from_str(hostfile).unwrap();
    assert_eq!(hosts.iter().map(Vec::len).collect::<Vec<_>>(), [2; 4]);
    let distinct: HashSet<&String> = hosts.iter().flatten().collect();
    assert_eq!(distinct.len(), 8);
    for address in distinct {
        // Free: a rank may listen there.
        TcpListener::bind(address).unwrap();
        assert!(address.starts_with("127.0.0.1:"));
    }
    assert!(scratch.files().is_empty(), "{:?}", scratch.files());
}

#[test]
fn a_world_of_one_has_an_empty_hostfile() {
    let scratch = Scratch::new("one");
    let ended = run(scratch.shell(&["--no-prefix"], "echo $MLX_RANK; cat $MLX_HOSTFILE"));
    assert_eq!((ended.code(), ended.stdout.as_str()), (Some(0), "0\n[]"));
}

#[test]
fn launches_at_one_time_share_no_port() {
    let scratch = Scratch::new("ports");
    let script = "[ $MLX_RANK = 0 ] && cat $MLX_HOSTFILE; echo; exec sleep 60";
    let mut command = scratch.shell(&["-n", "8", "--no-prefix"], script);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut children: Vec<Child> = (0..8).map(|_| command.spawn().unwrap()).collect();
    let (mut ports, mut outputs) = (HashSet::new(), Vec::new());
    for child in &mut children {
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("[[") {
            line.clear();
            assert!(stdout.read_line(&mut line).unwrap() > 0);
        }
        let hosts: Vec<Vec<String>> = serde_json::from_str(&line).unwrap();
        ports.extend(hosts.into_iter().flatten());
        outputs.push(stdout);
    }
    assert_eq!(ports.len(), 64);
    for mut child in children {
        send(&child, Signal::TERM);
        assert_eq!(wait(&mut child).code(), Some(143));
    }
}

#[test]
fn fixed_ports_count_up_and_must_be_free() {
    let scratch = Scratch::new("fixed");
    // Two neighbours, found free a moment ago.
    let (first, second) = loop {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        if let Some(Ok(second)) = port.checked_add(1).map(|p| TcpListener::bind(("127.0.0.1", p))) {
            break (first, second);
        }
    };
    let port = first.local_addr().unwrap().port();
    let start = port.to_string();
    let options = ["-n", "2", "-p", &start, "--no-prefix"];
    drop(first);
    let ended = run(scratch.shell(&options, "echo started"));
    assert_eq!((ended.code(), ended.stdout.as_str()), (Some(1), ""));
    assert!(ended.stderr.contains(&format!("port {} of 127.0.0.1", port + 1)), "{}", ended.stderr);
    drop(second);
    let ended = run(scratch.shell(&options, "[ $MLX_RANK = 1 ] || cat $MLX_HOSTFILE"));
    let expected = format!("[[\"127.0.0.1:{port}\"],[\"127.0.0.1:{}\"]]", port + 1);
    assert_eq!(ended.stdout, expected, "{}", ended.stderr);
}

#[test]
fn other_worlds_do_not_leak_in_and_settings_do() {
    let scratch = Scratch::new("env");
    let mut command = scratch.launcher(&["--no-prefix", "--env", "A=b=c", "--env", "RANK=5"]);
    for name in ["MLXD_RANK", "WORLD_SIZE", "MASTER_ADDR", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE"] {
        command.env(name, "3");
    }
    command.env("RANK", "3").env("MLX_RANK", "3").env("MLXD_TIMEOUT_MS", "77").env("LINES", "9");
    command.args(["--", "env"]);
    let ended = run(command);
    let has = |line: &str| ended.stdout.lines().any(|other| other == line);
    for line in ["A=b=c", "RANK=5", "MLX_RANK=0", "MLXD_TIMEOUT_MS=77", "LINES=9"] {
        assert!(has(line), "{line} is not in {}", ended.stdout);
    }
    for name in ["MLXD_RANK", "WORLD_SIZE", "MASTER_ADDR", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE"] {
        assert!(!has(&format!("{name}=3")), "{name} leaked");
    }
}

#[test]
fn options_after_the_program_are_its_own() {
    let scratch = Scratch::new("options");
    let mut command = scratch.launcher(&["-n", "1"]);
    let ended = run({
        command.args(["echo", "-n", "7", "--no-prefix", "--", "-x"]);
        command
    });
    assert_eq!(ended.stdout, "[0] 7 --no-prefix -- -x\n");
}

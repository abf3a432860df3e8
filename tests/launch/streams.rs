//! Standard streams.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use crate::run::{finish, run, runs, send, start_ready, wait};
use crate::scratch::Scratch;

#[test]
fn output_comes_in_whole_lines_each_with_its_rank() {
    let scratch = Scratch::new("lines");
    let script = "i=0; while [ $i -lt 500 ]; do echo $MLX_RANK-$i-aaaaaaaaaaaaaaaaaaaaaaaaaaaaa; \
                  i=$((i+1)); done; printf 'no end'; printf 'err %s' $MLX_RANK >&2";
    let ended = run(scratch.shell(&["-n", "3"], script));
    assert_eq!(ended.code(), Some(0));
    for rank in 0..3 {
        let own: Vec<&str> =
            ended.stdout.lines().filter_map(|l| l.strip_prefix(&format!("[{rank}] "))).collect();
        assert_eq!(own.len(), 501);
        for (i, line) in own[..500].iter().enumerate() {
            assert_eq!(*line, format!("{rank}-{i}-aaaaaaaaaaaaaaaaaaaaaaaaaaaaa"));
        }
        assert_eq!(own[500], "no end");
        assert!(ended.stderr.contains(&format!("[{rank}] err {rank}\n")));
    }
    assert_eq!(ended.stdout.lines().count(), 1503);
    assert!(ended.stdout.ends_with('\n'));
}

#[test]
fn lines_do_not_mix_when_both_outputs_are_one_file() {
    let scratch = Scratch::new("onefile");
    let path = scratch.0.join("both");
    let file = fs::File::create(&path).unwrap();
    let script = "i=0; while [ $i -lt 300 ]; do echo out-$i; echo err-$i >&2; i=$((i+1)); done";
    let mut command = scratch.shell(&["-n", "2"], script);
    command.stdout(file.try_clone().unwrap()).stderr(file);
    assert!(wait(&mut command.spawn().unwrap()).success());
    let text = fs::read_to_string(path).unwrap();
    assert_eq!(text.lines().count(), 1200);
    for line in text.lines() {
        let line = line.strip_prefix("[0] ").or(line.strip_prefix("[1] ")).unwrap();
        let number = line.strip_prefix("out-").or(line.strip_prefix("err-")).unwrap();
        assert!(number.parse::<u32>().is_ok(), "{line}");
    }
}

#[test]
fn raw_output_is_passed_on_untouched() {
    let scratch = Scratch::new("raw");
    let script = "printf 'a\\r\\n\\001b'; printf c >&2";
    let ended = run(scratch.shell(&["--no-prefix"], script));
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("a\r\n\u{1}b", "c"));
}

#[test]
fn a_line_arrives_before_the_rank_ends() {
    let scratch = Scratch::new("atonce");
    let (child, _stdout) = start_ready(scratch.shell(&["-n", "2"], "echo ready; sleep 60"), 2);
    send(&child, Signal::TERM);
    assert_eq!(finish(child).code(), Some(143));
}

#[test]
fn a_line_without_end_is_broken() {
    let scratch = Scratch::new("long");
    let ended = run(scratch.shell(&[], "head -c 200000 /dev/zero | tr '\\0' x"));
    let lengths: Vec<usize> = ended.stdout.lines().map(str::len).collect();
    assert_eq!(lengths, [65540, 65540, 65540, 200_000 - 3 * 65536 + 4]);
}

#[test]
fn much_output_comes_through_whole() {
    let scratch = Scratch::new("much");
    let ended = run(scratch.shell(&["-n", "2"], "seq 100000"));
    assert_eq!(ended.stdout.lines().count(), 200_000);
    for rank in ["[0] ", "[1] "] {
        let own = ended.stdout.lines().filter_map(|line| line.strip_prefix(rank));
        assert!(own.enumerate().all(|(i, line)| line == (i + 1).to_string()));
    }
}

#[test]
fn stdin_goes_to_every_rank() {
    let scratch = Scratch::new("stdin");
    // Rank 1 closes its stdin unread, rank 2 starts to read late.
    let script = "case $MLX_RANK in 1) exec <&-; echo none;; 2) sleep 0.3; cksum;; *) cksum;; esac";
    let mut command = scratch.shell(&["-n", "3", "--no-prefix"], script);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let writer = thread::spawn(move || stdin.write_all(&input));
    let ended = finish(child);
    writer.join().unwrap().unwrap();
    let lines = ended.sorted();
    assert_eq!(lines.len(), 3, "{}", ended.stdout);
    assert!(lines[0] == lines[1] && lines[0].ends_with(" 3000000"), "{lines:?}");
    assert_eq!(lines[2], "none");
}

#[test]
fn a_stdin_that_never_ends_holds_nothing_up() {
    let scratch = Scratch::new("open-stdin");
    let mut command = scratch.shell(&["-n", "2"], "true");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let stdin = child.stdin.take();
    assert_eq!(finish(child).code(), Some(0));
    drop(stdin);
}

#[test]
fn a_reader_that_leaves_ends_the_ranks_that_write() {
    let scratch = Scratch::new("head");
    let mut command = scratch.shell(&["-n", "2"], "yes");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut String::new()).unwrap();
    drop(stdout);
    assert_eq!(finish(child).code(), Some(128 + 13));
}

#[test]
fn a_full_disk_fails_the_launch_and_is_named() {
    let scratch = Scratch::new("full");
    let mut command = scratch.shell(&["-n", "2"], "echo lost");
    command.stdout(fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let ended = finish(command.stderr(Stdio::piped()).spawn().unwrap());
    // A rank that wrote late has had a SIGPIPE.
    assert!(matches!(ended.code(), Some(1 | 141)), "{:?}", ended.status);
    assert!(ended.stderr.contains("cannot write to stdout: No space left"), "{}", ended.stderr);
}

#[test]
fn a_process_left_behind_with_the_output_holds_the_end_up_for_a_second_only() {
    let scratch = Scratch::new("left");
    let ended = run(scratch.shell(&[], "sleep 60 & echo $! > left; echo last"));
    assert_eq!((ended.code(), ended.stdout.as_str()), (Some(0), "[0] last\n"));
    assert!(ended.after < Duration::from_secs(10), "{:?}", ended.after);
    // A launch that went well leaves it alone.
    let left = scratch.pid("left");
    assert!(runs(left));
    kill_process(left, Signal::KILL).unwrap();
}

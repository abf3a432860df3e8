//! `mlxd-bench` with real ranks: what it prints and writes, and that every operation comes out right.
#![cfg(feature = "tools")]

#[path = "common/scratch.rs"]
mod scratch;

use std::fs;
use std::process::{Command, Output, Stdio};

use scratch::Scratch;
use serde_json::{Value, json};

const OPERATIONS: [&str; 10] = [
    "all_sum",
    "all_max",
    "all_min",
    "all_gather",
    "sum_scatter",
    "all_to_all",
    "broadcast",
    "send_recv",
    "ping_pong",
    "barrier",
];

/// Few calls of small sizes.
const SHORT: [&str; 6] = ["-e", "256", "-f", "8", "-n", "2"];

impl Scratch {
    /// A run on this many ranks of a launch that ended; no rank waits for another without a limit.
    fn run(&self, ranks: u32, arguments: &[&str]) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mlxd-launch"));
        command.args(["-n", &ranks.to_string(), "--no-prefix", "--env", "MLXD_TIMEOUT_MS=30000"]);
        command.args(["--", env!("CARGO_BIN_EXE_mlxd-bench")]).args(arguments);
        self.end(command)
    }

    /// The program by itself.
    fn alone(&self, arguments: &[&str]) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mlxd-bench"));
        command.args(arguments);
        self.end(command)
    }

    fn end(&self, mut command: Command) -> Ended {
        let command = command.current_dir(&self.0).env("TMPDIR", &self.0).stdin(Stdio::null());
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ended { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).unwrap();
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.read(name)).unwrap()
    }
}

/// What a run came to.
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    fn succeeded(self) -> Ended {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{}", self.stdout);
        self
    }

    /// The words of the lines that are no comments.
    fn rows(&self) -> Vec<Vec<&str>> {
        let lines = self.stdout.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.split_whitespace().collect()).collect()
    }
}

// What is right.

/// So many operations with so many types are measured, and no row has a wrong element.
fn all_are_right(test: &str, ranks: u32, arguments: &[&str], operations: usize, types: usize) {
    let scratch = Scratch::new(test);
    let ended = scratch.run(ranks, &[&["--op", "all", "-w", "1"], &SHORT[..], arguments].concat());
    let ended = ended.succeeded();
    let rows = ended.rows();
    let mut seen: Vec<(&str, &str)> = rows.iter().map(|row| (row[3], row[2])).collect();
    assert!(rows.iter().all(|row| row.len() == 9 && row[8] == "0"), "{}", ended.stdout);
    seen.dedup();
    // A barrier has no type.
    assert_eq!(seen.len(), (operations - 1) * types + 1, "{}", ended.stdout);
    assert!(ended.stdout.contains("# wrong elements: 0 OK\n"));
}

#[test]
fn every_operation_and_type_is_right_alone() {
    all_are_right("right-1", 1, &["-d", "all"], 8, 14);
}

#[test]
fn every_operation_and_type_is_right_on_three_ranks() {
    all_are_right("right-3", 3, &["-d", "all", "--root", "2"], 10, 14);
}

#[test]
fn every_operation_and_type_is_right_in_place() {
    all_are_right("right-in-place", 3, &["-d", "all", "--in-place"], 7, 14);
}

#[test]
fn every_operation_is_right_cold_and_misaligned() {
    let arguments = ["-d", "half,float", "--cold", "--cold-bytes", "64K", "--align", "3"];
    all_are_right("right-cold", 2, &arguments, 10, 2);
}

#[test]
fn larger_sizes_are_right() {
    let scratch = Scratch::new("larger");
    let ended = scratch.run(3, &["--op", "all", "-n", "1", "-w", "0", "300000", "1M"]).succeeded();
    assert_eq!(ended.rows().len(), 9 * 2 + 1);
    assert!(ended.rows().iter().all(|row| row[8] == "0"), "{}", ended.stdout);
}

// What is printed.

#[test]
fn the_table_has_sizes_counts_and_roots() {
    let scratch = Scratch::new("table");
    let options = ["--op", "all_gather,broadcast,barrier", "-d", "double", "--root", "1"];
    let ended = scratch.run(2, &[&options[..], &SHORT].concat()).succeeded();
    let columns: Vec<[&str; 5]> =
        ended.rows().iter().map(|row| [row[0], row[1], row[2], row[3], row[4]]).collect();
    let expected = [
        ["16", "1", "float64", "all_gather", "-1"],
        ["32", "2", "float64", "all_gather", "-1"],
        ["256", "16", "float64", "all_gather", "-1"],
        ["8", "1", "float64", "broadcast", "1"],
        ["32", "4", "float64", "broadcast", "1"],
        ["256", "32", "float64", "broadcast", "1"],
        ["0", "0", "none", "barrier", "-1"],
    ];
    assert_eq!(columns, expected, "{}", ended.stdout);
    let title = ended.stdout.lines().next().unwrap();
    assert!(title.ends_with("mlxd-ring, 2 ranks on backend ring, out of place, warm caches"));
    for name in ["size", "count", "type", "op", "root", "time", "algbw", "busbw", "#wrong"] {
        assert!(ended.stdout.contains(name), "{name}");
    }
}

#[test]
fn lines_have_label_ranks_bytes_and_time() {
    let scratch = Scratch::new("lines");
    let ended = scratch.run(2, &["--format", "lines", "-n", "2", "4", "1K"]).succeeded();
    let rows = ended.rows();
    assert_eq!(rows.len(), 2, "{}", ended.stdout);
    for (row, bytes) in rows.iter().zip(["4", "1024"]) {
        assert_eq!(row[..3], ["mlxd-ring", "2", bytes]);
        assert!(row.len() == 4 && row[3].parse::<f64>().unwrap() > 0.0);
    }
    let options = ["--format", "lines", "--label", "x", "--op", "all_max,barrier", "4"];
    let ended = scratch.alone(&options).succeeded();
    let labels: Vec<&str> = ended.rows().iter().map(|row| row[0]).collect();
    assert_eq!(labels, ["x-all_max", "x-barrier"]);
}

#[test]
fn without_a_check_nothing_is_said_of_wrong_elements() {
    let scratch = Scratch::new("unchecked");
    let ended = scratch.alone(&["-c", "0", "-n", "1", "4"]).succeeded();
    assert_eq!(ended.rows()[0][8], "N/A");
    assert!(ended.stdout.contains("# wrong elements: not checked"));
}

// What is written.

#[test]
fn the_document_tells_everything() {
    let scratch = Scratch::new("json");
    let options = ["--json", "a.json", "--label", "mine", "--op", "all_sum,broadcast"];
    scratch.run(3, &[&options[..], &SHORT, &["-w", "0"]].concat()).succeeded();
    let document = scratch.json("a.json");
    let facts = ["format", "version", "label", "backend", "ranks"];
    let facts = facts.map(|name| document[name].clone());
    assert_eq!(json!(facts), json!([1, env!("CARGO_PKG_VERSION"), "mine", "ring", 3]));
    assert_eq!(document["environment"]["MLXD_TIMEOUT_MS"], "30000");
    assert!(document["environment"].get("MLX_HOSTFILE").is_none());
    for name in ["cpu", "kernel", "architecture"] {
        assert!(document["host"][name].as_str().is_some_and(|fact| !fact.is_empty()), "{name}");
    }
    assert!(document["host"]["cores"].as_u64() > Some(0));
    assert_eq!(document["options"]["warmup_iters"], 0);
    assert_eq!(document["options"]["check"], true);
    let results = document["results"].as_array().unwrap();
    assert_eq!(results.len(), 6);
    for (result, bytes) in results.iter().zip([4, 32, 256, 4, 32, 256]) {
        let facts = ["bytes", "wrong", "iterations", "dtype"].map(|name| result[name].clone());
        assert_eq!(json!(facts), json!([bytes, 0, 2, "float32"]));
        let times = ["min", "p10", "median", "p90", "p99", "max"];
        let times = times.map(|name| result["time_us"][name].as_f64().unwrap());
        assert!(times[0] > 0.0 && times.is_sorted(), "{result}");
        assert!(result["time_us"]["slowest_median"].as_f64() >= Some(times[2]));
        let rate = f64::from(bytes) / times[2] / 1e3;
        let near =
            |name: &str, want: f64| (result[name].as_f64().unwrap() / want - 1.0).abs() < 1e-9;
        let factor = if result["op"] == "all_sum" { 4.0 / 3.0 } else { 1.0 };
        assert!(near("algbw_gbps", rate) && near("busbw_gbps", rate * factor), "{result}");
    }
    assert_eq!(json!([results[0]["root"], results[3]["root"]]), json!([null, 0]));
}

#[test]
fn the_csv_has_a_line_per_size() {
    let scratch = Scratch::new("csv");
    scratch.write("a.csv", &"longer than what comes\n".repeat(1000));
    scratch.alone(&[&["--csv", "a.csv", "--label", "a,b"], &SHORT[..]].concat()).succeeded();
    let text = scratch.read("a.csv");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4);
    assert!(
        lines[0].starts_with(
            "label,backend,ranks,op,dtype,root,in_place,bytes,count,iterations,time_us,"
        )
    );
    assert!(lines[3].starts_with("\"a,b\",none,1,all_sum,float32,,false,256,64,2,"), "{text}");
    // The quoted comma is one more.
    assert_eq!(lines[3].matches(',').count(), lines[0].matches(',').count() + 1);
}

/// The texts and the number of curves in a panel of a plot.
fn panel<'a>(plot: &'a roxmltree::Document, id: &str) -> (Vec<&'a str>, usize) {
    let panel = plot.descendants().find(|node| node.attribute("id") == Some(id)).unwrap();
    let named =
        |name: &'static str| panel.descendants().filter(move |node| node.has_tag_name(name));
    let texts = named("text").filter_map(|node| node.text()).collect();
    let drawn = named("polyline").filter(|node| node.attribute("points") != Some(""));
    (texts, drawn.count())
}

#[test]
fn the_plot_has_both_panels_and_every_curve() {
    let scratch = Scratch::new("plot");
    scratch
        .run(2, &[&["--json", "old.json", "--label", "<old> & \"co\""], &SHORT[..]].concat())
        .succeeded();
    scratch.write("peers.txt", "mpi 2 4 13.7\nmpi 2 1024 14.6\n# a comment\nmlx 2 4 117\n");
    let compare = ["--compare", "old.json", "--compare", "peers.txt", "--plot", "a.svg"];
    scratch.run(2, &[&compare[..], &SHORT].concat()).succeeded();
    let text = scratch.read("a.svg");
    let plot = roxmltree::Document::parse(&text).unwrap();
    let (texts, curves) = panel(&plot, "time");
    assert!(texts.contains(&"time (\u{b5}s)") && texts.contains(&"size (bytes)"), "{texts:?}");
    assert!(texts.contains(&"1K") && texts.contains(&"4"), "{texts:?}");
    assert_eq!(curves, 4);
    let (texts, curves) = panel(&plot, "bandwidth");
    assert!(texts.contains(&"bus bandwidth (GB/s)"), "{texts:?}");
    assert_eq!(curves, 4);
    let legend: Vec<&str> = plot.root_element().children().filter_map(|node| node.text()).collect();
    for name in
        ["mlxd-ring", "<old> & \"co\"", "mpi", "mlx", "all_sum, float32, 2 ranks, out of place"]
    {
        assert!(legend.contains(&name), "{name}: {legend:?}");
    }

    // The same from files alone.
    scratch.alone(&[&["--plot-only"], &compare[..]].concat()).succeeded();
    let text = scratch.read("a.svg");
    assert_eq!(panel(&roxmltree::Document::parse(&text).unwrap(), "time").1, 3);
}

#[test]
fn a_world_of_one_has_no_bus_bandwidth_to_show() {
    let scratch = Scratch::new("plot-one");
    scratch.alone(&[&["--plot", "a.svg"], &SHORT[..]].concat()).succeeded();
    let text = scratch.read("a.svg");
    let plot = roxmltree::Document::parse(&text).unwrap();
    assert_eq!(panel(&plot, "time").1, 1);
    assert_eq!(
        panel(&plot, "bandwidth"),
        (vec!["Bus bandwidth (higher is better)", "nothing to show"], 0)
    );
}

// What is wrong.

#[test]
fn wrong_command_lines_exit_with_2() {
    let scratch = Scratch::new("usage");
    let cases: [(&[&str], &str); 17] = [
        (&["--op", "all_mean"], "all_mean"),
        (&["-d", "int128"], "int128"),
        (&["3"], "multiple of 4"),
        (&["0"], "more than nothing"),
        (&["-b", "1K", "-e", "4"], "--maxbytes"),
        (&["-f", "1"], "1"),
        (&["-f", "2", "-i", "4"], "cannot be used"),
        (&["4", "-b", "4"], "cannot be used"),
        (&["-c", "2"], "0 or 1"),
        (&["-n", "0"], "0"),
        (&["--cold-bytes", "1M"], "--cold"),
        (&["--align", "4096"], "4096"),
        (&["--compare", "a.json"], "--plot"),
        (&["--plot-only", "--plot", "a.svg"], "--compare"),
        (&["--root", "1", "--op", "broadcast"], "--root"),
        (&["--op", "ping_pong"], "2 ranks"),
        (&["--in-place", "--op", "all_to_all"], "in place"),
    ];
    for (arguments, word) in cases {
        let ended = scratch.alone(arguments);
        assert_eq!(ended.code, Some(2), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(word), "{arguments:?}: {}", ended.stderr);
        assert_eq!(ended.stdout, "", "{arguments:?}");
    }
    for operation in OPERATIONS {
        assert!(scratch.alone(&["--op", "x"]).stderr.contains(operation), "{operation}");
    }
    // All ranks know it, one says it.
    let ended = scratch.run(3, &["--op", "broadcast", "--root", "3"]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("mlxd-bench: ").count(), 1, "{}", ended.stderr);
}

#[test]
fn what_cannot_be_done_exits_with_1() {
    let scratch = Scratch::new("failed");
    scratch.write("words.txt", "hello\n");
    let cases: [(&[&str], &str); 6] = [
        (&["--json", "none/a.json", "4"], "none/a.json"),
        (&["--plot", "a.svg", "--compare", "none.json", "4"], "none.json"),
        (&["--plot", "a.svg", "--compare", "words.txt", "4"], "words.txt: line 1"),
        (&["--plot", "a.svg", "--op", "barrier"], "a.svg"),
        (&["--backend", "nccl", "4"], "nccl"),
        (&["--backend", "carrier-pigeon", "4"], "carrier-pigeon"),
    ];
    for (arguments, word) in cases {
        let ended = scratch.alone(arguments);
        assert_eq!(ended.code, Some(1), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(word), "{arguments:?}: {}", ended.stderr);
    }
    // Found before anything is measured, and told by rank 0 alone.
    let ended = scratch.run(2, &["--csv", "none/a.csv"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""));
    assert_eq!(ended.stderr.matches("mlxd-bench: ").count(), 1, "{}", ended.stderr);
}

#[test]
fn a_failed_call_is_told_with_its_reason() {
    let scratch = Scratch::new("call");
    // Rank 1 asks for another size.
    let bench = env!("CARGO_BIN_EXE_mlxd-bench");
    let mut command = Command::new(env!("CARGO_BIN_EXE_mlxd-launch"));
    let script = format!("exec {bench} -n 1 $((4 + 4 * MLX_RANK))");
    command.args(["-n", "2", "--no-prefix", "--", "sh", "-c", &script]);
    let ended = scratch.end(command);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("mlxd_all_sum failed: "), "{}", ended.stderr);
    assert!(ended.stderr.contains("MLXD_ERROR_MISMATCH"), "{}", ended.stderr);
}

//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use mlxd::dtype::Dtype;

use crate::operation::Operation;

/// Time the library's operations on the ranks of a launch, and check every element of the results.
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Run it under mlxd-launch or any launcher that the library knows, or alone. All ranks need the same \
command line; rank 0 prints.

SIZE is bytes, as 4, 64K, 1M or 2G. What it is the size of, and what the bus bandwidth is times the \
size over the time (n ranks):
  all_sum, all_max, all_min  each rank's input                            2 (n - 1) / n
  all_gather                 the whole output: count is a rank's part     (n - 1) / n
  sum_scatter, all_to_all    each rank's input                            (n - 1) / n
  broadcast                  the buffer                                   1
  send_recv                  what each rank sends to the next             1
  ping_pong                  one message: the time is half the way there and back between ranks 0 and 1
  barrier                    nothing
A size is rounded down to whole elements, and blocks where there is one per rank; to one at least.

Each call is timed by itself; the time is the median on rank 0, whose own part of a broadcast or a \
message may be done before that of others: --json has the slowest rank's median too. Buffers begin at \
multiples of 64 bytes, and every page was written to before. The check is one more call, after the \
timed ones, into an output that was overwritten.

Exit status: 0; 1 when a result is wrong or a call fails; 2 for a wrong command line."
)]
pub struct Options {
    /// Sizes to time instead of those of -b, -e and -f
    #[arg(value_name = "SIZE", value_parser = parse_size,
          conflicts_with_all = ["minbytes", "maxbytes", "stepfactor", "stepbytes"])]
    pub sizes: Vec<usize>,

    /// The smallest size
    #[arg(short = 'b', long, value_name = "SIZE", default_value = "4", value_parser = parse_size)]
    pub minbytes: usize,

    /// No size is larger
    #[arg(short = 'e', long, value_name = "SIZE", default_value = "64M", value_parser = parse_size)]
    pub maxbytes: usize,

    /// From one size to the next, times this
    #[arg(short = 'f', long, value_name = "N", default_value_t = 4,
          value_parser = clap::value_parser!(u32).range(2..))]
    pub stepfactor: u32,

    /// From one size to the next, plus this
    #[arg(short = 'i', long, value_name = "SIZE", value_parser = parse_size,
          conflicts_with = "stepfactor")]
    pub stepbytes: Option<usize>,

    /// What to time: all, or of all_sum, all_max, all_min, all_gather, sum_scatter, all_to_all,
    /// broadcast, send_recv, ping_pong, barrier; separated by commas
    #[arg(long, value_name = "OPS", default_value = "all_sum", value_parser = parse_operations)]
    pub op: Operations,

    /// Element types: all, or of bool, int8 to int64, uint8 to uint64, float16 (half), bfloat16,
    /// float32 (float), float64 (double), complex64; separated by commas
    #[arg(short = 'd', long, value_name = "TYPES", default_value = "float", value_parser = parse_dtypes)]
    pub datatype: Dtypes,

    /// The rank that broadcasts
    #[arg(long, value_name = "RANK", default_value_t = 0)]
    pub root: usize,

    /// Put the input into the output's place, where the operation allows that
    #[arg(long)]
    pub in_place: bool,

    /// Timed calls per size [default: 2000 up to 16K, 200 up to 1M, else 15]
    #[arg(short = 'n', long, value_name = "N", alias = "iterations",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub iters: Option<u32>,

    /// Calls before the first that counts: connections come up and caches fill
    #[arg(
        short = 'w',
        long = "warmup_iters",
        alias = "warmup-iters",
        value_name = "N",
        default_value_t = 5
    )]
    pub warmup_iters: u32,

    /// Whether to check the results: 1 or 0
    #[arg(short = 'c', long, value_name = "0|1", default_value = "1", value_parser = parse_truth,
          action = clap::ArgAction::Set)]
    pub check: bool,

    /// No call finds its buffers in a cache: calls rotate through --cold-bytes of them
    #[arg(long)]
    pub cold: bool,

    /// Bytes that --cold rotates through; at least 4 calls' buffers and twice the last-level cache
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size,
          requires = "cold")]
    pub cold_bytes: usize,

    /// Put buffers N bytes behind the multiples of 64
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..4096))]
    pub align: u32,

    /// Backend to time; any other than "any" must come up
    #[arg(long, default_value = "any")]
    pub backend: String,

    /// Name of the measurement in lines, files and plots [default: mlxd- and the backend]
    #[arg(long)]
    pub label: Option<String>,

    /// What rank 0 prints: a table, or lines of `label ranks bytes microseconds`
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,

    /// Write everything that was measured, and where, to a JSON document
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write one line per size to a CSV file
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,

    /// Draw time and bus bandwidth over size into an SVG file
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,

    /// Draw these too: a file of --json, or lines `label ranks bytes microseconds` of the operation
    /// that --op names; may be repeated
    #[arg(long, value_name = "FILE", requires = "plot")]
    pub compare: Vec<PathBuf>,

    /// Measure nothing: draw what --compare names
    #[arg(long, requires_all = ["plot", "compare"], conflicts_with_all = ["json", "csv"])]
    pub plot_only: bool,
}

/// What rank 0 prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns as those of nccl-tests
    Table,
    /// `label ranks bytes microseconds`
    Lines,
}

/// The operations of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operations {
    /// In the order in which they are timed, each once.
    pub list: Vec<Operation>,
    /// Whether they were not named, so that those which do not fit are left out.
    pub all: bool,
}

/// The element types of one run, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dtypes(pub Vec<Dtype>);

impl Options {
    /// The sizes to time, or what is wrong with those that were asked for.
    pub fn sizes(&self) -> Result<Vec<usize>, String> {
        if !self.sizes.is_empty() {
            return self.named_sizes();
        }
        if self.minbytes > self.maxbytes {
            let (min, max) = (self.minbytes, self.maxbytes);
            return Err(format!("--minbytes ({min}) is more than --maxbytes ({max})"));
        }
        let next = |&size: &usize| match self.stepbytes {
            Some(step) => size.checked_add(step),
            None => size.checked_mul(self.stepfactor as usize),
        };
        let sizes = std::iter::successors(Some(self.minbytes), next);
        Ok(sizes.take_while(|&size| size <= self.maxbytes).collect())
    }

    /// Sizes that were named are not rounded to elements.
    fn named_sizes(&self) -> Result<Vec<usize>, String> {
        for &dtype in &self.datatype.0 {
            if let Some(size) = self.sizes.iter().find(|&size| size % dtype.size() != 0) {
                let (name, bytes) = (dtype.name(), dtype.size());
                return Err(format!("{size} bytes: must be a multiple of {bytes} bytes ({name})"));
            }
        }
        Ok(self.sizes.clone())
    }

    /// The operations that a group of so many ranks can do, or why it cannot do one that was named.
    pub fn operations(&self, ranks: usize) -> Result<Vec<Operation>, String> {
        let mut fitting = Vec::new();
        for &operation in &self.op.list {
            let name = operation.name();
            let problem = if operation.least_ranks() > ranks {
                format!("{name} needs {} ranks, here is {ranks}", operation.least_ranks())
            } else if self.in_place && !operation.works_in_place() {
                format!("{name} does not work in place")
            } else if operation == Operation::Broadcast && self.root >= ranks {
                // Never left out: --root has no other use.
                return Err(format!("--root {}: no such rank in a group of {ranks}", self.root));
            } else {
                fitting.push(operation);
                continue;
            };
            if !self.op.all {
                return Err(problem);
            }
        }
        Ok(fitting)
    }

    /// How many calls of this size are timed: by default enough for a steady median, few enough for
    /// the whole to stay short.
    pub fn iterations(&self, bytes: usize) -> usize {
        match (self.iters, bytes) {
            (Some(iters), _) => iters as usize,
            (None, 0..=0x4000) => 2000,
            (None, 0x4001..=0x10_0000) => 200,
            (None, _) => 15,
        }
    }
}

/// A number of bytes, with K, M or G for powers of 1024.
fn parse_size(text: &str) -> Result<usize, String> {
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1 << 10),
        Some((at, 'm' | 'M')) => (&text[..at], 1 << 20),
        Some((at, 'g' | 'G')) => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    let size: Option<usize> = digits.parse().ok().and_then(|n: usize| n.checked_mul(unit));
    match size {
        Some(0) => Err("must be more than nothing".to_owned()),
        Some(size) => Ok(size),
        None => Err("must be a number of bytes, as 4, 64K, 1M or 2G".to_owned()),
    }
}

fn parse_truth(text: &str) -> Result<bool, String> {
    match text {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err("must be 0 or 1".to_owned()),
    }
}

fn parse_operations(text: &str) -> Result<Operations, String> {
    if text == "all" {
        return Ok(Operations { list: Operation::ALL.to_vec(), all: true });
    }
    let list =
        parse_list(text, Operation::from_name, "operation", &Operation::ALL.map(Operation::name))?;
    Ok(Operations { list, all: false })
}

fn parse_dtypes(text: &str) -> Result<Dtypes, String> {
    if text == "all" {
        return Ok(Dtypes(Dtype::ALL.to_vec()));
    }
    let dtype = |name: &str| {
        let name = match name {
            "half" => "float16",
            "float" => "float32",
            "double" => "float64",
            name => name,
        };
        dtype_of(name)
    };
    parse_list(text, dtype, "type", &Dtype::ALL.map(Dtype::name)).map(Dtypes)
}

/// The type of this name.
pub fn dtype_of(name: &str) -> Option<Dtype> {
    Dtype::ALL.into_iter().find(|dtype| dtype.name() == name)
}

/// Names between commas; what is named twice counts once.
fn parse_list<T: PartialEq>(
    text: &str,
    from_name: impl Fn(&str) -> Option<T>,
    kind: &str,
    names: &[&str],
) -> Result<Vec<T>, String> {
    let mut list = Vec::new();
    for name in text.split(',') {
        let item = from_name(name)
            .ok_or_else(|| format!("no {kind} {name:?}; there are all, {}", names.join(", ")))?;
        if !list.contains(&item) {
            list.push(item);
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(arguments: &[&str]) -> Options {
        Options::try_parse_from([&["mlxd-bench"], arguments].concat()).unwrap()
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Options::command().debug_assert();
    }

    #[test]
    fn sizes_take_units() {
        assert_eq!(parse_size("4"), Ok(4));
        assert_eq!(parse_size("64K"), Ok(65536));
        assert_eq!(parse_size("1m"), Ok(1 << 20));
        assert_eq!(parse_size("2G"), Ok(2 << 30));
        for wrong in ["", "0", "K", "-4", "1.5M", "4KB", "99999999999999999999", "9999999999999G"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_multiply_or_add() {
        assert_eq!(options(&["-b", "4", "-e", "100"]).sizes().unwrap(), [4, 16, 64]);
        assert_eq!(
            options(&["-b", "1K", "-e", "4K", "-f", "2"]).sizes().unwrap(),
            [1024, 2048, 4096]
        );
        assert_eq!(options(&["-b", "10", "-e", "30", "-i", "10"]).sizes().unwrap(), [10, 20, 30]);
        assert_eq!(options(&[]).sizes().unwrap().len(), 13);
        assert_eq!(options(&["64K", "4"]).sizes().unwrap(), [65536, 4]);
        assert!(options(&["-b", "2", "-e", "1"]).sizes().is_err());
        assert!(options(&["3"]).sizes().is_err());
        assert!(options(&["-d", "int8", "3"]).sizes().is_ok());
        // The last size is the last that can be: no overflow.
        let top = ["-b", "1G", "-e", "9000000000G"];
        assert_eq!(options(&top).sizes().unwrap().last(), Some(&(1 << 62)));
    }

    #[test]
    fn operations_that_cannot_be_are_left_out_of_all_only() {
        assert_eq!(options(&["--op", "all"]).operations(1).unwrap().len(), 8);
        assert_eq!(options(&["--op", "all"]).operations(2).unwrap().len(), 10);
        assert_eq!(options(&["--op", "all", "--in-place"]).operations(2).unwrap().len(), 7);
        assert!(options(&["--op", "ping_pong"]).operations(1).is_err());
        assert!(options(&["--op", "all_to_all", "--in-place"]).operations(2).is_err());
        assert!(options(&["--op", "broadcast", "--root", "2"]).operations(2).is_err());
    }

    #[test]
    fn lists_have_aliases_and_no_repeats() {
        assert_eq!(
            parse_dtypes("half,float16,double").unwrap().0,
            [Dtype::Float16, Dtype::Float64]
        );
        assert_eq!(parse_dtypes("all").unwrap().0, Dtype::ALL);
        let both = parse_operations("barrier,all_sum,barrier").unwrap().list;
        assert_eq!(both, [Operation::Barrier, Operation::AllSum]);
        assert!(parse_operations("").is_err());
        assert!(parse_dtypes("float,").is_err());
    }

    #[test]
    fn iterations_follow_the_peers() {
        let options = options(&[]);
        let sizes = [4, 16 << 10, 64 << 10, 1 << 20, 4 << 20];
        assert_eq!(sizes.map(|size| options.iterations(size)), [2000, 2000, 200, 200, 15]);
    }
}

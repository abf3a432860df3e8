//! Times `mlxd_all_sum` and checks its result; rank 0 prints one line per size:
//! label, ranks, bytes, microseconds.

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

use group::Group;

/// The sizes measured when none are named.
const SIZES: [usize; 9] =
    [4, 1 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20];

/// Calls before the first that counts: connections come up and caches fill.
const WARMUP: usize = 5;

/// Time all_sum (float32, out of place) on the ranks of a launch, and check every element.
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Run it under mlxd-launch or any launcher that the library knows, or alone. Rank 0 prints, per size, \
`label ranks bytes microseconds`: the median time of a call on rank 0. Exit status: 0; 1 when a \
result is wrong or a call fails; 2 for a wrong command line."
)]
struct Options {
    /// Bytes per rank, as 4, 64K, 1M or 2G [default: 4 1K 16K 64K 256K 1M 4M 16M 64M]
    #[arg(value_name = "SIZE", value_parser = parse_size)]
    sizes: Vec<usize>,

    /// Backend to time; any other than "any" must come up
    #[arg(long, default_value = "any")]
    backend: String,

    /// Timed calls per size [default: 2000 up to 16K, 200 up to 1M, else 15]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    iterations: Option<u32>,

    /// First word of each line [default: mlxd- and the backend]
    #[arg(long)]
    label: Option<String>,
}

/// A number of bytes: float32 elements, with K, M or G for powers of 1024.
fn parse_size(text: &str) -> Result<usize, String> {
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1 << 10),
        Some((at, 'm' | 'M')) => (&text[..at], 1 << 20),
        Some((at, 'g' | 'G')) => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    let size: Option<usize> = digits.parse().ok().and_then(|n: usize| n.checked_mul(unit));
    match size {
        Some(size) if size > 0 && size % size_of::<f32>() == 0 => Ok(size),
        Some(_) => Err("must be a positive multiple of 4 bytes (float32)".to_owned()),
        None => Err("must be a number of bytes, as 4, 64K, 1M or 2G".to_owned()),
    }
}

/// Timed calls of one size: enough for a steady median, few enough for the whole to stay short.
fn iterations(bytes: usize) -> usize {
    match bytes {
        0..=0x4000 => 2000,
        0x4001..=0x10_0000 => 200,
        _ => 15,
    }
}

fn main() -> ExitCode {
    match bench(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // Where stderr is closed the exit status has to do.
            let _ = writeln!(std::io::stderr(), "mlxd-bench: {message}");
            ExitCode::FAILURE
        }
    }
}

fn bench(options: &Options) -> Result<(), String> {
    let group = Group::init(options.backend != "any", &options.backend)?;
    let label = match &options.label {
        Some(label) => label.clone(),
        None => format!("mlxd-{}", group.backend()),
    };
    let sizes = if options.sizes.is_empty() { &SIZES[..] } else { &options.sizes };
    for &bytes in sizes {
        let iterations = options.iterations.map_or(iterations(bytes), |n| n as usize);
        let median = time_all_sum(&group, bytes, iterations)?;
        if group.rank() == 0 {
            let line = format!("{label} {} {bytes} {:.2}\n", group.size(), median * 1e6);
            let mut out = std::io::stdout().lock();
            out.write_all(line.as_bytes())
                .and_then(|()| out.flush())
                .map_err(|error| format!("cannot write the result: {error}"))?;
        }
    }
    Ok(())
}

/// The median time of one call in seconds, after a check of the last result.
fn time_all_sum(group: &Group, bytes: usize, iterations: usize) -> Result<f64, String> {
    let count = bytes / size_of::<f32>();
    let input = filled(count, (group.rank() + 1) as f32)?;
    // Not a number, until the sum is there.
    let mut output = filled(count, f32::NAN)?;
    for _ in 0..WARMUP {
        group.all_sum(&input, &mut output)?;
    }
    let mut times = Vec::with_capacity(iterations);
    for _ in 0..iterations {
        let start = Instant::now();
        group.all_sum(&input, &mut output)?;
        times.push(start.elapsed().as_secs_f64());
    }
    check(group, &output)?;
    times.sort_unstable_by(f64::total_cmp);
    Ok(times[iterations / 2])
}

/// A buffer of `count` elements, or a message where there is not so much memory.
fn filled(count: usize, value: f32) -> Result<Vec<f32>, String> {
    let mut buffer = Vec::new();
    buffer
        .try_reserve_exact(count)
        .map_err(|error| format!("no memory for {count} elements: {error}"))?;
    buffer.resize(count, value);
    Ok(buffer)
}

/// Every rank put in its number + 1: the sum is n (n + 1) / 2, exact in float32 up to 5,792 ranks.
fn check(group: &Group, output: &[f32]) -> Result<(), String> {
    let ranks = i64::from(group.size());
    let expected = (ranks * (ranks + 1) / 2) as f32;
    match output.iter().position(|&value| value != expected) {
        None => Ok(()),
        Some(at) => Err(format!(
            "wrong sum on rank {} of {ranks}: element {at} of {} is {}, not {expected}",
            group.rank(),
            output.len(),
            output[at]
        )),
    }
}

/// The C interface, as far as it is needed here, made safe.
mod group {
    use std::ffi::{CStr, CString, c_char};
    use std::ptr;

    use mlxd::capi;

    /// `MLXD_OK`.
    const OK: i32 = 0;
    /// `MLXD_FLOAT32`.
    const FLOAT32: i32 = 11;

    /// A world; its ranks say goodbye when it is dropped.
    pub struct Group(*mut capi::mlxd_group);

    impl Group {
        /// The world of `backend`.
        pub fn init(strict: bool, backend: &str) -> Result<Group, String> {
            let name = CString::new(backend).map_err(|_| "a backend's name has no NUL in it")?;
            // SAFETY: `name` is a C string that lives through the call.
            let group = unsafe { capi::mlxd_init(strict.into(), name.as_ptr()) };
            if group.is_null() { Err(last_error("mlxd_init")) } else { Ok(Group(group)) }
        }

        /// This process's rank.
        pub fn rank(&self) -> i32 {
            // SAFETY: the handle is valid until the drop.
            unsafe { capi::mlxd_group_rank(self.0) }
        }

        /// The number of ranks.
        pub fn size(&self) -> i32 {
            // SAFETY: the handle is valid until the drop.
            unsafe { capi::mlxd_group_size(self.0) }
        }

        /// The backend that came up.
        pub fn backend(&self) -> String {
            // SAFETY: the handle is valid until the drop; the name is static.
            unsafe { text(capi::mlxd_group_backend(self.0)) }
        }

        /// Sums `input` over all ranks into `output`, of the same length.
        pub fn all_sum(&self, input: &[f32], output: &mut [f32]) -> Result<(), String> {
            assert_eq!(input.len(), output.len());
            // SAFETY: both buffers hold `count` float32 and do not overlap; without a stream the
            // call is done with them when it returns.
            let status = unsafe {
                capi::mlxd_all_sum(
                    self.0,
                    input.as_ptr().cast(),
                    output.as_mut_ptr().cast(),
                    input.len(),
                    FLOAT32,
                    ptr::null_mut(),
                )
            };
            if status == OK {
                return Ok(());
            }
            // The message first: asking for the name is a call as well.
            let message = last_error("mlxd_all_sum");
            // SAFETY: takes any number; the name is static.
            let name = unsafe { text(capi::mlxd_status_name(status)) };
            Err(format!("{message} ({name})"))
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            // SAFETY: the handle is from mlxd_init and freed once, here.
            unsafe { capi::mlxd_group_free(self.0) }
        }
    }

    /// What the failed call `name` said.
    fn last_error(name: &str) -> String {
        // SAFETY: the sentence is valid until this thread's next call, and copied before that.
        let message = unsafe { text(capi::mlxd_last_error()) };
        format!("{name} failed: {message}")
    }

    /// A copy of a C string.
    ///
    /// # Safety
    /// `pointer` is NULL or points to a C string.
    unsafe fn text(pointer: *const c_char) -> String {
        if pointer.is_null() {
            return "(nothing)".to_owned();
        }
        // SAFETY: not NULL, so a C string by this function's contract.
        unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_units() {
        assert_eq!(parse_size("4"), Ok(4));
        assert_eq!(parse_size("64K"), Ok(65536));
        assert_eq!(parse_size("1m"), Ok(1 << 20));
        assert_eq!(parse_size("2G"), Ok(2 << 30));
        for wrong in
            ["", "0", "3", "K", "-4", "1.5M", "4KB", "99999999999999999999", "9999999999999G"]
        {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn iterations_follow_the_peers() {
        assert_eq!(
            [4, 16 << 10, 64 << 10, 1 << 20, 4 << 20].map(iterations),
            [2000, 2000, 200, 200, 15]
        );
    }
}

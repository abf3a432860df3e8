//! The caller's own all-gather, by which ranks tell each other what no connection carries yet.

use std::ffi::c_void;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::AllGather;
use crate::error::{Error, Result, fail};

/// Bytes of a rank's report on how far it has come.
pub const REPORT_BYTES: usize = 1024;

/// How far a rank has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// All is well.
    Well,
    /// It does not reach another rank over TCP: why.
    OutOfReach(String),
    /// It cannot take part.
    Failed(Error),
}

impl Report {
    /// How far a rank has come that has come to this.
    pub fn of<T>(outcome: &Result<T>) -> Report {
        match outcome {
            Ok(_) => Report::Well,
            Err(e) => Report::Failed(e.clone()),
        }
    }

    /// As it travels: JSON, and zeros behind it.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(&self.cut()).unwrap_or_default();
        bytes.resize(REPORT_BYTES, 0);
        bytes
    }

    /// The same with a sentence that travels.
    pub fn cut(&self) -> Report {
        let mut report = self.clone();
        while serde_json::to_vec(&report).map_or(0, |json| json.len()) > REPORT_BYTES {
            let (Report::OutOfReach(text) | Report::Failed(Error { message: text, .. })) =
                &mut report
            else {
                break;
            };
            let shorter = text.len() * 3 / 4;
            let end = (0..=shorter).rev().find(|end| text.is_char_boundary(*end));
            text.truncate(end.unwrap_or(0));
        }
        report
    }
}

/// The all-gather of this rank's caller.
pub struct Exchange {
    all_gather: AllGather,
    rank: usize,
    size: usize,
}

impl Exchange {
    /// That of a start of so many ranks.
    pub fn new(all_gather: AllGather, rank: usize, size: usize) -> Exchange {
        Exchange { all_gather, rank, size }
    }

    /// Brings every rank's bytes to all, as many of each: in the order of ranks.
    pub fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let bytes = own.len();
        let mut all = vec![0u8; bytes * self.size];
        let (src, dst) = (own.as_ptr().cast::<c_void>(), all.as_mut_ptr().cast::<c_void>());
        let AllGather { function, user_data } = self.all_gather;
        // SAFETY: the caller of mlxd_options_set_all_gather promised a function that reads so many bytes
        // at src and writes as many for each rank at dst; both buffers are that large.
        let status = unsafe { function(user_data, src, dst, bytes) };
        if status != 0 {
            fail!(Config, "the caller's all-gather function returned {status}, not 0");
        }
        let parts: Vec<Vec<u8>> = all.chunks_exact(bytes).map(<[u8]>::to_vec).collect();
        if parts.get(self.rank).is_none_or(|part| part != own) {
            fail!(
                Config,
                "the caller's all-gather function did not bring the bytes of rank {} to its place",
                self.rank
            );
        }
        Ok(parts)
    }

    /// Tells all ranks how far this one has come: why some do not reach each other, if that is so. One
    /// that cannot take part fails the start for all.
    pub fn agree(&self, own: &Report) -> Result<Option<String>> {
        self.sum_up(own, &self.gather(&own.encode())?)
    }

    /// As [`Exchange::agree`], where what each rank gave begins with its report.
    pub fn sum_up(&self, own: &Report, all: &[Vec<u8>]) -> Result<Option<String>> {
        if let Report::Failed(e) = own {
            return Err(e.clone());
        }
        let mut why = None;
        for (rank, bytes) in all.iter().enumerate() {
            match read(&bytes[..REPORT_BYTES.min(bytes.len())], rank)? {
                Report::Well => {}
                Report::OutOfReach(cause) => {
                    why.get_or_insert(format!("rank {rank}: {cause}"));
                }
                Report::Failed(e) => return Err(e.at(format_args!("rank {rank}"))),
            }
        }
        Ok(why)
    }
}

/// What a rank gave, as JSON with zeros behind it.
pub fn read<T: DeserializeOwned>(bytes: &[u8], rank: usize) -> Result<T> {
    let json = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    match serde_json::from_slice(json) {
        Ok(told) => Ok(told),
        Err(e) => fail!(
            Config,
            "the caller's all-gather function did not bring what rank {rank} gave, or that rank has \
             another version of libmlxd: {e}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    /// Gives each rank what this one gave.
    unsafe extern "C" fn echo(
        ranks: *mut c_void,
        src: *const c_void,
        dst: *mut c_void,
        bytes: usize,
    ) -> i32 {
        for rank in 0..ranks as usize {
            // SAFETY: the buffers are as the contract of the function says.
            unsafe {
                let into = dst.cast::<u8>().add(rank * bytes);
                std::ptr::copy_nonoverlapping(src.cast::<u8>(), into, bytes);
            }
        }
        0
    }

    fn exchange(rank: usize, filled: usize) -> Exchange {
        let user_data = std::ptr::without_provenance_mut(filled);
        Exchange::new(AllGather { function: echo, user_data }, rank, 3)
    }

    #[test]
    fn words_travel_however_long_they_are() {
        let long = "ä\u{1}".repeat(2000);
        for report in [
            Report::Well,
            Report::OutOfReach("cannot connect".to_owned()),
            Report::Failed(Error::new(Status::Auth, "no")),
        ] {
            assert_eq!(read::<Report>(&report.encode(), 0), Ok(report));
        }
        let Ok(Report::OutOfReach(text)) = read(&Report::OutOfReach(long.clone()).encode(), 0)
        else {
            panic!("another report");
        };
        assert!(text.len() > 50 && long.starts_with(&text));
        let failed = Report::Failed(Error::new(Status::System, "\"".repeat(5000)));
        assert!(matches!(read(&failed.encode(), 0), Ok(Report::Failed(_))));
    }

    #[test]
    fn a_function_that_brings_something_else_is_found_out() {
        assert_eq!(exchange(2, 3).gather(&[1, 2]).unwrap(), [[1, 2]; 3]);
        let error = exchange(2, 2).gather(&[1, 2]).unwrap_err();
        assert!(error.status == Status::Config && error.message.contains("rank 2"), "{error}");
        // Zeros from the others.
        let error = exchange(0, 1).agree(&Report::Well).unwrap_err();
        assert!(error.status == Status::Config && error.message.contains("rank 1"), "{error}");
    }

    #[test]
    fn the_worst_word_counts() {
        let reports = |reports: [Report; 3]| reports.map(|report| report.encode()).to_vec();
        let out = || Report::OutOfReach("no way".to_owned());
        let failed = || Report::Failed(Error::new(Status::Config, "wrong"));
        let sum_up = |all: [Report; 3]| exchange(1, 3).sum_up(&all[1].clone(), &reports(all));
        assert_eq!(sum_up([Report::Well, Report::Well, Report::Well]), Ok(None));
        assert_eq!(
            sum_up([Report::Well, out(), Report::Well]),
            Ok(Some("rank 1: no way".to_owned()))
        );
        let error = |message: &str| Err(Error::new(Status::Config, message));
        assert_eq!(sum_up([out(), Report::Well, failed()]), error("rank 2: wrong"));
        assert_eq!(sum_up([out(), failed(), Report::Well]), error("wrong"));
    }
}

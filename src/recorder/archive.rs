//! Where the records of failed groups go: a folder with a file for each, written in the background.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::document::{Document, Failure, Identity, since_1970};
use crate::error::{Error, Result};
use crate::health::Health;
use crate::order::Order;

/// How long a failed call waits for a file that is being written.
const PATIENCE: Duration = Duration::from_secs(1);

/// Files that are still to be written.
#[derive(Debug, Default)]
pub struct Writing {
    files: Mutex<usize>,
    changed: Condvar,
}

impl Writing {
    /// Waits until all are written, or the deadline has passed.
    pub fn settle(&self, deadline: Instant) {
        let mut files = self.files.lock();
        while *files > 0 && !self.changed.wait_until(&mut files, deadline).timed_out() {}
    }

    /// One more file.
    fn begin(self: &Arc<Self>) -> Task {
        *self.files.lock() += 1;
        Task(self.clone())
    }
}

/// A file that is to be written, until this is dropped.
#[derive(Debug)]
struct Task(Arc<Writing>);

impl Drop for Task {
    fn drop(&mut self) {
        *self.0.files.lock() -= 1;
        self.0.changed.notify_all();
    }
}

/// The file that a group leaves if it fails.
#[derive(Debug, Default)]
pub struct Will {
    writing: Arc<Writing>,
    /// Until when it is waited for, once somebody waits.
    deadline: OnceLock<Instant>,
}

impl Will {
    /// Once the group has failed: waits until its file is written, but not for long, and all calls
    /// together no longer than the first.
    pub fn settle(&self) {
        let deadline = self.deadline.get_or_init(|| Instant::now() + PATIENCE);
        self.writing.settle(*deadline);
    }
}

/// The folder of MLXD_FLIGHT_RECORDER.
#[derive(Clone, Debug)]
pub struct Archive {
    folder: Arc<Path>,
    /// All that is being written in this process.
    writing: Arc<Writing>,
}

impl Archive {
    /// One in this folder, which need not be there yet; from the current one, as it is now.
    pub fn new(folder: PathBuf, writing: Arc<Writing>) -> Archive {
        let folder = std::path::absolute(&folder).unwrap_or(folder);
        Archive { folder: folder.into(), writing }
    }

    /// Writes the file of this group once it fails. The records are those of that moment, whoever
    /// finds the failure; a thread of its own writes them, for that may be the control thread.
    pub fn watch(&self, health: &Health, order: Arc<Order>, identity: Arc<Identity>) -> Will {
        let archive = self.clone();
        // To be done from now on: whoever sees the group failed may come before its witness is told.
        let will = Will::default();
        let task = will.writing.begin();
        health.on_failure(Box::new(move |cause| {
            let tasks = (task, archive.writing.begin());
            let failure = Failure::new(cause, Some(since_1970()));
            let document = Document::new(&identity, &order.progress(), Some(failure));
            let path = archive.folder.join(file_name(&identity));
            let started = crate::thread::spawn("mlxd-recorder", move || {
                if let Err(e) = archive.write(&document, &path) {
                    log::warn!("MLXD_FLIGHT_RECORDER: {e}");
                }
                drop(tasks);
            });
            if let Err(e) = started {
                log::warn!("MLXD_FLIGHT_RECORDER: {e}");
            }
        }));
        will
    }

    fn write(&self, document: &Document, path: &Path) -> Result<()> {
        match fs::create_dir(&self.folder) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                let folder = self.folder.display();
                Err(Error::system(format_args!("cannot make the folder {folder}"), e))
            }
            _ => write(document, path),
        }
    }
}

/// `mlxd-9c0f5b7a1e2d3c4b-0-rank2.json`: world, group, rank. No other start has the world's number,
/// and no other rank of it this one.
fn file_name(identity: &Identity) -> String {
    format!("mlxd-{:016x}-{:x}-rank{}.json", identity.world, identity.group, identity.rank)
}

/// Writes a file whole or not at all; one that is there is replaced.
pub fn write(document: &Document, path: &Path) -> Result<()> {
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    let text = document.text()?;
    let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(format!(".{}-{number}", std::process::id()));
    let written = fs::write(&unfinished, text).and_then(|()| fs::rename(&unfinished, path));
    written.map_err(|e| {
        // What there is of it would only be in the way; if it cannot be removed either, it stays.
        let _ = fs::remove_file(&unfinished);
        Error::system(format_args!("cannot write {}", path.display()), e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    /// A folder of this name, which is not there yet.
    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("mlxd-archive-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    fn identity() -> Arc<Identity> {
        Arc::new(Identity { world: 7, group: 1, backend: "ring", rank: 0, ranks: vec![3, 5] })
    }

    #[test]
    fn a_failed_group_leaves_one_file() {
        let folder = folder("one");
        let archive = Archive::new(folder.clone(), Arc::default());
        let health = Health::new().unwrap();
        let will = archive.watch(&health, Arc::default(), identity());
        assert!(!folder.exists());
        health.fail(Error::new(Status::Aborted, "enough"));
        health.fail(Error::new(Status::Timeout, "too late"));
        will.settle();
        let names: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["mlxd-0000000000000007-1-rank0.json"]);
        let text = fs::read(folder.join(&names[0])).unwrap();
        let document: Document = serde_json::from_slice(&text).unwrap();
        assert_eq!(document.failure.unwrap().message, "enough");
        assert_eq!(document.ranks, [3, 5]);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn one_that_ends_in_good_order_leaves_none() {
        let folder = folder("none");
        let archive = Archive::new(folder.clone(), Arc::default());
        let health = Health::new().unwrap();
        let will = archive.watch(&health, Arc::default(), identity());
        health.close(Error::new(Status::Aborted, "mlxd_finalize was called"));
        health.fail(Error::new(Status::PeerLost, "afterwards"));
        will.settle();
        assert!(!folder.exists());
    }

    #[test]
    fn one_that_has_failed_already_leaves_its_file() {
        let folder = folder("already");
        let archive = Archive::new(folder.clone(), Arc::default());
        let health = Health::new().unwrap();
        health.fail(Error::new(Status::Aborted, "early"));
        let will = archive.watch(&health, Arc::default(), identity());
        will.settle();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_cannot_be_written_is_named_and_leaves_nothing() {
        let folder = folder("refused");
        fs::create_dir_all(folder.join("taken")).unwrap();
        let document = Document::new(&identity(), &Order::default().progress(), None);
        for path in [folder.join("missing/file.json"), folder.join("taken")] {
            let error = write(&document, &path).unwrap_err();
            assert_eq!(error.status, Status::System);
            assert!(error.message.contains(&*path.to_string_lossy()), "{error}");
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_file_is_waited_for_from_the_failure_on() {
        let folder = folder("waited");
        let archive = Archive::new(folder.clone(), Arc::default());
        let health = Health::new().unwrap();
        let will = archive.watch(&health, Arc::default(), identity());
        std::thread::scope(|scope| {
            scope.spawn(|| health.fail(Error::new(Status::Aborted, "enough")));
            while health.check().is_ok() {
                std::hint::spin_loop();
            }
            will.settle();
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        });
        fs::remove_dir_all(folder).unwrap();
    }
}

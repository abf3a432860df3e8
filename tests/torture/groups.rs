//! The handles that a rank has, by the groups' numbers in the program.

use std::collections::HashMap;
use std::sync::Mutex;

use mlxd::capi::*;

/// A handle, which any thread may use.
#[derive(Clone, Copy)]
pub struct Handle(pub *mut mlxd_group);
// SAFETY: the header says so.
unsafe impl Send for Handle {}

#[derive(Default)]
struct Inner {
    handles: HashMap<usize, Handle>,
    /// What failed a group first.
    failed: HashMap<usize, mlxd_status>,
}

#[derive(Default)]
pub struct Groups(Mutex<Inner>);

impl Groups {
    pub fn insert(&self, group: usize, handle: Handle) {
        self.0.lock().unwrap().handles.insert(group, handle);
    }

    pub fn get(&self, group: usize) -> Option<*mut mlxd_group> {
        self.0.lock().unwrap().handles.get(&group).map(|handle| handle.0)
    }

    pub fn free(&self, group: usize) {
        let mut inner = self.0.lock().unwrap();
        if let Some(handle) = inner.handles.remove(&group) {
            // SAFETY: no call with it is under way, and it is not in the table any more.
            unsafe { mlxd_group_free(handle.0) };
        }
    }

    /// Remembers what failed a group; what did first.
    pub fn fail(&self, group: usize, status: mlxd_status) -> Option<mlxd_status> {
        let mut inner = self.0.lock().unwrap();
        let first = inner.failed.get(&group).copied();
        inner.failed.entry(group).or_insert(status);
        first
    }

    pub fn any_failed(&self) -> bool {
        !self.0.lock().unwrap().failed.is_empty()
    }

    /// The numbers of those that are there, in order.
    pub fn all(&self) -> Vec<usize> {
        let mut all: Vec<usize> = self.0.lock().unwrap().handles.keys().copied().collect();
        all.sort_unstable();
        all
    }
}

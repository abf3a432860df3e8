//! Memory that ranks of one host share: a memfd, mapped. It has no name anywhere, and is gone with the
//! last process that maps it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create,
};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::process::{Resource, getrlimit};

use crate::error::{Error, Result, Status};

/// A mapping; all zeros when it is new.
#[derive(Debug)]
pub struct Segment {
    base: *mut u8,
    len: usize,
}

// SAFETY: this is an address and a length; whoever uses the memory behind it sees to the order of accesses.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

/// It can neither shrink under those who map it, which would kill them, nor grow.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

impl Segment {
    /// A new one of `len` bytes, with the descriptor by which other processes map it.
    pub fn create(len: usize) -> Result<(Segment, OwnedFd)> {
        // Where files may not be that large, making one larger ends the process with a signal.
        let most = getrlimit(Resource::Fsize).current;
        if most.is_some_and(|most| most < len as u64) {
            let why = format!("a limit on the size of files (ulimit -f) is below {len} bytes");
            return Err(Error::new(Status::System, why));
        }
        let fd = memfd_create("mlxd", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(|e| Error::system("memfd_create", e))?;
        ftruncate(&fd, len as u64).map_err(|e| Error::system("ftruncate", e))?;
        fcntl_add_seals(&fd, SEALS).map_err(|e| Error::system("F_ADD_SEALS", e))?;
        Ok((Segment::map(fd.as_fd(), len)?, fd))
    }

    /// Maps what another process made with the same length.
    pub fn map(fd: impl AsFd, len: usize) -> Result<Segment> {
        let there = fstat(&fd).map_err(|e| Error::system("fstat", e))?.st_size;
        let seals = fcntl_get_seals(&fd).map_err(|e| Error::system("F_GET_SEALS", e))?;
        if there != len as i64 || !seals.contains(SEALS) {
            let why = format!("a shared segment has {there} bytes and seals {seals:?}, not {len}");
            return Err(Error::new(Status::System, why));
        }
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the system's choice touches no memory in use.
        let base = unsafe { mmap(std::ptr::null_mut(), len, access, flags, fd, 0) }
            .map_err(|e| Error::system("mmap", e))?;
        Ok(Segment { base: base.cast(), len })
    }

    /// The address of `len` bytes from `offset` on.
    ///
    /// # Panics
    /// If they are not all within the segment.
    pub fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: the offset is within the mapping.
        unsafe { self.base.add(offset) }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: whoever uses the memory keeps the segment; this is its whole mapping. It can only
        // fail if it is not mapped.
        let _ = unsafe { munmap(self.base.cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_mappings_are_the_same_memory() {
        let (one, fd) = Segment::create(8192).unwrap();
        let other = Segment::map(&fd, 8192).unwrap();
        // SAFETY: both addresses are within their mappings, which nobody else uses.
        unsafe {
            assert_eq!(other.at(5000, 1).read(), 0);
            one.at(5000, 1).write(7);
            assert_eq!(other.at(5000, 1).read(), 7);
        }
        assert_eq!(Segment::map(&fd, 4096).unwrap_err().status, Status::System);
    }

    #[test]
    fn it_cannot_shrink_under_its_users() {
        let (_segment, fd) = Segment::create(8192).unwrap();
        assert!(ftruncate(&fd, 4096).is_err());
    }
}

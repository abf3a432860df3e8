//! Memory that ranks of one host share: a memfd, mapped. It has no name anywhere, and is gone with the
//! last process that maps it; a forked child does not.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_get_seals, fstat,
    ftruncate, memfd_create,
};
use rustix::io::retry_on_intr;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use rustix::process::{Resource, getrlimit};

use crate::error::{Error, Result, Status};

/// 1 MiB: pages are reserved so many at a time, since a signal undoes what is under way.
const RESERVED_AT_ONCE: usize = 1 << 20;

/// Which memory it is, the same for all processes of a kernel, and no other's while it is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SegmentId {
    device: u64,
    inode: u64,
}

impl SegmentId {
    /// Of the memory behind this descriptor.
    pub fn of(fd: impl AsFd) -> Result<SegmentId> {
        let there = fstat(fd).map_err(|e| Error::system("fstat", e))?;
        Ok(SegmentId { device: there.st_dev, inode: there.st_ino })
    }
}

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
        if must_reserve(&std::fs::read_to_string(OVERCOMMIT).unwrap_or_default()) {
            reserve(&fd, len)?;
        }
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
        // SAFETY: this is the whole of the new mapping; the advice changes nothing in this process.
        if let Err(e) = unsafe { madvise(base, len, Advice::LinuxDontFork) } {
            log::debug!("forked children will keep a shared segment: {e}");
        }
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

/// How far the kernel goes in promising memory that it does not have.
const OVERCOMMIT: &str = "/proc/sys/vm/overcommit_memory";

/// Whether pages are to be reserved, as this setting of the kernel has it: under 2 ("never") it may
/// refuse a page that is touched, which ends the process with a signal.
fn must_reserve(overcommit: &str) -> bool {
    overcommit.trim() == "2"
}

/// Takes all pages now, which fails cleanly where they cannot be had.
fn reserve(fd: &OwnedFd, len: usize) -> Result<()> {
    for begin in (0..len).step_by(RESERVED_AT_ONCE) {
        let bytes = RESERVED_AT_ONCE.min(len - begin) as u64;
        retry_on_intr(|| fallocate(fd, FallocateFlags::empty(), begin as u64, bytes))
            .map_err(|e| Error::system(format_args!("fallocate of {len} bytes"), e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The flags of the mapping that begins there, as the kernel tells them.
    fn flags_of(segment: &Segment) -> Vec<String> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", segment.base as usize);
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
        let flags = lines.find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
        flags.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn forked_children_do_not_keep_it() {
        let (one, fd) = Segment::create(8192).unwrap();
        let other = Segment::map(&fd, 8192).unwrap();
        for segment in [&one, &other] {
            assert!(flags_of(segment).contains(&"dc".to_owned()), "{:?}", flags_of(segment));
        }
    }

    #[test]
    fn pages_are_reserved_only_where_they_may_be_refused() {
        assert!(must_reserve("2\n"));
        assert!(!must_reserve("0\n") && !must_reserve("1\n") && !must_reserve(""));
        // Neither a multiple of a page nor of what is reserved at once.
        let len = 2 * RESERVED_AT_ONCE + 4097;
        let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, len as u64).unwrap();
        assert_eq!(fstat(&fd).unwrap().st_blocks, 0);
        reserve(&fd, len).unwrap();
        let there = fstat(&fd).unwrap();
        assert!(there.st_blocks as usize * 512 >= len && there.st_size as usize == len);
        // What cannot be had is an error.
        let (_segment, fd) = Segment::create(len).unwrap();
        assert!(reserve(&fd, len).is_ok());
        let error = reserve(&fd, len + 1).unwrap_err();
        assert_eq!(error.status, Status::System);
    }

    #[test]
    fn each_has_its_own_id() {
        let ((_one, first), (_two, second)) =
            (Segment::create(8192).unwrap(), Segment::create(8192).unwrap());
        let copy = first.try_clone().unwrap();
        assert_eq!(SegmentId::of(&first), SegmentId::of(&copy));
        assert_ne!(SegmentId::of(&first), SegmentId::of(&second));
    }

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

//! Whether what is registered stays with forked children.
//!
//! Since Linux 5.12 a fork gives children copies of pages that a device uses, so that nothing need be done
//! about forks, and libibverbs says so. It nevertheless has the kernel leave such pages out of children
//! (`MADV_DONTFORK`) where anybody has called `ibv_fork_init`, or asked for it in the environment: which
//! does no harm to buffers of ours, but a child would crash at a caller's.

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::guard::page_size;
use crate::error::{Error, Result};
use crate::verbs::device::Device;
use crate::verbs::library::forks_need_nothing;
use crate::verbs::memory::Registered;

/// Whether it does. Registers one page of three: if children are to lack it, they are three mappings then.
pub fn children_keep_what_is_registered(device: &Device) -> Result<bool> {
    if !forks_need_nothing() {
        return Ok(false);
    }
    let (page, access) = (page_size(), ProtFlags::READ | ProtFlags::WRITE);
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let all = unsafe {
        mmap_anonymous(std::ptr::null_mut(), 3 * page, access, MapFlags::PRIVATE)
            .map_err(|e| Error::system("mmap of three pages", e))?
    };
    let start = all as usize;
    let whole = Registered::new(device, (start + page) as *mut u8, page).map(|_registered| {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        is_one_mapping(&maps, start, start + 3 * page)
    });
    // SAFETY: the mapping above, which nobody uses any more.
    let _ = unsafe { munmap(all, 3 * page) };
    whole
}

fn is_one_mapping(maps: &str, start: usize, end: usize) -> bool {
    let hex = |text: &str| usize::from_str_radix(text, 16).ok();
    maps.lines().any(|line| {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let Some((Some(from), Some(to))) = range.map(|(a, b)| (hex(a), hex(b))) else {
            return false;
        };
        from <= start && end <= to
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_told_apart() {
        let maps =
            "1000-4000 rw-p 00000000 00:00 0\n5000-6000 rw-p 0 00:00 0\n6000-8000 r--p 0 0:0 0\n";
        assert!(is_one_mapping(maps, 0x1000, 0x4000) && is_one_mapping(maps, 0x2000, 0x3000));
        assert!(!is_one_mapping(maps, 0x5000, 0x8000) && !is_one_mapping(maps, 0x3000, 0x5000));
        assert!(!is_one_mapping("", 0x1000, 0x2000));
    }
}

//! Memory that a device may read and write.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use rustix::process::{Resource, getrlimit};

use super::abi::{IBV_ACCESS_LOCAL_WRITE, ibv_mr, ibv_sge};
use super::device::Device;
use super::functions::Functions;
use crate::error::{Error, Result, fail};

/// A registration, whoever the memory belongs to. Whoever has it keeps its device.
pub(super) struct Registered {
    region: NonNull<ibv_mr>,
    functions: &'static Functions,
}

// SAFETY: this is an address; verbs may be called from any thread.
unsafe impl Send for Registered {}
// SAFETY: as above.
unsafe impl Sync for Registered {}

impl Registered {
    /// Registers `len` bytes. The device may write them, too: so pages that this process shares with
    /// others, or with a file, until it writes them become its own now, not later.
    pub(super) fn new(device: &Device, address: *mut u8, len: usize) -> Result<Registered> {
        let (functions, address) = (device.functions, address.cast::<c_void>());
        // SAFETY: the protection domain is there as long as the device; the kernel checks the memory.
        let region = NonNull::new(unsafe {
            (functions.reg_mr)(device.pd.as_ptr(), address, len, IBV_ACCESS_LOCAL_WRITE as c_int)
        });
        let Some(region) = region else {
            let e = std::io::Error::last_os_error();
            let limit = match getrlimit(Resource::Memlock).current {
                Some(bytes) => format!("{bytes} bytes"),
                None => "unlimited".to_owned(),
            };
            fail!(
                Backend,
                "ibv_reg_mr of {len} bytes on {}: {e} (the limit on locked memory, ulimit -l, is \
                 {limit})",
                device.name
            );
        };
        Ok(Registered { region, functions })
    }

    /// What names it in work requests.
    pub(super) fn lkey(&self) -> u32 {
        // SAFETY: the region is registered as long as this is there.
        unsafe { self.region.as_ref() }.lkey
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: registered by us, undone once; whoever has the device use it keeps this.
        unsafe { (self.functions.dereg_mr)(self.region.as_ptr()) };
    }
}

/// A mapping of our own, registered as one region. It is not passed on to forked children, so that a
/// fork never parts this process from the pages that the device uses.
pub struct Memory {
    // In this order: the device must not use memory that is gone.
    registered: Registered,
    mapping: Mapping,
    _device: Arc<Device>,
}

// SAFETY: this is addresses and a length; whoever uses the memory behind it sees to the order of accesses.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

pub(super) struct Mapping {
    pub(super) base: *mut u8,
    len: usize,
}

impl Mapping {
    pub(super) fn new(len: usize) -> Result<Mapping> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the system's choice touches no memory in use.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), len, access, MapFlags::PRIVATE) }
            .map_err(|e| Error::system(format_args!("mmap of {len} bytes"), e))?;
        // SAFETY: this is the whole of the new mapping; the advice changes nothing in this process.
        if let Err(e) = unsafe { madvise(base, len, Advice::LinuxDontFork) } {
            log::debug!("forked children will have registered memory: {e}");
        }
        Ok(Mapping { base: base.cast(), len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our whole mapping; whoever uses the memory keeps its owner.
        let _ = unsafe { munmap(self.base.cast(), self.len) };
    }
}

impl Memory {
    /// `len` new bytes, all zeros, which the device may read and write.
    pub fn register(device: &Arc<Device>, len: usize) -> Result<Memory> {
        let mapping = Mapping::new(len)?;
        let mut registered = Registered::new(device, mapping.base, len);
        if let (Err(_), Some(lender)) = (&registered, &device.lender) {
            // What is kept of callers' may have taken what the process may lock.
            lender.make_room();
            registered = Registered::new(device, mapping.base, len);
        }
        Ok(Memory { registered: registered?, mapping, _device: device.clone() })
    }

    /// The address of `len` bytes from `offset` on.
    ///
    /// # Panics
    /// If they are not all within the region.
    pub fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.mapping.len));
        // SAFETY: the offset is within the mapping.
        unsafe { self.mapping.base.add(offset) }
    }

    /// The same bytes for a work request.
    pub fn piece(&self, offset: usize, len: usize) -> ibv_sge {
        let addr = self.at(offset, len) as u64;
        ibv_sge { addr, length: len as u32, lkey: self.registered.lkey() }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.mapping.len
    }

    /// Whether there is none, which cannot be.
    pub fn is_empty(&self) -> bool {
        self.mapping.len == 0
    }
}

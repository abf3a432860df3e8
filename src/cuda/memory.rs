//! Whose memory a pointer is.

use std::ffi::{c_int, c_uint, c_void};
use std::ptr;

use cudarc::driver::sys::{CUcontext, CUpointer_attribute_enum as Attribute};

use super::context::Context;
use super::driver::Driver;
use crate::error::{Result, fail};

/// What memory is where a pointer points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The host's, out of the device's reach.
    Host,
    /// The host's, page-locked by CUDA: within the device's reach.
    Pinned,
    /// Of this device.
    Device(c_int),
    /// Managed memory, which moves to where it is used.
    Managed,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Kind::Host => f.write_str("host memory"),
            Kind::Pinned => f.write_str("pinned host memory"),
            Kind::Device(device) => write!(f, "memory of CUDA device {device}"),
            Kind::Managed => f.write_str("managed memory"),
        }
    }
}

/// `CU_MEMORYTYPE_HOST`
const HOST: c_uint = 1;

/// What the driver says of a pointer; host memory where it knows nothing.
pub fn kind_of(driver: &Driver, pointer: *const u8) -> Kind {
    let (mut memory, mut managed, mut device): (c_uint, c_uint, c_int) = (0, 0, 0);
    let mut attributes = [
        Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE as c_int,
        Attribute::CU_POINTER_ATTRIBUTE_IS_MANAGED as c_int,
        Attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL as c_int,
    ];
    let mut values: [*mut c_void; 3] =
        [(&raw mut memory).cast(), (&raw mut managed).cast(), (&raw mut device).cast()];
    // SAFETY: as many attributes as are said, each with room for its value; any address may be asked for.
    // A failure leaves the zeros.
    let code = unsafe {
        let (names, values) = (attributes.as_mut_ptr(), values.as_mut_ptr());
        (driver.functions.pointer_get_attributes)(3, names, values, pointer as u64)
    };
    // A bool may be written as one byte.
    match (code, memory, managed & 0xff) {
        (0, 1.., 1..) => Kind::Managed,
        (0, HOST, 0) => Kind::Pinned,
        (0, 1.., 0) => Kind::Device(device),
        _ => Kind::Host,
    }
}

/// The context of memory that is the device's or managed.
pub fn device_of(driver: &'static Driver, pointer: *const u8) -> Result<Context> {
    let (mut raw, mut device): (CUcontext, c_int) = (ptr::null_mut(), 0);
    let mut attributes = [
        Attribute::CU_POINTER_ATTRIBUTE_CONTEXT as c_int,
        Attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL as c_int,
    ];
    let mut values: [*mut c_void; 2] = [(&raw mut raw).cast(), (&raw mut device).cast()];
    // SAFETY: as in `kind_of`.
    let code = unsafe {
        let (names, values) = (attributes.as_mut_ptr(), values.as_mut_ptr());
        (driver.functions.pointer_get_attributes)(2, names, values, pointer as u64)
    };
    driver.check("cuPointerGetAttributes", code)?;
    if !raw.is_null() {
        // SAFETY: the driver says so, and who owns the memory keeps its context.
        return Ok(unsafe { Context::borrowed(driver, raw, device) });
    }
    // From a pool, which belongs to a device but to no context.
    let Ok(device) = usize::try_from(device) else {
        fail!(InvalidArgument, "the driver knows no device for this memory");
    };
    Context::primary(driver, device)
}

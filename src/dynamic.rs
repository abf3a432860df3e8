//! Shared libraries that are opened when they are asked for, and tables of their functions.

use std::ffi::{CStr, c_int, c_void};

/// An opened library; never closed, since the vendors' leave threads and exit handlers behind.
#[derive(Clone, Copy, Debug)]
pub struct Handle(*mut c_void);

// SAFETY: what the loader hands out may be used by any thread.
unsafe impl Send for Handle {}
// SAFETY: likewise.
unsafe impl Sync for Handle {}

/// Opens a library, its symbols for us alone, with these flags beside.
pub fn open(name: &CStr, flags: c_int) -> Option<Handle> {
    let flags = libc::RTLD_NOW | libc::RTLD_LOCAL | flags;
    // SAFETY: a string that ends with NUL; what the file's constructors do is the user's choice.
    let handle = unsafe { libc::dlopen(name.as_ptr(), flags) };
    (!handle.is_null()).then_some(Handle(handle))
}

/// The program itself, with what it was linked with.
pub fn program() -> Option<Handle> {
    // SAFETY: NULL stands for the program.
    let handle = unsafe { libc::dlopen(std::ptr::null(), libc::RTLD_NOW) };
    (!handle.is_null()).then_some(Handle(handle))
}

/// What the loader says about the last failure of this thread.
pub fn last_error() -> String {
    // SAFETY: dlerror returns NULL or a string of this thread, copied before its next call.
    unsafe {
        let text = libc::dlerror();
        if text.is_null() {
            return "unknown reason".to_owned();
        }
        CStr::from_ptr(text).to_string_lossy().into_owned()
    }
}

/// How many libraries were ever loaded into this process.
pub fn loads() -> u64 {
    unsafe extern "C" fn first(
        info: *mut libc::dl_phdr_info,
        _size: usize,
        loads: *mut c_void,
    ) -> c_int {
        // SAFETY: the loader describes a library, and passes the address below on.
        unsafe { *loads.cast::<u64>() = (*info).dlpi_adds };
        // All say the same.
        1
    }
    let mut loads = 0u64;
    // SAFETY: the function only reads what it is given, and writes to a word of ours.
    unsafe { libc::dl_iterate_phdr(Some(first), (&raw mut loads).cast()) };
    loads
}

impl Handle {
    /// The address of a symbol.
    pub fn find(self, symbol: &CStr) -> Option<*mut c_void> {
        // SAFETY: the handle came from dlopen and is never closed.
        let address = unsafe { libc::dlsym(self.0, symbol.as_ptr()) };
        (!address.is_null()).then_some(address)
    }
}

/// Declares a table of C functions: `field = "symbol"(argument types) -> result;`. Without a result they
/// return an `int`: a code that this library does not know stays a number, where an enum would be
/// undefined behaviour.
macro_rules! table {
    (@result) => { std::ffi::c_int };
    (@result $result:ty) => { $result };
    ($(#[$doc:meta])* $table:ident {
        $($field:ident = $symbol:literal($($argument:ty),* $(,)?) $(-> $result:ty)?;)*
    }) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $table {$(
            #[doc = concat!("`", $symbol, "`")]
            pub $field: unsafe extern "C" fn($($argument),*)
                -> $crate::dynamic::table!(@result $($result)?),
        )*}

        impl $table {
            /// Each function's symbol and the types of its arguments, for comparison with a header.
            pub const SIGNATURES: &[(&str, &[&str])] = &[$(
                ($symbol, &[$(stringify!($argument)),*]),
            )*];

            /// Looks each up; the symbol that is missing, if one is.
            ///
            /// # Safety
            /// The library's functions of these names have these signatures.
            pub unsafe fn load(
                library: $crate::dynamic::Handle,
            ) -> std::result::Result<$table, &'static str> {
                Ok($table {$(
                    $field: {
                        const SYMBOL: &std::ffi::CStr = match std::ffi::CStr::from_bytes_with_nul(
                            concat!($symbol, "\0").as_bytes(),
                        ) {
                            Ok(symbol) => symbol,
                            Err(_) => panic!("a symbol has no NUL in it"),
                        };
                        let address = library.find(SYMBOL).ok_or($symbol)?;
                        // SAFETY: the caller vouches for the signature.
                        unsafe {
                            std::mem::transmute::<
                                *mut std::ffi::c_void,
                                unsafe extern "C" fn($($argument),*)
                                    -> $crate::dynamic::table!(@result $($result)?),
                            >(address)
                        }
                    },
                )*})
            }
        }
    };
}
pub(crate) use table;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_opened_found_and_counted() {
        let libc = open(c"libc.so.6", libc::RTLD_NOLOAD).unwrap();
        assert!(libc.find(c"malloc").is_some() && libc.find(c"no_such_function").is_none());
        assert!(open(c"libno-such-library.so", 0).is_none());
        assert!(last_error().contains("libno-such-library.so"));
        assert!(loads() > 0);
    }
}

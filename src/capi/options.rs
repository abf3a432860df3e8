//! Options: settings that win over the environment.

use std::ffi::{c_char, c_void};

use super::{guard, guard_value, mlxd_status, text};
use crate::config::{AllGather, Settings};
use crate::error::fail;

/// Settings for mlxd_init_with_options(), each named like the environment variable that it
/// overrides.
pub struct mlxd_options(Settings);

impl mlxd_options {
    /// The settings.
    pub(super) fn settings(&self) -> &Settings {
        &self.0
    }
}

/// A way of the caller's own to gather `bytes` bytes from every rank: `src` has this rank's, `dst`
/// has room for `size * bytes` and gets them all in rank order. Both belong to the library and are
/// valid during the call only. Returns 0 on success; whatever else fails the start with
/// MLXD_ERROR_CONFIG. Called by mlxd_init_with_options() only, on its thread, by all ranks alike and
/// equally often: once on "ring" and "nccl", up to six times on "jaccl", with the same `bytes` on all
/// ranks, and others from call to call. May block; on "jaccl" that does not count towards
/// MLXD_CONNECT_TIMEOUT_MS. Where it fails on one rank, it must on all; a rank that dies, or whose
/// settings are wrong (on "jaccl": do not tell it how many ranks there are), leaves the others in it,
/// so it should have a limit of its own. Must return: neither longjmp() nor a C++ exception may leave it.
pub type mlxd_all_gather_fn = Option<
    unsafe extern "C" fn(
        user_data: *mut c_void,
        src: *const c_void,
        dst: *mut c_void,
        bytes: usize,
    ) -> i32,
>;

/// Empty options, to be freed with mlxd_options_free(). NULL on error. One thread at a time may use
/// them; never blocks.
#[unsafe(no_mangle)]
pub extern "C" fn mlxd_options_new() -> *mut mlxd_options {
    guard_value(std::ptr::null_mut(), || {
        Ok(Box::into_raw(Box::new(mlxd_options(Settings::default()))))
    })
}

/// Sets one option, or sets it anew. The name is that of an environment variable, such as
/// "MLXD_TIMEOUT_MS"; both strings are copied. A value is checked when it is used; "" is as if
/// neither the option nor the variable were set. One thread at a time; never blocks.
///
/// - MLXD_ERROR_INVALID_ARGUMENT: a pointer is NULL, a string is not UTF-8, or there is no setting
///   of this name. Nothing was set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_options_set(
    options: *mut mlxd_options,
    name: *const c_char,
    value: *const c_char,
) -> mlxd_status {
    guard(|| {
        // SAFETY: NULL, or from mlxd_options_new and not in use elsewhere, as the header asks.
        let Some(options) = (unsafe { options.as_mut() }) else {
            fail!(InvalidArgument, "options is NULL");
        };
        // SAFETY: the header asks for strings.
        let (name, value) = unsafe { (text(name, "name")?, text(value, "value")?) };
        options.0.set(name, value)
    })
}

/// Lets the ranks find each other through the caller's own all-gather instead of a coordinator's
/// address: with MLXD_RANK and MLXD_WORLD_SIZE, rank 0 listens at a free port and `fn` brings its
/// addresses to the others; "jaccl" takes the number of ranks from MLX_IBV_DEVICES instead, and
/// starts also where the ranks do not reach each other over TCP: then over their devices alone, which
/// is logged (MLXD_LOG=warn). To find out takes up to a third of MLXD_CONNECT_TIMEOUT_MS and at most
/// 10 s where rank 0 is out of reach; the rest of it too, where only others are from each other.
/// In such a world a rank that is gone is missed only by those who wait in a call, and, over
/// MLXD_RDMA_QP=uc, only by their limits. What keeps one rank from a start on "jaccl", the others are told.
/// `user_data` is passed on as it is; both must stay valid until the options have been freed. Wins
/// over every other way to start. One thread at a time; never blocks, and does not call `fn`.
///
/// - MLXD_ERROR_INVALID_ARGUMENT: `options` or `fn` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_options_set_all_gather(
    options: *mut mlxd_options,
    r#fn: mlxd_all_gather_fn,
    user_data: *mut c_void,
) -> mlxd_status {
    guard(|| {
        // SAFETY: NULL, or from mlxd_options_new and not in use elsewhere, as the header asks.
        let Some(options) = (unsafe { options.as_mut() }) else {
            fail!(InvalidArgument, "options is NULL");
        };
        let Some(function) = r#fn else {
            fail!(InvalidArgument, "fn is NULL");
        };
        options.0.set_all_gather(AllGather { function, user_data });
        Ok(())
    })
}

/// Frees options, once; groups that were made with them keep what they need. NULL: does nothing.
/// Any thread, while no other uses them; never blocks. Leaves mlxd_last_status() as it is.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_options_free(options: *mut mlxd_options) {
    if !options.is_null() {
        // SAFETY: it came from mlxd_options_new, and the header asks that it is not used again.
        drop(unsafe { Box::from_raw(options) });
    }
}

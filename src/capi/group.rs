//! Groups: who is in them, parts of them, and their end.

use std::ffi::c_char;
use std::sync::Arc;

use super::{Handle, guard, guard_value, mlxd_status, text};
use crate::error::{Result, fail};
use crate::group::Group;
use crate::process;

/// Ranks that compute together, as one of them sees them. Any thread may use a handle; operations
/// of different groups go on beside each other. Must not be used after mlxd_group_free(). In a
/// forked child, the handles of the parent are invalid arguments.
pub struct mlxd_group {
    _private: [u8; 0],
}

impl mlxd_group {
    /// The group of a handle.
    ///
    /// # Safety
    /// `group` is NULL, or a handle that was not freed.
    pub(super) unsafe fn get<'a>(group: *const mlxd_group) -> Result<&'a Arc<Group>> {
        // SAFETY: handles of groups are made by `mlxd_group::handle` only.
        unsafe { Handle::<Arc<Group>>::get(group.cast(), "group") }
    }
}

/// This process's rank in the group, 0 to size - 1; -1 on error, MLXD_ERROR_INVALID_ARGUMENT: a
/// NULL handle or one of the process that forked this one. Known also after the group has failed.
/// Any thread; never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_group_rank(group: *const mlxd_group) -> i32 {
    // SAFETY: the header asks for a handle or NULL.
    guard_value(-1, || Ok(unsafe { mlxd_group::get(group) }?.rank() as i32))
}

/// The number of ranks in the group, at least 1; -1 on error, as mlxd_group_rank(). Known also
/// after the group has failed. Any thread; never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_group_size(group: *const mlxd_group) -> i32 {
    // SAFETY: the header asks for a handle or NULL.
    guard_value(-1, || Ok(unsafe { mlxd_group::get(group) }?.size() as i32))
}

/// What the group runs on: "ring", "mpi", "nccl", "jaccl", or "none" for a process that has nothing
/// to start from. NULL on error, as mlxd_group_rank(). The library owns the string for good. Any
/// thread; never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_group_backend(group: *const mlxd_group) -> *const c_char {
    guard_value(std::ptr::null(), || {
        // SAFETY: the header asks for a handle or NULL.
        let name = match unsafe { mlxd_group::get(group) }?.name() {
            "none" => c"none",
            "ring" => c"ring",
            "mpi" => c"mpi",
            "nccl" => c"nccl",
            "jaccl" => c"jaccl",
            other => fail!(Internal, "a backend named {other}"),
        };
        Ok(name.as_ptr())
    })
}

/// Makes new groups of the group's ranks: those that pass the same colour share one. All ranks of
/// `group` must call it; it takes its place in the order of the group's collectives.
///
/// Ranks are ordered by `key`, ties by their rank in `group`; a negative key is replaced by that
/// rank. Colour -1: this rank joins no group, `*out` is NULL and the status MLXD_OK. The new group
/// owns its connections, may be used beside its parent, outlives it, and has the parent's timeout.
/// It fails when one of its ranks is lost, but not when its parent fails for another reason.
///
/// `*out` is written only on success; it is a new handle, to be freed with mlxd_group_free(). Any
/// thread; blocks until all ranks have called, and until the collectives that this rank called
/// before have run, those on streams too.
///
/// - MLXD_ERROR_INVALID_ARGUMENT: a pointer is NULL, the handle is of the process that forked this
///   one, or the colour is below -1. Nothing was done.
/// - MLXD_ERROR_TIMEOUT, MLXD_ERROR_PEER_LOST, MLXD_ERROR_ABORTED, MLXD_ERROR_MISMATCH,
///   MLXD_ERROR_SYSTEM, MLXD_ERROR_BACKEND: as for mlxd_all_sum(). The parent has failed, unless it was only
///   the memory for the new group's ranks to share, or on nccl its communicator, that could not be had.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_group_split(
    group: *mut mlxd_group,
    color: i32,
    key: i32,
    out: *mut *mut mlxd_group,
) -> mlxd_status {
    guard(|| {
        // SAFETY: the header asks for a handle or NULL.
        let group = unsafe { mlxd_group::get(group) }?;
        if out.is_null() {
            fail!(InvalidArgument, "out is NULL");
        }
        let handle = match group.split(color, key)? {
            Some(part) => mlxd_group::handle(process::current()?.adopt(part))?,
            None => std::ptr::null_mut(),
        };
        // SAFETY: not NULL, and the header asks for room for one pointer.
        unsafe { out.write(handle) };
        Ok(())
    })
}

/// Sets how long each operation of this group that is called from now on, receives included, may go
/// without progress, in milliseconds; 0: no limit. The limit counts from when the operation starts
/// to run, and holds for all handles of the group in this process; other ranks have their own.
/// Without it, operations have MLXD_TIMEOUT_MS and receives MLXD_RECV_TIMEOUT_MS. On mpi there is
/// none by default, and operations with a limit meet only those with one: set it on all ranks, at the
/// same place among the group's operations. They run on memory of the library's own. Any thread; never
/// blocks.
///
/// - MLXD_ERROR_INVALID_ARGUMENT: NULL handle, or one of the process that forked this one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_group_set_timeout(
    group: *mut mlxd_group,
    milliseconds: u64,
) -> mlxd_status {
    guard(|| {
        // SAFETY: the header asks for a handle or NULL.
        unsafe { mlxd_group::get(group) }?.set_timeout(milliseconds);
        Ok(())
    })
}

/// MLXD_OK while the group works, or what failed it, with mlxd_last_error() saying more: the same
/// status that every operation on it returns from then on. A failure on another rank is known here
/// within moments, without another call. Any thread; never blocks, but for what mlxd_group_abort()
/// says of mpi.
///
/// - MLXD_ERROR_INVALID_ARGUMENT: NULL handle, or one of the process that forked this one.
/// - MLXD_ERROR_TIMEOUT, MLXD_ERROR_PEER_LOST, MLXD_ERROR_ABORTED, MLXD_ERROR_MISMATCH,
///   MLXD_ERROR_SYSTEM: what failed the group, as for mlxd_all_sum().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_group_status(group: *const mlxd_group) -> mlxd_status {
    // SAFETY: the header asks for a handle or NULL.
    guard(|| unsafe { mlxd_group::get(group) }?.status())
}

/// Fails the group on all its ranks: calls that wait in it, on whatever rank, return
/// MLXD_ERROR_ABORTED within a second, and so does every later call. Groups made from it by
/// mlxd_group_split(), and its parent, work on. On mpi, calls that wait without a limit wait on, and
/// only later ones fail. The handle must be freed nevertheless. MLXD_OK also
/// if the group has failed already, whose status then stays. Any thread, also while others wait in
/// the group; not from a signal handler itself. Never blocks, but on mpi where one thread makes all
/// calls (MPI grants less than MPI_THREAD_MULTIPLE) and is in a split of another group.
///
/// - MLXD_ERROR_INVALID_ARGUMENT: NULL handle, or one of the process that forked this one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_group_abort(group: *mut mlxd_group) -> mlxd_status {
    guard(|| {
        // SAFETY: the header asks for a handle or NULL.
        unsafe { mlxd_group::get(group) }?.abort();
        Ok(())
    })
}

/// Writes what this rank knows of the group to a file, for when something hangs: its last 256
/// operations with their sequence number, count, dtype, root or peers, state and times, how many it
/// has called in all, and what failed the group, as JSON. `path` names the file, which is replaced
/// as a whole. `mlxd-inspect` compares the files of all ranks and says who is behind and in what.
/// With MLXD_FLIGHT_RECORDER each rank writes such a file by itself when a group fails. Any thread,
/// at any time: also while other threads wait in the group, which it does not wait for, and after it
/// has failed. Blocks for the file alone.
///
/// - MLXD_ERROR_INVALID_ARGUMENT: a pointer is NULL, `path` is not UTF-8 or empty, or the handle is
///   of the process that forked this one.
/// - MLXD_ERROR_SYSTEM: the file cannot be written. The group works on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_group_dump(
    group: *mut mlxd_group,
    path: *const c_char,
) -> mlxd_status {
    guard(|| {
        // SAFETY: the header asks for a handle or NULL.
        let group = unsafe { mlxd_group::get(group) }?;
        // SAFETY: the header asks for a string.
        match unsafe { text(path, "path") }? {
            "" => fail!(InvalidArgument, "path is empty: it names the file to write"),
            path => group.dump(path.as_ref()),
        }
    })
}

/// Frees a handle, once; NULL, or a handle of the process that forked this one: does nothing. The
/// last handle of a world says goodbye to its other ranks, once the groups split from it are freed
/// too. Operations on streams keep the group until they have run. Any thread, while no other is in
/// a call with this handle. Waits for no other rank; over RDMA the last handle of a world waits up to
/// 3 s for messages on their way, and 10 s for a device that does not give memory back. Leaves
/// mlxd_last_status() as it is.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_group_free(group: *mut mlxd_group) {
    // SAFETY: the header asks for a handle that is not used again, or NULL; handles of groups are
    // made by `mlxd_group::handle` only.
    let _ = crate::thread::quietly(|| unsafe { Handle::<Arc<Group>>::free(group.cast()) });
}

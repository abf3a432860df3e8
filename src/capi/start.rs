//! How a program joins a world and leaves it.

use std::ffi::c_char;
use std::sync::Arc;

use super::{guard, guard_value, mlxd_group, mlxd_options, mlxd_truth, text};
use crate::config::Settings;
use crate::error::{Result, fail};
use crate::group::Group;
use crate::process;
use crate::registry::Name;
use crate::start;

/// Whether this backend could be started here: "ring", "mpi", "nccl", "jaccl", or "any" (also NULL)
/// for one of them. False for a name that is none, with MLXD_ERROR_INVALID_ARGUMENT as
/// mlxd_last_status(). Says nothing about the settings that a start needs. Any thread; may load the
/// backend's library, waits for no other rank. Asking for "nccl" initialises CUDA, which processes that are
/// forked later cannot use then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_is_available(backend: *const c_char) -> bool {
    // SAFETY: the header asks for NULL or a string.
    guard_value(false, || Ok(start::is_available(unsafe { name(backend) }?)))
}

/// The world of this process on a backend: "ring", "mpi", "nccl", "jaccl", or "any" (also NULL) for
/// the first of nccl, ring, mpi, jaccl that there are settings for.
///
/// The first success on a backend is kept under its name and, if it is the first of all, under
/// "any"; later calls return that same world. A world that failed or whose last handle was freed is
/// not kept, so that the next call starts a new one, as all its ranks must. Each call returns a new
/// handle, to be freed once with mlxd_group_free().
///
/// Settings come from the environment; mlxd_options_set() names them like its variables. If there
/// is nothing to start from, the result is a group of one rank on backend "none", which is not
/// kept, or with `strict` NULL. Settings that are there but wrong give NULL in both modes, and so
/// do variables that announce a world of more than one which no backend could start.
///
/// "mpi" asks MPI who the other ranks are, initialising it if the program has not; "any" takes it
/// only in a process that an MPI launcher started. "jaccl" starts from MLX_IBV_DEVICES, MLX_RANK and
/// MLX_JACCL_COORDINATOR, as MLX does. "nccl" is for GPUs: it uses the calling thread's current CUDA
/// device; if there is none, it chooses one by LOCAL_RANK or the rank's number on its machine, and
/// makes that the thread's current one. "any" takes it only if NCCL_HOST_IP and NCCL_PORT are set,
/// and a device is there.
///
/// Blocks until all ranks have come, at most MLXD_CONNECT_TIMEOUT_MS (on nccl, if that is not set, at most
/// MLX_NCCL_TIMEOUT, or 5 minutes). Any thread; calls that start worlds run one after the other.
///
/// NULL on error, with mlxd_last_status() and mlxd_last_error():
///
/// - MLXD_ERROR_INVALID_ARGUMENT: no backend of that name.
/// - MLXD_ERROR_UNSUPPORTED: MPI has ended, belongs to the process that forked this one, or has failed
///   a start that not all ranks came to in time, which cannot be repeated; on nccl, the current CUDA
///   context is not its device's primary one.
/// - MLXD_ERROR_UNAVAILABLE: its library or device is not here (`strict` only, or where other ranks
///   were told so by the caller's all-gather); the port of an RDMA device is down, or has no address.
/// - MLXD_ERROR_CONFIG: a setting is missing, malformed, differs between ranks, or names an address
///   that cannot be listened at; MLXD_TRANSPORT is shm and the ranks are on several hosts; the MPI
///   library is not the launcher's; the file of RDMA devices has no mesh and no ring, or names a
///   device that is not here.
/// - MLXD_ERROR_TIMEOUT: ranks did not come; the message names them.
/// - MLXD_ERROR_AUTH: MLXD_SECRET differs between ranks.
/// - MLXD_ERROR_PEER_LOST: a rank was lost during the start.
/// - MLXD_ERROR_ABORTED: a rank that was ready earlier has called mlxd_group_abort() already.
/// - MLXD_ERROR_SYSTEM: a socket, a thread, or (if MLXD_TRANSPORT is shm) shared memory could not be
///   made.
/// - MLXD_ERROR_BACKEND: MPI, CUDA, NCCL or libibverbs reported an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_init(strict: mlxd_truth, backend: *const c_char) -> *mut mlxd_group {
    guard_value(std::ptr::null_mut(), || {
        // SAFETY: the header asks for NULL or a string.
        let name = unsafe { name(backend) }?;
        mlxd_group::handle(start::init(strict != 0, name, &Settings::default())?)
    })
}

/// Starts a world with these options, whatever worlds there are already: unlike mlxd_init() it
/// neither returns a world that was kept nor keeps the new one. The options are only read, and may
/// be freed or changed afterwards, but not meanwhile. Calls of different threads may run beside
/// each other. For the rest, blocking and statuses too, as mlxd_init().
///
/// - MLXD_ERROR_INVALID_ARGUMENT also if `options` is NULL.
/// - MLXD_ERROR_CONFIG also if the function of mlxd_options_set_all_gather() fails.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_init_with_options(
    strict: mlxd_truth,
    backend: *const c_char,
    options: *const mlxd_options,
) -> *mut mlxd_group {
    guard_value(std::ptr::null_mut(), || {
        // SAFETY: the header asks for NULL or a string.
        let name = unsafe { name(backend) }?;
        // SAFETY: NULL, or from mlxd_options_new and not in use elsewhere, as the header asks.
        let Some(options) = (unsafe { options.as_ref() }) else {
            fail!(InvalidArgument, "options is NULL");
        };
        mlxd_group::handle(start::start_new(strict != 0, name, options.settings())?)
    })
}

/// Says goodbye to the other ranks of every world and forgets the worlds. Groups whose handles are
/// still out answer MLXD_ERROR_ABORTED, also to calls that are waiting; the handles must be freed
/// nevertheless. A later mlxd_init() starts a new world, but for MPI: if the library initialised it,
/// it ends it here, which waits for all ranks, and MPI cannot be started again.
///
/// A normal end of the process does the same. A rank that leaves after its part is done fails
/// nobody; whoever still needs bytes from it gets MLXD_ERROR_PEER_LOST. Returns nothing, but sets
/// mlxd_last_status(). Any thread; blocks for moments, MPI aside; some seconds
/// for each world whose devices do not answer, or while calls of vendors' libraries are under way. In
/// a forked child it does nothing to the worlds of the parent.
#[unsafe(no_mangle)]
pub extern "C" fn mlxd_finalize() {
    guard(|| process::current().map(process::Process::finalize));
}

/// The backend that a string names; NULL is "any".
///
/// # Safety
/// `backend` is NULL or a string that ends with a NUL.
unsafe fn name(backend: *const c_char) -> Result<Name> {
    if backend.is_null() {
        return Ok(Name::Any);
    }
    // SAFETY: as this function's contract says.
    unsafe { text(backend, "backend") }?.parse()
}

impl mlxd_group {
    /// A new handle of a group.
    pub(super) fn handle(group: Arc<Group>) -> Result<*mut mlxd_group> {
        Ok(super::Handle::new(group)?.cast())
    }
}

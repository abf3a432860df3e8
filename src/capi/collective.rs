//! Collectives and messages.

use std::ffi::c_void;

use super::{dtype, guard, mlxd_dtype, mlxd_group, mlxd_status, mlxd_stream};
use crate::backend::Collective;
use crate::call::Verb;
use crate::error::Result;
use crate::group::{Request, Side};

/// Submits a request, whose dtype is checked after the group.
///
/// # Safety
/// The handles are NULL or were not freed; the request's memory is as the header describes.
unsafe fn submit(
    group: *mut mlxd_group,
    stream: *mut mlxd_stream,
    request: impl FnOnce() -> Result<Request>,
) -> mlxd_status {
    // SAFETY: as this function's contract says.
    guard(|| unsafe {
        let group = mlxd_group::get(group)?;
        group.submit(request()?, mlxd_stream::get(stream)?)
    })
}

/// The common form of the collectives.
///
/// # Safety
/// As for [`submit`].
#[allow(clippy::too_many_arguments)]
unsafe fn collective(
    verb: Verb,
    group: *mut mlxd_group,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    number: mlxd_dtype,
    root: i32,
    stream: *mut mlxd_stream,
) -> mlxd_status {
    // SAFETY: as this function's contract says.
    unsafe {
        submit(group, stream, || {
            Ok(Request::Collective(Collective {
                verb,
                dtype: dtype(number)?,
                count,
                root,
                input: input.cast(),
                output: output.cast(),
            }))
        })
    }
}

/// output[i] = the sum of input[i] over all ranks, for `count` elements; every rank gets the same
/// bytes. `input` and `output` hold `count` elements each. In place: `input == output`; any other
/// overlap is an invalid argument.
///
/// What follows holds for every operation below; `size` and `rank` are mlxd_group_size() and
/// mlxd_group_rank().
///
/// *Order.* All ranks of the group call the same collectives in the same order, with the same
/// count, dtype and root. They run in the order in which this rank called them, whatever threads
/// and streams they come from. Groups go on beside each other.
///
/// *Buffers.* They are the caller's, aligned or not (on nccl, to the size of an element): host memory, or on
/// nccl memory of the group's CUDA device, managed memory, or what CUDA has page-locked. `count == 0` needs none: they may be NULL.
/// Sizes in bytes may be 2 GiB and more. `input` is only read; nothing else may write to it, nor
/// use `output`, while the operation goes on. After a failure the contents of `output` are
/// undefined.
///
/// *Blocking.* With `stream` NULL the call blocks until `output` is complete and `input` may be
/// reused: this rank's part is done then, that of others perhaps not. With a stream it returns once
/// its arguments were checked; the buffers then belong to the library until
/// mlxd_stream_synchronize() or mlxd_stream_free() has returned, and what goes wrong is returned by
/// mlxd_stream_synchronize(); for a CUDA stream see mlxd_stream_from_cuda(). No call returns while anything can still touch its buffers, after a
/// failure too.
///
/// *Threads.* Any thread may call, several at once too; where the order of two calls matters, the
/// threads must see to it themselves. On mpi, in a program that initialised MPI itself below
/// MPI_THREAD_MULTIPLE, only the thread that did so may call, without a stream.
///
/// *MPI* ends the whole job when a rank dies; compares the calls of ranks only with MLXD_CHECK=1,
/// messages aside; and waits without a limit unless one is set.
///
/// *NCCL* computes in its own order and precision where it knows the type, and a NaN may lose in max and min;
/// it compares the calls of ranks only where they wait for each other, or with MLXD_CHECK=1. All operations of
/// a group, messages too, run one after the other. With `stream` NULL they run after what is on CUDA's
/// legacy default stream.
///
/// - MLXD_ERROR_INVALID_ARGUMENT: group or buffer is NULL, a handle is of the process that forked
///   this one, the dtype is unknown, there are more bytes than memory can hold, buffers overlap or are
///   not memory that the group works on, or the stream is a CUDA stream and the group not on nccl, or on
///   another device. Nothing was done and the group works on.
/// - MLXD_ERROR_UNSUPPORTED: on mpi, this thread or a stream's may not call MPI. Likewise.
///
/// All others fail the group on all its ranks for good; each later call on it returns the same
/// status.
///
/// - MLXD_ERROR_TIMEOUT: no progress for as long as MLXD_TIMEOUT_MS or mlxd_group_set_timeout()
///   allows.
/// - MLXD_ERROR_PEER_LOST: a rank died, left or fell silent; the message names it.
/// - MLXD_ERROR_ABORTED: mlxd_group_abort() was called on some rank, or mlxd_finalize() on this
///   one.
/// - MLXD_ERROR_MISMATCH: ranks called different things; the message names both.
/// - MLXD_ERROR_SYSTEM: a call to the operating system failed, there is no memory for scratch space, or
///   a checksum was wrong (MLXD_CHECKSUM); the message says between which ranks, and where.
/// - MLXD_ERROR_BACKEND: MPI, CUDA, NCCL or an RDMA device reported an error; the message has its
///   words.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_all_sum(
    group: *mut mlxd_group,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: mlxd_dtype,
    stream: *mut mlxd_stream,
) -> mlxd_status {
    // SAFETY: the header asks for what `collective` asks for.
    unsafe { collective(Verb::AllSum, group, input, output, count, dtype, -1, stream) }
}

/// output[i] = the greatest input[i] of all ranks, for `count` elements; every rank gets the same
/// bytes. NaN wins. `input` and `output` hold `count` elements each. In place: `input == output`;
/// any other overlap is an invalid argument. Order, buffers, blocking, threads and statuses as for
/// mlxd_all_sum().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_all_max(
    group: *mut mlxd_group,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: mlxd_dtype,
    stream: *mut mlxd_stream,
) -> mlxd_status {
    // SAFETY: the header asks for what `collective` asks for.
    unsafe { collective(Verb::AllMax, group, input, output, count, dtype, -1, stream) }
}

/// output[i] = the least input[i] of all ranks, for `count` elements; every rank gets the same
/// bytes. NaN wins. `input` and `output` hold `count` elements each. In place: `input == output`;
/// any other overlap is an invalid argument. Order, buffers, blocking, threads and statuses as for
/// mlxd_all_sum().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_all_min(
    group: *mut mlxd_group,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: mlxd_dtype,
    stream: *mut mlxd_stream,
) -> mlxd_status {
    // SAFETY: the header asks for what `collective` asks for.
    unsafe { collective(Verb::AllMin, group, input, output, count, dtype, -1, stream) }
}

/// output[r * count + i] = input[i] of rank r, for each rank r and i below `count`. `input` holds
/// `count` elements, `output` `size * count`. In place: `input == output + rank * count` elements;
/// any other overlap is an invalid argument. Order, buffers, blocking, threads and statuses as for
/// mlxd_all_sum().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_all_gather(
    group: *mut mlxd_group,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: mlxd_dtype,
    stream: *mut mlxd_stream,
) -> mlxd_status {
    // SAFETY: the header asks for what `collective` asks for.
    unsafe { collective(Verb::AllGather, group, input, output, count, dtype, -1, stream) }
}

/// output[i] = the sum of input[rank * count / size + i] over all ranks, for i below
/// `count / size`: each rank gets its block of the sum. `input` holds `count` elements, a multiple
/// of `size`, `output` `count / size`. In place: `output == input + rank * count / size` elements,
/// and what the rest of `input` holds is undefined then; any other overlap is an invalid argument.
/// Order, buffers, blocking, threads and statuses as for mlxd_all_sum().
///
/// - MLXD_ERROR_INVALID_ARGUMENT also if `count` is not a multiple of `size`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_sum_scatter(
    group: *mut mlxd_group,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: mlxd_dtype,
    stream: *mut mlxd_stream,
) -> mlxd_status {
    // SAFETY: the header asks for what `collective` asks for.
    unsafe { collective(Verb::SumScatter, group, input, output, count, dtype, -1, stream) }
}

/// output[r * count / size + i] = input[rank * count / size + i] of rank r, for each rank r and i
/// below `count / size`: block j of rank i becomes block i of rank j. `input` and `output` hold
/// `count` elements each, a multiple of `size`. Not in place: any overlap is an invalid argument.
/// Order, buffers, blocking, threads and statuses as for mlxd_all_sum().
///
/// - MLXD_ERROR_INVALID_ARGUMENT also if `count` is not a multiple of `size`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_all_to_all(
    group: *mut mlxd_group,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: mlxd_dtype,
    stream: *mut mlxd_stream,
) -> mlxd_status {
    // SAFETY: the header asks for what `collective` asks for.
    unsafe { collective(Verb::AllToAll, group, input, output, count, dtype, -1, stream) }
}

/// buffer[i] of rank `root` becomes buffer[i] of every rank, for `count` elements. `buffer` holds
/// `count` elements; it is only read on rank `root`, and the output on the others. Order, blocking,
/// threads and statuses as for mlxd_all_sum().
///
/// - MLXD_ERROR_INVALID_ARGUMENT also if `root` is not a rank, 0 to `size - 1`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_broadcast(
    group: *mut mlxd_group,
    buffer: *mut c_void,
    count: usize,
    dtype: mlxd_dtype,
    root: i32,
    stream: *mut mlxd_stream,
) -> mlxd_status {
    // SAFETY: the header asks for what `collective` asks for.
    unsafe { collective(Verb::Broadcast, group, buffer, buffer, count, dtype, root, stream) }
}

/// Sends `count` elements to rank `dst`, which receives them with mlxd_recv() or mlxd_send_recv()
/// of the same count and dtype. `input` holds `count` elements. Messages from one rank to another
/// arrive in the order in which they were sent; they go on beside the group's collectives and
/// beside messages of other pairs. A send may wait for its receive: two ranks that send to each
/// other first can wait until their time is up, mlxd_send_recv() cannot.
///
/// Buffers, blocking, threads and statuses as for mlxd_all_sum(); the call returns once `input` may
/// be reused, which does not say that the message was received.
///
/// - MLXD_ERROR_INVALID_ARGUMENT also if `dst` is not another rank of the group.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_send(
    group: *mut mlxd_group,
    input: *const c_void,
    count: usize,
    dtype: mlxd_dtype,
    dst: i32,
    stream: *mut mlxd_stream,
) -> mlxd_status {
    let send = Side { peer: dst, count, memory: input.cast() };
    // SAFETY: the header asks for what `exchange` asks for.
    unsafe { exchange(group, dtype, Some(send), None, stream) }
}

/// Receives `count` elements from rank `src`: the next message that it sends to this rank. `output`
/// holds `count` elements. Waits for it at most MLXD_RECV_TIMEOUT_MS (by default as long as the peer
/// is there, on nccl also if it has freed the group), or what mlxd_group_set_timeout() says; a
/// message that does not come in time fails the group.
///
/// Buffers, blocking, threads and statuses as for mlxd_all_sum().
///
/// - MLXD_ERROR_INVALID_ARGUMENT also if `src` is not another rank of the group.
/// - MLXD_ERROR_MISMATCH: the message has another count or dtype.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_recv(
    group: *mut mlxd_group,
    output: *mut c_void,
    count: usize,
    dtype: mlxd_dtype,
    src: i32,
    stream: *mut mlxd_stream,
) -> mlxd_status {
    let recv = Side { peer: src, count, memory: output.cast() };
    // SAFETY: the header asks for what `exchange` asks for.
    unsafe { exchange(group, dtype, None, Some(recv), stream) }
}

/// Sends `count` elements to rank `dst` and receives `output_count` from rank `src`, which may be
/// another or the same, both at once. `input` holds `count` elements, `output` `output_count`; they
/// must not overlap. As mlxd_send() and mlxd_recv() together, with which it pairs, but neither
/// waits for the other. It keeps its place among the sends to `dst` and the receives from `src` until
/// both are done. The limit of both is that of a collective, not MLXD_RECV_TIMEOUT_MS.
///
/// Buffers, blocking, threads and statuses as for mlxd_all_sum().
///
/// - MLXD_ERROR_INVALID_ARGUMENT also if `dst` or `src` is not another rank of the group.
/// - MLXD_ERROR_MISMATCH: the message that came has another count or dtype.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_send_recv(
    group: *mut mlxd_group,
    input: *const c_void,
    count: usize,
    dst: i32,
    output: *mut c_void,
    output_count: usize,
    src: i32,
    dtype: mlxd_dtype,
    stream: *mut mlxd_stream,
) -> mlxd_status {
    let send = Side { peer: dst, count, memory: input.cast() };
    let recv = Side { peer: src, count: output_count, memory: output.cast() };
    // SAFETY: the header asks for what `exchange` asks for.
    unsafe { exchange(group, dtype, Some(send), Some(recv), stream) }
}

/// The common form of messages.
///
/// # Safety
/// As for [`submit`].
unsafe fn exchange(
    group: *mut mlxd_group,
    number: mlxd_dtype,
    send: Option<Side<*const u8>>,
    recv: Option<Side<*mut u8>>,
    stream: *mut mlxd_stream,
) -> mlxd_status {
    // SAFETY: as this function's contract says.
    unsafe { submit(group, stream, || Ok(Request::Exchange { dtype: dtype(number)?, send, recv })) }
}

/// Returns, or lets the stream go on, when every rank of the group has called it. It takes its
/// place in the order of the group's collectives. Blocking, threads and statuses as for
/// mlxd_all_sum().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_barrier(
    group: *mut mlxd_group,
    stream: *mut mlxd_stream,
) -> mlxd_status {
    let (input, output) = (std::ptr::null(), std::ptr::null_mut());
    // SAFETY: a barrier has no memory; the header asks for handles or NULL.
    unsafe { collective(Verb::Barrier, group, input, output, 0, 5, -1, stream) }
}

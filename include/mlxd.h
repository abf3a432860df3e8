/**
 * \file
 * libmlxd: distributed communication for C and C++ programs.
 *
 * A program calls mlxd_init() for its world and then collectives on it:
 *
 *     mlxd_group *world = mlxd_init(true, NULL);
 *     if (world == NULL) { fprintf(stderr, "%s\n", mlxd_last_error()); return 1; }
 *     mlxd_all_sum(world, input, output, count, MLXD_FLOAT32, NULL);
 *     mlxd_group_free(world);
 *
 * Functions return a status, or a handle that is NULL on failure; mlxd_last_error() then says what
 * was wrong, where, and what would be right. Outputs are written only on success, except that a
 * collective which fails may leave anything in its output. Whatever has a function named _new, _init
 * or _split has one named _free. Nothing here exits, aborts, throws or, unless MLXD_LOG is set,
 * prints. Pointers are checked for NULL; a NULL group never means the world.
 *
 * Each function says which statuses it returns. Beside those, every one that can fail may return
 * MLXD_ERROR_INTERNAL, a bug in this library, and the first call in a process MLXD_ERROR_SYSTEM.
 *
 * Generated from the library's sources: do not edit.
 */

#ifndef MLXD_H
#define MLXD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * The version of this header, first number; mlxd_version() is that of the library.
 */
#define MLXD_VERSION_MAJOR 0

/**
 * The version of this header, second number.
 */
#define MLXD_VERSION_MINOR 1

/**
 * The version of this header, third number.
 */
#define MLXD_VERSION_PATCH 0

/**
 * Ranks that compute together, as one of them sees them. Any thread may use a handle; operations
 * of different groups go on beside each other. Must not be used after mlxd_group_free(). In a
 * forked child, the handles of the parent are invalid arguments.
 */
typedef struct mlxd_group mlxd_group;

/**
 * Settings for mlxd_init_with_options(), each named like the environment variable that it
 * overrides.
 */
typedef struct mlxd_options mlxd_options;

/**
 * A queue of operations that run in order on a thread of their own, while the caller goes on. Any
 * thread may use it. In a forked child, the streams of the parent are invalid arguments.
 */
typedef struct mlxd_stream mlxd_stream;

/**
 * What a call came to: one of the MLXD_OK and MLXD_ERROR_ constants. Numbers never change meaning.
 */
typedef int32_t mlxd_status;

/**
 * An element type: one of the MLXD_ constants named after types. 14 and above are reserved.
 */
typedef int32_t mlxd_dtype;

/**
 * A way of the caller's own to gather `bytes` bytes from every rank: `src` has this rank's, `dst`
 * has room for `size * bytes` and gets them all in rank order. Both belong to the library and are
 * valid during the call only. Returns 0 on success; whatever else fails the start with
 * MLXD_ERROR_CONFIG. Called by mlxd_init_with_options() only, on its thread, by all ranks alike and
 * equally often: once on "ring" and "nccl", up to six times on "jaccl", with the same `bytes` on all
 * ranks, and others from call to call. May block; on "jaccl" that does not count towards
 * MLXD_CONNECT_TIMEOUT_MS. Where it fails on one rank, it must on all; a rank that dies, or whose
 * settings are wrong (on "jaccl": do not tell it how many ranks there are), leaves the others in it,
 * so it should have a limit of its own. Must return: neither longjmp() nor a C++ exception may leave it.
 */
typedef int32_t (*mlxd_all_gather_fn)(void *user_data, const void *src, void *dst, size_t bytes);

/**
 * Success.
 */
#define MLXD_OK 0

/**
 * An argument is wrong; nothing was done, and the group works on.
 */
#define MLXD_ERROR_INVALID_ARGUMENT 1

/**
 * The request is right, but this backend or build cannot fulfil it.
 */
#define MLXD_ERROR_UNSUPPORTED 2

/**
 * The backend's library or device is not on this machine.
 */
#define MLXD_ERROR_UNAVAILABLE 3

/**
 * Rank, hostfile and the like are missing or malformed, or ranks were started with different ones.
 */
#define MLXD_ERROR_CONFIG 4

/**
 * A deadline passed: of the start, or of an operation without progress.
 */
#define MLXD_ERROR_TIMEOUT 5

/**
 * Another rank died, left while it was still needed, or fell silent.
 */
#define MLXD_ERROR_PEER_LOST 6

/**
 * mlxd_group_abort() was called on some rank, or mlxd_finalize() on this one.
 */
#define MLXD_ERROR_ABORTED 7

/**
 * Ranks called different operations, counts, dtypes or roots.
 */
#define MLXD_ERROR_MISMATCH 8

/**
 * A peer does not know MLXD_SECRET.
 */
#define MLXD_ERROR_AUTH 9

/**
 * A call to the operating system failed, or the network changed what it carried: a checksum was wrong.
 */
#define MLXD_ERROR_SYSTEM 10

/**
 * MPI, CUDA, NCCL or verbs reported an error.
 */
#define MLXD_ERROR_BACKEND 11

/**
 * A bug in this library. Any call that can fail could return it, so that none lists it.
 */
#define MLXD_ERROR_INTERNAL 12

/**
 * One byte, 0 or 1. Sum and max are *or*, min is *and*.
 */
#define MLXD_BOOL 0

/**
 * int8_t. Sums of integers wrap.
 */
#define MLXD_INT8 1

/**
 * int16_t
 */
#define MLXD_INT16 2

/**
 * int32_t
 */
#define MLXD_INT32 3

/**
 * int64_t
 */
#define MLXD_INT64 4

/**
 * uint8_t
 */
#define MLXD_UINT8 5

/**
 * uint16_t
 */
#define MLXD_UINT16 6

/**
 * uint32_t
 */
#define MLXD_UINT32 7

/**
 * uint64_t
 */
#define MLXD_UINT64 8

/**
 * IEEE 754 binary16. Added in binary32 and rounded where contributions meet.
 */
#define MLXD_FLOAT16 9

/**
 * The upper half of a binary32. Added in binary32 and rounded where contributions meet.
 */
#define MLXD_BFLOAT16 10

/**
 * float. NaN wins in max and min, for all floating types.
 */
#define MLXD_FLOAT32 11

/**
 * double
 */
#define MLXD_FLOAT64 12

/**
 * Two floats: real part, imaginary part. Compared by real part, then imaginary part.
 */
#define MLXD_COMPLEX64 13

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The name of a status, such as "MLXD_ERROR_TIMEOUT"; "MLXD_ERROR_UNKNOWN" for a number that is
 * none. Never NULL; the library owns the string for good. Any thread; never blocks.
 */
const char *mlxd_status_name(mlxd_status status);

/**
 * Bytes of one element of this type; 0 for an unknown one. Any thread; never blocks.
 */
size_t mlxd_dtype_size(mlxd_dtype dtype);

/**
 * The version of the library that is loaded, such as "0.1.0"; the header's own is in
 * MLXD_VERSION_MAJOR, MLXD_VERSION_MINOR and MLXD_VERSION_PATCH. Never NULL; the library owns the
 * string for good. Any thread; never blocks.
 */
const char *mlxd_version(void);

/**
 * Whether this backend could be started here: "ring", "mpi", "nccl", "jaccl", or "any" (also NULL)
 * for one of them. False for a name that is none, with MLXD_ERROR_INVALID_ARGUMENT as
 * mlxd_last_status(). Says nothing about the settings that a start needs. Any thread; may load the
 * backend's library, waits for no other rank. Asking for "nccl" initialises CUDA, which processes that are
 * forked later cannot use then.
 */
bool mlxd_is_available(const char *backend);

/**
 * The world of this process on a backend: "ring", "mpi", "nccl", "jaccl", or "any" (also NULL) for
 * the first of nccl, ring, mpi, jaccl that there are settings for.
 *
 * The first success on a backend is kept under its name and, if it is the first of all, under
 * "any"; later calls return that same world. A world that failed or whose last handle was freed is
 * not kept, so that the next call starts a new one, as all its ranks must. Each call returns a new
 * handle, to be freed once with mlxd_group_free().
 *
 * Settings come from the environment; mlxd_options_set() names them like its variables. If there
 * is nothing to start from, the result is a group of one rank on backend "none", which is not
 * kept, or with `strict` NULL. Settings that are there but wrong give NULL in both modes, and so
 * do variables that announce a world of more than one which no backend could start.
 *
 * "mpi" asks MPI who the other ranks are, initialising it if the program has not; "any" takes it
 * only in a process that an MPI launcher started. "jaccl" starts from MLX_IBV_DEVICES, MLX_RANK and
 * MLX_JACCL_COORDINATOR, as MLX does. "nccl" is for GPUs: it uses the calling thread's current CUDA
 * device; if there is none, it chooses one by LOCAL_RANK or the rank's number on its machine, and
 * makes that the thread's current one. "any" takes it only if NCCL_HOST_IP and NCCL_PORT are set,
 * and a device is there.
 *
 * Blocks until all ranks have come, at most MLXD_CONNECT_TIMEOUT_MS (on nccl, if that is not set, at most
 * MLX_NCCL_TIMEOUT, or 5 minutes). Any thread; calls that start worlds run one after the other.
 *
 * NULL on error, with mlxd_last_status() and mlxd_last_error():
 *
 * - MLXD_ERROR_INVALID_ARGUMENT: no backend of that name.
 * - MLXD_ERROR_UNSUPPORTED: MPI has ended, belongs to the process that forked this one, or has failed
 *   a start that not all ranks came to in time, which cannot be repeated; on nccl, the current CUDA
 *   context is not its device's primary one.
 * - MLXD_ERROR_UNAVAILABLE: its library or device is not here (`strict` only, or where other ranks
 *   were told so by the caller's all-gather); the port of an RDMA device is down, or has no address.
 * - MLXD_ERROR_CONFIG: a setting is missing, malformed, differs between ranks, or names an address
 *   that cannot be listened at; MLXD_TRANSPORT is shm and the ranks are on several hosts; the MPI
 *   library is not the launcher's; the file of RDMA devices has no mesh and no ring, or names a
 *   device that is not here.
 * - MLXD_ERROR_TIMEOUT: ranks did not come; the message names them.
 * - MLXD_ERROR_AUTH: MLXD_SECRET differs between ranks.
 * - MLXD_ERROR_PEER_LOST: a rank was lost during the start.
 * - MLXD_ERROR_ABORTED: a rank that was ready earlier has called mlxd_group_abort() already.
 * - MLXD_ERROR_SYSTEM: a socket, a thread, or (if MLXD_TRANSPORT is shm) shared memory could not be
 *   made.
 * - MLXD_ERROR_BACKEND: MPI, CUDA, NCCL or libibverbs reported an error.
 */
mlxd_group *mlxd_init(bool strict,
                      const char *backend);

/**
 * Starts a world with these options, whatever worlds there are already: unlike mlxd_init() it
 * neither returns a world that was kept nor keeps the new one. The options are only read, and may
 * be freed or changed afterwards, but not meanwhile. Calls of different threads may run beside
 * each other. For the rest, blocking and statuses too, as mlxd_init().
 *
 * - MLXD_ERROR_INVALID_ARGUMENT also if `options` is NULL.
 * - MLXD_ERROR_CONFIG also if the function of mlxd_options_set_all_gather() fails.
 */
mlxd_group *mlxd_init_with_options(bool strict, const char *backend, const mlxd_options *options);

/**
 * Says goodbye to the other ranks of every world and forgets the worlds. Groups whose handles are
 * still out answer MLXD_ERROR_ABORTED, also to calls that are waiting; the handles must be freed
 * nevertheless. A later mlxd_init() starts a new world, but for MPI: if the library initialised it,
 * it ends it here, which waits for all ranks, and MPI cannot be started again.
 *
 * A normal end of the process does the same. A rank that leaves after its part is done fails
 * nobody; whoever still needs bytes from it gets MLXD_ERROR_PEER_LOST. Returns nothing, but sets
 * mlxd_last_status(). Any thread; blocks for moments, MPI aside; some seconds
 * for each world whose devices do not answer, or while calls of vendors' libraries are under way. In
 * a forked child it does nothing to the worlds of the parent.
 */
void mlxd_finalize(void);

/**
 * This process's rank in the group, 0 to size - 1; -1 on error, MLXD_ERROR_INVALID_ARGUMENT: a
 * NULL handle or one of the process that forked this one. Known also after the group has failed.
 * Any thread; never blocks.
 */
int32_t mlxd_group_rank(const mlxd_group *group);

/**
 * The number of ranks in the group, at least 1; -1 on error, as mlxd_group_rank(). Known also
 * after the group has failed. Any thread; never blocks.
 */
int32_t mlxd_group_size(const mlxd_group *group);

/**
 * What the group runs on: "ring", "mpi", "nccl", "jaccl", or "none" for a process that has nothing
 * to start from. NULL on error, as mlxd_group_rank(). The library owns the string for good. Any
 * thread; never blocks.
 */
const char *mlxd_group_backend(const mlxd_group *group);

/**
 * Makes new groups of the group's ranks: those that pass the same colour share one. All ranks of
 * `group` must call it; it takes its place in the order of the group's collectives.
 *
 * Ranks are ordered by `key`, ties by their rank in `group`; a negative key is replaced by that
 * rank. Colour -1: this rank joins no group, `*out` is NULL and the status MLXD_OK. The new group
 * owns its connections, may be used beside its parent, outlives it, and has the parent's timeout.
 * It fails when one of its ranks is lost, but not when its parent fails for another reason.
 *
 * `*out` is written only on success; it is a new handle, to be freed with mlxd_group_free(). Any
 * thread; blocks until all ranks have called, and until the collectives that this rank called
 * before have run, those on streams too.
 *
 * - MLXD_ERROR_INVALID_ARGUMENT: a pointer is NULL, the handle is of the process that forked this
 *   one, or the colour is below -1. Nothing was done.
 * - MLXD_ERROR_TIMEOUT, MLXD_ERROR_PEER_LOST, MLXD_ERROR_ABORTED, MLXD_ERROR_MISMATCH,
 *   MLXD_ERROR_SYSTEM, MLXD_ERROR_BACKEND: as for mlxd_all_sum(). The parent has failed, unless it was only
 *   the memory for the new group's ranks to share, or on nccl its communicator, that could not be had.
 */
mlxd_status mlxd_group_split(mlxd_group *group,
                             int32_t color,
                             int32_t key,
                             mlxd_group **out);

/**
 * Sets how long each operation of this group that is called from now on, receives included, may go
 * without progress, in milliseconds; 0: no limit. The limit counts from when the operation starts
 * to run, and holds for all handles of the group in this process; other ranks have their own.
 * Without it, operations have MLXD_TIMEOUT_MS and receives MLXD_RECV_TIMEOUT_MS. On mpi there is
 * none by default, and operations with a limit meet only those with one: set it on all ranks, at the
 * same place among the group's operations. They run on memory of the library's own. Any thread; never
 * blocks.
 *
 * - MLXD_ERROR_INVALID_ARGUMENT: NULL handle, or one of the process that forked this one.
 */
mlxd_status mlxd_group_set_timeout(mlxd_group *group,
                                   uint64_t milliseconds);

/**
 * MLXD_OK while the group works, or what failed it, with mlxd_last_error() saying more: the same
 * status that every operation on it returns from then on. A failure on another rank is known here
 * within moments, without another call. Any thread; never blocks, but for what mlxd_group_abort()
 * says of mpi.
 *
 * - MLXD_ERROR_INVALID_ARGUMENT: NULL handle, or one of the process that forked this one.
 * - MLXD_ERROR_TIMEOUT, MLXD_ERROR_PEER_LOST, MLXD_ERROR_ABORTED, MLXD_ERROR_MISMATCH,
 *   MLXD_ERROR_SYSTEM: what failed the group, as for mlxd_all_sum().
 */
mlxd_status mlxd_group_status(const mlxd_group *group);

/**
 * Fails the group on all its ranks: calls that wait in it, on whatever rank, return
 * MLXD_ERROR_ABORTED within a second, and so does every later call. Groups made from it by
 * mlxd_group_split(), and its parent, work on. On mpi, calls that wait without a limit wait on, and
 * only later ones fail. The handle must be freed nevertheless. MLXD_OK also
 * if the group has failed already, whose status then stays. Any thread, also while others wait in
 * the group; not from a signal handler itself. Never blocks, but on mpi where one thread makes all
 * calls (MPI grants less than MPI_THREAD_MULTIPLE) and is in a split of another group.
 *
 * - MLXD_ERROR_INVALID_ARGUMENT: NULL handle, or one of the process that forked this one.
 */
mlxd_status mlxd_group_abort(mlxd_group *group);

/**
 * Writes what this rank knows of the group to a file, for when something hangs: its last 256
 * operations with their sequence number, count, dtype, root or peers, state and times, how many it
 * has called in all, and what failed the group, as JSON. `path` names the file, which is replaced
 * as a whole. `mlxd-inspect` compares the files of all ranks and says who is behind and in what.
 * With MLXD_FLIGHT_RECORDER each rank writes such a file by itself when a group fails. Any thread,
 * at any time: also while other threads wait in the group, which it does not wait for, and after it
 * has failed. Blocks for the file alone.
 *
 * - MLXD_ERROR_INVALID_ARGUMENT: a pointer is NULL, `path` is not UTF-8 or empty, or the handle is
 *   of the process that forked this one.
 * - MLXD_ERROR_SYSTEM: the file cannot be written. The group works on.
 */
mlxd_status mlxd_group_dump(mlxd_group *group, const char *path);

/**
 * Frees a handle, once; NULL, or a handle of the process that forked this one: does nothing. The
 * last handle of a world says goodbye to its other ranks, once the groups split from it are freed
 * too. Operations on streams keep the group until they have run. Any thread, while no other is in
 * a call with this handle. Waits for no other rank; over RDMA the last handle of a world waits up to
 * 3 s for messages on their way, and 10 s for a device that does not give memory back. Leaves
 * mlxd_last_status() as it is.
 */
void mlxd_group_free(mlxd_group *group);

/**
 * output[i] = the sum of input[i] over all ranks, for `count` elements; every rank gets the same
 * bytes. `input` and `output` hold `count` elements each. In place: `input == output`; any other
 * overlap is an invalid argument.
 *
 * What follows holds for every operation below; `size` and `rank` are mlxd_group_size() and
 * mlxd_group_rank().
 *
 * *Order.* All ranks of the group call the same collectives in the same order, with the same
 * count, dtype and root. They run in the order in which this rank called them, whatever threads
 * and streams they come from. Groups go on beside each other.
 *
 * *Buffers.* They are the caller's, aligned or not (on nccl, to the size of an element): host memory, or on
 * nccl memory of the group's CUDA device, managed memory, or what CUDA has page-locked. `count == 0` needs none: they may be NULL.
 * Sizes in bytes may be 2 GiB and more. `input` is only read; nothing else may write to it, nor
 * use `output`, while the operation goes on. After a failure the contents of `output` are
 * undefined.
 *
 * *Blocking.* With `stream` NULL the call blocks until `output` is complete and `input` may be
 * reused: this rank's part is done then, that of others perhaps not. With a stream it returns once
 * its arguments were checked; the buffers then belong to the library until
 * mlxd_stream_synchronize() or mlxd_stream_free() has returned, and what goes wrong is returned by
 * mlxd_stream_synchronize(); for a CUDA stream see mlxd_stream_from_cuda(). No call returns while anything can still touch its buffers, after a
 * failure too.
 *
 * *Threads.* Any thread may call, several at once too; where the order of two calls matters, the
 * threads must see to it themselves. On mpi, in a program that initialised MPI itself below
 * MPI_THREAD_MULTIPLE, only the thread that did so may call, without a stream.
 *
 * *MPI* ends the whole job when a rank dies; compares the calls of ranks only with MLXD_CHECK=1,
 * messages aside; and waits without a limit unless one is set.
 *
 * *NCCL* computes in its own order and precision where it knows the type, and a NaN may lose in max and min;
 * it compares the calls of ranks only where they wait for each other, or with MLXD_CHECK=1. All operations of
 * a group, messages too, run one after the other. With `stream` NULL they run after what is on CUDA's
 * legacy default stream.
 *
 * - MLXD_ERROR_INVALID_ARGUMENT: group or buffer is NULL, a handle is of the process that forked
 *   this one, the dtype is unknown, there are more bytes than memory can hold, buffers overlap or are
 *   not memory that the group works on, or the stream is a CUDA stream and the group not on nccl, or on
 *   another device. Nothing was done and the group works on.
 * - MLXD_ERROR_UNSUPPORTED: on mpi, this thread or a stream's may not call MPI. Likewise.
 *
 * All others fail the group on all its ranks for good; each later call on it returns the same
 * status.
 *
 * - MLXD_ERROR_TIMEOUT: no progress for as long as MLXD_TIMEOUT_MS or mlxd_group_set_timeout()
 *   allows.
 * - MLXD_ERROR_PEER_LOST: a rank died, left or fell silent; the message names it.
 * - MLXD_ERROR_ABORTED: mlxd_group_abort() was called on some rank, or mlxd_finalize() on this
 *   one.
 * - MLXD_ERROR_MISMATCH: ranks called different things; the message names both.
 * - MLXD_ERROR_SYSTEM: a call to the operating system failed, there is no memory for scratch space, or
 *   a checksum was wrong (MLXD_CHECKSUM); the message says between which ranks, and where.
 * - MLXD_ERROR_BACKEND: MPI, CUDA, NCCL or an RDMA device reported an error; the message has its
 *   words.
 */
mlxd_status mlxd_all_sum(mlxd_group *group,
                         const void *input,
                         void *output,
                         size_t count,
                         mlxd_dtype dtype,
                         mlxd_stream *stream);

/**
 * output[i] = the greatest input[i] of all ranks, for `count` elements; every rank gets the same
 * bytes. NaN wins. `input` and `output` hold `count` elements each. In place: `input == output`;
 * any other overlap is an invalid argument. Order, buffers, blocking, threads and statuses as for
 * mlxd_all_sum().
 */
mlxd_status mlxd_all_max(mlxd_group *group,
                         const void *input,
                         void *output,
                         size_t count,
                         mlxd_dtype dtype,
                         mlxd_stream *stream);

/**
 * output[i] = the least input[i] of all ranks, for `count` elements; every rank gets the same
 * bytes. NaN wins. `input` and `output` hold `count` elements each. In place: `input == output`;
 * any other overlap is an invalid argument. Order, buffers, blocking, threads and statuses as for
 * mlxd_all_sum().
 */
mlxd_status mlxd_all_min(mlxd_group *group,
                         const void *input,
                         void *output,
                         size_t count,
                         mlxd_dtype dtype,
                         mlxd_stream *stream);

/**
 * output[r * count + i] = input[i] of rank r, for each rank r and i below `count`. `input` holds
 * `count` elements, `output` `size * count`. In place: `input == output + rank * count` elements;
 * any other overlap is an invalid argument. Order, buffers, blocking, threads and statuses as for
 * mlxd_all_sum().
 */
mlxd_status mlxd_all_gather(mlxd_group *group,
                            const void *input,
                            void *output,
                            size_t count,
                            mlxd_dtype dtype,
                            mlxd_stream *stream);

/**
 * output[i] = the sum of input[rank * count / size + i] over all ranks, for i below
 * `count / size`: each rank gets its block of the sum. `input` holds `count` elements, a multiple
 * of `size`, `output` `count / size`. In place: `output == input + rank * count / size` elements,
 * and what the rest of `input` holds is undefined then; any other overlap is an invalid argument.
 * Order, buffers, blocking, threads and statuses as for mlxd_all_sum().
 *
 * - MLXD_ERROR_INVALID_ARGUMENT also if `count` is not a multiple of `size`.
 */
mlxd_status mlxd_sum_scatter(mlxd_group *group,
                             const void *input,
                             void *output,
                             size_t count,
                             mlxd_dtype dtype,
                             mlxd_stream *stream);

/**
 * output[r * count / size + i] = input[rank * count / size + i] of rank r, for each rank r and i
 * below `count / size`: block j of rank i becomes block i of rank j. `input` and `output` hold
 * `count` elements each, a multiple of `size`. Not in place: any overlap is an invalid argument.
 * Order, buffers, blocking, threads and statuses as for mlxd_all_sum().
 *
 * - MLXD_ERROR_INVALID_ARGUMENT also if `count` is not a multiple of `size`.
 */
mlxd_status mlxd_all_to_all(mlxd_group *group,
                            const void *input,
                            void *output,
                            size_t count,
                            mlxd_dtype dtype,
                            mlxd_stream *stream);

/**
 * buffer[i] of rank `root` becomes buffer[i] of every rank, for `count` elements. `buffer` holds
 * `count` elements; it is only read on rank `root`, and the output on the others. Order, blocking,
 * threads and statuses as for mlxd_all_sum().
 *
 * - MLXD_ERROR_INVALID_ARGUMENT also if `root` is not a rank, 0 to `size - 1`.
 */
mlxd_status mlxd_broadcast(mlxd_group *group,
                           void *buffer,
                           size_t count,
                           mlxd_dtype dtype,
                           int32_t root,
                           mlxd_stream *stream);

/**
 * Sends `count` elements to rank `dst`, which receives them with mlxd_recv() or mlxd_send_recv()
 * of the same count and dtype. `input` holds `count` elements. Messages from one rank to another
 * arrive in the order in which they were sent; they go on beside the group's collectives and
 * beside messages of other pairs. A send may wait for its receive: two ranks that send to each
 * other first can wait until their time is up, mlxd_send_recv() cannot.
 *
 * Buffers, blocking, threads and statuses as for mlxd_all_sum(); the call returns once `input` may
 * be reused, which does not say that the message was received.
 *
 * - MLXD_ERROR_INVALID_ARGUMENT also if `dst` is not another rank of the group.
 */
mlxd_status mlxd_send(mlxd_group *group,
                      const void *input,
                      size_t count,
                      mlxd_dtype dtype,
                      int32_t dst,
                      mlxd_stream *stream);

/**
 * Receives `count` elements from rank `src`: the next message that it sends to this rank. `output`
 * holds `count` elements. Waits for it at most MLXD_RECV_TIMEOUT_MS (by default as long as the peer
 * is there, on nccl also if it has freed the group), or what mlxd_group_set_timeout() says; a
 * message that does not come in time fails the group.
 *
 * Buffers, blocking, threads and statuses as for mlxd_all_sum().
 *
 * - MLXD_ERROR_INVALID_ARGUMENT also if `src` is not another rank of the group.
 * - MLXD_ERROR_MISMATCH: the message has another count or dtype.
 */
mlxd_status mlxd_recv(mlxd_group *group,
                      void *output,
                      size_t count,
                      mlxd_dtype dtype,
                      int32_t src,
                      mlxd_stream *stream);

/**
 * Sends `count` elements to rank `dst` and receives `output_count` from rank `src`, which may be
 * another or the same, both at once. `input` holds `count` elements, `output` `output_count`; they
 * must not overlap. As mlxd_send() and mlxd_recv() together, with which it pairs, but neither
 * waits for the other. It keeps its place among the sends to `dst` and the receives from `src` until
 * both are done. The limit of both is that of a collective, not MLXD_RECV_TIMEOUT_MS.
 *
 * Buffers, blocking, threads and statuses as for mlxd_all_sum().
 *
 * - MLXD_ERROR_INVALID_ARGUMENT also if `dst` or `src` is not another rank of the group.
 * - MLXD_ERROR_MISMATCH: the message that came has another count or dtype.
 */
mlxd_status mlxd_send_recv(mlxd_group *group,
                           const void *input,
                           size_t count,
                           int32_t dst,
                           void *output,
                           size_t output_count,
                           int32_t src,
                           mlxd_dtype dtype,
                           mlxd_stream *stream);

/**
 * Returns, or lets the stream go on, when every rank of the group has called it. It takes its
 * place in the order of the group's collectives. Blocking, threads and statuses as for
 * mlxd_all_sum().
 */
mlxd_status mlxd_barrier(mlxd_group *group, mlxd_stream *stream);

/**
 * A new, empty stream with a thread, to be freed with mlxd_stream_free(). Operations of any groups
 * may be put on it. Any thread; never blocks.
 *
 * NULL on error:
 *
 * - MLXD_ERROR_SYSTEM: no thread could be started.
 */
mlxd_stream *mlxd_stream_new(void);

/**
 * A stream that stands for a cudaStream_t (or CUstream, which is the same), which the caller owns and keeps
 * alive for as long; 0 is CUDA's legacy default stream (cudaStreamPerThread is not supported). For groups on nccl, and those of one process on
 * "none". To be freed with mlxd_stream_free(). Any thread; never blocks, but opens the CUDA driver if
 * nobody has.
 *
 * An operation that is put on it is enqueued like a kernel: the call returns as soon as it is on the CUDA
 * stream, it runs after the work that was put there before, and work that is put there later sees its
 * output, without any synchronize. The buffers are the library's until then. What goes wrong later is
 * returned by mlxd_stream_synchronize(), and by every later call on the group, whose failure also lets go
 * of what it has on the stream, with undefined contents. A call may wait for other ranks the first time
 * that it needs a connection to them, and where some 100 operations of the group are under way. Operations
 * of a group run in the order in which they were called, also if they are on different streams. A stream that
 * is being captured into a graph is an invalid argument of an operation; calls must not be made between
 * the program's own ncclGroupStart() and ncclGroupEnd().
 *
 * NULL on error:
 *
 * - MLXD_ERROR_UNAVAILABLE: no CUDA driver or device is here.
 * - MLXD_ERROR_INVALID_ARGUMENT: the driver does not know the stream, or it is cudaStreamPerThread.
 */
mlxd_stream *mlxd_stream_from_cuda(void *cuda_stream);

/**
 * Waits until every operation that was put on the stream before has run. Returns, and clears, the
 * first failure among those since the last call. After a success, the buffers of these operations
 * are the caller's again and their results complete; after a failure the buffers are the caller's
 * too, their contents undefined. Blocks as long as the operations do, which have their timeouts.
 * Any thread; of several that wait, one is told the failure.
 *
 * - MLXD_ERROR_INVALID_ARGUMENT: NULL handle, or one of the process that forked this one.
 * - MLXD_ERROR_TIMEOUT, MLXD_ERROR_PEER_LOST, MLXD_ERROR_ABORTED, MLXD_ERROR_MISMATCH,
 *   MLXD_ERROR_SYSTEM, MLXD_ERROR_BACKEND: what an operation returned, as for mlxd_all_sum().
 */
mlxd_status mlxd_stream_synchronize(mlxd_stream *stream);

/**
 * Waits for what is queued, then frees the stream, once; failures that nobody asked for are gone.
 * NULL, or a stream of the process that forked this one: does nothing. Any thread, while no other
 * is in a call with this stream; blocks as long as the queued operations do. Leaves
 * mlxd_last_status() as it is.
 */
void mlxd_stream_free(mlxd_stream *stream);

/**
 * Empty options, to be freed with mlxd_options_free(). NULL on error. One thread at a time may use
 * them; never blocks.
 */
mlxd_options *mlxd_options_new(void);

/**
 * Sets one option, or sets it anew. The name is that of an environment variable, such as
 * "MLXD_TIMEOUT_MS"; both strings are copied. A value is checked when it is used; "" is as if
 * neither the option nor the variable were set. One thread at a time; never blocks.
 *
 * - MLXD_ERROR_INVALID_ARGUMENT: a pointer is NULL, a string is not UTF-8, or there is no setting
 *   of this name. Nothing was set.
 */
mlxd_status mlxd_options_set(mlxd_options *options, const char *name, const char *value);

/**
 * Lets the ranks find each other through the caller's own all-gather instead of a coordinator's
 * address: with MLXD_RANK and MLXD_WORLD_SIZE, rank 0 listens at a free port and `fn` brings its
 * addresses to the others; "jaccl" takes the number of ranks from MLX_IBV_DEVICES instead, and
 * starts also where the ranks do not reach each other over TCP: then over their devices alone, which
 * is logged (MLXD_LOG=warn). To find out takes up to a third of MLXD_CONNECT_TIMEOUT_MS and at most
 * 10 s where rank 0 is out of reach; the rest of it too, where only others are from each other.
 * In such a world a rank that is gone is missed only by those who wait in a call, and, over
 * MLXD_RDMA_QP=uc, only by their limits. What keeps one rank from a start on "jaccl", the others are told.
 * `user_data` is passed on as it is; both must stay valid until the options have been freed. Wins
 * over every other way to start. One thread at a time; never blocks, and does not call `fn`.
 *
 * - MLXD_ERROR_INVALID_ARGUMENT: `options` or `fn` is NULL.
 */
mlxd_status mlxd_options_set_all_gather(mlxd_options *options,
                                        mlxd_all_gather_fn fn,
                                        void *user_data);

/**
 * Frees options, once; groups that were made with them keep what they need. NULL: does nothing.
 * Any thread, while no other uses them; never blocks. Leaves mlxd_last_status() as it is.
 */
void mlxd_options_free(mlxd_options *options);

/**
 * A sentence about this thread's last fallible call: what was wrong, where, and what would be
 * right; or "" if that call succeeded.
 *
 * Every function of this header sets it but mlxd_last_error(), mlxd_last_status(),
 * mlxd_status_name(), mlxd_dtype_size(), mlxd_version() and those that free. An operation that was
 * put on a stream tells its failure to the thread that calls mlxd_stream_synchronize().
 *
 * Never NULL. The library owns the string; it is valid until this thread's next call of a function
 * that sets it. Any thread, about itself; never blocks.
 */
const char *mlxd_last_error(void);

/**
 * The status of this thread's last fallible call, as mlxd_last_error() describes it; MLXD_OK after
 * a success. For the functions that return a handle, a rank or a truth. Any thread; never blocks.
 */
mlxd_status mlxd_last_status(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* MLXD_H */

/* A stand-in for libnccl.so.2, for tests on machines without a GPU. Not NCCL: it has the binary
 * interface of the functions that libmlxd uses, and moves bytes between processes of one machine
 * through Unix sockets, in the memory of the stand-in for CUDA's driver (fake_cuda.c). As with
 * NCCL, nonblocking communicators answer ncclInProgress until they are done, their work is put on
 * the stream by a thread of NCCL's then, work that waits for a lost rank waits until it is
 * aborted, two ranks on one device of one host (NCCL_HOSTID) are refused unless
 * NCCL_MULTI_RANK_GPU_ENABLE=1, and a stream stays usable after an abort. What NCCL leaves
 * undefined ends the program with a message. Settings, with what holds without them:
 *
 * FAKE_NCCL_VERSION: what ncclGetVersion says; 22703.
 *
 * FAKE_NCCL_LAUNCH: when calls on nonblocking communicators answer ncclInProgress. "always", as
 * from NCCL 2.26 on, is the default; "first", the first time that they need a peer, as before;
 * "never".
 *
 * FAKE_NCCL_SLOW_MS: how long whatever is in progress stays so at least; 0.
 *
 * FAKE_NCCL_RANK: the settings below count on this rank of a communicator only; on all.
 *
 * FAKE_NCCL_RETURN: "allreduce:2:99" has the second all-reduce of the process return 99 and do
 * nothing else, "*" every one. Others: version uniqueid init split allgather reducescatter
 * broadcast send recv groupend finalize destroy abort asyncerror.
 *
 * FAKE_NCCL_HANG: "send:1" never ends until it is aborted; also init, split, finalize, and launch:
 * NCCL's thread, before it puts anything on a stream.
 *
 * FAKE_NCCL_BLOCK: "allgather:1" blocks the caller until the program calls fake_nccl_go().
 *
 * FAKE_NCCL_ABORT_MS: how long ncclCommAbort takes before it ends anything; 0. -1: for ever.
 *
 * FAKE_NCCL_ASYNC_ERROR: "allgather:1:6", the same, and ncclCommGetAsyncError says 6.
 *
 * FAKE_NCCL_INIT_ERROR: a code that every start of a communicator ends with, after a while.
 *
 * FAKE_NCCL_PEER_DEATH: "error" shows a rank that is gone as ncclRemoteError; "hang", the default,
 * not at all.
 *
 * Tests that want a function to be missing load a variant of the library that was compiled without
 * it. This file: communicators and their ends; fake_nccl_start.c: their starts; fake_nccl_calls.c:
 * operations as they are called; fake_nccl_ops.c: as they run, with fake_traffic.c and
 * fake_numbers.c. */
#include "fake_nccl.h"

#include <dlfcn.h>
#include <sys/random.h>
#include <unistd.h>

#define FAKE_MISUSE
#include "fake_settings.h"

static ncclComm_t comms; /* never freed, so that one that has ended is known as such */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char last_text[256];

/* ---- in general ---- */

const struct cuda *fake_cuda(void) {
    static struct cuda cuda;
    static atomic_bool found;
    if (!atomic_load(&found)) {
        void *library = dlopen("libcuda.so.1", RTLD_NOW);
        const struct {
            const char *name;
            void **to;
        } wanted[] = {
            {"cuInit", (void **)&cuda.init},
            {"cuDevicePrimaryCtxRetain", (void **)&cuda.retain},
            {"cuDevicePrimaryCtxRelease_v2", (void **)&cuda.release},
            {"fake_cuda_enqueue", (void **)&cuda.enqueue},
            {"fake_cuda_memory", (void **)&cuda.memory},
            {"fake_cuda_device", (void **)&cuda.device},
            {"fake_cuda_place", (void **)&cuda.place},
        };
        for (size_t i = 0; library != NULL && i < sizeof wanted / sizeof wanted[0]; i++) {
            *wanted[i].to = dlsym(library, wanted[i].name);
            if (*wanted[i].to == NULL) {
                return NULL; /* a real driver: nothing for this library */
            }
        }
        if (library == NULL) {
            return NULL;
        }
        atomic_store(&found, true);
    }
    return &cuda;
}

void comm_text(ncclComm_t comm, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    pthread_mutex_lock(&lock);
    char *text = comm != NULL ? comm->text : last_text;
    vsnprintf(text, sizeof last_text, format, arguments);
    if (comm != NULL) {
        memcpy(last_text, text, sizeof last_text);
    }
    pthread_mutex_unlock(&lock);
    va_end(arguments);
}

/* From now on it is a handle. */
void comm_register(ncclComm_t comm) {
    atomic_store(&comm->live, true);
    pthread_mutex_lock(&lock);
    comm->next = comms;
    comms = comm;
    pthread_mutex_unlock(&lock);
}

bool comm_aborted(ncclComm_t comm) {
    return atomic_load(&comm->abort) != 0 ||
           (comm->parent != NULL && atomic_load(&comm->parent->abort) != 0);
}

bool comm_enter(ncclComm_t comm, const char *call) {
    if (comm == NULL) {
        comm_text(NULL, "%s: the communicator is NULL", call);
        return false;
    }
    pthread_mutex_lock(&lock);
    ncclComm_t known = comms;
    while (known != NULL && known != comm) {
        known = known->next;
    }
    if (known == NULL) {
        fake_misuse("NCCL", "%s: %p is no communicator", call, (void *)comm);
    }
    if (!atomic_load(&comm->live)) {
        fake_misuse("NCCL", "%s after the communicator was aborted or destroyed", call);
    }
    atomic_fetch_add(&comm->inside, 1);
    pthread_mutex_unlock(&lock);
    return true;
}

ncclResult_t comm_leave(ncclComm_t comm, int result) {
    atomic_fetch_sub(&comm->inside, 1);
    return (ncclResult_t)result;
}

int comm_ready(ncclComm_t comm) {
    int state = atomic_load(&comm->state);
    if (state == ncclInProgress) {
        comm_text(comm, "used before the previous operation was done");
        return ncclInvalidArgument;
    }
    if (state == ncclSuccess && comm->finalized) {
        comm_text(comm, "used after ncclCommFinalize");
        return ncclInvalidArgument;
    }
    return state;
}

int comm_begin(ncclComm_t comm) {
    int state = ncclSuccess;
    return atomic_compare_exchange_strong(&comm->state, &state, ncclInProgress) ? ncclSuccess
                                                                                : state;
}

bool settings_count(int rank) {
    long only = fake_number("FAKE_NCCL_RANK", -1);
    return only < 0 || only == rank;
}

int returned(const char *what, long nth, int rank) {
    return settings_count(rank) ? fake_due("FAKE_NCCL_RETURN", what, nth, ncclInternalError) : -1;
}

void be_slow(ncclComm_t comm) {
    for (long left = fake_number("FAKE_NCCL_SLOW_MS", 0); left > 0; left--) {
        if (comm_aborted(comm)) {
            return;
        }
        usleep(1000);
    }
}

struct job {
    ncclComm_t comm;
    void (*work)(void *);
    void *argument;
};

static void job_done(ncclComm_t comm) {
    pthread_mutex_lock(&comm->lock);
    comm->jobs--;
    pthread_cond_broadcast(&comm->moved);
    pthread_mutex_unlock(&comm->lock);
}

static void *job_main(void *argument) {
    struct job job = *(struct job *)argument;
    free(argument);
    job.work(job.argument);
    job_done(job.comm);
    return NULL;
}

void job_start(ncclComm_t comm, void (*work)(void *), void *argument) {
    struct job *job = malloc(sizeof *job);
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_mutex_lock(&comm->lock);
    comm->jobs++;
    pthread_mutex_unlock(&comm->lock);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    if (job != NULL) {
        *job = (struct job){comm, work, argument};
    }
    if (job == NULL || pthread_create(&thread, &attributes, job_main, job) != 0) {
        fake_misuse("NCCL", "no thread");
    }
    pthread_attr_destroy(&attributes);
}

/* ---- versions, ids, texts ---- */

EXPORT ncclResult_t ncclGetVersion(int *version) {
    static atomic_long calls;
    int code = returned("version", atomic_fetch_add(&calls, 1) + 1, 0);
    *version = (int)fake_number("FAKE_NCCL_VERSION", 22703);
    return (ncclResult_t)(code >= 0 ? code : ncclSuccess);
}

EXPORT ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    static atomic_long calls;
    int code = returned("uniqueid", atomic_fetch_add(&calls, 1) + 1, 0);
    if (code >= 0) {
        return (ncclResult_t)code;
    }
    unsigned long long random[2];
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random) {
        return ncclSystemError;
    }
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "stand-in-%016llx%016llx", random[0], random[1]);
    return ncclSuccess;
}

EXPORT const char *ncclGetErrorString(ncclResult_t result) {
    static const char *const texts[] = {"no error",
                                        "unhandled cuda error",
                                        "unhandled system error",
                                        "internal error",
                                        "invalid argument",
                                        "invalid usage",
                                        "remote process exited or there was a network error",
                                        "NCCL operation in progress"};
    return (int)result >= 0 && (int)result < 8 ? texts[(int)result] : "unknown result code";
}

EXPORT const char *ncclGetLastError(ncclComm_t comm) {
    return comm != NULL ? comm->text : last_text;
}

/* ---- ends and facts ---- */

EXPORT ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *state) {
    static atomic_long calls;
    if (!comm_enter(comm, "ncclCommGetAsyncError")) {
        return ncclInvalidArgument;
    }
    int code = returned("asyncerror", atomic_fetch_add(&calls, 1) + 1, comm->rank);
    *state = (ncclResult_t)atomic_load(&comm->state);
    return comm_leave(comm, code >= 0 ? code : ncclSuccess);
}

EXPORT ncclResult_t ncclCommCount(const ncclComm_t comm, int *count) {
    if (!comm_enter(comm, "ncclCommCount")) {
        return ncclInvalidArgument;
    }
    *count = comm->size;
    return comm_leave(comm, comm_ready(comm));
}

EXPORT ncclResult_t ncclCommUserRank(const ncclComm_t comm, int *rank) {
    if (!comm_enter(comm, "ncclCommUserRank")) {
        return ncclInvalidArgument;
    }
    *rank = comm->rank;
    return comm_leave(comm, comm_ready(comm));
}

EXPORT ncclResult_t ncclCommCuDevice(const ncclComm_t comm, int *device) {
    if (!comm_enter(comm, "ncclCommCuDevice")) {
        return ncclInvalidArgument;
    }
    *device = comm->device;
    return comm_leave(comm, comm_ready(comm));
}

/* All that was launched has run, or was aborted; with `jobs`, its threads have ended too. */
static bool idle(ncclComm_t comm, bool jobs, long limit_ms) {
    bool idle = false;
    for (long ms = 0; !idle && (limit_ms < 0 || ms < limit_ms); ms++) {
        pthread_mutex_lock(&comm->lock);
        idle = comm->done == comm->issued && (!jobs || comm->jobs == 0);
        pthread_mutex_unlock(&comm->lock);
        if (limit_ms < 0 && comm_aborted(comm)) {
            break;
        }
        if (!idle) {
            usleep(1000);
        }
    }
    return idle;
}

static atomic_long finalizes;

static void finalize_run(void *argument) {
    ncclComm_t comm = argument;
    be_slow(comm);
    if (settings_count(comm->rank) &&
        fake_due("FAKE_NCCL_HANG", "finalize", atomic_load(&finalizes), 0) >= 0) {
        hang(comm);
    }
    idle(comm, false, -1);
    int expected = ncclInProgress;
    atomic_compare_exchange_strong(&comm->state, &expected, ncclSuccess);
}

EXPORT ncclResult_t ncclCommFinalize(ncclComm_t comm) {
    if (!comm_enter(comm, "ncclCommFinalize")) {
        return ncclInvalidArgument;
    }
    int code = returned("finalize", atomic_fetch_add(&finalizes, 1) + 1, comm->rank);
    code = code >= 0 ? code : comm_ready(comm);
    code = code != ncclSuccess ? code : comm_begin(comm);
    if (code != ncclSuccess) {
        return comm_leave(comm, code);
    }
    comm->finalized = true;
    if (comm->blocking) {
        finalize_run(comm);
        return comm_leave(comm, atomic_load(&comm->state));
    }
    job_start(comm, finalize_run, comm);
    return comm_leave(comm, ncclInProgress);
}

void comm_unlink(ncclComm_t comm) {
    for (int peer = 0; peer < comm->size; peer++) {
        if (comm->links[peer] >= 0) {
            close(comm->links[peer]);
        }
    }
}

/* The handle ends: nobody else may be in a call with it. */
static void comm_end(ncclComm_t comm, const char *call) {
    if (atomic_load(&comm->inside) != 0) {
        fake_misuse("NCCL", "%s while another thread is in a call on the communicator", call);
    }
    if (!atomic_exchange(&comm->live, false)) {
        fake_misuse("NCCL", "%s by two threads", call);
    }
}

EXPORT ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    static atomic_long calls;
    if (!comm_enter(comm, "ncclCommDestroy")) {
        return comm == NULL ? ncclSuccess : ncclInvalidArgument;
    }
    int code = returned("destroy", atomic_fetch_add(&calls, 1) + 1, comm->rank);
    if (code < 0 && atomic_load(&comm->state) == ncclInProgress) {
        code = comm_ready(comm);
    }
    comm_leave(comm, ncclSuccess);
    if (code >= 0) {
        return (ncclResult_t)code;
    }
    comm_end(comm, "ncclCommDestroy");
    idle(comm, true, LONG_MAX);
    comm_unlink(comm);
    fake_cuda()->release(comm->device);
    return ncclSuccess;
}

/* As NCCL may, which waits for its own threads and for what the device is stuck in. */
static void take_time_to_abort(ncclComm_t comm) {
    long left = settings_count(comm->rank) ? fake_number("FAKE_NCCL_ABORT_MS", 0) : 0;
    while (left != 0) {
        usleep(1000);
        left -= left > 0;
    }
}

EXPORT ncclResult_t ncclCommAbort(ncclComm_t comm) {
    static atomic_long calls;
    if (!comm_enter(comm, "ncclCommAbort")) {
        return comm == NULL ? ncclSuccess : ncclInvalidArgument;
    }
    int code = returned("abort", atomic_fetch_add(&calls, 1) + 1, comm->rank);
    comm_leave(comm, ncclSuccess);
    if (code >= 0) {
        return (ncclResult_t)code;
    }
    comm_end(comm, "ncclCommAbort");
    take_time_to_abort(comm);
    atomic_store(&comm->abort, 1);
    if (!idle(comm, true, 60000)) {
        fake_misuse("NCCL", "ncclCommAbort waits for a minute already: its operations are queued "
                            "behind work that does not end");
    }
    comm_unlink(comm);
    fake_cuda()->release(comm->device);
    return ncclSuccess;
}

EXPORT long fake_nccl_live(void) {
    long live = 0;
    pthread_mutex_lock(&lock);
    for (ncclComm_t comm = comms; comm != NULL; comm = comm->next) {
        live += atomic_load(&comm->live);
    }
    pthread_mutex_unlock(&lock);
    return live;
}

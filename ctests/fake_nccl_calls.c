/* The stand-in for libnccl.so.2, continued: operations as they are called, one by one or in groups.
 */
#include "fake_nccl.h"

#include "fake_settings.h"

static const char *const names[KINDS] = {"allreduce", "allgather", "reducescatter",
                                         "broadcast", "send",      "recv"};

struct call {
    ncclComm_t comm;
    cudaStream_t stream;
    struct operation operation;
    long nth; /* of its kind in this process */
};

/* This thread's group. */
static _Thread_local int depth;
static _Thread_local struct call *calls;
static _Thread_local size_t call_count;
static _Thread_local int group_error;

/* The calls of one communicator, as one piece of work. */
static struct launch *launch_of(ncclComm_t comm) {
    struct launch *launch = calloc(1, sizeof *launch);
    struct operation *operations = calloc(call_count, sizeof *operations);
    if (launch == NULL || operations == NULL) {
        fake_misuse("NCCL", "out of memory");
    }
    launch->comm = comm;
    launch->operations = operations;
    for (size_t i = 0; i < call_count; i++) {
        const struct call *call = &calls[i];
        if (call->comm != comm) {
            continue;
        }
        if (launch->count > 0 && launch->stream != call->stream) {
            fake_misuse("NCCL", "a group uses several streams (the stand-in does not know how)");
        }
        const char *name = names[call->operation.kind];
        bool counts = settings_count(comm->rank);
        int error = counts ? fake_due("FAKE_NCCL_ASYNC_ERROR", name, call->nth, 6) : -1;
        launch->hang =
            launch->hang || (counts && fake_due("FAKE_NCCL_HANG", name, call->nth, 0) >= 0);
        launch->async_error = error >= 0 ? error : launch->async_error;
        launch->stream = call->stream;
        launch->operations[launch->count++] = call->operation;
    }
    return launch;
}

/* Puts it on its stream; the order of places is that of the streams. */
static int put_on_stream(struct launch *launch) {
    ncclComm_t comm = launch->comm;
    pthread_mutex_lock(&comm->lock);
    launch->ticket = comm->issued;
    CUresult error = fake_cuda()->enqueue(comm->device, launch->stream, launch_run, launch);
    comm->issued += error == CUDA_SUCCESS;
    pthread_mutex_unlock(&comm->lock);
    if (error != CUDA_SUCCESS) {
        comm_text(comm, "Cuda failure %d: not a stream of device %d", (int)error, comm->device);
        free(launch->operations);
        free(launch);
        return ncclUnhandledCudaError;
    }
    return ncclSuccess;
}

static void launch_late(void *argument) {
    static atomic_long launches;
    struct launch *launch = argument;
    ncclComm_t comm = launch->comm;
    long nth = atomic_fetch_add(&launches, 1) + 1;
    be_slow(comm);
    if (settings_count(comm->rank) && fake_due("FAKE_NCCL_HANG", "launch", nth, 0) >= 0) {
        hang(comm);
    }
    int result = put_on_stream(launch);
    int expected = ncclInProgress;
    atomic_compare_exchange_strong(&comm->state, &expected, result);
}

/* Whether these operations need peers that were not needed before. */
static bool is_first(const struct launch *launch) {
    bool first = false;
    for (size_t i = 0; i < launch->count; i++) {
        const struct operation *one = &launch->operations[i];
        bool *used =
            &launch->comm
                 ->used[one->kind == SEND || one->kind == RECV ? one->peer : launch->comm->rank];
        first = first || !*used;
        *used = true;
    }
    return first;
}

static int launch_start(struct launch *launch) {
    ncclComm_t comm = launch->comm;
    const char *when = getenv("FAKE_NCCL_LAUNCH");
    bool first = is_first(launch);
    bool late = when == NULL || strcmp(when, "never") != 0;
    if (when != NULL && strcmp(when, "first") == 0) {
        late = first;
    }
    if (comm->blocking || !late) {
        return put_on_stream(launch);
    }
    int failed = comm_begin(comm);
    if (failed != ncclSuccess) {
        free(launch->operations);
        free(launch);
        return failed;
    }
    job_start(comm, launch_late, launch);
    return ncclInProgress;
}

static int group_launch(void) {
    int result = group_error;
    for (size_t i = 0; result == ncclSuccess && i < call_count; i++) {
        ncclComm_t comm = calls[i].comm;
        bool before = false;
        for (size_t j = 0; j < i; j++) {
            before = before || calls[j].comm == comm;
        }
        if (!before && comm_enter(comm, "ncclGroupEnd")) {
            int started = comm_ready(comm);
            started = started != ncclSuccess ? started : launch_start(launch_of(comm));
            comm_leave(comm, ncclSuccess);
            result = started == ncclSuccess ? result : started;
            if (started != ncclSuccess && started != ncclInProgress) {
                break;
            }
        }
    }
    free(calls);
    calls = NULL;
    call_count = 0;
    group_error = ncclSuccess;
    return result;
}

EXPORT ncclResult_t ncclGroupStart(void) {
    depth++;
    return ncclSuccess;
}

EXPORT ncclResult_t ncclGroupEnd(void) {
    static atomic_long ends;
    if (depth == 0) {
        comm_text(NULL, "ncclGroupEnd: not in a group call");
        return ncclInvalidUsage;
    }
    int code = returned("groupend", atomic_fetch_add(&ends, 1) + 1, 0);
    if (--depth > 0) {
        return ncclSuccess;
    }
    if (code >= 0) {
        group_error = code;
    }
    return (ncclResult_t)group_launch();
}

static int check(ncclComm_t comm, const struct operation *operation) {
    if (type_size(operation->type) == 0) {
        comm_text(comm, "%s: no type %d", names[operation->kind], operation->type);
        return ncclInvalidArgument;
    }
    bool reduces = operation->kind == ALL_REDUCE || operation->kind == REDUCE_SCATTER;
    if (reduces && operation->reduction != ncclSum && operation->reduction != ncclMax &&
        operation->reduction != ncclMin) {
        comm_text(comm, "no reduction %d in this stand-in", operation->reduction);
        return ncclInvalidArgument;
    }
    if (operation->peer < 0 || operation->peer >= comm->size) {
        comm_text(comm, "%s: no rank %d", names[operation->kind], operation->peer);
        return ncclInvalidArgument;
    }
    return comm_ready(comm);
}

static ncclResult_t operate(ncclComm_t comm, cudaStream_t stream, struct operation operation) {
    static atomic_long counts[KINDS];
    if (!comm_enter(comm, names[operation.kind])) {
        return ncclInvalidArgument;
    }
    long nth = atomic_fetch_add(&counts[operation.kind], 1) + 1;
    int code = returned(names[operation.kind], nth, comm->rank);
    code = code >= 0 ? code : check(comm, &operation);
    if (settings_count(comm->rank) &&
        fake_due("FAKE_NCCL_BLOCK", names[operation.kind], nth, 0) >= 0) {
        block();
    }
    comm_leave(comm, code);
    if (code != ncclSuccess) {
        group_error = depth > 0 ? code : ncclSuccess;
        return (ncclResult_t)code;
    }
    bool collective = operation.kind != SEND && operation.kind != RECV;
    if (collective && operation.count == 0) {
        return ncclSuccess; /* as NCCL: nothing is done, whatever the other ranks do */
    }
    struct call *longer = realloc(calls, (call_count + 1) * sizeof *longer);
    if (longer == NULL) {
        fake_misuse("NCCL", "out of memory");
    }
    calls = longer;
    calls[call_count++] = (struct call){comm, stream, operation, nth};
    return (ncclResult_t)(depth > 0 ? ncclSuccess : group_launch());
}

EXPORT ncclResult_t ncclAllReduce(const void *input, void *output, size_t count,
                                  ncclDataType_t type, ncclRedOp_t reduction, ncclComm_t comm,
                                  cudaStream_t stream) {
    return operate(comm, stream,
                   (struct operation){ALL_REDUCE, input, output, count, type, reduction, 0});
}

EXPORT ncclResult_t ncclReduceScatter(const void *input, void *output, size_t count,
                                      ncclDataType_t type, ncclRedOp_t reduction, ncclComm_t comm,
                                      cudaStream_t stream) {
    return operate(comm, stream,
                   (struct operation){REDUCE_SCATTER, input, output, count, type, reduction, 0});
}

EXPORT ncclResult_t ncclAllGather(const void *input, void *output, size_t count,
                                  ncclDataType_t type, ncclComm_t comm, cudaStream_t stream) {
    return operate(comm, stream, (struct operation){ALL_GATHER, input, output, count, type, 0, 0});
}

EXPORT ncclResult_t ncclBroadcast(const void *input, void *output, size_t count,
                                  ncclDataType_t type, int root, ncclComm_t comm,
                                  cudaStream_t stream) {
    return operate(comm, stream,
                   (struct operation){BROADCAST, input, output, count, type, 0, root});
}

EXPORT ncclResult_t ncclSend(const void *input, size_t count, ncclDataType_t type, int peer,
                             ncclComm_t comm, cudaStream_t stream) {
    return operate(comm, stream, (struct operation){SEND, input, NULL, count, type, 0, peer});
}

EXPORT ncclResult_t ncclRecv(void *output, size_t count, ncclDataType_t type, int peer,
                             ncclComm_t comm, cudaStream_t stream) {
    return operate(comm, stream, (struct operation){RECV, NULL, output, count, type, 0, peer});
}

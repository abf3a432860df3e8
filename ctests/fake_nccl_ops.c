/* The stand-in for libnccl.so.2, continued: what its operations do once a stream runs them. A
 * collective sends whatever another rank needs straight to it, and reduces in the order of ranks.
 */
#include "fake_nccl.h"

#include "fake_settings.h"

/* Where a kernel finds this memory; a kernel that reaches beyond CUDA's own memory would be ended.
 */
static void *reach(ncclComm_t comm, const char *what, const void *pointer, size_t bytes) {
    if (bytes == 0) {
        return NULL;
    }
    void *memory = fake_cuda()->memory(pointer, bytes);
    if (memory == NULL) {
        fake_misuse("NCCL",
                    "rank %d: %s: %zu bytes at %p are not in one allocation of CUDA's: a kernel "
                    "would stop with an illegal address",
                    comm->rank, what, bytes, pointer);
    }
    return memory;
}

/* Sends each rank the part of the input that is its own, or all of it, and receives theirs in rank
 * order; its own part is copied. */
static bool gather_parts(ncclComm_t comm, const struct operation *operation, const char *input,
                         size_t step, char *parts, size_t bytes) {
    struct traffic *traffic = traffic_new(comm);
    for (int peer = 0; peer < comm->size; peer++) {
        const char *part = input + (size_t)peer * step;
        if (peer != comm->rank) {
            traffic_send(traffic, peer, part, bytes, operation);
            traffic_receive(traffic, peer, parts + (size_t)peer * bytes, bytes, operation);
        } else if (bytes > 0) {
            memmove(parts + (size_t)peer * bytes, part, bytes);
        }
    }
    return traffic_run(traffic);
}

static bool reduced(ncclComm_t comm, const struct operation *operation, bool scatter) {
    size_t size = (size_t)comm->size;
    size_t bytes = operation->count * type_size(operation->type);
    const char *input = reach(comm, "input", operation->input, bytes * (scatter ? size : 1));
    char *output = reach(comm, "output", operation->output, bytes);
    char *parts = malloc(bytes * size + 1);
    if (parts == NULL) {
        fake_misuse("NCCL", "out of memory");
    }
    bool done = gather_parts(comm, operation, input, scatter ? bytes : 0, parts, bytes);
    for (size_t peer = 1; done && peer < size; peer++) {
        reduce(parts, parts + peer * bytes, operation->count, operation->type,
               operation->reduction);
    }
    if (done && bytes > 0) {
        memcpy(output, parts, bytes);
    }
    free(parts);
    return done;
}

static bool gathered(ncclComm_t comm, const struct operation *operation) {
    size_t bytes = operation->count * type_size(operation->type);
    const char *input = reach(comm, "input", operation->input, bytes);
    char *output = reach(comm, "output", operation->output, bytes * (size_t)comm->size);
    return gather_parts(comm, operation, input, 0, output, bytes);
}

static bool broadcasted(ncclComm_t comm, const struct operation *operation) {
    size_t bytes = operation->count * type_size(operation->type);
    char *output = reach(comm, "output", operation->output, bytes);
    struct traffic *traffic = traffic_new(comm);
    if (comm->rank == operation->peer) {
        const char *input = reach(comm, "input", operation->input, bytes);
        for (int peer = 0; peer < comm->size; peer++) {
            if (peer != comm->rank) {
                traffic_send(traffic, peer, input, bytes, operation);
            }
        }
        if (bytes > 0) {
            memmove(output, input, bytes);
        }
    } else {
        traffic_receive(traffic, operation->peer, output, bytes, operation);
    }
    return traffic_run(traffic);
}

/* A rank's messages to itself, in order: those that are sent are those that are received. */
static void to_itself(struct launch *launch) {
    ncclComm_t comm = launch->comm;
    size_t next = 0;
    for (size_t i = 0; i < launch->count; i++) {
        const struct operation *out = &launch->operations[i];
        if (out->kind != SEND || out->peer != comm->rank) {
            continue;
        }
        while (next < launch->count && (launch->operations[next].kind != RECV ||
                                        launch->operations[next].peer != comm->rank)) {
            next++;
        }
        size_t bytes = out->count * type_size(out->type);
        if (next == launch->count ||
            launch->operations[next].count * type_size(launch->operations[next].type) != bytes) {
            fake_misuse("NCCL", "rank %d sends to itself what it does not receive", comm->rank);
        }
        void *to = reach(comm, "output of recv", launch->operations[next++].output, bytes);
        const void *from = reach(comm, "input of send", out->input, bytes);
        if (bytes > 0) {
            memmove(to, from, bytes);
        }
    }
}

/* All messages of a group go on beside each other. */
static bool messages(struct launch *launch) {
    ncclComm_t comm = launch->comm;
    struct traffic *traffic = traffic_new(comm);
    to_itself(launch);
    for (size_t i = 0; i < launch->count; i++) {
        const struct operation *one = &launch->operations[i];
        size_t bytes = one->count * type_size(one->type);
        if (one->peer == comm->rank) {
            continue;
        }
        if (one->kind == SEND) {
            traffic_send(traffic, one->peer, reach(comm, "input of send", one->input, bytes), bytes,
                         one);
        } else if (one->kind == RECV) {
            traffic_receive(traffic, one->peer, reach(comm, "output of recv", one->output, bytes),
                            bytes, one);
        }
    }
    return traffic_run(traffic);
}

static bool operate(struct launch *launch) {
    ncclComm_t comm = launch->comm;
    bool done = true;
    bool talks = false;
    for (size_t i = 0; done && i < launch->count; i++) {
        const struct operation *one = &launch->operations[i];
        switch (one->kind) {
        case ALL_REDUCE:
        case REDUCE_SCATTER:
            done = reduced(comm, one, one->kind == REDUCE_SCATTER);
            break;
        case ALL_GATHER:
            done = gathered(comm, one);
            break;
        case BROADCAST:
            done = broadcasted(comm, one);
            break;
        default:
            talks = true;
        }
    }
    return done && (!talks || messages(launch));
}

void launch_run(void *argument) {
    struct launch *launch = argument;
    ncclComm_t comm = launch->comm;
    /* Operations of a communicator run in the order of their calls, whatever their streams. */
    pthread_mutex_lock(&comm->lock);
    while (comm->done != launch->ticket && !comm_aborted(comm)) {
        struct timespec soon;
        clock_gettime(CLOCK_REALTIME, &soon);
        soon.tv_nsec += 2000000;
        soon.tv_sec += soon.tv_nsec / 1000000000;
        soon.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&comm->moved, &comm->lock, &soon);
    }
    pthread_mutex_unlock(&comm->lock);
    if (launch->async_error != 0) {
        comm_text(comm, "error %d, which FAKE_NCCL_ASYNC_ERROR asked for", launch->async_error);
        atomic_store(&comm->state, launch->async_error);
    }
    if (launch->hang || launch->async_error != 0) {
        hang(comm);
    }
    if (!comm_aborted(comm)) {
        operate(launch);
    }
    pthread_mutex_lock(&comm->lock);
    comm->done++;
    pthread_cond_broadcast(&comm->moved);
    pthread_mutex_unlock(&comm->lock);
    free(launch->operations);
    free(launch);
}

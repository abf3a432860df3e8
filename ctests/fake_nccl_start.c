/* The stand-in for libnccl.so.2, continued: how the ranks of a communicator meet. The unique id is
 * a name; every rank listens at a Unix socket named after it, and is connected to every other. */
#include "fake_nccl.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "fake_settings.h"

static socklen_t place_of(const ncclComm_t comm, int rank, struct sockaddr_un *place) {
    memset(place, 0, sizeof *place);
    place->sun_family = AF_UNIX;
    /* The first byte stays 0: a name of no file. */
    int length = snprintf(place->sun_path + 1, sizeof place->sun_path - 1, "%s/%d", comm->id, rank);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length);
}

struct hello {
    int rank, size, place;
    char host[96];
};

static struct hello hello_of(ncclComm_t comm) {
    struct hello hello = {comm->rank, comm->size, fake_cuda()->place(comm->device), ""};
    const char *host = getenv("NCCL_HOSTID");
    if (host != NULL) {
        snprintf(hello.host, sizeof hello.host, "%s", host);
    } else {
        gethostname(hello.host, sizeof hello.host - 1);
    }
    return hello;
}

/* All bytes, or false: aborted, late, or the other side is gone. */
static bool move_all(ncclComm_t comm, int link, void *bytes, size_t count, bool out) {
    char *at = bytes;
    while (count > 0 && !comm_aborted(comm)) {
        ssize_t moved = out ? send(link, at, count, MSG_DONTWAIT | MSG_NOSIGNAL)
                            : recv(link, at, count, MSG_DONTWAIT);
        if (moved == 0 || (moved < 0 && errno != EAGAIN && errno != EINTR)) {
            return false;
        }
        if (moved > 0) {
            at += moved;
            count -= (size_t)moved;
        } else {
            struct pollfd polled = {link, out ? POLLOUT : POLLIN, 0};
            poll(&polled, 1, 5);
        }
    }
    return count == 0;
}

static bool call(ncclComm_t comm, int peer) {
    struct sockaddr_un place;
    socklen_t length = place_of(comm, peer, &place);
    while (!comm_aborted(comm)) {
        int link = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (link < 0) {
            return false;
        }
        if (connect(link, (struct sockaddr *)&place, length) == 0) {
            int rank = comm->rank;
            comm->links[peer] = link;
            return move_all(comm, link, &rank, sizeof rank, true);
        }
        close(link);
        usleep(1000);
    }
    return false;
}

static bool answer(ncclComm_t comm, int listener, int *peer) {
    while (!comm_aborted(comm)) {
        struct pollfd polled = {listener, POLLIN, 0};
        if (poll(&polled, 1, 5) <= 0) {
            continue;
        }
        int link = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (link < 0) {
            return false;
        }
        int rank;
        if (!move_all(comm, link, &rank, sizeof rank, false) || rank <= comm->rank ||
            rank >= comm->size || comm->links[rank] >= 0) {
            close(link);
            continue;
        }
        comm->links[rank] = link;
        *peer = rank;
        return true;
    }
    return false;
}

/* What every rank says of itself, told to all; then what each makes of it, so that all end alike.
 */
static int compare(ncclComm_t comm) {
    struct hello own = hello_of(comm);
    struct hello hellos[MAX_RANKS];
    bool sharing = fake_number("NCCL_MULTI_RANK_GPU_ENABLE", 0) != 0;
    int verdict = ncclSuccess;
    for (int peer = 0; peer < comm->size; peer++) {
        hellos[peer] = own;
        if (peer != comm->rank &&
            (!move_all(comm, comm->links[peer], &own, sizeof own, true) ||
             !move_all(comm, comm->links[peer], &hellos[peer], sizeof own, false))) {
            return ncclRemoteError;
        }
    }
    for (int a = 0; a < comm->size; a++) {
        for (int b = 0; b < a; b++) {
            if (hellos[a].size != hellos[b].size) {
                comm_text(comm, "ranks %d and %d differ in the number of ranks", b, a);
                verdict = ncclInvalidArgument;
            }
            if (!sharing && hellos[a].place == hellos[b].place &&
                strcmp(hellos[a].host, hellos[b].host) == 0) {
                comm_text(comm, "Duplicate GPU detected : rank %d and rank %d both on device %d", b,
                          a, hellos[a].place);
                verdict = ncclInvalidUsage;
            }
        }
    }
    return verdict;
}

/* Every rank listens, calls those below it and answers those above. */
static int meet(ncclComm_t comm) {
    struct sockaddr_un place;
    socklen_t length = place_of(comm, comm->rank, &place);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int result = ncclSuccess;
    if (listener < 0 || bind(listener, (struct sockaddr *)&place, length) != 0 ||
        listen(listener, MAX_RANKS) != 0) {
        comm_text(comm, "rank %d cannot listen: %s", comm->rank, strerror(errno));
        result = ncclInvalidUsage;
    }
    for (int peer = 0; result == ncclSuccess && peer < comm->rank; peer++) {
        result = call(comm, peer) ? ncclSuccess : ncclRemoteError;
    }
    for (int left = comm->size - 1 - comm->rank; result == ncclSuccess && left > 0; left--) {
        int peer;
        result = answer(comm, listener, &peer) ? ncclSuccess : ncclRemoteError;
    }
    if (listener >= 0) {
        close(listener);
    }
    return result == ncclSuccess ? compare(comm) : result;
}

/* ---- starts ---- */

/* NULL: the defaults. A structure of another version counts as far as it goes. */
static int config_blocking(const ncclConfig_t *config, bool *blocking) {
    if (config == NULL) {
        return ncclSuccess;
    }
    if (config->magic != NCCL_API_MAGIC || config->size < offsetof(ncclConfig_t, splitShare)) {
        comm_text(NULL, "the configuration was not initialised with NCCL_CONFIG_INITIALIZER");
        return ncclInvalidArgument;
    }
    int numbers[] = {config->cgaClusterSize, config->minCTAs, config->maxCTAs};
    for (size_t i = 0; i < 3; i++) {
        if (numbers[i] != NCCL_CONFIG_UNDEF_INT && (numbers[i] < (i > 0) || numbers[i] > 64)) {
            comm_text(NULL, "a member of the configuration is out of range");
            return ncclInvalidArgument;
        }
    }
    if (config->blocking != NCCL_CONFIG_UNDEF_INT && config->blocking != 0 &&
        config->blocking != 1) {
        comm_text(NULL, "config.blocking is %d", config->blocking);
        return ncclInvalidArgument;
    }
    if (config->blocking != NCCL_CONFIG_UNDEF_INT) {
        *blocking = config->blocking != 0;
    }
    return ncclSuccess;
}

static ncclComm_t comm_new(const char *id, int rank, int size, int device, bool blocking) {
    ncclComm_t comm = calloc(1, sizeof *comm);
    if (comm == NULL) {
        fake_misuse("NCCL", "out of memory");
    }
    snprintf(comm->id, sizeof comm->id, "%.63s", id);
    comm->rank = rank;
    comm->size = size;
    comm->device = device;
    comm->blocking = blocking;
    for (int peer = 0; peer < MAX_RANKS; peer++) {
        comm->links[peer] = -1;
    }
    atomic_store(&comm->state, ncclInProgress);
    pthread_mutex_init(&comm->lock, NULL);
    pthread_cond_init(&comm->moved, NULL);
    return comm;
}

static int comm_meet(ncclComm_t comm, const char *what, long nth) {
    be_slow(comm);
    if (settings_count(comm->rank) && fake_due("FAKE_NCCL_HANG", what, nth, 0) >= 0) {
        hang(comm);
    }
    int result = meet(comm);
    if (result == ncclSuccess && settings_count(comm->rank)) {
        result = (int)fake_number("FAKE_NCCL_INIT_ERROR", ncclSuccess);
    }
    return comm_aborted(comm) ? ncclInternalError : result;
}

static atomic_long inits;

static void init_run(void *argument) {
    ncclComm_t comm = argument;
    int result = comm_meet(comm, "init", atomic_load(&inits));
    /* An end that ncclCommAbort has asked for stays as it is. */
    int expected = ncclInProgress;
    atomic_compare_exchange_strong(&comm->state, &expected, result);
}

EXPORT ncclResult_t ncclCommInitRankConfig(ncclComm_t *result, int size, ncclUniqueId id, int rank,
                                           ncclConfig_t *config) {
    bool blocking = true;
    int code = returned("init", atomic_fetch_add(&inits, 1) + 1, rank);
    *result = NULL;
    code = code >= 0 ? code : config_blocking(config, &blocking);
    if (code != ncclSuccess) {
        return (ncclResult_t)code;
    }
    if (size < 1 || size > MAX_RANKS || rank < 0 || rank >= size ||
        strncmp(id.internal, "stand-in-", 9) != 0) {
        comm_text(NULL, "rank %d of %d, or an id that is none", rank, size);
        return ncclInvalidArgument;
    }
    CUcontext context;
    const struct cuda *cuda = fake_cuda();
    if (cuda == NULL || cuda->init(0) != CUDA_SUCCESS ||
        cuda->retain(&context, cuda->device()) != CUDA_SUCCESS) {
        comm_text(NULL, "no CUDA driver (this is a stand-in for NCCL, it needs that for CUDA)");
        return ncclUnhandledCudaError;
    }
    id.internal[60] = '\0';
    ncclComm_t comm = comm_new(id.internal, rank, size, cuda->device(), blocking);
    comm_register(comm);
    *result = comm;
    if (blocking) {
        init_run(comm);
        return (ncclResult_t)atomic_load(&comm->state);
    }
    job_start(comm, init_run, comm);
    return ncclInProgress;
}

struct split {
    ncclComm_t parent;
    int color, key;
    bool blocking;
    ncclComm_t *result;
    long nth;
};

/* The same on all its ranks, and no other communicator's. */
static void child_id(char *id, size_t room, const ncclComm_t parent, int color) {
    char name[96];
    unsigned long long hashes[2] = {14695981039346656037u, 1099511628211u};
    snprintf(name, sizeof name, "%s %d %d", parent->id, parent->splits, color);
    for (const char *at = name; *at != '\0'; at++) {
        for (int i = 0; i < 2; i++) {
            hashes[i] = (hashes[i] ^ (unsigned char)*at) * 1099511628211u;
        }
    }
    snprintf(id, room, "stand-in-%016llx%016llx", hashes[0], hashes[1]);
}

/* Parent and child are connected over the parent's links; the child has links of its own. */
static int split_meet(struct split *split) {
    ncclComm_t parent = split->parent;
    int own[2] = {split->color, split->key};
    int all[MAX_RANKS][2];
    struct operation what = {.kind = ALL_GATHER, .count = sizeof own, .type = ncclInt8, .peer = -2};
    struct traffic *traffic = traffic_new(parent);
    for (int peer = 0; peer < parent->size; peer++) {
        memcpy(all[peer], own, sizeof own);
        if (peer != parent->rank) {
            traffic_send(traffic, peer, own, sizeof own, &what);
            traffic_receive(traffic, peer, all[peer], sizeof own, &what);
        }
    }
    if (!traffic_run(traffic)) {
        return ncclInternalError;
    }
    parent->splits++;
    if (split->color < 0) {
        return ncclSuccess;
    }
    int rank = 0, size = 0;
    for (int peer = 0; peer < parent->size; peer++) {
        if (all[peer][0] == split->color) {
            size++;
            rank +=
                all[peer][1] < split->key || (all[peer][1] == split->key && peer < parent->rank);
        }
    }
    char id[64];
    child_id(id, sizeof id, parent, split->color);
    ncclComm_t child = comm_new(id, rank, size, parent->device, split->blocking);
    child->parent = parent; /* until the child has met, aborting the parent ends it */
    int result = comm_meet(child, "split", split->nth);
    if (result != ncclSuccess) {
        comm_text(parent, "%s", child->text);
        comm_unlink(child);
        free(child);
        return result;
    }
    CUcontext context;
    fake_cuda()->retain(&context, child->device);
    child->parent = NULL;
    atomic_store(&child->state, ncclSuccess);
    comm_register(child);
    /* As NCCL does: the handle is written once it can be used, by another thread than the caller's.
     */
    __atomic_store_n(split->result, child, __ATOMIC_RELEASE);
    return ncclSuccess;
}

static void split_run(void *argument) {
    struct split split = *(struct split *)argument;
    free(argument);
    int result = split_meet(&split);
    int expected = ncclInProgress;
    atomic_compare_exchange_strong(&split.parent->state, &expected, result);
}

EXPORT ncclResult_t ncclCommSplit(ncclComm_t parent, int color, int key, ncclComm_t *result,
                                  ncclConfig_t *config) {
    static atomic_long calls;
    if (!comm_enter(parent, "ncclCommSplit")) {
        return ncclInvalidArgument;
    }
    long nth = atomic_fetch_add(&calls, 1) + 1;
    int code = returned("split", nth, parent->rank);
    bool blocking = parent->blocking;
    *result = NULL;
    code = code >= 0 ? code : comm_ready(parent);
    code = code != ncclSuccess ? code : config_blocking(config, &blocking);
    if (code != ncclSuccess || color < -1) {
        return comm_leave(parent, code != ncclSuccess ? code : ncclInvalidArgument);
    }
    pthread_mutex_lock(&parent->lock);
    bool busy = parent->issued != parent->done;
    pthread_mutex_unlock(&parent->lock);
    if (busy) {
        fake_misuse("NCCL", "ncclCommSplit while the communicator has operations under way");
    }
    struct split *split = malloc(sizeof *split);
    if (split == NULL) {
        fake_misuse("NCCL", "out of memory");
    }
    *split = (struct split){parent, color, key, blocking, result, nth};
    code = comm_begin(parent);
    if (code != ncclSuccess) {
        free(split);
        return comm_leave(parent, code);
    }
    if (parent->blocking) {
        split_run(split);
        return comm_leave(parent, atomic_load(&parent->state));
    }
    job_start(parent, split_run, split);
    return comm_leave(parent, ncclInProgress);
}

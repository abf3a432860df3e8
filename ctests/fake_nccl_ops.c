/* The stand-in for libnccl.so.2, continued: what its operations do once a stream runs them. Every
 * rank has a socket to every other; a collective sends whatever another rank needs straight to it,
 * and reduces in the order of ranks. In front of each message goes what it is; a rank that finds
 * another thing than it waits for says so on stderr and waits on until it is aborted, as NCCL
 * would. */
#include "fake_nccl.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "fake_settings.h"

/* --- messages
 * -------------------------------------------------------------------------------------- */

struct header {
    int32_t kind, type, reduction, root;
    uint64_t bytes;
};

struct piece {
    char *at;
    size_t left;
    struct header header; /* to send, or as it should be */
    struct header got;
    size_t header_left;
};

struct lane {
    struct piece *pieces;
    size_t count, current;
};

struct traffic {
    ncclComm_t comm;
    struct lane out[MAX_RANKS], in[MAX_RANKS];
};

struct traffic *traffic_new(ncclComm_t comm) {
    struct traffic *traffic = calloc(1, sizeof *traffic);
    if (traffic == NULL) {
        fake_misuse("NCCL", "out of memory");
    }
    traffic->comm = comm;
    return traffic;
}

static void lane_add(struct lane *lane, void *bytes, size_t count, const struct operation *what) {
    struct piece *longer = realloc(lane->pieces, (lane->count + 1) * sizeof *longer);
    if (longer == NULL) {
        fake_misuse("NCCL", "out of memory");
    }
    bool message = what->kind == SEND || what->kind == RECV;
    lane->pieces = longer;
    lane->pieces[lane->count++] = (struct piece){
        .at = bytes,
        .left = count,
        .header = {message ? SEND : (int)what->kind, message ? 0 : what->type,
                   what->kind == ALL_REDUCE || what->kind == REDUCE_SCATTER ? what->reduction : 0,
                   what->kind == BROADCAST ? what->peer : 0, count},
        .header_left = sizeof(struct header),
    };
}

void traffic_send(struct traffic *traffic, int peer, const void *bytes, size_t count,
                  const struct operation *what) {
    lane_add(&traffic->out[peer], (void *)(uintptr_t)bytes, count, what);
}

void traffic_receive(struct traffic *traffic, int peer, void *bytes, size_t count,
                     const struct operation *what) {
    lane_add(&traffic->in[peer], bytes, count, what);
}

void hang(ncclComm_t comm) {
    while (!comm_aborted(comm)) {
        usleep(500);
    }
}

static void peer_gone(ncclComm_t comm, int peer) {
    const char *how = getenv("FAKE_NCCL_PEER_DEATH");
    if (how != NULL && strcmp(how, "error") == 0) {
        comm_text(comm, "connection to rank %d closed", peer);
        int expected = ncclSuccess;
        atomic_compare_exchange_strong(&comm->state, &expected, ncclRemoteError);
    }
    hang(comm);
}

/* One system call's worth of a piece, its header first; -1 where the other side is gone, 0 if it
 * would block. */
static ssize_t piece_move(int link, struct piece *piece, bool out) {
    bool header = piece->header_left > 0;
    char *start = out ? (char *)&piece->header : (char *)&piece->got;
    char *at = header ? start + sizeof piece->header - piece->header_left : piece->at;
    size_t left = header ? piece->header_left : piece->left;
    if (left == 0) {
        return 0;
    }
    ssize_t moved = out ? send(link, at, left, MSG_DONTWAIT | MSG_NOSIGNAL)
                        : recv(link, at, left, MSG_DONTWAIT);
    if (moved < 0) {
        return errno == EAGAIN || errno == EINTR ? 0 : -1;
    }
    if (moved == 0) {
        return -1;
    }
    if (header) {
        piece->header_left -= (size_t)moved;
    } else {
        piece->at += moved;
        piece->left -= (size_t)moved;
    }
    return moved;
}

/* Whether what came is what this rank waits for. */
static bool header_fits(ncclComm_t comm, int peer, const struct piece *piece) {
    const struct header *want = &piece->header, *got = &piece->got;
    if (memcmp(want, got, sizeof *want) == 0) {
        return true;
    }
    static const char *const names[] = {"all-reduce", "all-gather", "reduce-scatter", "broadcast",
                                        "message"};
    fprintf(stderr,
            "stand-in for NCCL: rank %d of %d waits for a %s of %llu bytes from rank %d, but a %s "
            "of %llu came (types %d and %d): it waits until it is aborted\n",
            comm->rank, comm->size, names[want->kind], (unsigned long long)want->bytes, peer,
            got->kind >= 0 && got->kind <= SEND ? names[got->kind] : "thing",
            (unsigned long long)got->bytes, want->type, got->type);
    return false;
}

enum progress { NOTHING, SOME, GONE, WRONG };

static enum progress lane_move(ncclComm_t comm, int peer, struct lane *lane, bool out) {
    enum progress progress = NOTHING;
    while (lane->current < lane->count) {
        struct piece *piece = &lane->pieces[lane->current];
        if (piece->header_left > 0 || piece->left > 0) {
            bool had_header = piece->header_left == 0;
            ssize_t moved = piece_move(comm->links[peer], piece, out);
            if (moved < 0) {
                return GONE;
            }
            if (moved == 0) {
                return progress;
            }
            if (!out && !had_header && piece->header_left == 0 && !header_fits(comm, peer, piece)) {
                return WRONG;
            }
            progress = SOME;
        }
        lane->current += piece->header_left == 0 && piece->left == 0;
    }
    return progress;
}

static void sleep_until_movable(struct traffic *traffic) {
    struct pollfd polled[MAX_RANKS];
    nfds_t count = 0;
    for (int peer = 0; peer < traffic->comm->size; peer++) {
        short events = 0;
        events |= traffic->in[peer].current < traffic->in[peer].count ? POLLIN : 0;
        events |= traffic->out[peer].current < traffic->out[peer].count ? POLLOUT : 0;
        if (events != 0) {
            polled[count++] = (struct pollfd){traffic->comm->links[peer], events, 0};
        }
    }
    poll(polled, count, 5);
}

static bool traffic_move(struct traffic *traffic) {
    ncclComm_t comm = traffic->comm;
    for (;;) {
        bool done = true, moved = false;
        if (comm_aborted(comm)) {
            return false;
        }
        for (int peer = 0; peer < comm->size; peer++) {
            struct lane *lanes[] = {&traffic->in[peer], &traffic->out[peer]};
            for (int out = 0; out < 2; out++) {
                enum progress progress = lane_move(comm, peer, lanes[out], out == 1);
                if (progress == GONE) {
                    peer_gone(comm, peer);
                } else if (progress == WRONG) {
                    hang(comm);
                }
                moved = moved || progress == SOME;
                done = done && lanes[out]->current == lanes[out]->count;
            }
        }
        if (done) {
            return true;
        }
        if (!moved) {
            sleep_until_movable(traffic);
        }
    }
}

bool traffic_run(struct traffic *traffic) {
    bool done = traffic_move(traffic);
    for (int peer = 0; peer < MAX_RANKS; peer++) {
        free(traffic->out[peer].pieces);
        free(traffic->in[peer].pieces);
    }
    free(traffic);
    return done;
}

/* --- numbers
 * --------------------------------------------------------------------------------------- */

size_t type_size(int type) {
    static const size_t sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
    return type >= 0 && type < 10 ? sizes[type] : 0;
}

static float half_to_float(uint16_t bits) {
    int exponent = bits >> 10 & 31;
    int fraction = bits & 1023;
    float value = exponent == 0    ? ldexpf((float)fraction, -24)
                  : exponent == 31 ? (fraction != 0 ? NAN : INFINITY)
                                   : ldexpf((float)(fraction + 1024), exponent - 25);
    return (bits & 0x8000) != 0 ? -value : value;
}

/* Rounded to the nearest, ties to even: scaled so that the last bit kept is a unit, then
 * nearbyintf. */
static uint16_t half_from_float(float value) {
    uint16_t sign = signbit(value) ? 0x8000 : 0;
    float magnitude = fabsf(value);
    if (isnan(value)) {
        return sign | 0x7e00;
    }
    if (isinf(value)) {
        return sign | 0x7c00;
    }
    int exponent;
    frexpf(magnitude, &exponent);
    exponent = magnitude == 0 || exponent < -13 ? -13 : exponent; /* subnormal */
    float units = nearbyintf(ldexpf(magnitude, 11 - exponent));
    unsigned bits = (unsigned)((exponent + 13) << 10) + (unsigned)units;
    return (uint16_t)(sign | (magnitude == 0 ? 0 : bits >= 0x7c00 ? 0x7c00 : bits));
}

static float bfloat_to_float(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

static uint16_t bfloat_from_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (isnan(value)) {
        return (uint16_t)(bits >> 16 | 0x40);
    }
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#define INTEGERS(type, unsigned_type)                                              \
    for (size_t i = 0; i < count; i++) {                                           \
        type *to = (type *)into + i;                                               \
        type a = *to, b = ((const type *)from)[i];                                 \
        *to = reduction == ncclSum   ? (type)((unsigned_type)a + (unsigned_type)b) \
              : reduction == ncclMax ? (a > b ? a : b)                             \
                                     : (a < b ? a : b);                            \
    }                                                                              \
    return

/* As on a GPU, a NaN loses against a number in max and min. */
#define FLOATS(type, load, store)                                \
    for (size_t i = 0; i < count; i++) {                         \
        type *to = (type *)into + i;                             \
        double a = load(*to), b = load(((const type *)from)[i]); \
        *to = store(reduction == ncclSum   ? a + b               \
                    : reduction == ncclMax ? fmax(a, b)          \
                                           : fmin(a, b));        \
    }                                                            \
    return

#define AS_IT_IS(value) (value)
#define NARROWED(value) ((float)(value))

void reduce(void *into, const void *from, size_t count, int type, int reduction) {
    switch (type) {
    case ncclInt8:
        INTEGERS(int8_t, uint8_t);
    case ncclUint8:
        INTEGERS(uint8_t, uint8_t);
    case ncclInt32:
        INTEGERS(int32_t, uint32_t);
    case ncclUint32:
        INTEGERS(uint32_t, uint32_t);
    case ncclInt64:
        INTEGERS(int64_t, uint64_t);
    case ncclUint64:
        INTEGERS(uint64_t, uint64_t);
    case ncclFloat16:
        FLOATS(uint16_t, half_to_float, half_from_float);
    case ncclBfloat16:
        FLOATS(uint16_t, bfloat_to_float, bfloat_from_float);
    case ncclFloat32:
        FLOATS(float, AS_IT_IS, NARROWED);
    case ncclFloat64:
        FLOATS(double, AS_IT_IS, AS_IT_IS);
    }
}

/* --- operations
 * ------------------------------------------------------------------------------------ */

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

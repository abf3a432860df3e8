/* The stand-in for libnccl.so.2, continued: how bytes get from rank to rank. Every rank has a
 * socket to every other. In front of each message goes what it is; a rank that finds another thing
 * than it waits for says so on stderr and waits on until it is aborted, as NCCL would. */
#include "fake_nccl.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "fake_settings.h"

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

static atomic_long stuck;

EXPORT long fake_nccl_stuck(void) {
    return atomic_load(&stuck);
}

void hang(ncclComm_t comm) {
    atomic_fetch_add(&stuck, 1);
    while (!comm_aborted(comm)) {
        usleep(500);
    }
    atomic_fetch_sub(&stuck, 1);
}

static atomic_bool go;

EXPORT void fake_nccl_go(void) {
    atomic_store(&go, true);
}

void block(void) {
    atomic_fetch_add(&stuck, 1);
    while (!atomic_load(&go)) {
        usleep(500);
    }
    atomic_fetch_sub(&stuck, 1);
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

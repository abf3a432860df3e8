/* What the files of the stand-in for NCCL share. */
#ifndef FAKE_NCCL_H
#define FAKE_NCCL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <stdatomic.h>

#include "fake_gpu.h"

#define MAX_RANKS 64

enum kind { ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, BROADCAST, SEND, RECV, KINDS };

struct operation {
    enum kind kind;
    const void *input;
    void *output;
    size_t count;
    int type;
    int reduction;
    int peer; /* or root */
};

/* What one call, or one group of calls, runs on a stream. */
struct launch {
    ncclComm_t comm;
    cudaStream_t stream;
    unsigned long ticket;
    bool hang;       /* never ends until aborted */
    int async_error; /* likewise, and the communicator reports this code; 0: none */
    size_t count;
    struct operation *operations;
};

struct ncclComm {
    char id[64]; /* the part of the unique id that names the meeting place */
    int rank, size;
    int device;
    bool blocking;
    int links[MAX_RANKS]; /* to each other rank; -1 for itself */
    atomic_int abort;
    atomic_int state;  /* what ncclCommGetAsyncError answers */
    atomic_int inside; /* calls of other threads that are under way */
    atomic_bool live;
    bool finalized;
    bool used[MAX_RANKS]; /* operations have run with this peer; [rank]: collectives */
    int splits;
    char text[256];

    pthread_mutex_t lock;
    pthread_cond_t moved;
    int jobs;                   /* threads that work for it */
    unsigned long issued, done; /* launches */
    ncclComm_t parent;          /* while it is being made by a split */
    ncclComm_t next;
};

/* CUDA, as this library finds it. */
struct cuda {
    CUresult (*init)(unsigned flags);
    CUresult (*retain)(CUcontext *context, CUdevice device);
    CUresult (*release)(CUdevice device);
    CUresult (*enqueue)(int device, CUstream stream, void (*work)(void *), void *argument);
    void *(*memory)(const void *pointer, size_t bytes);
    int (*device)(void);
    int (*place)(int device);
};
const struct cuda *fake_cuda(void);

/* Sends and receives bytes between ranks; used by one thread of a communicator at a time. */
struct traffic;
struct traffic *traffic_new(ncclComm_t comm);
/* The next message to `peer`; it and the header must stay until traffic_run has returned. */
void traffic_send(struct traffic *traffic, int peer, const void *bytes, size_t count,
                  const struct operation *what);
void traffic_receive(struct traffic *traffic, int peer, void *bytes, size_t count,
                     const struct operation *what);
/* Moves all; false if the communicator was aborted first. Frees the traffic. */
bool traffic_run(struct traffic *traffic);

size_t type_size(int type);
/* into[i] = into[i] op from[i] */
void reduce(void *into, const void *from, size_t count, int type, int reduction);
/* Runs a launch on its stream. */
void launch_run(void *launch);
/* Waits until aborted. */
void hang(ncclComm_t comm);
/* Until the program calls fake_nccl_go(). */
void block(void);

/* Begins a call on a communicator; false: it is NULL. One that has ended is misuse. */
bool comm_enter(ncclComm_t comm, const char *call);
ncclResult_t comm_leave(ncclComm_t comm, int result);
/* What a call on it must answer: ncclSuccess if it may go on. */
int comm_ready(ncclComm_t comm);
/* From ready to in progress, unless an error has come meanwhile: its code, which stays. */
int comm_begin(ncclComm_t comm);
void comm_register(ncclComm_t comm);
void comm_unlink(ncclComm_t comm);
bool comm_aborted(ncclComm_t comm);

/* Whether the settings count on this rank; the code that FAKE_NCCL_RETURN asks for, or -1. */
bool settings_count(int rank);
int returned(const char *what, long nth, int rank);
/* Passes the time that FAKE_NCCL_SLOW_MS asks for. */
void be_slow(ncclComm_t comm);
/* Works for a communicator on a thread of its own; whatever ends it waits for that. */
void job_start(ncclComm_t comm, void (*work)(void *), void *argument);

/* What ncclGetLastError says; of no communicator if `comm` is NULL. */
void comm_text(ncclComm_t comm, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif

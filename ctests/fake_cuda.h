/* What the files of the stand-in for CUDA's driver share. */
#ifndef FAKE_CUDA_H
#define FAKE_CUDA_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <stdatomic.h>

#include "fake_gpu.h"

#define MAX_DEVICES 16

/* A device's primary context; there are no others. */
struct CUctx_st {
    int device;
    int retained;
    CUstream legacy;
};

/* Where a byte is: nowhere of CUDA's (an ordinary host pointer), or in one of its allocations. */
enum kind { PAGEABLE, DEVICE, PINNED, MANAGED };

/* Every call that the interface has begins here: refused before cuInit, in a forked child, inside a
 * host function, or where FAKE_NCCL_CUDA_ERROR asks for it; with `context`, also where none is
 * current. */
CUresult fake_enter(const char *name, bool context);
#define ENTER(name, context)                          \
    do {                                              \
        CUresult entered = fake_enter(name, context); \
        if (entered != CUDA_SUCCESS) {                \
            return entered;                           \
        }                                             \
    } while (0)

CUcontext fake_current(void);
CUcontext fake_context(int device);
void fake_context_set(CUcontext context);
/* The kind of memory at a pointer, and where the host finds it; `*fits` says whether all bytes are
 * in the same allocation. */
enum kind fake_kind(const void *pointer, size_t bytes, void **host, bool *fits);
/* Waits until a device has done everything that it was given, as freeing memory does. */
void fake_device_idle(CUcontext context);
CUstream fake_legacy_new(CUcontext context);

/* A place in a stream: reached when so much of its work is done. */
struct place {
    CUstream stream;
    unsigned long number;
};

/* The stream of a handle, for threads with this context; NULL if it is none. */
CUstream fake_stream(CUstream handle, CUcontext context);
/* Puts work at a stream's end; on one that is being captured it never runs. */
struct place fake_enqueue(CUstream stream, void (*work)(void *), void *argument);
void fake_wait(struct place place);
/* The stream of a handle, for new work: of the current context, and not in the way of a capture. */
CUresult fake_stream_for_work(CUstream handle, CUstream *stream);
/* For calls that no thread may make during a capture, unless it has said that it may: they end it.
 */
CUresult fake_unsafe(void);
#define UNSAFE(name, context)            \
    do {                                 \
        ENTER(name, context);            \
        CUresult unsafe = fake_unsafe(); \
        if (unsafe != CUDA_SUCCESS) {    \
            return unsafe;               \
        }                                \
    } while (0)

/* A stream that work may be put on now. */
#define STREAM(name, handle)                                   \
    CUstream name;                                             \
    do {                                                       \
        CUresult usable = fake_stream_for_work(handle, &name); \
        if (usable != CUDA_SUCCESS) {                          \
            return usable;                                     \
        }                                                      \
    } while (0)

extern _Thread_local bool fake_in_host_function;
/* How many there are, for fake_cuda_live. */
long fake_memory_live(void);
long fake_streams_live(void);
long fake_events_live(void);

#endif

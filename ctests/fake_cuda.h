/* What the two files of the stand-in for CUDA's driver share. */
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

extern _Thread_local bool fake_in_host_function;
long fake_memory_live(void);
long fake_contexts_live(void);
long fake_calls(void);

#endif

/* A stand-in for libcuda.so.1, for tests on machines without a GPU. Not CUDA: "devices" are host
 * memory and threads. It has the binary interface of the driver's functions that libmlxd and its
 * tests use, and is strict where CUDA is: memory of a device is not accessible to the host, streams
 * run later, contexts must be right, freed handles are refused, freeing memory waits for the
 * device.
 *
 *     FAKE_NCCL_DEVICES      how many devices there are: 8, as long as this does not say otherwise
 *     FAKE_NCCL_CUDA_ERROR   "cuEventRecord:2:700": the second call of it returns 700 ("*": every
 * call) FAKE_NCCL_DELAY_US     each piece of work on a stream begins up to so many microseconds
 * late, so that what relies on being fast shows; 0
 *
 * CUDA_VISIBLE_DEVICES hides and orders devices as with CUDA (numbers only). What NCCL's stand-in
 * reads is told in fake_nccl.c. This file: devices, contexts, memory. */
#include "fake_cuda.h"

#include <sys/mman.h>
#include <unistd.h>

#define FAKE_MISUSE
#include "fake_settings.h"

_Thread_local bool fake_in_host_function;

static atomic_int process; /* that called cuInit */
static atomic_long calls;
static int device_count;
static int places[MAX_DEVICES];
static struct CUctx_st contexts[MAX_DEVICES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* contexts and blocks */

#define MAX_STACK 32
static _Thread_local CUcontext stack[MAX_STACK];
static _Thread_local int depth;

/* --- calls in general
 * ------------------------------------------------------------------------------ */

/* Counts calls by name, for FAKE_NCCL_CUDA_ERROR. */
static CUresult injected(const char *name) {
    static pthread_mutex_t counting = PTHREAD_MUTEX_INITIALIZER;
    static struct {
        const char *name;
        long calls;
    } counts[64];
    if (getenv("FAKE_NCCL_CUDA_ERROR") == NULL) {
        return CUDA_SUCCESS;
    }
    pthread_mutex_lock(&counting);
    size_t i = 0;
    while (i < 63 && counts[i].name != NULL && strcmp(counts[i].name, name) != 0) {
        i++;
    }
    counts[i].name = name;
    long nth = ++counts[i].calls;
    pthread_mutex_unlock(&counting);
    int code = fake_due("FAKE_NCCL_CUDA_ERROR", name, nth, CUDA_ERROR_UNKNOWN);
    return code < 0 ? CUDA_SUCCESS : (CUresult)code;
}

CUresult fake_enter(const char *name, bool context) {
    atomic_fetch_add(&calls, 1);
    if (fake_in_host_function) {
        fprintf(stderr, "stand-in for CUDA: %s inside a host function\n", name);
        return CUDA_ERROR_NOT_PERMITTED;
    }
    if (atomic_load(&process) != (int)getpid()) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    CUresult error = injected(name);
    if (error != CUDA_SUCCESS || !context) {
        return error;
    }
    if (fake_current() == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    return fake_current()->retained > 0 ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

/* The devices that CUDA_VISIBLE_DEVICES leaves of those that are there, up to the first wrong one.
 */
static void find_devices(void) {
    long there = fake_number("FAKE_NCCL_DEVICES", 8);
    there = there > MAX_DEVICES ? MAX_DEVICES : there;
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    device_count = 0;
    for (long i = 0; visible == NULL && i < there; i++) {
        places[device_count++] = (int)i;
    }
    while (visible != NULL && visible[0] != '\0' && device_count < MAX_DEVICES) {
        char *end;
        long place = strtol(visible, &end, 10);
        if (end == visible || place < 0 || place >= there) {
            break;
        }
        places[device_count++] = (int)place;
        visible = *end == ',' ? end + 1 : end;
    }
}

EXPORT CUresult cuInit(unsigned flags) {
    CUresult error = injected("cuInit");
    if (error != CUDA_SUCCESS || flags != 0) {
        return error != CUDA_SUCCESS ? error : CUDA_ERROR_INVALID_VALUE;
    }
    pthread_mutex_lock(&lock);
    int before = atomic_load(&process);
    if (before == 0) {
        find_devices();
    }
    if (before == 0 && device_count > 0) {
        for (int i = 0; i < device_count; i++) {
            contexts[i].device = i;
            contexts[i].legacy = fake_legacy_new(&contexts[i]);
        }
        atomic_store(&process, (int)getpid());
    }
    pthread_mutex_unlock(&lock);
    if (before != 0 && before != (int)getpid()) {
        return CUDA_ERROR_NOT_INITIALIZED; /* CUDA does not survive a fork */
    }
    return device_count > 0 ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}

EXPORT CUresult cuDriverGetVersion(int *version) {
    *version = 13000;
    return injected("cuDriverGetVersion");
}

EXPORT CUresult cuGetErrorName(CUresult error, const char **name) {
    const char *known = NULL;
    switch ((int)error) {
#define NAME(code)     \
    case code:         \
        known = #code; \
        break
        NAME(CUDA_SUCCESS);
        NAME(CUDA_ERROR_INVALID_VALUE);
        NAME(CUDA_ERROR_OUT_OF_MEMORY);
        NAME(CUDA_ERROR_NOT_INITIALIZED);
        NAME(CUDA_ERROR_NO_DEVICE);
        NAME(CUDA_ERROR_INVALID_DEVICE);
        NAME(CUDA_ERROR_INVALID_CONTEXT);
        NAME(CUDA_ERROR_INVALID_HANDLE);
        NAME(CUDA_ERROR_NOT_READY);
        NAME(CUDA_ERROR_CONTEXT_IS_DESTROYED);
        NAME(CUDA_ERROR_NOT_PERMITTED);
        NAME(CUDA_ERROR_UNKNOWN);
    }
    *name = known;
    return known != NULL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

EXPORT CUresult cuGetErrorString(CUresult error, const char **text) {
    return cuGetErrorName(error, text);
}

/* --- devices and contexts
 * -------------------------------------------------------------------------- */

EXPORT CUresult cuDeviceGetCount(int *count) {
    ENTER("cuDeviceGetCount", false);
    *count = device_count;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    ENTER("cuDeviceGet", false);
    if (ordinal < 0 || ordinal >= device_count) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    *device = ordinal;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    ENTER("cuDeviceGetName", false);
    if (device < 0 || device >= device_count) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    snprintf(name, (size_t)length, "stand-in, no GPU (%d)", places[device]);
    return CUDA_SUCCESS;
}

CUcontext fake_context(int device) {
    return device >= 0 && device < device_count ? &contexts[device] : NULL;
}

CUcontext fake_current(void) {
    return depth > 0 ? stack[depth - 1] : NULL;
}

void fake_context_set(CUcontext context) {
    depth = 1;
    stack[0] = context;
}

EXPORT int fake_cuda_device(void) {
    return fake_current() != NULL ? fake_current()->device : 0;
}

EXPORT int fake_cuda_place(int device) {
    return places[device];
}

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    ENTER("cuDevicePrimaryCtxRetain", false);
    if (fake_context(device) == NULL) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    pthread_mutex_lock(&lock);
    contexts[device].retained++;
    pthread_mutex_unlock(&lock);
    *context = &contexts[device];
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    ENTER("cuDevicePrimaryCtxRelease", false);
    if (fake_context(device) == NULL) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    pthread_mutex_lock(&lock);
    bool held = contexts[device].retained > 0;
    contexts[device].retained -= held;
    pthread_mutex_unlock(&lock);
    return held ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

static bool is_context(CUcontext context) {
    return context >= contexts && context < contexts + device_count;
}

EXPORT CUresult cuCtxGetCurrent(CUcontext *context) {
    ENTER("cuCtxGetCurrent", false);
    *context = fake_current();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxSetCurrent(CUcontext context) {
    ENTER("cuCtxSetCurrent", false);
    if (context != NULL && !is_context(context)) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    depth -= depth > 0;
    if (context != NULL) {
        stack[depth++] = context;
    }
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxPushCurrent_v2(CUcontext context) {
    ENTER("cuCtxPushCurrent", false);
    if (!is_context(context)) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (depth == MAX_STACK) {
        fake_misuse("CUDA", "%d contexts pushed on one thread and not popped", MAX_STACK);
    }
    stack[depth++] = context;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxPopCurrent_v2(CUcontext *context) {
    ENTER("cuCtxPopCurrent", false);
    if (depth == 0) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    CUcontext top = stack[--depth];
    if (context != NULL) {
        *context = top;
    }
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetDevice(CUdevice *device) {
    ENTER("cuCtxGetDevice", true);
    *device = fake_current()->device;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxSynchronize(void) {
    ENTER("cuCtxSynchronize", true);
    fake_device_idle(fake_current());
    return CUDA_SUCCESS;
}

/* --- memory
 * ---------------------------------------------------------------------------------------- */

/* Addresses of a device are reserved and never accessible; its bytes are `shift` bytes further on.
 */
struct block {
    unsigned char *base;
    size_t bytes;
    size_t shift;
    size_t mapped;
    enum kind kind;
    CUcontext context;
    struct block *next;
};

static struct block *blocks;

/* With the lock held. */
static struct block *block_of(const void *pointer) {
    const unsigned char *at = pointer;
    for (struct block *block = blocks; block != NULL; block = block->next) {
        if (at >= block->base && at < block->base + block->bytes) {
            return block;
        }
    }
    return NULL;
}

enum kind fake_kind(const void *pointer, size_t bytes, void **host, bool *fits) {
    enum kind kind = PAGEABLE;
    *host = (void *)(uintptr_t)pointer;
    *fits = true;
    pthread_mutex_lock(&lock);
    struct block *block = block_of(pointer);
    if (block != NULL) {
        size_t offset = (size_t)((const unsigned char *)pointer - block->base);
        kind = block->kind;
        *host = block->base + offset + block->shift;
        *fits = bytes <= block->bytes - offset;
    }
    pthread_mutex_unlock(&lock);
    return kind;
}

EXPORT void *fake_cuda_memory(const void *pointer, size_t bytes) {
    void *host;
    bool fits;
    return fake_kind(pointer, bytes, &host, &fits) != PAGEABLE && fits ? host : NULL;
}

static CUresult block_new(size_t bytes, enum kind kind, void **pointer) {
    if (bytes == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t mapped = (bytes + page - 1) / page * page;
    size_t shift = kind == DEVICE ? mapped : 0;
    struct block *block = calloc(1, sizeof *block);
    void *base = mmap(NULL, mapped + shift, kind == DEVICE ? PROT_NONE : PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block == NULL || base == MAP_FAILED) {
        free(block);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (kind == DEVICE && mprotect((char *)base + shift, mapped, PROT_READ | PROT_WRITE) != 0) {
        munmap(base, mapped + shift);
        free(block);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *block = (struct block){base, bytes, shift, mapped + shift, kind, fake_current(), NULL};
    pthread_mutex_lock(&lock);
    block->next = blocks;
    blocks = block;
    pthread_mutex_unlock(&lock);
    *pointer = base;
    return CUDA_SUCCESS;
}

/* Only the address that was given out may be given back. */
static CUresult block_free(void *pointer, bool pinned) {
    pthread_mutex_lock(&lock);
    struct block *block = block_of(pointer);
    bool right = block != NULL && block->base == pointer && (block->kind == PINNED) == pinned;
    pthread_mutex_unlock(&lock);
    if (!right) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    fake_device_idle(block->context);
    pthread_mutex_lock(&lock);
    struct block **link = &blocks;
    while (*link != NULL && *link != block) {
        link = &(*link)->next;
    }
    if (*link == NULL) {
        fake_misuse("CUDA", "memory at %p is freed by two threads", pointer);
    }
    *link = block->next;
    pthread_mutex_unlock(&lock);
    munmap(block->base, block->mapped);
    free(block);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes) {
    ENTER("cuMemAlloc", true);
    void *memory = NULL;
    CUresult error = block_new(bytes, DEVICE, &memory);
    *pointer = (CUdeviceptr)(uintptr_t)memory;
    return error;
}

EXPORT CUresult cuMemAllocManaged(CUdeviceptr *pointer, size_t bytes, unsigned flags) {
    ENTER("cuMemAllocManaged", true);
    if (flags != CU_MEM_ATTACH_GLOBAL && flags != 2) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    void *memory = NULL;
    CUresult error = block_new(bytes, MANAGED, &memory);
    *pointer = (CUdeviceptr)(uintptr_t)memory;
    return error;
}

EXPORT CUresult cuMemHostAlloc(void **pointer, size_t bytes, unsigned flags) {
    ENTER("cuMemHostAlloc", true);
    return (flags & ~7u) != 0 ? CUDA_ERROR_INVALID_VALUE : block_new(bytes, PINNED, pointer);
}

EXPORT CUresult cuMemFree_v2(CUdeviceptr pointer) {
    ENTER("cuMemFree", true);
    return pointer == 0 ? CUDA_SUCCESS : block_free((void *)(uintptr_t)pointer, false);
}

EXPORT CUresult cuMemFreeHost(void *pointer) {
    ENTER("cuMemFreeHost", true);
    return pointer == NULL ? CUDA_SUCCESS : block_free(pointer, true);
}

/* One attribute; of memory that is not CUDA's, the zero that cuPointerGetAttributes gives. */
static CUresult attribute_of(void *data, int attribute, CUdeviceptr pointer) {
    pthread_mutex_lock(&lock);
    struct block *block = block_of((void *)(uintptr_t)pointer);
    struct block at = block != NULL ? *block : (struct block){.kind = PAGEABLE};
    pthread_mutex_unlock(&lock);
    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
        *(CUcontext *)data = at.context;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *(unsigned *)data = at.kind == PAGEABLE ? 0u
                            : at.kind == PINNED ? (unsigned)CU_MEMORYTYPE_HOST
                                                : (unsigned)CU_MEMORYTYPE_DEVICE;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
        *(CUdeviceptr *)data = block != NULL ? pointer : 0;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
        *(void **)data = at.kind == DEVICE || block == NULL ? NULL : (void *)(uintptr_t)pointer;
        return at.kind == DEVICE ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
    case CU_POINTER_ATTRIBUTE_MAPPED:
        *(unsigned *)data =
            attribute == CU_POINTER_ATTRIBUTE_IS_MANAGED ? at.kind == MANAGED : block != NULL;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        *(int *)data = block != NULL ? at.context->device : -2;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
        *(CUdeviceptr *)data = (CUdeviceptr)(uintptr_t)at.base;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
        *(size_t *)data = at.bytes;
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

EXPORT CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute,
                                      CUdeviceptr pointer) {
    ENTER("cuPointerGetAttribute", false);
    void *host;
    bool fits;
    if (fake_kind((void *)(uintptr_t)pointer, 0, &host, &fits) == PAGEABLE) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return attribute_of(data, (int)attribute, pointer);
}

EXPORT CUresult cuPointerGetAttributes(unsigned count, CUpointer_attribute *attributes, void **data,
                                       CUdeviceptr pointer) {
    ENTER("cuPointerGetAttributes", false);
    for (unsigned i = 0; i < count; i++) {
        attribute_of(data[i], (int)attributes[i], pointer);
    }
    return CUDA_SUCCESS;
}

long fake_memory_live(void) {
    long live = 0;
    pthread_mutex_lock(&lock);
    for (struct block *block = blocks; block != NULL; block = block->next) {
        live++;
    }
    pthread_mutex_unlock(&lock);
    return live;
}

long fake_calls(void) {
    return atomic_load(&calls);
}

long fake_contexts_live(void) {
    long live = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < device_count; i++) {
        live += contexts[i].retained;
    }
    pthread_mutex_unlock(&lock);
    return live;
}

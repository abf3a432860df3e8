/* Device memory, streams and events of CUDA's driver for tests, opened at run time: no CUDA is
 * needed to compile them. Where there is no device, device_start() ends the program with the status
 * that CTest takes for skipped. Every failure of the driver ends the program. */
#ifndef DEVICE_H
#define DEVICE_H

#include "check.h"

#include <dlfcn.h>

#define SKIPPED 77

typedef uint64_t device_pointer;

/* The driver's functions, as cuda.h declares them; results are numbers. */
static struct {
    void *library;
    int (*init)(unsigned);
    int (*driver_version)(int *);
    int (*count)(int *);
    int (*device_get)(int *, int);
    int (*name)(char *, int, int);
    int (*retain)(void **, int);
    int (*release)(int);
    int (*current)(void **);
    int (*set_current)(void *);
    int (*alloc)(device_pointer *, size_t);
    int (*free)(device_pointer);
    int (*alloc_pinned)(void **, size_t, unsigned);
    int (*free_pinned)(void *);
    int (*alloc_managed)(device_pointer *, size_t, unsigned);
    int (*to_device)(device_pointer, const void *, size_t);
    int (*to_host)(void *, device_pointer, size_t);
    int (*to_device_async)(device_pointer, const void *, size_t, void *);
    int (*to_host_async)(void *, device_pointer, size_t, void *);
    int (*stream_create)(void **, unsigned);
    int (*stream_destroy)(void *);
    int (*stream_query)(void *);
    int (*stream_synchronize)(void *);
    int (*stream_wait)(void *, void *, unsigned);
    int (*event_create)(void **, unsigned);
    int (*event_destroy)(void *);
    int (*event_record)(void *, void *);
    int (*event_synchronize)(void *);
    int (*event_elapsed)(float *, void *, void *);
    int (*launch_host)(void *, void (*)(void *), void *);
} cuda;

/* The device in use, and its context. */
static int device_number;
static void *device_context;

#define CUDA(call)                                                                                 \
    do {                                                                                           \
        int cuda_result = (call);                                                                  \
        if (cuda_result != 0) {                                                                    \
            fprintf(stderr, "%s:%d: rank %d: %s: CUDA error %d\n", __FILE__, __LINE__, check_rank, \
                    #call, cuda_result);                                                           \
            _exit(1);                                                                              \
        }                                                                                          \
    } while (0)

/* NULL once the driver is open and has a device; otherwise why not. */
static inline const char *device_open(void) {
    static char why[300];
    cuda.library = dlopen("libcuda.so.1", RTLD_NOW);
    if (cuda.library == NULL) {
        snprintf(why, sizeof why, "no CUDA driver: %s", dlerror());
        return why;
    }
    const struct {
        const char *name;
        void *function;
    } wanted[] = {
        {"cuInit", &cuda.init},
        {"cuDriverGetVersion", &cuda.driver_version},
        {"cuDeviceGetCount", &cuda.count},
        {"cuDeviceGet", &cuda.device_get},
        {"cuDeviceGetName", &cuda.name},
        {"cuDevicePrimaryCtxRetain", &cuda.retain},
        {"cuDevicePrimaryCtxRelease_v2", &cuda.release},
        {"cuCtxGetCurrent", &cuda.current},
        {"cuCtxSetCurrent", &cuda.set_current},
        {"cuMemAlloc_v2", &cuda.alloc},
        {"cuMemFree_v2", &cuda.free},
        {"cuMemHostAlloc", &cuda.alloc_pinned},
        {"cuMemFreeHost", &cuda.free_pinned},
        {"cuMemAllocManaged", &cuda.alloc_managed},
        {"cuMemcpyHtoD_v2", &cuda.to_device},
        {"cuMemcpyDtoH_v2", &cuda.to_host},
        {"cuMemcpyHtoDAsync_v2", &cuda.to_device_async},
        {"cuMemcpyDtoHAsync_v2", &cuda.to_host_async},
        {"cuStreamCreate", &cuda.stream_create},
        {"cuStreamDestroy_v2", &cuda.stream_destroy},
        {"cuStreamQuery", &cuda.stream_query},
        {"cuStreamSynchronize", &cuda.stream_synchronize},
        {"cuStreamWaitEvent", &cuda.stream_wait},
        {"cuEventCreate", &cuda.event_create},
        {"cuEventDestroy_v2", &cuda.event_destroy},
        {"cuEventRecord", &cuda.event_record},
        {"cuEventSynchronize", &cuda.event_synchronize},
        {"cuEventElapsedTime", &cuda.event_elapsed},
        {"cuLaunchHostFunc", &cuda.launch_host},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        void *function = dlsym(cuda.library, wanted[i].name);
        if (function == NULL) {
            snprintf(why, sizeof why, "the CUDA driver has no %s", wanted[i].name);
            return why;
        }
        memcpy(wanted[i].function, &function, sizeof function);
    }
    int count = 0;
    int result = cuda.init(0);
    if (result != 0 || cuda.count(&count) != 0 || count == 0) {
        snprintf(why, sizeof why, "no CUDA device (cuInit: %d, %d devices)", result, count);
        return why;
    }
    return NULL;
}

/* Whether this is the stand-in: there is no GPU then. */
static inline bool device_is_fake(void) {
    return dlsym(cuda.library, "fake_cuda_live") != NULL;
}

/* What tests ask the stand-in only: how many of "streams", "events", "memory", "contexts" there
 * are. */
static inline long device_live(const char *what) {
    void *function = dlsym(cuda.library, "fake_cuda_live");
    long (*live)(const char *);
    REQUIRE(function != NULL);
    memcpy(&live, &function, sizeof function);
    return live(what);
}

/* Makes the primary context of this device current on this thread. */
static inline void device_use(int device) {
    CUDA(cuda.retain(&device_context, device));
    CUDA(cuda.set_current(device_context));
    device_number = device;
}

/* The driver is open; no context is current yet. */
static inline void device_find(void) {
    const char *why = device_open();
    if (why != NULL) {
        printf("skipped: %s\n", why);
        exit(SKIPPED);
    }
}

/* For programs whose ranks share out the devices by LOCAL_RANK, MLX_RANK or MLXD_RANK, in this
 * order. */
static inline void device_start(void) {
    const char *const variables[] = {"LOCAL_RANK", "MLX_RANK", "MLXD_RANK"};
    int rank = 0, count = 0;
    device_find();
    for (size_t i = 3; i-- > 0;) {
        const char *value = getenv(variables[i]);
        rank = value != NULL ? atoi(value) : rank;
    }
    CUDA(cuda.count(&count));
    device_use(rank % count);
}

static inline void *device_alloc(size_t bytes) {
    device_pointer memory = 0;
    CUDA(cuda.alloc(&memory, bytes > 0 ? bytes : 1));
    return (void *)(uintptr_t)memory;
}

static inline void device_free(void *memory) {
    CUDA(cuda.free((device_pointer)(uintptr_t)memory));
}

static inline void *pinned_alloc(size_t bytes) {
    void *memory = NULL;
    CUDA(cuda.alloc_pinned(&memory, bytes > 0 ? bytes : 1, 1));
    return memory;
}

static inline void *managed_alloc(size_t bytes) {
    device_pointer memory = 0;
    CUDA(cuda.alloc_managed(&memory, bytes > 0 ? bytes : 1, 1));
    return (void *)(uintptr_t)memory;
}

static inline void device_write(void *to, const void *from, size_t bytes) {
    if (bytes > 0) {
        CUDA(cuda.to_device((device_pointer)(uintptr_t)to, from, bytes));
    }
}

static inline void device_read(void *to, const void *from, size_t bytes) {
    if (bytes > 0) {
        CUDA(cuda.to_host(to, (device_pointer)(uintptr_t)from, bytes));
    }
}

/* Streams are blocking, as cudaStreamCreate makes them, or not. */
static inline void *cuda_stream_new(bool blocking) {
    void *stream = NULL;
    CUDA(cuda.stream_create(&stream, blocking ? 0 : 1));
    return stream;
}

/* Holds a stream up until it is opened. */
struct gate {
    atomic_int open;
};

static inline void wait_at_gate(void *argument) {
    struct gate *gate = argument;
    while (atomic_load(&gate->open) == 0) {
        sleep_ms(1);
    }
}

#endif

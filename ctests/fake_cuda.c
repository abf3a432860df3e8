/* A stand-in for libcuda.so.1, for tests on machines without a GPU. Not CUDA: "devices" are host
 * memory and threads. It has the binary interface of the driver's functions that libmlxd and its
 * tests use, and is strict where CUDA is: memory of a device is not accessible to the host,
 * streams run later, contexts must be right, freed handles are refused, freeing memory waits for
 * the device, every call is refused in what runs at exit after the handler that cuInit registers.
 * Settings, with what holds without them:
 *
 * FAKE_NCCL_DEVICES: how many devices there are; 8.
 *
 * FAKE_NCCL_CUDA_ERROR: "cuEventRecord:2:700" has the second call of it return 700, "*" every one.
 *
 * FAKE_NCCL_CUDA_INIT: "wait" has cuInit wait until the program calls fake_cuda_go().
 *
 * FAKE_NCCL_DELAY_US: each piece of work on a stream begins up to so many microseconds late, so
 * that what relies on being fast shows; 0.
 *
 * CUDA_VISIBLE_DEVICES hides and orders devices as with CUDA (numbers only). What NCCL's stand-in
 * reads is told in fake_nccl.c. This file: devices and contexts. */
#include "fake_cuda.h"

#include <unistd.h>

#define FAKE_MISUSE
#include "fake_settings.h"

_Thread_local bool fake_in_host_function;

static atomic_int process; /* that called cuInit */
static atomic_bool ended;  /* at its exit */
static atomic_long calls;
static int device_count;
static int places[MAX_DEVICES];
static struct CUctx_st contexts[MAX_DEVICES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* contexts */

#define MAX_STACK 32
static _Thread_local CUcontext stack[MAX_STACK];
static _Thread_local int depth;

/* ---- calls in general ---- */

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
    if (atomic_load(&ended)) {
        return CUDA_ERROR_DEINITIALIZED;
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

static atomic_int starting; /* threads in cuInit */
static atomic_bool go;

EXPORT void fake_cuda_go(void) {
    atomic_store(&go, true);
}

static void start_slowly(void) {
    const char *how = getenv("FAKE_NCCL_CUDA_INIT");
    atomic_fetch_add(&starting, 1);
    while (how != NULL && strcmp(how, "wait") == 0 && !atomic_load(&go)) {
        usleep(1000);
    }
    atomic_fetch_sub(&starting, 1);
}

static long starting_live(void) {
    return atomic_load(&starting);
}

static void end(void) {
    atomic_store(&ended, true);
}

EXPORT CUresult cuInit(unsigned flags) {
    CUresult error = injected("cuInit");
    if (error != CUDA_SUCCESS || flags != 0) {
        return error != CUDA_SUCCESS ? error : CUDA_ERROR_INVALID_VALUE;
    }
    start_slowly();
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
        if (atexit(end) != 0) {
            fake_misuse("CUDA", "no exit handler");
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
        NAME(CUDA_ERROR_DEINITIALIZED);
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

/* ---- devices and contexts ---- */

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
    UNSAFE("cuCtxSynchronize", true);
    fake_device_idle(fake_current());
    return CUDA_SUCCESS;
}

static long contexts_live(void) {
    long live = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < device_count; i++) {
        live += contexts[i].retained;
    }
    pthread_mutex_unlock(&lock);
    return live;
}

EXPORT long fake_cuda_live(const char *what) {
    static const struct {
        const char *what;
        long (*live)(void);
    } counts[] = {{"memory", fake_memory_live},
                  {"contexts", contexts_live},
                  {"streams", fake_streams_live},
                  {"events", fake_events_live},
                  {"starts", starting_live}};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        if (strcmp(what, counts[i].what) == 0) {
            return counts[i].live();
        }
    }
    return strcmp(what, "calls") == 0 ? atomic_load(&calls) : 0;
}

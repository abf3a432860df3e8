/* The stand-in for libcuda.so.1, continued: streams, events, copies. A stream is a queue with a
 * thread. Work begins once all before it on its stream is done, and what it depends on: an event
 * that its stream waits for; for the legacy default stream all earlier work of the device's
 * blocking streams, and for those the earlier work of the legacy stream. */
#include "fake_cuda.h"

#include <time.h>
#include <unistd.h>

#include "fake_settings.h"

/* A place in a stream: reached when so much of its work is done. */
struct place {
    CUstream stream;
    unsigned long number;
};

struct task {
    void (*work)(void *);
    void *argument;
    struct place *after;
    size_t after_count;
    struct task *next;
};

struct CUstream_st {
    CUcontext context;
    bool blocking;
    bool live; /* not destroyed; what was queued before is done nevertheless */
    unsigned long queued, done;
    struct task *first, *last;
    CUstream next;
};

struct CUevent_st {
    CUcontext context;
    bool live, timed;
    struct place at; /* of no stream before it is recorded */
    struct timespec reached;
    CUevent next;
};

/* Handles are never reused, so that one that was destroyed is known as such. */
static CUstream streams;
static CUevent events;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* all of the above */
static pthread_cond_t moved = PTHREAD_COND_INITIALIZER;

static bool reached(struct place place) {
    return place.stream == NULL || place.stream->done >= place.number;
}

static bool ready(const struct task *task) {
    for (size_t i = 0; i < task->after_count; i++) {
        if (!reached(task->after[i])) {
            return false;
        }
    }
    return true;
}

/* Begins late by FAKE_NCCL_DELAY_US at most. */
static void dawdle(unsigned *seed) {
    long most = fake_number("FAKE_NCCL_DELAY_US", 0);
    if (most > 0) {
        usleep((useconds_t)(rand_r(seed) % most));
    }
}

static void *stream_main(void *argument) {
    CUstream stream = argument;
    unsigned seed = (unsigned)(uintptr_t)stream;
    fake_context_set(stream->context);
    pthread_mutex_lock(&lock);
    for (;;) {
        while (stream->first == NULL && stream->live) {
            pthread_cond_wait(&moved, &lock);
        }
        struct task *task = stream->first;
        if (task == NULL) {
            break;
        }
        while (!ready(task)) {
            pthread_cond_wait(&moved, &lock);
        }
        pthread_mutex_unlock(&lock);
        dawdle(&seed);
        if (task->work != NULL) {
            task->work(task->argument);
        }
        pthread_mutex_lock(&lock);
        stream->first = task->next;
        if (stream->first == NULL) {
            stream->last = NULL;
        }
        stream->done++;
        pthread_cond_broadcast(&moved);
        free(task->after);
        free(task);
    }
    pthread_mutex_unlock(&lock);
    return NULL;
}

static CUstream stream_new(CUcontext context, bool blocking) {
    CUstream stream = calloc(1, sizeof *stream);
    pthread_attr_t attributes;
    pthread_t thread;
    if (stream == NULL) {
        return NULL;
    }
    *stream = (struct CUstream_st){.context = context, .blocking = blocking, .live = true};
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 512 * 1024);
    bool started = pthread_create(&thread, &attributes, stream_main, stream) == 0;
    pthread_attr_destroy(&attributes);
    if (!started) {
        free(stream);
        return NULL;
    }
    pthread_mutex_lock(&lock);
    stream->next = streams;
    streams = stream;
    pthread_mutex_unlock(&lock);
    return stream;
}

CUstream fake_legacy_new(CUcontext context) {
    CUstream legacy = stream_new(context, false);
    if (legacy == NULL) {
        fake_misuse("CUDA", "no thread for a stream");
    }
    return legacy;
}

/* The stream of a handle; NULL if it is none. The thread's own default stream is made when it is
 * used. */
static CUstream stream_of(CUstream handle, CUcontext context) {
    static _Thread_local CUstream own;
    if (handle == NULL || handle == CU_STREAM_LEGACY) {
        return context->legacy;
    }
    if (handle == CU_STREAM_PER_THREAD) {
        return own != NULL ? own : (own = stream_new(context, true));
    }
    pthread_mutex_lock(&lock);
    CUstream stream = streams;
    while (stream != NULL && stream != handle) {
        stream = stream->next;
    }
    bool live = stream != NULL && stream->live;
    pthread_mutex_unlock(&lock);
    return live ? stream : NULL;
}

static void after_add(struct task *task, struct place place) {
    if (!reached(place)) {
        struct place *longer = realloc(task->after, (task->after_count + 1) * sizeof *longer);
        if (longer == NULL) {
            fake_misuse("CUDA", "out of memory");
        }
        task->after = longer;
        task->after[task->after_count++] = place;
    }
}

/* Puts work at the stream's end, behind `also`; returns its place. With the lock held. */
static struct place enqueue_locked(CUstream stream, void (*work)(void *), void *argument,
                                   struct place also) {
    struct task *task = calloc(1, sizeof *task);
    if (task == NULL) {
        fake_misuse("CUDA", "out of memory");
    }
    *task = (struct task){.work = work, .argument = argument};
    CUstream legacy = stream->context->legacy;
    for (CUstream other = streams; stream == legacy && other != NULL; other = other->next) {
        if (other->blocking && other->context == stream->context) {
            after_add(task, (struct place){other, other->queued});
        }
    }
    if (stream->blocking) {
        after_add(task, (struct place){legacy, legacy->queued});
    }
    after_add(task, also);
    if (stream->last != NULL) {
        stream->last->next = task;
    } else {
        stream->first = task;
    }
    stream->last = task;
    stream->queued++;
    pthread_cond_broadcast(&moved);
    return (struct place){stream, stream->queued};
}

static struct place enqueue(CUstream stream, void (*work)(void *), void *argument) {
    pthread_mutex_lock(&lock);
    struct place place = enqueue_locked(stream, work, argument, (struct place){NULL, 0});
    pthread_mutex_unlock(&lock);
    return place;
}

static void wait_for(struct place place) {
    pthread_mutex_lock(&lock);
    while (!reached(place)) {
        pthread_cond_wait(&moved, &lock);
    }
    pthread_mutex_unlock(&lock);
}

void fake_device_idle(CUcontext context) {
    pthread_mutex_lock(&lock);
    for (CUstream stream = streams; stream != NULL; stream = stream->next) {
        struct place place = {stream, stream->queued};
        while (stream->context == context && !reached(place)) {
            pthread_cond_wait(&moved, &lock);
        }
    }
    pthread_mutex_unlock(&lock);
}

/* A stream that work may be put on now: of the context that is current. */
#define STREAM(name, handle)                                   \
    CUstream name = stream_of(handle, fake_current());         \
    do {                                                       \
        if (name == NULL || name->context != fake_current()) { \
            return CUDA_ERROR_INVALID_HANDLE;                  \
        }                                                      \
    } while (0)

/* --- streams
 * --------------------------------------------------------------------------------------- */

EXPORT CUresult fake_cuda_enqueue(int device, CUstream handle, void (*work)(void *),
                                  void *argument) {
    CUcontext context = fake_context(device);
    CUstream stream = context != NULL ? stream_of(handle, context) : NULL;
    if (stream == NULL || stream->context != context) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    enqueue(stream, work, argument);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
    ENTER("cuStreamCreate", true);
    if ((flags & ~1u) != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *stream = stream_new(fake_current(), (flags & CU_STREAM_NON_BLOCKING) == 0);
    return *stream != NULL ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

EXPORT CUresult cuStreamDestroy_v2(CUstream handle) {
    ENTER("cuStreamDestroy", true);
    if ((uintptr_t)handle <= 2 || stream_of(handle, fake_current()) == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    pthread_mutex_lock(&lock);
    handle->live = false;
    pthread_cond_broadcast(&moved);
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamQuery(CUstream handle) {
    ENTER("cuStreamQuery", true);
    CUstream stream = stream_of(handle, fake_current());
    if (stream == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    pthread_mutex_lock(&lock);
    bool idle = stream->done == stream->queued;
    for (CUstream other = streams; other != NULL; other = other->next) {
        if (stream == stream->context->legacy && other->blocking &&
            other->context == stream->context) {
            idle = idle && other->done == other->queued;
        }
    }
    pthread_mutex_unlock(&lock);
    return idle ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

EXPORT CUresult cuStreamSynchronize(CUstream handle) {
    ENTER("cuStreamSynchronize", true);
    CUstream stream = stream_of(handle, fake_current());
    if (stream == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    wait_for(enqueue(stream, NULL, NULL));
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamGetCtx(CUstream handle, CUcontext *context) {
    ENTER("cuStreamGetCtx", true);
    CUstream stream = stream_of(handle, fake_current());
    if (stream == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    *context = stream->context;
    return CUDA_SUCCESS;
}

/* Nothing is ever captured here; a thread's mode is only remembered. */
EXPORT CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus *status) {
    ENTER("cuStreamIsCapturing", true);
    if (stream_of(handle, fake_current()) == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    *status = CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
    static _Thread_local CUstreamCaptureMode now = CU_STREAM_CAPTURE_MODE_GLOBAL;
    CUstreamCaptureMode before = now;
    now = *mode;
    *mode = before;
    return CUDA_SUCCESS;
}

struct host_function {
    CUhostFn function;
    void *user_data;
};

/* One at a time, whatever streams they are on: CUDA promises no more. */
static void run_host_function(void *argument) {
    static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
    struct host_function call = *(struct host_function *)argument;
    free(argument);
    pthread_mutex_lock(&one);
    fake_in_host_function = true;
    call.function(call.user_data);
    fake_in_host_function = false;
    pthread_mutex_unlock(&one);
}

EXPORT CUresult cuLaunchHostFunc(CUstream handle, CUhostFn function, void *user_data) {
    ENTER("cuLaunchHostFunc", true);
    STREAM(stream, handle);
    struct host_function *call = malloc(sizeof *call);
    if (call == NULL || function == NULL) {
        free(call);
        return CUDA_ERROR_INVALID_VALUE;
    }
    *call = (struct host_function){function, user_data};
    enqueue(stream, run_host_function, call);
    return CUDA_SUCCESS;
}

/* --- events
 * ---------------------------------------------------------------------------------------- */

static bool is_event(CUevent handle) {
    pthread_mutex_lock(&lock);
    CUevent event = events;
    while (event != NULL && event != handle) {
        event = event->next;
    }
    bool live = event != NULL && event->live;
    pthread_mutex_unlock(&lock);
    return live;
}

EXPORT CUresult cuEventCreate(CUevent *event, unsigned flags) {
    ENTER("cuEventCreate", true);
    CUevent made = calloc(1, sizeof *made);
    if (made == NULL || (flags & ~3u) != 0) {
        free(made);
        return made == NULL ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_INVALID_VALUE;
    }
    made->context = fake_current();
    made->live = true;
    made->timed = (flags & CU_EVENT_DISABLE_TIMING) == 0;
    pthread_mutex_lock(&lock);
    made->next = events;
    events = made;
    pthread_mutex_unlock(&lock);
    *event = made;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventDestroy_v2(CUevent event) {
    ENTER("cuEventDestroy", true);
    if (!is_event(event)) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    pthread_mutex_lock(&lock);
    event->live = false;
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

static void note_time(void *argument) {
    CUevent event = argument;
    pthread_mutex_lock(&lock);
    clock_gettime(CLOCK_MONOTONIC, &event->reached);
    pthread_mutex_unlock(&lock);
}

EXPORT CUresult cuEventRecord(CUevent event, CUstream handle) {
    ENTER("cuEventRecord", true);
    STREAM(stream, handle);
    if (!is_event(event) || event->context != stream->context) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    pthread_mutex_lock(&lock);
    event->at = enqueue_locked(stream, note_time, event, (struct place){NULL, 0});
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventQuery(CUevent event) {
    ENTER("cuEventQuery", false); /* the one call on events that needs no context */
    if (!is_event(event)) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    pthread_mutex_lock(&lock);
    bool past = reached(event->at);
    pthread_mutex_unlock(&lock);
    return past ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

EXPORT CUresult cuEventSynchronize(CUevent event) {
    ENTER("cuEventSynchronize", true);
    if (!is_event(event)) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    pthread_mutex_lock(&lock);
    struct place at = event->at;
    pthread_mutex_unlock(&lock);
    wait_for(at);
    return CUDA_SUCCESS;
}

#undef cuEventElapsedTime
EXPORT CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
    ENTER("cuEventElapsedTime", true);
    if (!is_event(start) || !is_event(end) || !start->timed || !end->timed) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    pthread_mutex_lock(&lock);
    bool past = reached(start->at) && reached(end->at);
    double passed = (double)(end->reached.tv_sec - start->reached.tv_sec) * 1e3 +
                    (double)(end->reached.tv_nsec - start->reached.tv_nsec) * 1e-6;
    pthread_mutex_unlock(&lock);
    *milliseconds = (float)passed;
    return past ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

EXPORT CUresult cuStreamWaitEvent(CUstream handle, CUevent event, unsigned flags) {
    ENTER("cuStreamWaitEvent", true);
    STREAM(stream, handle);
    if (!is_event(event) || flags != 0) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    pthread_mutex_lock(&lock);
    enqueue_locked(stream, NULL, NULL, event->at);
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

/* --- copies
 * ---------------------------------------------------------------------------------------- */

struct copy {
    void *to;
    const void *from;
    size_t bytes;
    void *staged; /* what `from` held at the call, if that was ordinary memory */
};

static void run_copy(void *argument) {
    struct copy *copy = argument;
    memmove(copy->to, copy->staged != NULL ? copy->staged : copy->from, copy->bytes);
    free(copy->staged);
    free(copy);
}

/* As the driver does: from ordinary host memory the bytes are taken at once, to it they have come
 * when the call returns; all else goes on behind the call. */
static CUresult copy_start(const void *to, const void *from, size_t bytes, CUstream stream,
                           bool wait) {
    void *target, *source;
    bool target_fits, source_fits;
    enum kind target_kind = fake_kind(to, bytes, &target, &target_fits);
    enum kind source_kind = fake_kind(from, bytes, &source, &source_fits);
    if (!target_fits || !source_fits) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (bytes == 0) {
        return CUDA_SUCCESS;
    }
    struct copy *copy = calloc(1, sizeof *copy);
    void *staged = source_kind == PAGEABLE ? malloc(bytes) : NULL;
    if (copy == NULL || (source_kind == PAGEABLE && staged == NULL)) {
        free(copy);
        free(staged);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (staged != NULL) {
        memcpy(staged, source, bytes);
    }
    *copy = (struct copy){target, source, bytes, staged};
    struct place place = enqueue(stream, run_copy, copy);
    if (wait || target_kind == PAGEABLE) {
        wait_for(place);
    }
    return CUDA_SUCCESS;
}

static bool is_cuda(const void *pointer) {
    void *host;
    bool fits;
    return fake_kind(pointer, 0, &host, &fits) != PAGEABLE;
}

static bool is_device_only(const void *pointer) {
    void *host;
    bool fits;
    return fake_kind(pointer, 0, &host, &fits) == DEVICE;
}

#define AT(pointer) ((void *)(uintptr_t)(pointer))

EXPORT CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream handle) {
    ENTER("cuMemcpyAsync", true);
    STREAM(stream, handle);
    return copy_start(AT(to), AT(from), bytes, stream, false);
}

static CUresult copy_in(CUdeviceptr to, const void *from, size_t bytes, CUstream stream,
                        bool wait) {
    if (bytes != 0 && (!is_cuda(AT(to)) || is_device_only(from))) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return copy_start(AT(to), from, bytes, stream, wait);
}

static CUresult copy_out(void *to, CUdeviceptr from, size_t bytes, CUstream stream, bool wait) {
    if (bytes != 0 && (!is_cuda(AT(from)) || is_device_only(to))) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return copy_start(to, AT(from), bytes, stream, wait);
}

EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes,
                                     CUstream handle) {
    ENTER("cuMemcpyHtoDAsync", true);
    STREAM(stream, handle);
    return copy_in(to, from, bytes, stream, false);
}

EXPORT CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream handle) {
    ENTER("cuMemcpyDtoHAsync", true);
    STREAM(stream, handle);
    return copy_out(to, from, bytes, stream, false);
}

EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes,
                                     CUstream handle) {
    ENTER("cuMemcpyDtoDAsync", true);
    STREAM(stream, handle);
    if (bytes != 0 && (!is_cuda(AT(to)) || !is_cuda(AT(from)))) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return copy_start(AT(to), AT(from), bytes, stream, false);
}

EXPORT CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes) {
    ENTER("cuMemcpyHtoD", true);
    return copy_in(to, from, bytes, fake_current()->legacy, true);
}

EXPORT CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes) {
    ENTER("cuMemcpyDtoH", true);
    return copy_out(to, from, bytes, fake_current()->legacy, true);
}

struct fill {
    void *to;
    size_t bytes;
    int value;
};

static void run_fill(void *argument) {
    struct fill *fill = argument;
    memset(fill->to, fill->value, fill->bytes);
    free(fill);
}

static CUresult fill_start(CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream,
                           struct place *place) {
    void *target = fake_cuda_memory(AT(to), bytes);
    struct fill *fill = malloc(sizeof *fill);
    if (bytes != 0 && target == NULL) {
        free(fill);
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (fill == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *fill = (struct fill){target, bytes != 0 ? bytes : 0, value};
    *place = enqueue(stream, run_fill, fill);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes,
                                CUstream handle) {
    ENTER("cuMemsetD8Async", true);
    STREAM(stream, handle);
    struct place place;
    return fill_start(to, value, bytes, stream, &place);
}

EXPORT CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t bytes) {
    ENTER("cuMemsetD8", true);
    struct place place = {NULL, 0};
    CUresult error = fill_start(to, value, bytes, fake_current()->legacy, &place);
    wait_for(place);
    return error;
}

EXPORT long fake_cuda_live(const char *what) {
    long live = 0;
    if (strcmp(what, "memory") == 0) {
        return fake_memory_live();
    }
    if (strcmp(what, "contexts") == 0) {
        return fake_contexts_live();
    }
    if (strcmp(what, "calls") == 0) {
        return fake_calls();
    }
    pthread_mutex_lock(&lock);
    for (CUstream stream = streams; strcmp(what, "streams") == 0 && stream != NULL;
         stream = stream->next) {
        live += stream->live && stream != stream->context->legacy;
    }
    for (CUevent event = events; strcmp(what, "events") == 0 && event != NULL;
         event = event->next) {
        live += event->live;
    }
    pthread_mutex_unlock(&lock);
    return live;
}

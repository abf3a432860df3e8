/* The stand-in for libcuda.so.1, continued: streams, events, copies. A stream is a queue with a
 * thread. Work begins once all before it on its stream is done, and what it depends on: an event
 * that its stream waits for; for the legacy default stream all earlier work of the device's
 * blocking streams, and for those the earlier work of the legacy stream. */
#include "fake_cuda.h"

#include <time.h>
#include <unistd.h>

#include "fake_settings.h"

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
    bool captured, spoilt;
    CUstreamCaptureMode mode; /* of its capture */
    unsigned long queued, done;
    struct task *first, *last;
    CUstream next;
};

struct CUevent_st {
    CUcontext context;
    bool live, timed, captured;
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
CUstream fake_stream(CUstream handle, CUcontext context) {
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

struct place fake_enqueue(CUstream stream, void (*work)(void *), void *argument) {
    pthread_mutex_lock(&lock);
    struct place place = {NULL, 0};
    if (!stream->captured) {
        place = enqueue_locked(stream, work, argument, place);
    }
    pthread_mutex_unlock(&lock);
    return place;
}

void fake_wait(struct place place) {
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

/* ---- captures ---- */

/* What a graph would hold is not kept: work that is put on a captured stream never runs. */
static _Thread_local CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

/* Captures that such a call ends; whether there were any. With the lock held. */
static bool spoil(CUcontext blocking_of, bool global_only) {
    bool any = false;
    for (CUstream stream = streams; stream != NULL; stream = stream->next) {
        bool in_the_way =
            stream->captured &&
            (blocking_of == NULL || (stream->blocking && stream->context == blocking_of)) &&
            (!global_only || stream->mode == CU_STREAM_CAPTURE_MODE_GLOBAL);
        stream->spoilt = stream->spoilt || in_the_way;
        any = any || in_the_way;
    }
    return any;
}

CUresult fake_unsafe(void) {
    pthread_mutex_lock(&lock);
    bool spoilt = thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL && spoil(NULL, true);
    pthread_mutex_unlock(&lock);
    return spoilt ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

CUresult fake_stream_for_work(CUstream handle, CUstream *stream) {
    *stream = fake_stream(handle, fake_current());
    if (*stream == NULL || (*stream)->context != fake_current()) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    pthread_mutex_lock(&lock);
    bool spoilt = *stream == fake_current()->legacy && spoil(fake_current(), false);
    pthread_mutex_unlock(&lock);
    return spoilt ? CUDA_ERROR_STREAM_CAPTURE_IMPLICIT : CUDA_SUCCESS;
}

EXPORT CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
    ENTER("cuThreadExchangeStreamCaptureMode", false);
    CUstreamCaptureMode before = thread_mode;
    thread_mode = *mode;
    *mode = before;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus *status) {
    ENTER("cuStreamIsCapturing", true);
    CUstream stream = fake_stream(handle, fake_current());
    bool implicit = false;
    if (stream == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    pthread_mutex_lock(&lock);
    for (CUstream other = streams; other != NULL; other = other->next) {
        implicit = implicit || (stream == stream->context->legacy && other->captured &&
                                other->blocking && other->context == stream->context);
    }
    *status = !stream->captured ? CU_STREAM_CAPTURE_STATUS_NONE
              : stream->spoilt  ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    pthread_mutex_unlock(&lock);
    return implicit ? CUDA_ERROR_STREAM_CAPTURE_IMPLICIT : CUDA_SUCCESS;
}

#undef cuStreamBeginCapture
EXPORT CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
    ENTER("cuStreamBeginCapture", true);
    CUstream stream = fake_stream(handle, fake_current());
    if (stream == NULL || stream == stream->context->legacy || stream->captured) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    pthread_mutex_lock(&lock);
    stream->captured = true;
    stream->spoilt = false;
    stream->mode = mode;
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamEndCapture(CUstream handle, CUgraph *graph) {
    static int empty;
    ENTER("cuStreamEndCapture", true);
    CUstream stream = fake_stream(handle, fake_current());
    if (stream == NULL || !stream->captured) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    pthread_mutex_lock(&lock);
    stream->captured = false;
    bool spoilt = stream->spoilt;
    pthread_mutex_unlock(&lock);
    *graph = spoilt ? NULL : (CUgraph)&empty;
    return spoilt ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
}

/* ---- streams ---- */

EXPORT CUresult fake_cuda_enqueue(int device, CUstream handle, void (*work)(void *),
                                  void *argument) {
    CUcontext context = fake_context(device);
    CUstream stream = context != NULL ? fake_stream(handle, context) : NULL;
    if (stream == NULL || stream->context != context) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (stream->captured) {
        fake_misuse("NCCL", "a stream that is being captured (the stand-in cannot)");
    }
    fake_enqueue(stream, work, argument);
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
    if ((uintptr_t)handle <= 2 || fake_stream(handle, fake_current()) == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    pthread_mutex_lock(&lock);
    handle->live = false;
    pthread_cond_broadcast(&moved);
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamQuery(CUstream handle) {
    UNSAFE("cuStreamQuery", true);
    CUstream stream = fake_stream(handle, fake_current());
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
    UNSAFE("cuStreamSynchronize", true);
    CUstream stream = fake_stream(handle, fake_current());
    if (stream == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    fake_wait(fake_enqueue(stream, NULL, NULL));
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamGetCtx(CUstream handle, CUcontext *context) {
    ENTER("cuStreamGetCtx", true);
    CUstream stream = fake_stream(handle, fake_current());
    if (stream == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    *context = stream->context;
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
    fake_enqueue(stream, run_host_function, call);
    return CUDA_SUCCESS;
}

/* ---- events ---- */

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
    event->captured = stream->captured;
    if (!stream->captured) {
        event->at = enqueue_locked(stream, note_time, event, (struct place){NULL, 0});
    }
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventQuery(CUevent event) {
    UNSAFE("cuEventQuery", false); /* the one call on events that needs no context */
    if (!is_event(event)) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    pthread_mutex_lock(&lock);
    bool past = reached(event->at), captured = event->captured;
    pthread_mutex_unlock(&lock);
    return captured ? CUDA_ERROR_CAPTURED_EVENT : past ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

EXPORT CUresult cuEventSynchronize(CUevent event) {
    UNSAFE("cuEventSynchronize", true);
    if (!is_event(event)) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    pthread_mutex_lock(&lock);
    struct place at = event->at;
    pthread_mutex_unlock(&lock);
    fake_wait(at);
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
    if (!stream->captured) {
        enqueue_locked(stream, NULL, NULL, event->at);
    }
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
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

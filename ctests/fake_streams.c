/* The stand-in for libcuda.so.1, continued: streams. A stream is a queue with a thread. Work begins
 * once all before it on its stream is done, and what it depends on: an event that its stream waits
 * for; for the legacy default stream all earlier work of the device's blocking streams, and for
 * those the earlier work of the legacy stream. */
#include "fake_streams.h"

#include <unistd.h>

#include "fake_settings.h"

struct task {
    void (*work)(void *);
    void *argument;
    struct place *after;
    size_t after_count;
    struct task *next;
};

/* Handles are never reused, so that one that was destroyed is known as such. */
CUstream fake_streams;
pthread_mutex_t fake_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t moved = PTHREAD_COND_INITIALIZER;

bool fake_reached(struct place place) {
    return place.stream == NULL || place.stream->done >= place.number;
}

static bool ready(const struct task *task) {
    for (size_t i = 0; i < task->after_count; i++) {
        if (!fake_reached(task->after[i])) {
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
    pthread_mutex_lock(&fake_lock);
    for (;;) {
        while (stream->first == NULL && stream->live) {
            pthread_cond_wait(&moved, &fake_lock);
        }
        struct task *task = stream->first;
        if (task == NULL) {
            break;
        }
        while (!ready(task)) {
            pthread_cond_wait(&moved, &fake_lock);
        }
        pthread_mutex_unlock(&fake_lock);
        dawdle(&seed);
        if (task->work != NULL) {
            task->work(task->argument);
        }
        pthread_mutex_lock(&fake_lock);
        stream->first = task->next;
        if (stream->first == NULL) {
            stream->last = NULL;
        }
        stream->done++;
        pthread_cond_broadcast(&moved);
        free(task->after);
        free(task);
    }
    pthread_mutex_unlock(&fake_lock);
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
    pthread_mutex_lock(&fake_lock);
    stream->next = fake_streams;
    fake_streams = stream;
    pthread_mutex_unlock(&fake_lock);
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
    pthread_mutex_lock(&fake_lock);
    CUstream stream = fake_streams;
    while (stream != NULL && stream != handle) {
        stream = stream->next;
    }
    bool live = stream != NULL && stream->live;
    pthread_mutex_unlock(&fake_lock);
    return live ? stream : NULL;
}

static void after_add(struct task *task, struct place place) {
    if (!fake_reached(place)) {
        struct place *longer = realloc(task->after, (task->after_count + 1) * sizeof *longer);
        if (longer == NULL) {
            fake_misuse("CUDA", "out of memory");
        }
        task->after = longer;
        task->after[task->after_count++] = place;
    }
}

struct place fake_enqueue_locked(CUstream stream, void (*work)(void *), void *argument,
                                 struct place also) {
    struct task *task = calloc(1, sizeof *task);
    if (task == NULL) {
        fake_misuse("CUDA", "out of memory");
    }
    *task = (struct task){.work = work, .argument = argument};
    CUstream legacy = stream->context->legacy;
    for (CUstream other = fake_streams; stream == legacy && other != NULL; other = other->next) {
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
    pthread_mutex_lock(&fake_lock);
    struct place place = {NULL, 0};
    if (!stream->captured) {
        place = fake_enqueue_locked(stream, work, argument, place);
    }
    pthread_mutex_unlock(&fake_lock);
    return place;
}

void fake_wait(struct place place) {
    pthread_mutex_lock(&fake_lock);
    while (!fake_reached(place)) {
        pthread_cond_wait(&moved, &fake_lock);
    }
    pthread_mutex_unlock(&fake_lock);
}

void fake_device_idle(CUcontext context) {
    pthread_mutex_lock(&fake_lock);
    for (CUstream stream = fake_streams; stream != NULL; stream = stream->next) {
        struct place place = {stream, stream->queued};
        while (stream->context == context && !fake_reached(place)) {
            pthread_cond_wait(&moved, &fake_lock);
        }
    }
    pthread_mutex_unlock(&fake_lock);
}

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
    pthread_mutex_lock(&fake_lock);
    handle->live = false;
    pthread_cond_broadcast(&moved);
    pthread_mutex_unlock(&fake_lock);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamQuery(CUstream handle) {
    UNSAFE("cuStreamQuery", true);
    CUstream stream = fake_stream(handle, fake_current());
    if (stream == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    pthread_mutex_lock(&fake_lock);
    bool idle = stream->done == stream->queued;
    for (CUstream other = fake_streams; other != NULL; other = other->next) {
        if (stream == stream->context->legacy && other->blocking &&
            other->context == stream->context) {
            idle = idle && other->done == other->queued;
        }
    }
    pthread_mutex_unlock(&fake_lock);
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

long fake_streams_live(void) {
    long live = 0;
    pthread_mutex_lock(&fake_lock);
    for (CUstream stream = fake_streams; stream != NULL; stream = stream->next) {
        live += stream->live && stream != stream->context->legacy;
    }
    pthread_mutex_unlock(&fake_lock);
    return live;
}

/* The stand-in for libcuda.so.1, continued: events. */
#include "fake_streams.h"

#include <stdlib.h>
#include <time.h>

struct CUevent_st {
    CUcontext context;
    bool live, timed, captured;
    struct place at; /* of no stream before it is recorded */
    struct timespec reached;
    CUevent next;
};

/* Handles are never reused, so that one that was destroyed is known as such. */
static CUevent events;

static bool is_event(CUevent handle) {
    pthread_mutex_lock(&fake_lock);
    CUevent event = events;
    while (event != NULL && event != handle) {
        event = event->next;
    }
    bool live = event != NULL && event->live;
    pthread_mutex_unlock(&fake_lock);
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
    pthread_mutex_lock(&fake_lock);
    made->next = events;
    events = made;
    pthread_mutex_unlock(&fake_lock);
    *event = made;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventDestroy_v2(CUevent event) {
    ENTER("cuEventDestroy", true);
    if (!is_event(event)) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    pthread_mutex_lock(&fake_lock);
    event->live = false;
    pthread_mutex_unlock(&fake_lock);
    return CUDA_SUCCESS;
}

static void note_time(void *argument) {
    CUevent event = argument;
    pthread_mutex_lock(&fake_lock);
    clock_gettime(CLOCK_MONOTONIC, &event->reached);
    pthread_mutex_unlock(&fake_lock);
}

EXPORT CUresult cuEventRecord(CUevent event, CUstream handle) {
    ENTER("cuEventRecord", true);
    STREAM(stream, handle);
    if (!is_event(event) || event->context != stream->context) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    pthread_mutex_lock(&fake_lock);
    event->captured = stream->captured;
    if (!stream->captured) {
        event->at = fake_enqueue_locked(stream, note_time, event, (struct place){NULL, 0});
    }
    pthread_mutex_unlock(&fake_lock);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventQuery(CUevent event) {
    UNSAFE("cuEventQuery", false); /* the one call on events that needs no context */
    if (!is_event(event)) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    pthread_mutex_lock(&fake_lock);
    bool past = fake_reached(event->at), captured = event->captured;
    pthread_mutex_unlock(&fake_lock);
    return captured ? CUDA_ERROR_CAPTURED_EVENT : past ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

EXPORT CUresult cuEventSynchronize(CUevent event) {
    UNSAFE("cuEventSynchronize", true);
    if (!is_event(event)) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    pthread_mutex_lock(&fake_lock);
    struct place at = event->at;
    pthread_mutex_unlock(&fake_lock);
    fake_wait(at);
    return CUDA_SUCCESS;
}

#undef cuEventElapsedTime
EXPORT CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
    ENTER("cuEventElapsedTime", true);
    if (!is_event(start) || !is_event(end) || !start->timed || !end->timed) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    pthread_mutex_lock(&fake_lock);
    bool past = fake_reached(start->at) && fake_reached(end->at);
    double passed = (double)(end->reached.tv_sec - start->reached.tv_sec) * 1e3 +
                    (double)(end->reached.tv_nsec - start->reached.tv_nsec) * 1e-6;
    pthread_mutex_unlock(&fake_lock);
    *milliseconds = (float)passed;
    return past ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

EXPORT CUresult cuStreamWaitEvent(CUstream handle, CUevent event, unsigned flags) {
    ENTER("cuStreamWaitEvent", true);
    STREAM(stream, handle);
    if (!is_event(event) || flags != 0) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    pthread_mutex_lock(&fake_lock);
    if (!stream->captured) {
        fake_enqueue_locked(stream, NULL, NULL, event->at);
    }
    pthread_mutex_unlock(&fake_lock);
    return CUDA_SUCCESS;
}

long fake_events_live(void) {
    long live = 0;
    pthread_mutex_lock(&fake_lock);
    for (CUevent event = events; event != NULL; event = event->next) {
        live += event->live;
    }
    pthread_mutex_unlock(&fake_lock);
    return live;
}

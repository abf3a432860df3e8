/* The stand-in for libcuda.so.1, continued: streams that are captured. What a graph would hold is
 * not kept: work that is put on a captured stream never runs. */
#include "fake_streams.h"

static _Thread_local CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

/* Captures that such a call ends; whether there were any. With the lock held. */
static bool spoil(CUcontext blocking_of, bool global_only) {
    bool any = false;
    for (CUstream stream = fake_streams; stream != NULL; stream = stream->next) {
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
    pthread_mutex_lock(&fake_lock);
    bool spoilt = thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL && spoil(NULL, true);
    pthread_mutex_unlock(&fake_lock);
    return spoilt ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

CUresult fake_stream_for_work(CUstream handle, CUstream *stream) {
    *stream = fake_stream(handle, fake_current());
    if (*stream == NULL || (*stream)->context != fake_current()) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    pthread_mutex_lock(&fake_lock);
    bool spoilt = *stream == fake_current()->legacy && spoil(fake_current(), false);
    pthread_mutex_unlock(&fake_lock);
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
    pthread_mutex_lock(&fake_lock);
    for (CUstream other = fake_streams; other != NULL; other = other->next) {
        implicit = implicit || (stream == stream->context->legacy && other->captured &&
                                other->blocking && other->context == stream->context);
    }
    *status = !stream->captured ? CU_STREAM_CAPTURE_STATUS_NONE
              : stream->spoilt  ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    pthread_mutex_unlock(&fake_lock);
    return implicit ? CUDA_ERROR_STREAM_CAPTURE_IMPLICIT : CUDA_SUCCESS;
}

#undef cuStreamBeginCapture
EXPORT CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
    ENTER("cuStreamBeginCapture", true);
    CUstream stream = fake_stream(handle, fake_current());
    if (stream == NULL || stream == stream->context->legacy || stream->captured) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    pthread_mutex_lock(&fake_lock);
    stream->captured = true;
    stream->spoilt = false;
    stream->mode = mode;
    pthread_mutex_unlock(&fake_lock);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamEndCapture(CUstream handle, CUgraph *graph) {
    static int empty;
    ENTER("cuStreamEndCapture", true);
    CUstream stream = fake_stream(handle, fake_current());
    if (stream == NULL || !stream->captured) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    pthread_mutex_lock(&fake_lock);
    stream->captured = false;
    bool spoilt = stream->spoilt;
    pthread_mutex_unlock(&fake_lock);
    *graph = spoilt ? NULL : (CUgraph)&empty;
    return spoilt ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
}

/* What streams, their captures and events share in the stand-in for CUDA's driver. */
#ifndef FAKE_STREAMS_H
#define FAKE_STREAMS_H

#include "fake_cuda.h"

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

extern CUstream fake_streams;     /* all that there have been */
extern pthread_mutex_t fake_lock; /* those, and events */

/* These two take the lock to be held. */
bool fake_reached(struct place place);
/* Puts work at the stream's end, behind `also`; returns its place. */
struct place fake_enqueue_locked(CUstream stream, void (*work)(void *), void *argument,
                                 struct place also);

#endif

/* Test support: the buffers of a rank that calls operations in every way and checks every element.
 */
#ifndef NCCL_BUFFERS_H
#define NCCL_BUFFERS_H

#include "device_buffers.h"
#include "nccl_world.h"

static struct device_buffer input, output;
/* What a buffer is to hold. */
static unsigned char *want;

/* Of so many bytes each. */
static inline void buffers_open(size_t most) {
    REQUIRE(size <= MAX_RANKS); /* what sums are exact for */
    ways_open();
    input = device_buffer_new(most);
    output = device_buffer_new(most);
    want = malloc(most);
    REQUIRE(want != NULL);
}

static inline void buffers_close(void) {
    free(want);
    device_buffer_free(&input);
    device_buffer_free(&output);
    ways_close();
}

#endif

/* Buffers in device memory whose edges are watched, and the ways in which an operation can be
 * called: waiting, or on streams of CUDA's. Inputs are written, and outputs read, by copies that
 * are queued without any wait between them and the operation: what is out of order shows. */
#ifndef DEVICE_BUFFERS_H
#define DEVICE_BUFFERS_H

#include "device.h"
#include "values.h"

/* One way to call. `up` is the stream of what is before the operation, `down` of what is behind. */
struct way {
    const char *name;
    mlxd_stream *stream;
    void *up, *down;
};

enum { WAITING, ON_BLOCKING, ON_NONBLOCKING, ON_DEFAULT, WAYS };

static struct way ways[WAYS];

static inline void ways_open(void) {
    void *blocking = cuda_stream_new(true);
    void *nonblocking = cuda_stream_new(false);
    void *apart = cuda_stream_new(false);
    /* An operation that waits comes after the default stream, and is over when it returns, so that
     * a stream which waits for no other finds its output. */
    ways[WAITING] = (struct way){"waiting", NULL, NULL, apart};
    ways[ON_BLOCKING] =
        (struct way){"on a blocking stream", mlxd_stream_from_cuda(blocking), blocking, blocking};
    ways[ON_NONBLOCKING] = (struct way){
        "on a nonblocking stream", mlxd_stream_from_cuda(nonblocking), nonblocking, nonblocking};
    ways[ON_DEFAULT] =
        (struct way){"on the default stream", mlxd_stream_from_cuda(NULL), NULL, NULL};
    for (int way = ON_BLOCKING; way < WAYS; way++) {
        if (ways[way].stream == NULL) {
            fprintf(stderr, "mlxd_stream_from_cuda: %s\n", mlxd_last_error());
        }
        REQUIRE(ways[way].stream != NULL);
    }
}

static inline void ways_close(void) {
    for (int way = 0; way < WAYS; way++) {
        mlxd_stream_free(ways[way].stream);
        if (ways[way].down != NULL) {
            CUDA(cuda.stream_synchronize(ways[way].down)); /* it is the caller's still */
            CUDA(cuda.stream_destroy(ways[way].down));
        }
    }
}

/* Device memory with a guard on each side, and pinned memory that mirrors it. */
struct device_buffer {
    unsigned char *base; /* on the device */
    unsigned char *data;
    struct buffer mirror;
    size_t room, bytes;
};

static inline struct device_buffer device_buffer_new(size_t room) {
    struct device_buffer buffer = {0};
    buffer.room = room;
    buffer.base = device_alloc(room + 2 * GUARD_BYTES);
    buffer.data = buffer.base + GUARD_BYTES;
    buffer.mirror.base = pinned_alloc(room + 2 * GUARD_BYTES);
    return buffer;
}

static inline void device_buffer_free(struct device_buffer *buffer) {
    device_free(buffer->base);
    CUDA(cuda.free_pinned(buffer->mirror.base));
}

/* Makes the mirror so many stale bytes; the caller may write its own there before device_buffer_up.
 */
static inline unsigned char *device_buffer_stale(struct device_buffer *buffer, size_t bytes) {
    REQUIRE(bytes <= buffer->room);
    buffer->bytes = bytes;
    buffer->mirror = buffer_in(buffer->mirror.base, bytes);
    return buffer->mirror.data;
}

static inline void device_buffer_up(struct device_buffer *buffer, const struct way *way) {
    CUDA(cuda.to_device_async((device_pointer)(uintptr_t)buffer->base, buffer->mirror.base,
                              buffer->bytes + 2 * GUARD_BYTES, way->up));
}

/* Behind the operation: queues the way back. The bytes have come after way_wait(). */
static inline void device_buffer_down(struct device_buffer *buffer, const struct way *way) {
    CUDA(cuda.to_host_async(buffer->mirror.base, (device_pointer)(uintptr_t)buffer->base,
                            buffer->bytes + 2 * GUARD_BYTES, way->down));
}

static inline void way_wait(const struct way *way) {
    CUDA(cuda.stream_synchronize(way->down));
}

/* Writes `count` values and sends them up. */
static inline void device_buffer_fill(struct device_buffer *buffer, const struct way *way,
                                      mlxd_dtype dtype, size_t count, int rank, int salt) {
    values_fill(dtype, device_buffer_stale(buffer, count * value_size(dtype)), count, rank, salt);
    device_buffer_up(buffer, way);
}

static inline void device_buffer_expect(const struct device_buffer *buffer, const void *want,
                                        const char *what) {
    check_bytes(buffer->mirror.data, want, buffer->bytes, what);
    buffer_check(&buffer->mirror, what);
}

#endif

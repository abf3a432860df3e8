/* Operations on CUDA's streams: enqueued like a kernel, in order with what is before and behind
 * them, for every way in which an element type is handled; and what mlxd_stream_synchronize and
 * mlxd_stream_free do.
 *
 *     nccl_streams RANKS */
#include "device_buffers.h"
#include "nccl_world.h"
#include "reductions.h"

#include <pthread.h>

static struct device_buffer input, output;

/* A call returns while the work before it on its stream is held up: it cannot have run, and so
 * cannot have been waited for. Every dtype, since some are staged. */
static void calls_do_not_wait(void) {
    for (mlxd_dtype dtype = 0; dtype < DTYPE_COUNT; dtype++) {
        for (size_t op = 0; op < 3; op++) {
            const struct way *way = &ways[ON_NONBLOCKING];
            struct gate gate = {0};
            unsigned char want[512 * 8];
            size_t count = 512;
            device_buffer_stale(&output, count * value_size(dtype));
            device_buffer_up(&output, way);
            CUDA(cuda.launch_host(way->up, wait_at_gate, &gate));
            device_buffer_fill(&input, way, dtype, count, rank, 4);
            REQUIRE_OK(
                reductions[op].call(world, input.data, output.data, count, dtype, way->stream));
            CHECK(cuda.stream_query(way->up) == 600);
            device_buffer_down(&output, way);
            atomic_store(&gate.open, 1);
            way_wait(way);
            for (size_t i = 0; i < count; i++) {
                value_store(dtype, want, i,
                            value_reduced(dtype, reductions[op].reduction, size, i, 4));
            }
            device_buffer_expect(&output, want, dtype_name(dtype));
        }
    }
}

/* Each operation takes its input from the one before, none is waited for. */
static void operations_chain(mlxd_dtype dtype) {
    enum { STEPS = 20 };
    const struct way *way = &ways[ON_BLOCKING];
    size_t width = value_size(dtype);
    device_buffer_fill(&input, way, dtype, (size_t)size, rank, 6);
    for (int step = 0; step < STEPS; step++) {
        REQUIRE_OK(mlxd_all_max(world, input.data, output.data, (size_t)size, dtype, way->stream));
        REQUIRE_OK(
            mlxd_all_to_all(world, output.data, input.data, (size_t)size, dtype, way->stream));
    }
    device_buffer_down(&input, way);
    way_wait(way);
    unsigned char want[MAX_RANKS * 8];
    /* After two steps every element is the greatest of all. */
    int64_t most = value_reduced(dtype, REDUCE_MAX, size, 0, 6);
    for (int i = 1; i < size; i++) {
        int64_t next = value_reduced(dtype, REDUCE_MAX, size, (size_t)i, 6);
        most = next > most ? next : most;
    }
    for (int i = 0; i < size; i++) {
        value_store(dtype, want + (size_t)i * width, 0, most);
    }
    check_bytes(input.mirror.data, want, (size_t)size * width, "a chain of operations");
}

/* An operation on one stream, what needs it on another, ordered by an event. */
static void events_order_operations(void) {
    const struct way *first = &ways[ON_BLOCKING], *second = &ways[ON_NONBLOCKING];
    void *event = NULL;
    CUDA(cuda.event_create(&event, 2));
    for (int32_t round = 0; round < 10; round++) {
        int32_t *values = (int32_t *)(void *)device_buffer_stale(&input, 4000);
        for (int i = 0; i < 1000; i++) {
            values[i] = round + rank + i;
        }
        device_buffer_up(&input, first);
        device_buffer_stale(&output, 4000);
        device_buffer_up(&output, first);
        REQUIRE_OK(mlxd_all_sum(world, input.data, output.data, 1000, MLXD_INT32, first->stream));
        CUDA(cuda.event_record(event, first->up));
        CUDA(cuda.stream_wait(second->up, event, 0));
        REQUIRE_OK(mlxd_all_sum(world, output.data, output.data, 1000, MLXD_INT32, second->stream));
        device_buffer_down(&output, second);
        way_wait(second);
        const int32_t *got = (const int32_t *)(const void *)output.mirror.data;
        int wrong = 0;
        for (int i = 0; i < 1000; i++) {
            wrong += got[i] != size * (size * (round + i) + size * (size - 1) / 2);
        }
        CHECK(wrong == 0);
    }
    CUDA(cuda.event_destroy(event));
}

/* Handle 0 is the legacy default stream, which blocking streams wait for, and which waits for them.
 */
static void default_stream_is_legacy(void) {
    const struct way *blocking = &ways[ON_BLOCKING], *legacy = &ways[ON_DEFAULT];
    const struct way crossing[2] = {{"", legacy->stream, blocking->up, blocking->down},
                                    {"", blocking->stream, legacy->up, legacy->down}};
    for (int round = 0; round < 20; round++) {
        const struct way *way = &crossing[round % 2];
        unsigned char want[3000 * 4];
        device_buffer_stale(&output, sizeof want);
        device_buffer_up(&output, way);
        device_buffer_fill(&input, way, MLXD_INT32, 3000, rank, round);
        REQUIRE_OK(mlxd_all_sum(world, input.data, output.data, 3000, MLXD_INT32, way->stream));
        device_buffer_down(&output, way);
        way_wait(way);
        for (size_t i = 0; i < 3000; i++) {
            value_store(MLXD_INT32, want, i, value_reduced(MLXD_INT32, REDUCE_SUM, size, i, round));
        }
        device_buffer_expect(&output, want, "across the default stream");
    }
}

/* Without a stream an operation comes after what is on the default stream, held up or not. */
static void *open_later(void *argument) {
    struct gate *gate = argument;
    sleep_ms(60);
    atomic_store(&gate->open, 1);
    return NULL;
}

static void waiting_comes_after_the_default_stream(mlxd_dtype dtype) {
    const struct way *way = &ways[WAITING];
    struct gate gate = {0};
    pthread_t thread;
    unsigned char want[100 * 8];
    device_buffer_stale(&output, 100 * value_size(dtype));
    device_buffer_up(&output, way);
    CUDA(cuda.launch_host(NULL, wait_at_gate, &gate));
    device_buffer_fill(&input, way, dtype, 100, rank, 8);
    REQUIRE(pthread_create(&thread, NULL, open_later, &gate) == 0);
    REQUIRE_OK(mlxd_all_sum(world, input.data, output.data, 100, dtype, NULL));
    CHECK(atomic_load(&gate.open) == 1);
    device_buffer_down(&output, way);
    way_wait(way);
    REQUIRE(pthread_join(thread, NULL) == 0);
    for (size_t i = 0; i < 100; i++) {
        value_store(dtype, want, i, value_reduced(dtype, REDUCE_SUM, size, i, 8));
    }
    device_buffer_expect(&output, want, "all_sum after the default stream");
}

/* mlxd_stream_synchronize waits for what was put on the stream before. */
static void synchronize_waits(mlxd_dtype dtype) {
    for (int way = ON_BLOCKING; way < WAYS; way++) {
        struct gate gate = {0};
        pthread_t thread;
        device_buffer_stale(&output, 8 * value_size(dtype));
        device_buffer_up(&output, &ways[way]);
        device_buffer_fill(&input, &ways[way], dtype, 8, rank, 2);
        CUDA(cuda.launch_host(ways[way].up, wait_at_gate, &gate));
        REQUIRE_OK(mlxd_all_sum(world, input.data, output.data, 8, dtype, ways[way].stream));
        REQUIRE(pthread_create(&thread, NULL, open_later, &gate) == 0);
        CHECK_OK(mlxd_stream_synchronize(ways[way].stream));
        CHECK(atomic_load(&gate.open) == 1);
        /* A stream that waits for no other finds the output. */
        device_buffer_down(&output, &ways[WAITING]);
        way_wait(&ways[WAITING]);
        REQUIRE(pthread_join(thread, NULL) == 0);
        unsigned char want[8 * 8];
        for (size_t i = 0; i < 8; i++) {
            value_store(dtype, want, i, value_reduced(dtype, REDUCE_SUM, size, i, 2));
        }
        device_buffer_expect(&output, want, ways[way].name);
    }
}

/* Several handles may stand for one stream; freeing one leaves the stream alone. */
static void handles_come_and_go(void) {
    const struct way *way = &ways[ON_NONBLOCKING];
    for (int round = 0; round < 50; round++) {
        mlxd_stream *handle = mlxd_stream_from_cuda(way->up);
        REQUIRE(handle != NULL);
        int32_t *value = (int32_t *)(void *)device_buffer_stale(&input, 4);
        *value = round + rank;
        device_buffer_up(&input, way);
        REQUIRE_OK(mlxd_all_sum(world, input.data, input.data, 1, MLXD_INT32, handle));
        mlxd_stream_free(handle);
        device_buffer_down(&input, way);
        way_wait(way);
        CHECK(*value == size * round + size * (size - 1) / 2);
    }
}

/* The calls of a group spread over streams, differently on each rank, of types that go different
 * ways: only their order counts. */
static void calls_keep_their_order(void) {
    enum { CALLS = 60, COUNT = 1000 };
    static const mlxd_dtype types[] = {MLXD_INT16, MLXD_INT32, MLXD_UINT16, MLXD_COMPLEX64};
    unsigned char *host = pinned_alloc(CALLS * COUNT * 8), *want = malloc(COUNT * 8);
    unsigned char *memory = device_alloc(CALLS * COUNT * 8);
    REQUIRE(want != NULL);
    for (int i = 0; i < CALLS; i++) {
        values_fill(types[i % 4], host + (size_t)i * COUNT * 8, COUNT, rank, i);
    }
    device_write(memory, host, CALLS * COUNT * 8);
    for (int i = 0; i < CALLS; i++) {
        mlxd_stream *stream = ways[(i * (rank + 2)) % WAYS].stream;
        unsigned char *at = memory + (size_t)i * COUNT * 8;
        REQUIRE_OK(mlxd_all_max(world, at, at, COUNT, types[i % 4], stream));
    }
    for (int way = ON_BLOCKING; way < WAYS; way++) {
        CHECK_OK(mlxd_stream_synchronize(ways[way].stream));
    }
    device_read(host, memory, CALLS * COUNT * 8);
    for (int i = 0; i < CALLS; i++) {
        mlxd_dtype dtype = types[i % 4];
        for (size_t j = 0; j < COUNT; j++) {
            value_store(dtype, want, j, value_reduced(dtype, REDUCE_MAX, size, j, i));
        }
        check_bytes(host + (size_t)i * COUNT * 8, want, COUNT * value_size(dtype),
                    "a call of many on several streams");
    }
    free(want);
    device_free(memory);
    CUDA(cuda.free_pinned(host));
}

/* A barrier on a stream holds up what is behind it there, until the last rank has come to it. */
static void barrier_on_a_stream(void) {
    const struct way *way = &ways[ON_NONBLOCKING];
    struct gate gate = {0};
    mlxd_group *apart = NULL;
    REQUIRE_OK(mlxd_group_split(world, 0, 0, &apart));
    if (rank == 0) {
        CUDA(cuda.launch_host(way->up, wait_at_gate, &gate));
    }
    REQUIRE_OK(mlxd_barrier(world, way->stream));
    for (int i = 0; i < 20; i++) {
        CHECK(cuda.stream_query(way->up) == 600);
        sleep_ms(1);
    }
    REQUIRE_OK(mlxd_barrier(apart, NULL)); /* all have looked */
    atomic_store(&gate.open, 1);
    way_wait(way);
    CHECK_OK(mlxd_stream_synchronize(way->stream));
    mlxd_group_free(apart);
}

/* Two threads, two groups, a stream each. */
struct worker {
    mlxd_group *group;
    int failures;
};

static void *sum_rounds(void *argument) {
    struct worker *worker = argument;
    CUDA(cuda.set_current(device_context));
    void *cuda_stream = cuda_stream_new(false);
    mlxd_stream *stream = mlxd_stream_from_cuda(cuda_stream);
    int32_t *host = pinned_alloc(64 * 4), *memory = device_alloc(64 * 4);
    int32_t members = mlxd_group_size(worker->group);
    REQUIRE(stream != NULL);
    for (int32_t round = 0; round < 50; round++) {
        for (int i = 0; i < 64; i++) {
            host[i] = round + i;
        }
        CUDA(cuda.to_device_async((device_pointer)(uintptr_t)memory, host, 256, cuda_stream));
        if (round % 2 == 0) {
            CUDA(cuda.stream_synchronize(cuda_stream));
        }
        REQUIRE_OK(mlxd_all_sum(worker->group, memory, memory, 64, MLXD_INT32,
                                round % 2 != 0 ? stream : NULL));
        CUDA(cuda.to_host_async(host, (device_pointer)(uintptr_t)memory, 256, cuda_stream));
        CUDA(cuda.stream_synchronize(cuda_stream));
        for (int i = 0; i < 64; i++) {
            worker->failures += host[i] != members * (round + i);
        }
    }
    mlxd_stream_free(stream);
    CUDA(cuda.stream_destroy(cuda_stream));
    device_free(memory);
    CUDA(cuda.free_pinned(host));
    return NULL;
}

static void groups_beside_each_other(void) {
    struct worker workers[2] = {{0}};
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        REQUIRE_OK(mlxd_group_split(world, i == 0 ? rank % 2 : 0, size - rank, &workers[i].group));
        REQUIRE(pthread_create(&threads[i], NULL, sum_rounds, &workers[i]) == 0);
    }
    for (int i = 0; i < 2; i++) {
        REQUIRE(pthread_join(threads[i], NULL) == 0);
        CHECK(workers[i].failures == 0);
        mlxd_group_free(workers[i].group);
    }
}

int main(int argc, char **argv) {
    int end;
    if (nccl_begin(argc, argv, 1, 200, &end)) {
        return end;
    }
    ways_open();
    input = device_buffer_new(1 << 16);
    output = device_buffer_new(1 << 16);

    for (mlxd_dtype dtype = 0; dtype < DTYPE_COUNT; dtype++) {
        /* Once before it, so that nothing has to be set up within. */
        const struct way *way = &ways[ON_NONBLOCKING];
        device_buffer_fill(&input, way, dtype, 1, rank, 4);
        REQUIRE_OK(mlxd_all_sum(world, input.data, output.data, 1, dtype, way->stream));
        way_wait(way);
    }
    calls_do_not_wait();
    for (mlxd_dtype dtype = 0; dtype < DTYPE_COUNT; dtype++) {
        operations_chain(dtype);
        waiting_comes_after_the_default_stream(dtype);
        synchronize_waits(dtype);
    }
    events_order_operations();
    default_stream_is_legacy();
    handles_come_and_go();
    calls_keep_their_order();
    barrier_on_a_stream();
    groups_beside_each_other();

    device_buffer_free(&input);
    device_buffer_free(&output);
    ways_close();
    return nccl_finish("nccl_streams");
}

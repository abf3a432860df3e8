/* Graphs that the program captures while a group works over nccl: the library's threads do not
 * spoil them, operations are refused where they would, and the group works on.
 *
 *     nccl_capture RANKS */
#include "device_buffers.h"
#include "nccl_world.h"

static int32_t *device, *output;

static int (*begin_capture)(void *, int);
static int (*end_capture)(void *, void **);
static int (*destroy_graph)(void *);

/* What a program may be doing in its graph. */
static void captured_work(void *stream) {
    static int32_t *pinned;
    pinned = pinned != NULL ? pinned : pinned_alloc(64);
    CUDA(cuda.to_device_async((device_pointer)(uintptr_t)(device + 512), pinned, 64, stream));
}

static void end_whole(void *stream) {
    void *graph = NULL;
    int result = end_capture(stream, &graph);
    if (result != 0) {
        fprintf(stderr, "rank %d: the capture ended with %d\n", rank, result);
    }
    CHECK(result == 0 && graph != NULL);
    if (graph != NULL && destroy_graph != NULL) {
        destroy_graph(graph);
    }
}

static void check_works(void) {
    int32_t value = rank + 1, sum = 0;
    device_write(device, &value, sizeof value);
    REQUIRE_OK(mlxd_all_sum(world, device, output, 1, MLXD_INT32, NULL));
    device_read(&sum, output, sizeof sum);
    CHECK(sum == size * (size + 1) / 2);
}

/* An operation is under way, and looked after, for as long as a graph is captured. */
static void operations_under_way(int mode) {
    struct gate gate = {0};
    void *captured = cuda_stream_new(false);
    const struct way *way = &ways[ON_NONBLOCKING];
    REQUIRE_OK(mlxd_all_sum(world, device, output, 16, MLXD_INT32, way->stream));
    way_wait(way);
    CUDA(cuda.launch_host(way->up, wait_at_gate, &gate));
    REQUIRE_OK(mlxd_all_sum(world, device, output, 16, MLXD_INT32, way->stream));
    CUDA(begin_capture(captured, mode));
    captured_work(captured);
    sleep_ms(100); /* many looks of whoever looks after it */
    end_whole(captured);
    atomic_store(&gate.open, 1);
    way_wait(way);
    CHECK_OK(mlxd_stream_synchronize(way->stream));
    CHECK(mlxd_group_status(world) == MLXD_OK);
    CUDA(cuda.stream_destroy(captured));
    check_works();
}

/* On a stream that is being captured an operation is refused; the capture goes on. */
static void on_a_captured_stream(mlxd_dtype dtype) {
    void *captured = cuda_stream_new(false);
    mlxd_stream *stream = mlxd_stream_from_cuda(captured);
    REQUIRE(stream != NULL);
    CUDA(begin_capture(captured, 0));
    captured_work(captured);
    CHECK_INVALID(mlxd_all_sum(world, device, output, 16, dtype, stream));
    CHECK_ERROR_NAMES("captur");
    if (size > 1) { /* alone there is nothing to put there */
        CHECK_INVALID(mlxd_barrier(world, stream));
    }
    end_whole(captured);
    CHECK(mlxd_group_status(world) == MLXD_OK);
    CHECK_OK(mlxd_stream_synchronize(stream));
    mlxd_stream_free(stream);
    CUDA(cuda.stream_destroy(captured));
    check_works();
}

/* The default stream cannot be used while a blocking stream is captured: nor can a call without
 * stream. */
static void beside_a_blocking_stream(void) {
    void *captured = cuda_stream_new(true);
    CUDA(begin_capture(captured, 0));
    captured_work(captured);
    CHECK_INVALID(mlxd_all_sum(world, device, output, 16, MLXD_INT32, NULL));
    CHECK_ERROR_NAMES("captur");
    CHECK_INVALID(mlxd_all_sum(world, device, output, 16, MLXD_INT32, ways[ON_DEFAULT].stream));
    end_whole(captured);
    CHECK(mlxd_group_status(world) == MLXD_OK);
    CUDA(cuda.stream_destroy(captured));
    check_works();
}

/* Operations go on other streams while one is captured. */
static void beside_a_capture(mlxd_dtype dtype) {
    void *captured = cuda_stream_new(false);
    const struct way *way = &ways[ON_NONBLOCKING];
    CUDA(begin_capture(captured, 0));
    captured_work(captured);
    REQUIRE_OK(mlxd_all_sum(world, device, output, 16, dtype, way->stream));
    sleep_ms(30);
    end_whole(captured);
    CHECK_OK(mlxd_stream_synchronize(way->stream));
    CUDA(cuda.stream_destroy(captured));
    check_works();
}

int main(int argc, char **argv) {
    int end;
    if (nccl_begin(argc, argv, 1, 60, &end)) {
        return end;
    }
    device = device_alloc(4096);
    output = device_alloc(4096);
    ways_open();
    const struct {
        const char *name;
        void *to;
    } wanted[] = {{"cuStreamBeginCapture_v2", &begin_capture},
                  {"cuStreamEndCapture", &end_capture},
                  {"cuGraphDestroy", &destroy_graph}};
    for (size_t i = 0; i < 3; i++) {
        void *function = dlsym(cuda.library, wanted[i].name);
        memcpy(wanted[i].to, &function, sizeof function);
    }
    REQUIRE(begin_capture != NULL && end_capture != NULL);
    check_works();
    captured_work(NULL); /* what it allocates, it has */
    CUDA(cuda.stream_synchronize(NULL));

    for (int mode = 0; mode < 3; mode++) {
        operations_under_way(mode);
    }
    on_a_captured_stream(MLXD_INT32);
    on_a_captured_stream(MLXD_INT16);
    beside_a_blocking_stream();
    beside_a_capture(MLXD_INT32);
    beside_a_capture(MLXD_UINT16);

    ways_close();
    device_free(device);
    device_free(output);
    return nccl_finish("nccl_capture");
}

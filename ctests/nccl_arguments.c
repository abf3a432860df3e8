/* Memory and streams of the wrong kind, and other wrong arguments, where device memory is in play:
 * they are refused with a sentence that names what was given and what is wanted, nothing is
 * touched, the group works on.
 *
 *     nccl_arguments RANKS */
#include "nccl_world.h"
#include "values.h"

static int32_t *device, *output;
static int32_t host[64], other[64];

/* Everything that takes memory, with these two buffers. */
static void refused_everywhere(mlxd_group *group, void *in, void *out, const char *memory,
                               const char *backend) {
    const size_t count = (size_t)size;
#define REFUSED(call)               \
    do {                            \
        CHECK_INVALID(call);        \
        CHECK_ERROR_NAMES(memory);  \
        CHECK_ERROR_NAMES(backend); \
    } while (0)
    REFUSED(mlxd_all_sum(group, in, out, count, MLXD_INT32, NULL));
    REFUSED(mlxd_all_max(group, in, out, count, MLXD_INT16, NULL));
    REFUSED(mlxd_all_min(group, in, out, count, MLXD_COMPLEX64, NULL));
    REFUSED(mlxd_all_gather(group, in, out, 1, MLXD_INT32, NULL));
    REFUSED(mlxd_sum_scatter(group, in, out, count, MLXD_INT32, NULL));
    REFUSED(mlxd_all_to_all(group, in, out, count, MLXD_INT32, NULL));
    if (size > 1) {
        int peer = (rank + 1) % size;
        REFUSED(mlxd_send_recv(group, in, 1, peer, out, 1, peer, MLXD_INT32, NULL));
    }
#undef REFUSED
}

static void one_sided(mlxd_group *group, void *memory, const char *name) {
    CHECK_INVALID(mlxd_broadcast(group, memory, 1, MLXD_INT32, 0, NULL));
    CHECK_ERROR_NAMES(name);
    if (size > 1) {
        int peer = (rank + 1) % size;
        CHECK_INVALID(mlxd_send(group, memory, 1, MLXD_INT32, peer, NULL));
        CHECK_ERROR_NAMES(name);
        CHECK_INVALID(mlxd_recv(group, memory, 1, MLXD_INT32, peer, NULL));
        CHECK_ERROR_NAMES(name);
    }
}

/* The group works, on this memory. */
static void check_whole(mlxd_group *group, int32_t *in, int32_t *out, bool on_device) {
    int32_t one = 1, sum = 0;
    CHECK(mlxd_group_status(group) == MLXD_OK);
    if (on_device) {
        device_write(in, &one, sizeof one);
    } else {
        *in = 1;
    }
    REQUIRE_OK(mlxd_all_sum(group, in, out, 1, MLXD_INT32, NULL));
    if (on_device) {
        device_read(&sum, out, sizeof sum);
    } else {
        sum = *out;
    }
    CHECK(sum == mlxd_group_size(group));
}

static void host_memory_is_refused(void) {
    memset(host, 0x11, sizeof host);
    memset(other, 0x22, sizeof other);
    refused_everywhere(world, host, other, "host memory", "nccl");
    refused_everywhere(world, device, other, "host memory", "nccl");
    refused_everywhere(world, host, output, "host memory", "nccl");
    one_sided(world, host, "host memory");
    CHECK(host[0] == 0x11111111 && other[0] == 0x22222222);
    void *heap = malloc(1 << 20);
    REQUIRE(heap != NULL);
    CHECK_INVALID(mlxd_broadcast(world, heap, 1, MLXD_INT32, 0, NULL));
    free(heap);
    /* On a stream as well: nothing is put there. */
    mlxd_stream *stream = mlxd_stream_from_cuda(NULL);
    REQUIRE(stream != NULL);
    CHECK_INVALID(mlxd_all_sum(world, host, other, 1, MLXD_INT32, stream));
    CHECK_OK(mlxd_stream_synchronize(stream));
    mlxd_stream_free(stream);
    /* No elements need no memory. */
    REQUIRE_OK(mlxd_all_sum(world, host, other, 0, MLXD_INT32, NULL));
    REQUIRE_OK(mlxd_all_sum(world, NULL, NULL, 0, MLXD_INT32, NULL));
    check_whole(world, device, output, true);
}

static void managed_memory_is_fine(mlxd_group *ring) {
    int32_t *in = managed_alloc(64), *out = managed_alloc(64);
    check_whole(world, in, out, false);
    check_whole(ring, in, out, false);
    device_free(in);
    device_free(out);
}

static void device_memory_is_refused(mlxd_group *ring) {
    const char *name = mlxd_group_backend(ring);
    refused_everywhere(ring, device, output, "memory of", name);
    refused_everywhere(ring, device, other, "device", name);
    refused_everywhere(ring, host, output, "device", name);
    one_sided(ring, device, "device");
    check_whole(ring, host, other, false);
    void *pinned = pinned_alloc(64);
    check_whole(ring, pinned, other, false);
    CUDA(cuda.free_pinned(pinned));
}

static void streams_of_the_wrong_kind(mlxd_group *ring) {
    mlxd_stream *of_cuda = mlxd_stream_from_cuda(NULL);
    REQUIRE(of_cuda != NULL);
    CHECK_INVALID(mlxd_all_sum(ring, host, other, 1, MLXD_INT32, of_cuda));
    CHECK_ERROR_NAMES("mlxd_stream_from_cuda");
    CHECK_ERROR_NAMES("ring");
    CHECK_INVALID(mlxd_barrier(ring, of_cuda));
    check_whole(ring, host, other, false);
    mlxd_stream_free(of_cuda);
    /* mlxd_stream_new's: either refused by name, or it does what it says. */
    mlxd_stream *queue = mlxd_stream_new();
    int32_t one = 1, sum = 0;
    REQUIRE(queue != NULL);
    device_write(device, &one, sizeof one);
    mlxd_status status = mlxd_all_sum(world, device, output, 1, MLXD_INT32, queue);
    if (status == MLXD_OK) {
        CHECK_OK(mlxd_stream_synchronize(queue));
        device_read(&sum, output, sizeof sum);
        CHECK(sum == size);
    } else {
        CHECK(status == MLXD_ERROR_INVALID_ARGUMENT);
        CHECK_ERROR_NAMES("mlxd_stream_new");
    }
    mlxd_stream_free(queue);
    check_whole(world, device, output, true);
    /* A stream for each thread is none for the library's and NCCL's threads: refused, here or
     * there. */
    mlxd_stream *per_thread = mlxd_stream_from_cuda((void *)2);
    if (per_thread != NULL) {
        CHECK_INVALID(mlxd_all_sum(world, device, output, 1, MLXD_INT32, per_thread));
    }
    CHECK(mlxd_last_status() == MLXD_ERROR_INVALID_ARGUMENT);
    mlxd_stream_free(per_thread);
    check_whole(world, device, output, true);
}

static void other_arguments(void) {
    CHECK_INVALID(mlxd_all_sum(world, device, device + 1, 4, MLXD_INT32, NULL));
    CHECK_ERROR_NAMES("overlap");
    CHECK_INVALID(mlxd_all_sum(world, NULL, output, 1, MLXD_INT32, NULL));
    CHECK_INVALID(mlxd_all_sum(world, device, NULL, 1, MLXD_INT32, NULL));
    CHECK_INVALID(mlxd_all_sum(world, device, output, 1, 14, NULL));
    CHECK_INVALID(mlxd_all_sum(world, device, output, SIZE_MAX / 2, MLXD_FLOAT64, NULL));
    CHECK_INVALID(mlxd_broadcast(world, device, 1, MLXD_INT32, size, NULL));
    CHECK_INVALID(mlxd_send(world, device, 1, MLXD_INT32, rank, NULL));
    if (size > 1) {
        CHECK_INVALID(mlxd_sum_scatter(world, device, output, (size_t)size + 1, MLXD_INT32, NULL));
        CHECK_INVALID(mlxd_all_to_all(world, device, output, (size_t)size + 1, MLXD_INT32, NULL));
    }
    check_whole(world, device, output, true);
}

/* Memory of another device than the group's own. */
static void device_of_others(void) {
    int count = 0;
    CUDA(cuda.count(&count));
    if (count < 2) {
        return;
    }
    int own = device_number;
    device_use((own + 1) % count);
    int32_t *far = device_alloc(64);
    CHECK_INVALID(mlxd_all_sum(world, far, output, 1, MLXD_INT32, NULL));
    CHECK_ERROR_NAMES("device");
    device_free(far);
    /* A thread that has another device current, or none, may call all the same. */
    check_whole(world, device, output, true);
    void *current = NULL;
    CUDA(cuda.current(&current));
    CHECK(current == device_context);
    CUDA(cuda.set_current(NULL));
    REQUIRE_OK(mlxd_all_sum(world, device, output, 1, MLXD_INT32, NULL));
    CUDA(cuda.current(&current));
    CHECK(current == NULL);
    CUDA(cuda.set_current(device_context));
    CUDA(cuda.release(device_number));
    device_use(own);
}

int main(int argc, char **argv) {
    int end;
    if (nccl_begin(argc, argv, 1, 120, &end)) {
        return end;
    }
    device = device_alloc(64 * sizeof *device);
    output = device_alloc(64 * sizeof *output);
    mlxd_group *ring = other_world_start("ring");
    REQUIRE(mlxd_group_size(ring) == size);

    host_memory_is_refused();
    device_memory_is_refused(ring);
    managed_memory_is_fine(ring);
    streams_of_the_wrong_kind(ring);
    other_arguments();
    device_of_others();

    mlxd_group_free(ring);
    device_free(device);
    device_free(output);
    return nccl_finish("nccl_arguments");
}

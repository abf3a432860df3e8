/* Ranks that call different things over nccl: MISMATCH on all of them, whether calls are compared
 * before they are made (MLXD_CHECK=1) or only once they wait for each other; never OK, never for
 * ever.
 *
 *     nccl_mismatch RANKS */
#include "nccl_world.h"
#include "values.h"

static int32_t *device, *output;
static mlxd_stream *stream;
static void *cuda_stream;

/* Until a difference is noticed; a loaded machine needs more than the usual moments. */
#define LIMIT_S 10.0

enum difference { COUNT, DTYPE, OPERATION, ROOT, BARRIER, MESSAGE_COUNT, DIFFERENCES };

static const char *const names[] = {"count", "dtype", "operation", "root", "barrier", "message"};

/* Rank 0's call differs from the others'. */
static mlxd_status differ(mlxd_group *group, enum difference what, mlxd_stream *on) {
    bool odd = rank == 0;
    switch (what) {
    case COUNT:
        return mlxd_all_sum(group, device, output, odd ? 5 : 6, MLXD_INT32, on);
    case DTYPE:
        return mlxd_all_sum(group, device, output, 6, odd ? MLXD_INT32 : MLXD_FLOAT32, on);
    case OPERATION:
        return odd ? mlxd_all_gather(group, device, output, 6, MLXD_INT32, on)
                   : mlxd_all_sum(group, device, output, 6, MLXD_INT32, on);
    case ROOT:
        return mlxd_broadcast(group, device, 6, MLXD_INT32, odd ? 0 : 1, on);
    case BARRIER:
        return odd ? mlxd_barrier(group, on)
                   : mlxd_all_sum(group, device, output, 6, MLXD_INT16, on);
    default:
        return odd         ? mlxd_send(group, device, 4, MLXD_INT32, 1, on)
               : rank == 1 ? mlxd_recv(group, output, 3, MLXD_INT32, 0, on)
                           : MLXD_OK;
    }
}

static bool checked;

static bool is_right(mlxd_status status) {
    return status == MLXD_ERROR_MISMATCH || (!checked && status == MLXD_ERROR_TIMEOUT);
}

static void ruin(enum difference what, bool on_stream) {
    mlxd_group *group = NULL;
    REQUIRE_OK(mlxd_group_split(world, 0, rank, &group));
    REQUIRE_OK(mlxd_all_sum(group, device, output, 6, MLXD_INT32, NULL));
    REQUIRE_OK(mlxd_barrier(world, NULL));
    REQUIRE_OK(mlxd_group_set_timeout(group, checked ? 5000 : 1000));
    double start = seconds();
    mlxd_status status = differ(group, what, on_stream ? stream : NULL);
    if (on_stream && status == MLXD_OK) {
        status = mlxd_stream_synchronize(stream);
    }
    while (mlxd_group_status(group) == MLXD_OK && seconds() - start < LIMIT_S) {
        /* Where nobody waits for this rank yet, the next operation tells. */
        status = mlxd_barrier(group, NULL);
    }
    CUDA(cuda.stream_synchronize(cuda_stream));
    if (!is_right(mlxd_group_status(group))) {
        fprintf(stderr, "rank %d: other %s, %s: %s\n", rank, names[what],
                on_stream ? "on a stream" : "waiting", mlxd_last_error());
    }
    CHECK(is_right(mlxd_group_status(group)));
    CHECK(is_right(status) || status == MLXD_OK);
    CHECK(seconds() - start < LIMIT_S);
    mlxd_group_free(group);
    CHECK(mlxd_stream_synchronize(stream) == MLXD_OK || on_stream);
    REQUIRE_OK(mlxd_all_sum(world, device, output, 6, MLXD_INT32, NULL));
}

int main(int argc, char **argv) {
    checked = argc > 2 && strcmp(argv[2], "checked") == 0;
    setenv("MLXD_CHECK", checked ? "1" : "0", 1);
    int end;
    if (nccl_begin(argc, argv, 2, 150, &end)) {
        return end;
    }
    REQUIRE(size > 1);
    device = device_alloc(4096);
    output = device_alloc(4096);
    cuda_stream = cuda_stream_new(false);
    stream = mlxd_stream_from_cuda(cuda_stream);
    REQUIRE(stream != NULL);
    for (int what = 0; what < DIFFERENCES; what++) {
        ruin((enum difference)what, false);
        ruin((enum difference)what, true);
    }
    mlxd_stream_free(stream);
    CUDA(cuda.stream_destroy(cuda_stream));
    device_free(device);
    device_free(output);
    return nccl_finish("nccl_mismatch");
}

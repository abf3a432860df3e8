/* A rank is killed: the others learn it within seconds, whatever they are doing, and are let go.
 *
 *     nccl_lost RANKS SCENE
 *
 * waiting: in an operation; stream: with operations on a CUDA stream and in no call; staged: the
 * same, of a type that NCCL does not have; recv: for a message of the lost one; idle: in nothing.
 */
#include "nccl_world.h"
#include "values.h"

static int32_t *device, *output;

/* From the death to the news; a loaded machine needs more than the usual moments. */
#define NEWS_LIMIT_S 10.0

static void die(void) {
    sleep_ms(200);
    raise(SIGKILL);
}

static void check_lost(mlxd_status status) {
    char number[32];
    CHECK(status == MLXD_ERROR_PEER_LOST);
    CHECK(mlxd_group_status(world) == MLXD_ERROR_PEER_LOST);
    snprintf(number, sizeof number, "rank %d", size - 1);
    CHECK_ERROR_NAMES(number);
}

static void wait_for_news(void) {
    double end = seconds() + NEWS_LIMIT_S;
    while (mlxd_group_status(world) == MLXD_OK && seconds() < end) {
        sleep_ms(5);
    }
}

static void on_a_stream(mlxd_dtype dtype) {
    void *cuda_stream = cuda_stream_new(false);
    mlxd_stream *stream = mlxd_stream_from_cuda(cuda_stream);
    REQUIRE(stream != NULL);
    mlxd_status status = MLXD_OK;
    for (int i = 0; i < 3 && status == MLXD_OK; i++) {
        status = mlxd_all_sum(world, device, output, 16, dtype, stream);
    }
    if (status == MLXD_OK) {
        /* Nobody is in a call: the stream is let go nevertheless. */
        CUDA(cuda.stream_synchronize(cuda_stream));
        wait_for_news();
        status = mlxd_stream_synchronize(stream);
    }
    /* On a very busy machine the news may have come before. */
    check_lost(status);
    mlxd_stream_free(stream);
    CUDA(cuda.stream_destroy(cuda_stream));
}

/* Those who are left start afresh. */
static void new_world(void) {
    char text[16];
    if (size < 3) {
        return;
    }
    snprintf(text, sizeof text, "%d", size - 1);
    setenv("MLX_WORLD_SIZE", text, 1);
    mlxd_group *rest = other_world_start("nccl");
    int32_t one = 1, sum = 0;
    device_write(device, &one, sizeof one);
    REQUIRE_OK(mlxd_all_sum(rest, device, output, 1, MLXD_INT32, NULL));
    device_read(&sum, output, sizeof sum);
    CHECK(sum == size - 1);
    mlxd_group_free(rest);
}

int main(int argc, char **argv) {
    check_start(120);
    REQUIRE(argc > 2);
    const char *scene = argv[2];
    if (!is_rank()) {
        return ranks_run(atoi(argv[1]), argv, atoi(argv[1]) - 1);
    }
    nccl_world_start();
    device = device_alloc(64);
    output = device_alloc(64);
    REQUIRE_OK(mlxd_all_sum(world, device, output, 16, MLXD_INT32, NULL));
    REQUIRE_OK(mlxd_all_sum(world, device, output, 16, MLXD_INT16, NULL));
    if (rank == size - 1) {
        die();
    }
    double start = seconds();
    if (strcmp(scene, "waiting") == 0) {
        check_lost(mlxd_all_sum(world, device, output, 16, MLXD_INT32, NULL));
    } else if (strcmp(scene, "stream") == 0) {
        on_a_stream(MLXD_FLOAT32);
    } else if (strcmp(scene, "staged") == 0) {
        on_a_stream(MLXD_INT16);
    } else if (strcmp(scene, "recv") == 0) {
        check_lost(mlxd_recv(world, output, 16, MLXD_INT32, size - 1, NULL));
    } else {
        wait_for_news();
        check_lost(mlxd_group_status(world));
    }
    CHECK(seconds() - start < NEWS_LIMIT_S);
    check_lost(mlxd_barrier(world, NULL));
    mlxd_group_free(world);
    /* The device is as usable as before: nothing is stuck on it. */
    device_free(output);
    output = device_alloc(64);
    new_world();
    device_free(device);
    device_free(output);
    return check_finish("nccl_lost");
}

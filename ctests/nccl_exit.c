/* A stream is freed by what runs at exit after CUDA has ended, as a global object's destructor may:
 * that ends, and nothing waits for work of which nobody will know.
 *
 *     nccl_exit cuda           a copy of a process alone on a CUDA stream, which the program has
 *                              waited for by itself
 *     nccl_exit queue          one on a queue of the library's, which does not end
 *     nccl_exit world RANKS    an operation of several ranks on a CUDA stream */
#include "ranks.h"

static mlxd_stream *stream;
static bool alone;

static void free_late(void) {
    /* Registered before CUDA began, so CUDA has ended. */
    CHECK(cuda.stream_query(NULL) == 4);
    mlxd_status status = mlxd_stream_synchronize(stream);
    /* What ranks did together may be known before. */
    CHECK(status == MLXD_ERROR_ABORTED || (!alone && status == MLXD_OK));
    mlxd_stream_free(stream);
    if (atomic_load(&check_failures) != 0) {
        fflush(NULL);
        _exit(1);
    }
}

/* Until the queue's thread does nothing but ask how far its copy is: 20 calls are more than it
 * takes to begin. */
static void wait_for_the_queue(void) {
    while (device_live("events") == 0) {
        sleep_ms(1);
    }
    long before = device_live("calls");
    while (device_live("calls") < before + 20) {
        sleep_ms(1);
    }
}

int main(int argc, char **argv) {
    static struct gate closed;
    check_start(60);
    REQUIRE(argc > 1);
    alone = strcmp(argv[1], "world") != 0;
    if (!alone && !is_rank()) {
        return ranks_run(atoi(argv[2]), argv, NOBODY);
    }
    REQUIRE(atexit(free_late) == 0);
    if (alone) {
        start_variables_clear();
    } else {
        rank_begin();
    }
    device_start();
    mlxd_group *group = mlxd_init(!alone, "nccl");
    REQUIRE(group != NULL && (mlxd_group_size(group) == 1) == alone);
    int32_t *input = device_alloc(64), *output = device_alloc(64);
    if (strcmp(argv[1], "queue") != 0) {
        void *cuda_stream = cuda_stream_new(false);
        stream = mlxd_stream_from_cuda(cuda_stream);
        REQUIRE(stream != NULL);
        REQUIRE_OK(mlxd_all_sum(group, input, output, 16, MLXD_INT32, stream));
        CUDA(cuda.stream_synchronize(cuda_stream));
    } else {
        stream = mlxd_stream_new();
        REQUIRE(stream != NULL);
        CUDA(cuda.launch_host(NULL, wait_at_gate, &closed));
        REQUIRE_OK(mlxd_all_sum(group, input, output, 16, MLXD_INT32, stream));
        wait_for_the_queue();
    }
    return check_finish("nccl_exit");
}

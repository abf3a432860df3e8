/* A stream of a process alone is freed by what runs at exit after CUDA has ended, as a global
 * object's destructor may: that ends, and nothing waits for a copy of which nobody will know.
 *
 *     nccl_exit cuda     a copy on a CUDA stream, which the program has waited for by itself
 *     nccl_exit queue    a copy on a queue of the library's, which does not end */
#include "device.h"
#include "processes.h"

static mlxd_stream *stream;

static void free_late(void) {
    /* Registered before CUDA began, so CUDA has ended. */
    CHECK(cuda.stream_query(NULL) == 4);
    CHECK_STATUS(mlxd_stream_synchronize(stream), MLXD_ERROR_ABORTED);
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
    void *cuda_stream;
    check_start(60);
    REQUIRE(argc > 1 && atexit(free_late) == 0);
    start_variables_clear();
    device_start();
    if (!device_is_fake()) {
        printf("skipped: not with a device that may be stuck\n");
        return SKIPPED;
    }
    mlxd_group *group = mlxd_init(false, "nccl");
    REQUIRE(group != NULL && mlxd_group_size(group) == 1);
    int32_t *input = device_alloc(64), *output = device_alloc(64);
    if (strcmp(argv[1], "cuda") == 0) {
        cuda_stream = cuda_stream_new(false);
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

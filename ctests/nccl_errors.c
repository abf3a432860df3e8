/* What NCCL and CUDA report, made up by the stand-ins (FAKE_NCCL_*, which CTest sets): it comes out
 * as a status with their words on the rank that met it, fails the group on all others, and nothing
 * hangs.
 *
 *     nccl_errors RANKS start|operation|stream|anywhere STATUS [WORD ...]
 *
 * `anywhere`: how often the library asks depends on time, so it may be the start or an operation.
 */
#include "ranks.h"
#include "values.h"

static int32_t *device, *output;

/* From the start of a call to its failure. */
#define LIMIT_S 15.0

static mlxd_status status_named(const char *name) {
    for (mlxd_status status = 0; status <= MLXD_ERROR_INTERNAL; status++) {
        if (strcmp(mlxd_status_name(status), name) == 0) {
            return status;
        }
    }
    REQUIRE(!"a status of this name");
    return -1;
}

/* The rank that FAKE_NCCL_RANK names meets it; without that all do. */
static bool is_hit(int rank) {
    const char *only = getenv("FAKE_NCCL_RANK");
    return only == NULL || atoi(only) == rank;
}

static void check_words(char **words, bool hit) {
    for (int i = 0; hit && words[i] != NULL; i++) {
        CHECK_ERROR_NAMES(words[i]);
    }
    CHECK(mlxd_last_error()[0] != '\0');
}

static void start_fails(mlxd_status want, char **words) {
    double start = seconds();
    mlxd_group *world = mlxd_init(true, "nccl");
    CHECK(world == NULL);
    CHECK(mlxd_last_status() == want);
    check_words(words, is_hit(check_rank));
    CHECK(seconds() - start < LIMIT_S);
    mlxd_group_free(world);
}

/* Works through all kinds of operations until one fails. */
static mlxd_status work(mlxd_group *world, mlxd_stream *stream) {
    mlxd_status status = MLXD_OK;
    int size = mlxd_group_size(world);
    int right = (check_rank + 1) % size, left = (check_rank + size - 1) % size;
    for (int round = 0; round < 6 && status == MLXD_OK; round++) {
        const mlxd_dtype types[] = {MLXD_INT32, MLXD_INT16, MLXD_BOOL, MLXD_COMPLEX64};
        for (size_t i = 0; i < 4 && status == MLXD_OK; i++) {
            status = mlxd_all_sum(world, device, output, 4, types[i], stream);
        }
        status = status != MLXD_OK ? status
                                   : mlxd_all_gather(world, device, output, 1, MLXD_INT8, stream);
        status =
            status != MLXD_OK ? status : mlxd_broadcast(world, device, 1, MLXD_INT8, 0, stream);
        status = status != MLXD_OK
                     ? status
                     : mlxd_send_recv(world, device, 1, right, output, 1, left, MLXD_INT8, stream);
        status = status != MLXD_OK || stream == NULL ? status : mlxd_stream_synchronize(stream);
    }
    return status;
}

static void operation_fails(mlxd_status want, char **words, bool on_stream, bool anywhere) {
    void *cuda_stream = cuda_stream_new(false);
    mlxd_stream *stream = on_stream ? mlxd_stream_from_cuda(cuda_stream) : NULL;
    mlxd_group *world = mlxd_init(true, "nccl");
    if (anywhere && world == NULL) {
        CHECK(mlxd_last_status() == want);
        check_words(words, is_hit(check_rank));
        CUDA(cuda.stream_destroy(cuda_stream));
        return;
    }
    REQUIRE(world != NULL && (!on_stream || stream != NULL));
    double start = seconds();
    CHECK_STATUS(work(world, stream), want);
    check_words(words, is_hit(check_rank));
    CHECK(mlxd_group_status(world) == want);
    CHECK_STATUS(mlxd_all_sum(world, device, output, 4, MLXD_INT32, NULL), want);
    check_words(words, is_hit(check_rank));
    CHECK(seconds() - start < LIMIT_S);
    CUDA(cuda.stream_synchronize(cuda_stream)); /* let go */
    mlxd_stream_free(stream);
    mlxd_group_free(world);
    CUDA(cuda.stream_destroy(cuda_stream));
}

int main(int argc, char **argv) {
    check_start(60);
    REQUIRE(argc > 3);
    if (!is_rank()) {
        return ranks_run(atoi(argv[1]), argv, NOBODY);
    }
    mlxd_status want = status_named(argv[3]);
    rank_begin();
    device_start();
    device = device_alloc(1024);
    output = device_alloc(1024);
    if (strcmp(argv[2], "start") == 0) {
        start_fails(want, argv + 4);
    } else {
        operation_fails(want, argv + 4, strcmp(argv[2], "stream") == 0,
                        strcmp(argv[2], "anywhere") == 0);
    }
    device_free(device);
    device_free(output);
    return check_finish("nccl_errors");
}

/* A group fails while its callers are in NCCL, whose ncclCommAbort takes its time or never returns
 * (FAKE_NCCL_ABORT_MS): their calls return with the cause nevertheless, and the process ends.
 *
 *     nccl_aborts RANKS call|stream|inside|split|start returns|never
 *
 * Each process's second launch hangs (FAKE_NCCL_HANG=launch:2), or its second start of a
 * communicator (init:2), or its first. */
#include "nccl_world.h"
#include "values.h"

#include <pthread.h>

/* Longer than the 10 s that the library gives the abort: what only a hang exceeds. */
#define LIMIT_S 60.0

static int32_t *device, *output;
static mlxd_group *beside; /* over TCP */

static void *of_the_stand_in(const char *name) {
    void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_NOLOAD);
    void *function = library != NULL ? dlsym(library, name) : NULL;
    REQUIRE(function != NULL);
    return function;
}

/* How many of this process are stuck in the stand-in. */
static long stuck(void) {
    long (*count)(void) = NULL;
    void *function = of_the_stand_in("fake_nccl_stuck");
    memcpy(&count, &function, sizeof count);
    return count();
}

/* Those that FAKE_NCCL_BLOCK holds go on. */
static void let_go(void) {
    void (*go)(void) = NULL;
    void *function = of_the_stand_in("fake_nccl_go");
    memcpy(&go, &function, sizeof go);
    go();
}

/* Once all ranks are stuck in their call, one aborts it; another call of each waits behind it. */
static void *abort_it(void *argument) {
    (void)argument;
    while (stuck() == 0) {
        sleep_ms(1);
    }
    REQUIRE_OK(mlxd_barrier(beside, NULL));
    if (rank == 0) {
        CHECK_OK(mlxd_group_abort(world));
    }
    CUDA(cuda.set_current(device_context));
    CHECK_STATUS(mlxd_barrier(world, NULL), MLXD_ERROR_ABORTED);
    return NULL;
}

static void stuck_in_a_call(mlxd_stream *stream, bool returns) {
    pthread_t aborter;
    REQUIRE_OK(mlxd_all_sum(world, device, output, 1, MLXD_INT32, NULL));
    REQUIRE(pthread_create(&aborter, NULL, abort_it, NULL) == 0);
    CHECK_STATUS(mlxd_barrier(world, stream), MLXD_ERROR_ABORTED);
    CHECK_ERROR_NAMES("barrier");
    if (!returns) {
        CHECK_ERROR_NAMES("still has the buffers");
    }
    if (stream != NULL) {
        CHECK_OK(mlxd_stream_synchronize(stream)); /* the call has told it */
    }
    REQUIRE(pthread_join(aborter, NULL) == 0);
    CHECK(mlxd_group_status(world) == MLXD_ERROR_ABORTED);
    CHECK_STATUS(mlxd_all_sum(world, device, output, 1, MLXD_INT32, NULL), MLXD_ERROR_ABORTED);
}

static atomic_bool released;

static void wait_for_release(void *argument) {
    (void)argument;
    while (!atomic_load(&released)) {
        sleep_ms(1);
    }
}

static void *gather_it(void *argument) {
    (void)argument;
    CUDA(cuda.set_current(device_context));
    CHECK_STATUS(mlxd_all_gather(world, device, output, 1, MLXD_INT32, NULL), MLXD_ERROR_ABORTED);
    return NULL;
}

/* One call blocks in NCCL. Who waits for another, which the device is done with, hears of the
 * group's failure nevertheless. */
static void stuck_inside(mlxd_stream *stream, void *cuda_stream) {
    pthread_t inside;
    CUDA(cuda.launch_host(cuda_stream, wait_for_release, NULL));
    REQUIRE_OK(mlxd_all_sum(world, device, output, 1, MLXD_INT32, stream));
    REQUIRE(pthread_create(&inside, NULL, gather_it, NULL) == 0);
    while (stuck() == 0) {
        sleep_ms(1);
    }
    atomic_store(&released, true);
    CUDA(cuda.stream_synchronize(cuda_stream));
    sleep_ms(100); /* the library has looked meanwhile, on a thread of its own */
    REQUIRE_OK(mlxd_barrier(beside, NULL));
    if (rank == 0) {
        CHECK_OK(mlxd_group_abort(world));
    }
    CHECK_STATUS(mlxd_stream_synchronize(stream), MLXD_ERROR_ABORTED);
    let_go();
    REQUIRE(pthread_join(inside, NULL) == 0);
}

/* Its ranks never meet in NCCL; the world goes on. */
static void stuck_in_a_split(void) {
    mlxd_group *half = NULL;
    int32_t one = 1, sum = 0;
    REQUIRE_OK(mlxd_group_set_timeout(world, 500));
    CHECK_STATUS(mlxd_group_split(world, 0, rank, &half), MLXD_ERROR_TIMEOUT);
    CHECK(half == NULL);
    REQUIRE_OK(mlxd_group_set_timeout(world, 60000));
    device_write(device, &one, sizeof one);
    REQUIRE_OK(mlxd_all_sum(world, device, output, 1, MLXD_INT32, NULL));
    device_read(&sum, output, sizeof sum);
    CHECK(sum == size);
}

/* Some rank never meets the others in NCCL. */
static int stuck_in_the_start(char **argv) {
    check_start(150);
    if (!is_rank()) {
        return ranks_run(atoi(argv[1]), argv, NOBODY);
    }
    rank_begin();
    device_start();
    double start = seconds();
    CHECK(mlxd_init(true, "nccl") == NULL);
    CHECK(mlxd_last_status() == MLXD_ERROR_TIMEOUT);
    CHECK(seconds() - start < LIMIT_S);
    return check_finish("nccl_aborts");
}

int main(int argc, char **argv) {
    int end;
    REQUIRE(argc > 3);
    if (strcmp(argv[2], "start") == 0) {
        return stuck_in_the_start(argv);
    }
    if (nccl_begin(argc, argv, 2, 150, &end)) {
        return end;
    }
    void *cuda_stream = cuda_stream_new(false);
    mlxd_stream *stream = mlxd_stream_from_cuda(cuda_stream);
    REQUIRE(stream != NULL);
    device = device_alloc(64);
    output = device_alloc(64);
    beside = other_world_start("ring");
    double start = seconds();
    if (strcmp(argv[2], "split") == 0) {
        stuck_in_a_split();
    } else if (strcmp(argv[2], "inside") == 0) {
        stuck_inside(stream, cuda_stream);
    } else if (strcmp(argv[2], "stream") == 0) {
        stuck_in_a_call(stream, strcmp(argv[3], "returns") == 0);
    } else {
        stuck_in_a_call(NULL, strcmp(argv[3], "returns") == 0);
    }
    CHECK(seconds() - start < LIMIT_S);
    mlxd_stream_free(stream);
    mlxd_group_free(beside);
    return nccl_finish("nccl_aborts");
}

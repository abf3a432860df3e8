/* Failures over nccl, on a group of its own each time, split from the world, which must not notice:
 * who hears of them, how soon, and that whatever was on a stream is let go.
 *
 *     nccl_failures RANKS */
#include "nccl_world.h"
#include "values.h"

#include <pthread.h>

static int32_t *device, *output;
static void *cuda_stream;
static mlxd_stream *stream;

/* A failure that one rank finds reaches every rank within a second; long enough for anything but a
 * hang. */
#define NEWS_LIMIT_S 10.0

static mlxd_group *child_of(mlxd_group *parent) {
    mlxd_group *child = NULL;
    REQUIRE_OK(mlxd_group_split(parent, 0, rank, &child));
    return child;
}

static void check_whole(mlxd_group *group) {
    int32_t one = 1, sum = 0;
    CHECK(mlxd_group_status(group) == MLXD_OK);
    device_write(device, &one, sizeof one);
    REQUIRE_OK(mlxd_all_sum(group, device, output, 1, MLXD_INT32, NULL));
    device_read(&sum, output, sizeof sum);
    CHECK(sum == mlxd_group_size(group));
}

/* Whatever is asked of a failed group is answered with its cause, at once. */
static void check_failed(mlxd_group *group, mlxd_status cause) {
    mlxd_group *child = NULL;
    double start = seconds();
    CHECK(mlxd_group_status(group) == cause);
    CHECK_STATUS(mlxd_all_sum(group, device, output, 1, MLXD_INT32, NULL), cause);
    CHECK_STATUS(mlxd_all_max(group, device, output, 1, MLXD_INT16, NULL), cause);
    CHECK_STATUS(mlxd_barrier(group, NULL), cause);
    CHECK_STATUS(mlxd_all_sum(group, device, output, 1, MLXD_INT32, stream), cause);
    CHECK_STATUS(mlxd_send(group, device, 1, MLXD_INT32, (rank + 1) % size, NULL), cause);
    CHECK_STATUS(mlxd_group_split(group, 0, 0, &child), cause);
    CHECK(mlxd_group_size(group) == size);
    CHECK(seconds() - start < NEWS_LIMIT_S);
}

static mlxd_status status_soon(mlxd_group *group) {
    double end = seconds() + NEWS_LIMIT_S;
    while (mlxd_group_status(group) == MLXD_OK && seconds() < end) {
        sleep_ms(5);
    }
    return mlxd_group_status(group);
}

/* The stream is the caller's again: it does new work. */
static void check_stream_is_free(void) {
    int32_t *value = pinned_alloc(sizeof *value);
    *value = 77;
    CUDA(
        cuda.to_device_async((device_pointer)(uintptr_t)device, value, sizeof *value, cuda_stream));
    CUDA(cuda.stream_synchronize(cuda_stream));
    *value = 0;
    CUDA(cuda.to_host_async(value, (device_pointer)(uintptr_t)device, sizeof *value, cuda_stream));
    CUDA(cuda.stream_synchronize(cuda_stream));
    CHECK(*value == 77);
    CUDA(cuda.free_pinned(value));
}

/* Rank 0 stays away from an operation. */
static void timeout_while_waiting(mlxd_dtype dtype) {
    mlxd_group *child = child_of(world);
    check_whole(child);
    REQUIRE_OK(mlxd_barrier(world, NULL));
    REQUIRE_OK(mlxd_group_set_timeout(child, 300));
    if (rank != 0) {
        double start = seconds();
        CHECK_STATUS(mlxd_all_sum(child, device, output, 1, dtype, NULL), MLXD_ERROR_TIMEOUT);
        CHECK_ERROR_NAMES("all_sum");
        double took = seconds() - start;
        CHECK(took > 0.05 && took < 0.3 + NEWS_LIMIT_S);
    } else {
        CHECK(status_soon(child) == MLXD_ERROR_TIMEOUT);
    }
    check_failed(child, MLXD_ERROR_TIMEOUT);
    mlxd_group_free(child);
    check_whole(world);
}

/* The same on a stream, where nobody is in a call. */
static void timeout_on_a_stream(mlxd_dtype dtype) {
    mlxd_group *child = child_of(world);
    check_whole(child);
    REQUIRE_OK(mlxd_barrier(world, NULL));
    REQUIRE_OK(mlxd_group_set_timeout(child, 300));
    if (rank != 0) {
        REQUIRE_OK(mlxd_all_sum(child, device, output, 1, dtype, stream));
    }
    CHECK(status_soon(child) == MLXD_ERROR_TIMEOUT);
    /* Without another call of the library's the stream is let go. */
    CUDA(cuda.stream_synchronize(cuda_stream));
    CHECK_STATUS(mlxd_stream_synchronize(stream), rank != 0 ? MLXD_ERROR_TIMEOUT : MLXD_OK);
    CHECK_OK(mlxd_stream_synchronize(stream)); /* told once */
    check_failed(child, MLXD_ERROR_TIMEOUT);
    check_stream_is_free();
    mlxd_group_free(child);
    check_whole(world);
}

/* Work before the operation on its stream does not count against its limit: it has not begun. */
static void nap(void *argument) {
    (void)argument;
    sleep_ms(700);
}

static void limits_count_from_the_beginning(void) {
    mlxd_group *child = child_of(world);
    check_whole(child);
    REQUIRE_OK(mlxd_group_set_timeout(child, 400));
    CUDA(cuda.launch_host(cuda_stream, nap, NULL));
    REQUIRE_OK(mlxd_all_sum(child, device, output, 1, MLXD_INT32, stream));
    CHECK_OK(mlxd_stream_synchronize(stream));
    check_whole(child);
    mlxd_group_free(child);
}

static void recv_times_out(void) {
    mlxd_group *child = child_of(world);
    check_whole(child);
    REQUIRE_OK(mlxd_barrier(world, NULL));
    REQUIRE_OK(mlxd_group_set_timeout(child, 300));
    if (rank == 1) {
        CHECK_STATUS(mlxd_recv(child, device, 1, MLXD_INT32, 0, NULL), MLXD_ERROR_TIMEOUT);
        CHECK_ERROR_NAMES("recv");
    } else {
        CHECK(status_soon(child) == MLXD_ERROR_TIMEOUT);
    }
    check_failed(child, MLXD_ERROR_TIMEOUT);
    mlxd_group_free(child);
    check_whole(world);
}

static void *abort_later(void *group) {
    sleep_ms(100);
    CHECK_OK(mlxd_group_abort(group));
    return NULL;
}

/* A thread of a waiting rank aborts; also what is on a stream, and from another rank. */
static void abort_while_waiting(bool by_waiter, bool on_stream) {
    mlxd_group *child = child_of(world);
    check_whole(child);
    REQUIRE_OK(mlxd_barrier(world, NULL));
    pthread_t thread;
    int aborter = by_waiter ? 1 : 0;
    if (rank == aborter) {
        REQUIRE(pthread_create(&thread, NULL, abort_later, child) == 0);
    }
    double start = seconds();
    if (rank != 0 && on_stream) {
        REQUIRE_OK(mlxd_all_sum(child, device, output, 1, MLXD_INT32, stream));
        CHECK_STATUS(mlxd_stream_synchronize(stream), MLXD_ERROR_ABORTED);
        CUDA(cuda.stream_synchronize(cuda_stream));
    } else if (rank != 0) {
        CHECK_STATUS(mlxd_all_sum(child, device, output, 1, MLXD_INT32, NULL), MLXD_ERROR_ABORTED);
    }
    CHECK(status_soon(child) == MLXD_ERROR_ABORTED);
    CHECK(seconds() - start < NEWS_LIMIT_S);
    if (rank == aborter) {
        REQUIRE(pthread_join(thread, NULL) == 0);
    }
    CHECK_OK(mlxd_group_abort(child)); /* again: it has failed already */
    check_failed(child, MLXD_ERROR_ABORTED);
    mlxd_group_free(child);
    check_whole(world);
}

/* Freed with work under way that never ends: the free does not hang, nor is memory touched later.
 */
static void freed_while_stuck(void) {
    mlxd_group *child = child_of(world);
    check_whole(child);
    REQUIRE_OK(mlxd_barrier(world, NULL));
    REQUIRE_OK(mlxd_group_set_timeout(child, 500));
    if (rank != 0) {
        REQUIRE_OK(mlxd_all_sum(child, device, output, 1, MLXD_INT32, stream));
    }
    mlxd_group_free(child);
    CUDA(cuda.stream_synchronize(cuda_stream));
    mlxd_status status = mlxd_stream_synchronize(stream);
    CHECK(rank != 0 ? status != MLXD_OK : status == MLXD_OK);
    check_stream_is_free();
    check_whole(world);
}

/* Failures of many groups leave nothing behind that the next one trips over. */
static void again_and_again(void) {
    for (int round = 0; round < 5; round++) {
        mlxd_group *child = child_of(world);
        check_whole(child);
        REQUIRE_OK(mlxd_barrier(world, NULL)); /* an abort cuts slower ranks short */
        if (rank == round % size) {
            CHECK_OK(mlxd_group_abort(child));
        }
        CHECK(status_soon(child) == MLXD_ERROR_ABORTED);
        mlxd_group_free(child);
    }
    check_whole(world);
}

int main(int argc, char **argv) {
    int end;
    if (nccl_begin(argc, argv, 2, 200, &end)) {
        return end;
    }
    device = device_alloc(64);
    output = device_alloc(64);
    cuda_stream = cuda_stream_new(false);
    stream = mlxd_stream_from_cuda(cuda_stream);
    REQUIRE(size > 1 && stream != NULL);

    timeout_while_waiting(MLXD_INT32);
    timeout_while_waiting(MLXD_INT16);
    timeout_on_a_stream(MLXD_INT32);
    timeout_on_a_stream(MLXD_UINT16);
    limits_count_from_the_beginning();
    recv_times_out();
    for (int variant = 0; variant < 4; variant++) {
        abort_while_waiting(variant % 2 != 0, variant / 2 != 0);
    }
    freed_while_stuck();
    again_and_again();

    mlxd_stream_free(stream);
    CUDA(cuda.stream_destroy(cuda_stream));
    device_free(device);
    device_free(output);
    return nccl_finish("nccl_failures");
}

/* Timeouts and aborts: who hears of them, how soon, and which groups stay whole. Every case ruins a
 * group of its own, split from the world; the world must not notice. */
#include "check.h"

#include <pthread.h>

static mlxd_group *world;
static int rank;
static int size;

/* A failure that one rank finds reaches every rank within a second; long enough for anything but a
 * hang. */
#define NEWS_LIMIT_S 10.0

static mlxd_group *child_of(mlxd_group *parent) {
    mlxd_group *child = NULL;
    REQUIRE_OK(mlxd_group_split(parent, 0, rank, &child));
    return child;
}

static void check_whole(mlxd_group *group) {
    int32_t one = 1;
    int32_t sum = 0;
    CHECK(mlxd_group_status(group) == MLXD_OK);
    REQUIRE_OK(mlxd_all_sum(group, &one, &sum, 1, MLXD_INT32, NULL));
    CHECK(sum == mlxd_group_size(group));
}

/* Whatever is asked of a failed group is answered with its cause, at once. */
static void check_failed(mlxd_group *group, mlxd_status cause) {
    double start = seconds();
    int32_t one = 1;
    int32_t sum = 0;
    mlxd_group *child = NULL;
    CHECK(mlxd_group_status(group) == cause);
    CHECK_STATUS(mlxd_all_sum(group, &one, &sum, 1, MLXD_INT32, NULL), cause);
    CHECK(mlxd_last_error()[0] != '\0');
    CHECK_STATUS(mlxd_barrier(group, NULL), cause);
    if (size > 1) {
        CHECK_STATUS(mlxd_send(group, &one, 1, MLXD_INT32, (rank + 1) % size, NULL), cause);
        CHECK_STATUS(mlxd_recv(group, &one, 1, MLXD_INT32, (rank + 1) % size, NULL), cause);
    }
    CHECK_STATUS(mlxd_group_split(group, 0, 0, &child), cause);
    CHECK(mlxd_group_size(group) == size); /* what it was is still known */
    CHECK(seconds() - start < NEWS_LIMIT_S);
}

/* Waits, bounded, until the news of a failure has come. */
static mlxd_status status_soon(mlxd_group *group) {
    double end = seconds() + NEWS_LIMIT_S;
    while (mlxd_group_status(group) == MLXD_OK && seconds() < end) {
        sleep_ms(5);
    }
    return mlxd_group_status(group);
}

/* Rank 0 stays away from an operation: TIMEOUT, for rank 0 too. */
static void timeout(void) {
    mlxd_group *child = child_of(world);
    REQUIRE_OK(mlxd_group_set_timeout(child, 300));
    REQUIRE_OK(mlxd_barrier(world, NULL));
    double start = seconds();
    if (rank != 0) {
        float input = 1;
        float output = 0;
        CHECK_STATUS(mlxd_all_sum(child, &input, &output, 1, MLXD_FLOAT32, NULL),
                     MLXD_ERROR_TIMEOUT);
        CHECK_ERROR_NAMES("all_sum");
        double took = seconds() - start;
        CHECK(took > 0.05 && took < 0.3 + NEWS_LIMIT_S);
    } else {
        sleep_ms(300);
        CHECK(status_soon(child) == MLXD_ERROR_TIMEOUT);
    }
    check_failed(child, MLXD_ERROR_TIMEOUT);
    mlxd_group_free(child);
    check_whole(world);
}

/* A group beside the registry whose limits are these. */
static mlxd_group *with_limits(const char *operation_ms, const char *recv_ms) {
    mlxd_options *options = mlxd_options_new();
    REQUIRE(options != NULL);
    REQUIRE_OK(mlxd_options_set(options, "MLXD_TIMEOUT_MS", operation_ms));
    REQUIRE_OK(mlxd_options_set(options, "MLXD_RECV_TIMEOUT_MS", recv_ms));
    mlxd_group *group = mlxd_init_with_options(true, test_backend(), options);
    REQUIRE(group != NULL);
    mlxd_options_free(options);
    return group;
}

/* Rank 1 receives what rank 0 sends, late. */
static mlxd_status late_message(mlxd_group *group, long late_ms) {
    int32_t token = 5;
    mlxd_status status = MLXD_OK;
    REQUIRE_OK(mlxd_barrier(world, NULL));
    if (rank == 1) {
        token = 0;
        status = mlxd_recv(group, &token, 1, MLXD_INT32, 0, NULL);
        CHECK(status != MLXD_OK || token == 5);
    } else if (rank == 0) {
        sleep_ms(late_ms);
        status = mlxd_send(group, &token, 1, MLXD_INT32, 1, NULL);
    }
    return status;
}

/* Operations and receives have settings of their own; a limit of 0 is none. */
static void limits_of_receives(void) {
    mlxd_group *patient = with_limits("300", "0");
    CHECK_OK(late_message(patient, 800));
    REQUIRE_OK(mlxd_barrier(world, NULL));
    if (rank == 0) {
        sleep_ms(300);
        CHECK(status_soon(patient) == MLXD_ERROR_TIMEOUT);
    } else {
        CHECK_STATUS(mlxd_barrier(patient, NULL), MLXD_ERROR_TIMEOUT);
        CHECK_ERROR_NAMES("barrier");
    }
    mlxd_group_free(patient);

    mlxd_group *hasty = with_limits("0", "300");
    if (rank == 1) {
        CHECK_STATUS(late_message(hasty, 0), MLXD_ERROR_TIMEOUT);
        CHECK_ERROR_NAMES("recv");
    } else {
        REQUIRE_OK(mlxd_barrier(world, NULL)); /* the one in late_message */
        CHECK(status_soon(hasty) == MLXD_ERROR_TIMEOUT);
    }
    mlxd_group_free(hasty);
    check_whole(world);
}

/* set_timeout goes for what is called afterwards, and 0 takes the limit away. */
static void limit_taken_away(void) {
    mlxd_group *child = child_of(world);
    REQUIRE_OK(mlxd_group_set_timeout(child, 1));
    REQUIRE_OK(mlxd_group_set_timeout(child, 0));
    CHECK_OK(late_message(child, 200));
    if (rank == 0) {
        sleep_ms(200);
    }
    REQUIRE_OK(mlxd_barrier(child, NULL));
    CHECK(mlxd_group_status(child) == MLXD_OK);
    mlxd_group_free(child);
}

static void *abort_later(void *group) {
    sleep_ms(200);
    CHECK_OK(mlxd_group_abort(group));
    return NULL;
}

enum waiting { IN_ALL_SUM, IN_RECV, IN_BARRIER, IN_STREAM };

/* Rank 0 waits for nothing; everyone else waits for rank 0 until a thread of the last rank aborts.
 */
static void abort_wakes(enum waiting how) {
    mlxd_group *child = child_of(world);
    mlxd_group *sibling = child_of(world);
    mlxd_stream *stream = mlxd_stream_new();
    REQUIRE(stream != NULL);
    REQUIRE_OK(mlxd_barrier(world, NULL));
    double start = seconds();
    pthread_t thread;
    if (rank == size - 1) {
        REQUIRE(pthread_create(&thread, NULL, abort_later, child) == 0);
    }
    int32_t input = 1;
    int32_t output = 0;
    mlxd_status status = MLXD_OK;
    if (rank == 0) {
        sleep_ms(200);
        status = status_soon(child);
    } else if (how == IN_ALL_SUM) {
        status = mlxd_all_sum(child, &input, &output, 1, MLXD_INT32, NULL);
    } else if (how == IN_RECV) {
        status = mlxd_recv(child, &output, 1, MLXD_INT32, 0, NULL);
    } else if (how == IN_BARRIER) {
        status = mlxd_barrier(child, NULL);
    } else {
        REQUIRE_OK(mlxd_all_sum(child, &input, &output, 1, MLXD_INT32, stream));
        status = mlxd_stream_synchronize(stream);
        CHECK_OK(mlxd_stream_synchronize(stream)); /* told once, then cleared */
    }
    double took = seconds() - start;
    if (status != MLXD_ERROR_ABORTED) {
        fprintf(stderr, "rank %d: waiting %d: %s\n", rank, how, mlxd_status_name(status));
    }
    CHECK(status == MLXD_ERROR_ABORTED);
    CHECK(took < 0.2 + NEWS_LIMIT_S);
    if (rank == size - 1) {
        REQUIRE(pthread_join(thread, NULL) == 0);
    }
    check_failed(child, MLXD_ERROR_ABORTED);
    CHECK_OK(mlxd_group_abort(child)); /* once more does no harm */
    mlxd_group_free(child);
    check_whole(sibling);
    check_whole(world);
    mlxd_group_free(sibling);
    mlxd_stream_free(stream);
}

/* A failed parent leaves its child whole, able to split and to reach ranks it never talked to. */
static void child_outlives_parent(void) {
    mlxd_group *parent = child_of(world);
    mlxd_group *child = child_of(parent);
    REQUIRE_OK(mlxd_barrier(world, NULL));
    if (rank == 0) {
        CHECK_OK(mlxd_group_abort(parent));
    }
    CHECK(status_soon(parent) == MLXD_ERROR_ABORTED);
    check_failed(parent, MLXD_ERROR_ABORTED);
    mlxd_group_free(parent);
    check_whole(child);
    for (int distance = 1; distance < size; distance++) {
        int32_t got = -1;
        int from = (rank + size - distance) % size;
        REQUIRE_OK(mlxd_send_recv(child, &rank, 1, (rank + distance) % size, &got, 1, from,
                                  MLXD_INT32, NULL));
        CHECK(got == from);
    }
    mlxd_group *grandchild = child_of(child);
    check_whole(grandchild);
    mlxd_group_free(child);
    check_whole(grandchild);
    mlxd_group_free(grandchild);
    check_whole(world);
}

/* The first of several queued failures is reported, and a stream serves other groups afterwards. */
static void stream_after_failure(void) {
    mlxd_group *child = child_of(world);
    mlxd_stream *stream = mlxd_stream_new();
    REQUIRE(stream != NULL);
    REQUIRE_OK(mlxd_group_set_timeout(child, 200));
    REQUIRE_OK(mlxd_barrier(world, NULL));
    int32_t input = 1;
    int32_t output[3] = {0, 0, 0};
    if (rank != 0) {
        for (int i = 0; i < 3; i++) {
            REQUIRE_OK(mlxd_all_sum(child, &input, &output[i], 1, MLXD_INT32, stream));
        }
        CHECK_STATUS(mlxd_stream_synchronize(stream), MLXD_ERROR_TIMEOUT);
        CHECK_OK(mlxd_stream_synchronize(stream));
    }
    int32_t sum = 0;
    REQUIRE_OK(mlxd_all_sum(world, &input, &sum, 1, MLXD_INT32, stream));
    REQUIRE_OK(mlxd_stream_synchronize(stream));
    CHECK(sum == size);
    mlxd_stream_free(stream);
    mlxd_group_free(child);
}

/* Groups of one have no one to wait for, yet they can be aborted. */
static void abort_alone(void) {
    mlxd_group *alone = NULL;
    REQUIRE_OK(mlxd_group_split(world, rank, 0, &alone));
    REQUIRE_OK(mlxd_group_set_timeout(alone, 1));
    check_whole(alone);
    CHECK_OK(mlxd_group_abort(alone));
    int32_t one = 1;
    int32_t sum = 0;
    CHECK_STATUS(mlxd_all_sum(alone, &one, &sum, 1, MLXD_INT32, NULL), MLXD_ERROR_ABORTED);
    CHECK(mlxd_group_status(alone) == MLXD_ERROR_ABORTED);
    mlxd_group_free(alone);
    check_whole(world);
}

int main(void) {
    check_start(120);
    world = world_start();
    rank = mlxd_group_rank(world);
    size = mlxd_group_size(world);

    CHECK_INVALID(mlxd_group_set_timeout(NULL, 5));
    CHECK_INVALID(mlxd_group_abort(NULL));
    abort_alone();
    if (size > 1) {
        timeout();
        limits_of_receives();
        limit_taken_away();
        abort_wakes(IN_ALL_SUM);
        abort_wakes(IN_RECV);
        abort_wakes(IN_BARRIER);
        abort_wakes(IN_STREAM);
        child_outlives_parent();
        stream_after_failure();
    }

    mlxd_group_free(world);
    return check_finish("failures");
}

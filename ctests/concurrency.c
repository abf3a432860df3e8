/* Threads, streams and groups at once: independent groups progress independently, one group keeps
 * the order of calls on whatever streams they were put. */
#include "check.h"

#include <pthread.h>

static mlxd_group *world;
static int rank;
static int size;

enum { ROUNDS = 100 };

struct worker {
    mlxd_group *group;
    int32_t members;
    int32_t seed;
};

static void *sum_rounds(void *argument) {
    struct worker *worker = argument;
    for (int32_t round = 0; round < ROUNDS; round++) {
        int32_t input[3] = {round, 1, worker->seed};
        int32_t output[3] = {0, 0, 0};
        REQUIRE_OK(mlxd_all_sum(worker->group, input, output, 3, MLXD_INT32, NULL));
        CHECK(output[0] == round * worker->members);
        CHECK(output[1] == worker->members);
        CHECK(output[2] == worker->seed * worker->members);
    }
    return NULL;
}

/* Two threads, two groups of the same processes; the main thread works on the world meanwhile. */
static void two_threads_two_groups(void) {
    struct worker workers[2];
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        REQUIRE_OK(mlxd_group_split(world, i == 0 ? rank % 2 : 0, size - rank, &workers[i].group));
        workers[i].members = mlxd_group_size(workers[i].group);
        workers[i].seed = 10 + i;
    }
    for (int i = 0; i < 2; i++) {
        REQUIRE(pthread_create(&threads[i], NULL, sum_rounds, &workers[i]) == 0);
    }
    struct worker main_worker = {world, size, 7};
    sum_rounds(&main_worker);
    for (int i = 0; i < 2; i++) {
        REQUIRE(pthread_join(threads[i], NULL) == 0);
        mlxd_group_free(workers[i].group);
    }
}

/* One thread is stuck in one group; the other group goes on. */
static void *wait_in_barrier(void *group) {
    REQUIRE_OK(mlxd_barrier(group, NULL));
    return NULL;
}

static void stuck_group_holds_nobody(void) {
    mlxd_group *child = NULL;
    REQUIRE_OK(mlxd_group_split(world, 0, 0, &child));
    pthread_t thread;
    if (rank != 0) {
        REQUIRE(pthread_create(&thread, NULL, wait_in_barrier, child) == 0);
    }
    struct worker worker = {world, size, 3};
    sum_rounds(&worker);
    if (rank == 0) {
        REQUIRE_OK(mlxd_barrier(child, NULL));
    } else {
        REQUIRE(pthread_join(thread, NULL) == 0);
    }
    mlxd_group_free(child);
}

/* Calls spread over streams differently on each rank: only their order counts. */
static void streams_in_call_order(void) {
    enum { STREAMS = 3, CALLS = 60, COUNT = 257 };
    static int32_t input[CALLS][COUNT];
    static int32_t output[CALLS][COUNT];
    mlxd_stream *streams[STREAMS];
    for (int i = 0; i < STREAMS; i++) {
        streams[i] = mlxd_stream_new();
        REQUIRE(streams[i] != NULL);
    }
    for (int call = 0; call < CALLS; call++) {
        for (int i = 0; i < COUNT; i++) {
            input[call][i] = call * 1000 + rank + i;
            output[call][i] = -1;
        }
        mlxd_stream *stream = streams[(call * (rank + 1) + rank) % STREAMS];
        if (call % 3 == 0) {
            REQUIRE_OK(mlxd_all_max(world, input[call], output[call], COUNT, MLXD_INT32, stream));
        } else if (call % 3 == 1) {
            REQUIRE_OK(mlxd_all_sum(world, input[call], output[call], COUNT, MLXD_INT32, stream));
        } else {
            REQUIRE_OK(mlxd_all_min(world, input[call], output[call], COUNT, MLXD_INT32, stream));
        }
    }
    /* A call that waits comes after all of them. */
    REQUIRE_OK(mlxd_barrier(world, NULL));
    for (int i = 0; i < STREAMS; i++) {
        REQUIRE_OK(mlxd_stream_synchronize(streams[i]));
    }
    for (int call = 0; call < CALLS; call++) {
        for (int i = 0; i < COUNT; i++) {
            int32_t base = call * 1000 + i;
            int32_t want = call % 3 == 0   ? base + size - 1
                           : call % 3 == 1 ? base * size + size * (size - 1) / 2
                                           : base;
            if (output[call][i] != want) {
                fprintf(stderr, "call %d element %d: %d, not %d\n", call, i, output[call][i], want);
            }
            CHECK(output[call][i] == want);
        }
    }
    for (int i = 0; i < STREAMS; i++) {
        mlxd_stream_free(streams[i]);
    }
}

/* On one stream a call may use what the call before it puts out. */
static void chain_on_a_stream(void) {
    enum { LINKS = 10 };
    double values[LINKS + 1] = {1};
    double want = 1;
    mlxd_stream *stream = mlxd_stream_new();
    REQUIRE(stream != NULL);
    for (int i = 0; i < LINKS; i++) {
        REQUIRE_OK(mlxd_all_sum(world, &values[i], &values[i + 1], 1, MLXD_FLOAT64, stream));
        want *= size;
    }
    mlxd_stream_free(stream); /* waits for what is queued */
    CHECK(values[LINKS] == want);
}

/* A stream serves several groups; several streams serve one. */
static void stream_of_several_groups(void) {
    mlxd_group *child = NULL;
    REQUIRE_OK(mlxd_group_split(world, rank % 2, 0, &child));
    mlxd_stream *stream = mlxd_stream_new();
    REQUIRE(stream != NULL);
    int32_t one = 1;
    int32_t in_world = 0;
    int32_t in_child = 0;
    REQUIRE_OK(mlxd_all_sum(world, &one, &in_world, 1, MLXD_INT32, stream));
    REQUIRE_OK(mlxd_all_sum(child, &one, &in_child, 1, MLXD_INT32, stream));
    REQUIRE_OK(mlxd_barrier(world, stream));
    REQUIRE_OK(mlxd_stream_synchronize(stream));
    CHECK(in_world == size);
    CHECK(in_child == mlxd_group_size(child));
    REQUIRE_OK(mlxd_stream_synchronize(stream)); /* nothing queued: nothing to report */
    mlxd_stream_free(stream);
    mlxd_group_free(child);
}

/* While a collective waits for rank 0, messages travel, also to and from rank 0. */
static void messages_beside_a_collective(void) {
    if (size < 2) {
        return;
    }
    mlxd_stream *stream = mlxd_stream_new();
    REQUIRE(stream != NULL);
    int32_t one = 1;
    int32_t sum = 0;
    int last = size - 1;
    if (rank != 0) {
        REQUIRE_OK(mlxd_all_sum(world, &one, &sum, 1, MLXD_INT32, stream));
    }
    int32_t token = 0;
    if (rank == last) {
        token = 41;
        REQUIRE_OK(mlxd_send(world, &token, 1, MLXD_INT32, 0, NULL));
        REQUIRE_OK(mlxd_recv(world, &token, 1, MLXD_INT32, 0, NULL));
        CHECK(token == 42);
    } else if (rank == 0) {
        REQUIRE_OK(mlxd_recv(world, &token, 1, MLXD_INT32, last, NULL));
        CHECK(token == 41);
        token++;
        REQUIRE_OK(mlxd_send(world, &token, 1, MLXD_INT32, last, NULL));
    }
    if (size >= 4 && (rank == 1 || rank == 2)) {
        int32_t got = 0;
        REQUIRE_OK(mlxd_send_recv(world, &rank, 1, 3 - rank, &got, 1, 3 - rank, MLXD_INT32, NULL));
        CHECK(got == 3 - rank);
    }
    if (rank == 0) {
        REQUIRE_OK(mlxd_all_sum(world, &one, &sum, 1, MLXD_INT32, stream));
    }
    REQUIRE_OK(mlxd_stream_synchronize(stream));
    CHECK(sum == size);
    mlxd_stream_free(stream);
}

/* Sends and receives wait on one stream each while the other direction runs. */
static void receives_before_sends(void) {
    if (size < 2) {
        return;
    }
    mlxd_stream *receiving = mlxd_stream_new();
    REQUIRE(receiving != NULL);
    int32_t got[64];
    REQUIRE(size <= 64);
    for (int peer = 0; peer < size; peer++) {
        got[peer] = -1;
        if (peer != rank) {
            REQUIRE_OK(mlxd_recv(world, &got[peer], 1, MLXD_INT32, peer, receiving));
        }
    }
    for (int peer = 0; peer < size; peer++) {
        if (peer != rank) {
            int32_t value = rank * 100 + peer;
            REQUIRE_OK(mlxd_send(world, &value, 1, MLXD_INT32, peer, NULL));
        }
    }
    REQUIRE_OK(mlxd_stream_synchronize(receiving));
    for (int peer = 0; peer < size; peer++) {
        CHECK(got[peer] == (peer == rank ? -1 : peer * 100 + rank));
    }
    mlxd_stream_free(receiving);
}

int main(void) {
    check_start(120);
    world = world_start();
    rank = mlxd_group_rank(world);
    size = mlxd_group_size(world);

    two_threads_two_groups();
    stuck_group_holds_nobody();
    streams_in_call_order();
    chain_on_a_stream();
    stream_of_several_groups();
    messages_beside_a_collective();
    receives_before_sends();

    mlxd_group_free(world);
    return check_finish("concurrency");
}

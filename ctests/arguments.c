/* Every argument error of every operation, on any number of ranks: its status, at once, nothing
 * touched, nothing sent, and the group goes on. What is allowed beside it is tried, too. */
#include "values.h"

static mlxd_group *world;
static int rank;
static int size;

typedef mlxd_status (*collective)(mlxd_group *, const void *, void *, size_t, mlxd_dtype,
                                  mlxd_stream *);

static const struct {
    const char *name;
    collective call;
    bool divides; /* count must be a multiple of the size */
    bool gathers; /* the output has size * count elements */
} collectives[] = {
    {"all_sum", mlxd_all_sum, false, false},        {"all_max", mlxd_all_max, false, false},
    {"all_min", mlxd_all_min, false, false},        {"all_gather", mlxd_all_gather, false, true},
    {"sum_scatter", mlxd_sum_scatter, true, false}, {"all_to_all", mlxd_all_to_all, true, false},
};
#define COLLECTIVES (sizeof collectives / sizeof collectives[0])

/* Nothing of the failed checks above reached the group. */
static void check_whole(void) {
    int32_t one = 1;
    int32_t sum = 0;
    CHECK(mlxd_group_status(world) == MLXD_OK);
    REQUIRE_OK(mlxd_all_sum(world, &one, &sum, 1, MLXD_INT32, NULL));
    CHECK(sum == size);
    CHECK(mlxd_last_status() == MLXD_OK);
    CHECK(mlxd_last_error()[0] == '\0');
}

static const mlxd_dtype unknown_dtypes[] = {-1, 14, 15, INT32_MAX, INT32_MIN};

static void wrong_collectives(void) {
    static float input[64];
    static float output[64 * 8];
    size_t share = 4;
    REQUIRE(size <= 8);
    for (size_t c = 0; c < COLLECTIVES; c++) {
        collective call = collectives[c].call;
        size_t count = share * (collectives[c].divides ? (size_t)size : 1);
        CHECK_INVALID(call(NULL, input, output, count, MLXD_FLOAT32, NULL));
        CHECK_INVALID(call(world, NULL, output, count, MLXD_FLOAT32, NULL));
        CHECK_INVALID(call(world, input, NULL, count, MLXD_FLOAT32, NULL));
        CHECK_ERROR_NAMES(collectives[c].name);
        for (size_t d = 0; d < sizeof unknown_dtypes / sizeof unknown_dtypes[0]; d++) {
            char number[16];
            snprintf(number, sizeof number, "%d", (int)unknown_dtypes[d]);
            CHECK_INVALID(call(world, input, output, count, unknown_dtypes[d], NULL));
            CHECK_ERROR_NAMES(number);
            CHECK_INVALID(call(world, NULL, NULL, 0, unknown_dtypes[d], NULL));
        }
        /* More bytes than there are addresses: count * 8 and size * count * 8. */
        size_t endless = SIZE_MAX / 4 / (size_t)size * (size_t)size;
        CHECK_INVALID(call(world, input, output, endless, MLXD_FLOAT64, NULL));
        if (collectives[c].divides && size > 1) {
            CHECK_INVALID(call(world, input, output, count + 1, MLXD_FLOAT32, NULL));
            CHECK_ERROR_NAMES(collectives[c].name);
            CHECK_INVALID(call(world, input, output, 1, MLXD_FLOAT32, NULL));
        }
    }
    for (size_t i = 0; i < sizeof output / sizeof output[0]; i++) {
        CHECK(output[i] == 0);
    }
    check_whole();
}

/* Overlaps that are no in-place form. `n` bytes are the unit of one rank's share. */
static void overlaps(void) {
    enum { SHARE = 8 };
    static int32_t memory[4 * SHARE * 8];
    int32_t *start = memory + SHARE * 8;
    size_t whole = SHARE * (size_t)size;
    for (size_t c = 0; c < COLLECTIVES; c++) {
        collective call = collectives[c].call;
        size_t count = collectives[c].divides ? whole : SHARE;
        CHECK_INVALID(call(world, start, start + 1, count, MLXD_INT32, NULL));
        CHECK_ERROR_NAMES("overlap");
        CHECK_INVALID(call(world, start, (unsigned char *)start + 1, count, MLXD_INT32, NULL));
        if (!collectives[c].gathers) {
            CHECK_INVALID(call(world, start + 1, start, count, MLXD_INT32, NULL));
            CHECK_INVALID(call(world, start, start + count - 1, count, MLXD_INT32, NULL));
        }
    }
    if (size > 1) {
        int other = (rank + 1) % size;
        /* all_gather from another rank's block; across two blocks; a block that begins before. */
        CHECK_INVALID(
            mlxd_all_gather(world, start + other * SHARE, start, SHARE, MLXD_INT32, NULL));
        CHECK_INVALID(
            mlxd_all_gather(world, start + rank * SHARE + 1, start, SHARE, MLXD_INT32, NULL));
        CHECK_INVALID(mlxd_all_gather(world, start - 1, start, SHARE, MLXD_INT32, NULL));
        /* sum_scatter into another rank's share; across two shares. */
        CHECK_INVALID(
            mlxd_sum_scatter(world, start, start + other * SHARE, whole, MLXD_INT32, NULL));
        CHECK_INVALID(
            mlxd_sum_scatter(world, start, start + rank * SHARE + 1, whole, MLXD_INT32, NULL));
        /* all_to_all has no in-place form. */
        CHECK_INVALID(mlxd_all_to_all(world, start, start, whole, MLXD_INT32, NULL));
        CHECK_INVALID(
            mlxd_send_recv(world, start, SHARE, other, start, SHARE, other, MLXD_INT32, NULL));
        CHECK_INVALID(mlxd_send_recv(world, start, SHARE, other, start + SHARE - 1, SHARE, other,
                                     MLXD_INT32, NULL));
    }
    for (size_t i = 0; i < sizeof memory / sizeof memory[0]; i++) {
        CHECK(memory[i] == 0);
    }
    check_whole();

    /* Neighbours in memory do not overlap. */
    for (size_t i = 0; i < SHARE; i++) {
        start[i] = 1;
    }
    REQUIRE_OK(mlxd_all_sum(world, start, start + SHARE, SHARE, MLXD_INT32, NULL));
    CHECK(start[SHARE] == size && start[2 * SHARE - 1] == size && start[SHARE - 1] == 1);
    REQUIRE_OK(mlxd_all_sum(world, start, start - SHARE, SHARE, MLXD_INT32, NULL));
    CHECK(start[-1] == size && start[0] == 1 && start[-SHARE] == size);
}

static void wrong_ranks(void) {
    int32_t value = 7;
    int32_t other = 8;
    const int32_t wrong[] = {-1, size, size + 1, INT32_MAX, INT32_MIN};
    int next = (rank + 1) % size;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        char number[16];
        snprintf(number, sizeof number, "%d", (int)wrong[i]);
        CHECK_INVALID(mlxd_broadcast(world, &value, 1, MLXD_INT32, wrong[i], NULL));
        CHECK_ERROR_NAMES(number);
        CHECK_INVALID(mlxd_send(world, &value, 1, MLXD_INT32, wrong[i], NULL));
        CHECK_INVALID(mlxd_recv(world, &value, 1, MLXD_INT32, wrong[i], NULL));
        CHECK_INVALID(
            mlxd_send_recv(world, &value, 1, wrong[i], &other, 1, next, MLXD_INT32, NULL));
        CHECK_INVALID(
            mlxd_send_recv(world, &value, 1, next, &other, 1, wrong[i], MLXD_INT32, NULL));
    }
    /* A message to oneself has nobody to wait for. */
    CHECK_INVALID(mlxd_send(world, &value, 1, MLXD_INT32, rank, NULL));
    CHECK_INVALID(mlxd_recv(world, &value, 1, MLXD_INT32, rank, NULL));
    CHECK(value == 7 && other == 8);
    check_whole();
}

static void wrong_point_to_point(void) {
    int32_t value = 7;
    int32_t other = 8;
    int next = (rank + 1) % size;
    CHECK_INVALID(mlxd_broadcast(NULL, &value, 1, MLXD_INT32, 0, NULL));
    CHECK_INVALID(mlxd_broadcast(world, NULL, 1, MLXD_INT32, 0, NULL));
    CHECK_INVALID(mlxd_broadcast(world, &value, SIZE_MAX / 2, MLXD_INT32, 0, NULL));
    CHECK_INVALID(mlxd_send(NULL, &value, 1, MLXD_INT32, next, NULL));
    CHECK_INVALID(mlxd_send(world, NULL, 1, MLXD_INT32, next, NULL));
    CHECK_INVALID(mlxd_recv(NULL, &value, 1, MLXD_INT32, next, NULL));
    CHECK_INVALID(mlxd_recv(world, NULL, 1, MLXD_INT32, next, NULL));
    CHECK_INVALID(mlxd_send_recv(NULL, &value, 1, next, &other, 1, next, MLXD_INT32, NULL));
    CHECK_INVALID(mlxd_send_recv(world, NULL, 1, next, &other, 1, next, MLXD_INT32, NULL));
    CHECK_INVALID(mlxd_send_recv(world, &value, 1, next, NULL, 1, next, MLXD_INT32, NULL));
    CHECK_INVALID(mlxd_barrier(NULL, NULL));
    for (size_t d = 0; d < sizeof unknown_dtypes / sizeof unknown_dtypes[0]; d++) {
        mlxd_dtype dtype = unknown_dtypes[d];
        CHECK_INVALID(mlxd_broadcast(world, &value, 1, dtype, 0, NULL));
        CHECK_INVALID(mlxd_send(world, &value, 1, dtype, next, NULL));
        CHECK_INVALID(mlxd_recv(world, &value, 1, dtype, next, NULL));
        CHECK_INVALID(mlxd_send_recv(world, &value, 1, next, &other, 1, next, dtype, NULL));
    }
    CHECK(value == 7 && other == 8);
    check_whole();
}

/* A call that is refused on a stream is refused by the call itself: nothing gets queued. */
static void checked_before_queued(void) {
    mlxd_stream *stream = mlxd_stream_new();
    REQUIRE(stream != NULL);
    float value = 1;
    float output = 2;
    CHECK_INVALID(mlxd_all_sum(world, &value, NULL, 1, MLXD_FLOAT32, stream));
    CHECK_INVALID(mlxd_all_sum(world, &value, &output, 1, 99, stream));
    CHECK_INVALID(mlxd_broadcast(world, &value, 1, MLXD_FLOAT32, size, stream));
    CHECK_INVALID(mlxd_barrier(NULL, stream));
    CHECK_OK(mlxd_stream_synchronize(stream));
    CHECK(output == 2);
    mlxd_stream_free(stream);
    check_whole();
}

/* No elements: NULL is a buffer like any other, and the call takes its place in the order. */
static void nothing_to_move(void) {
    for (size_t c = 0; c < COLLECTIVES; c++) {
        REQUIRE_OK(collectives[c].call(world, NULL, NULL, 0, MLXD_FLOAT32, NULL));
        float value = 3;
        REQUIRE_OK(collectives[c].call(world, &value, &value, 0, MLXD_FLOAT32, NULL));
        CHECK(value == 3);
    }
    REQUIRE_OK(mlxd_broadcast(world, NULL, 0, MLXD_INT8, size - 1, NULL));
    if (size > 1) {
        int next = (rank + 1) % size;
        int previous = (rank + size - 1) % size;
        REQUIRE_OK(mlxd_send_recv(world, NULL, 0, next, NULL, 0, previous, MLXD_COMPLEX64, NULL));
    }
    check_whole();
}

/* send_recv with oneself is either a copy or refused; it does not hang. */
static void exchange_with_oneself(void) {
    int32_t value = 7;
    int32_t other = 8;
    mlxd_status status = mlxd_send_recv(world, &value, 1, rank, &other, 1, rank, MLXD_INT32, NULL);
    CHECK(status == MLXD_OK ? other == 7 : status == MLXD_ERROR_INVALID_ARGUMENT && other == 8);
    check_whole();
}

int main(void) {
    check_start(60);
    world = world_start();
    rank = mlxd_group_rank(world);
    size = mlxd_group_size(world);

    wrong_collectives();
    overlaps();
    wrong_ranks();
    wrong_point_to_point();
    checked_before_queued();
    nothing_to_move();
    exchange_with_oneself();

    mlxd_group_free(world);
    return check_finish("arguments");
}

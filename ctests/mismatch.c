/* Ranks that call different things (2 and more of them): nobody gets bytes that depend on another
 * call, everyone learns of it, and the message names both calls. Each case ruins a group of its
 * own. */
#include "check.h"

static mlxd_group *world;
static int rank;
static int size;

#define SOON_S 10.0

enum { ROOM = 64 };

/* What one rank calls. */
struct call {
    enum kind {
        ALL_SUM,
        ALL_MAX,
        ALL_GATHER,
        SUM_SCATTER,
        ALL_TO_ALL,
        BROADCAST,
        BARRIER,
        SPLIT
    } kind;
    size_t count;
    mlxd_dtype dtype;
    int32_t root;
};

static mlxd_status make(mlxd_group *group, struct call call, mlxd_stream *stream) {
    static unsigned char input[8 * ROOM * 8];
    static unsigned char output[8 * ROOM * 8 * 8];
    mlxd_group *child = NULL;
    mlxd_status status = MLXD_OK;
    switch (call.kind) {
    case ALL_SUM:
        return mlxd_all_sum(group, input, output, call.count, call.dtype, stream);
    case ALL_MAX:
        return mlxd_all_max(group, input, output, call.count, call.dtype, stream);
    case ALL_GATHER:
        return mlxd_all_gather(group, input, output, call.count, call.dtype, stream);
    case SUM_SCATTER:
        return mlxd_sum_scatter(group, input, output, call.count, call.dtype, stream);
    case ALL_TO_ALL:
        return mlxd_all_to_all(group, input, output, call.count, call.dtype, stream);
    case BROADCAST:
        return mlxd_broadcast(group, input, call.count, call.dtype, call.root, stream);
    case BARRIER:
        return mlxd_barrier(group, stream);
    case SPLIT:
        status = mlxd_group_split(group, 0, 0, &child);
        if (child != NULL) {
            mlxd_group_free(child);
        }
        return status;
    }
    return MLXD_ERROR_INTERNAL;
}

/* One rank calls `odd`, all others call `even`. */
struct mismatch {
    const char *label;
    struct call even;
    struct call odd;
    const char *words[2]; /* both calls, as the message must tell them apart */
    bool some_ok;         /* a rank whose result depends on nobody else may return OK */
};

static const struct mismatch mismatches[] = {
    {"operations",
     {ALL_SUM, 4, MLXD_FLOAT32, 0},
     {ALL_MAX, 4, MLXD_FLOAT32, 0},
     {"all_sum", "all_max"},
     false},
    {"counts", {ALL_SUM, 40, MLXD_FLOAT32, 0}, {ALL_SUM, 41, MLXD_FLOAT32, 0}, {"40", "41"}, false},
    {"counts below the size",
     {ALL_SUM, 1, MLXD_FLOAT32, 0},
     {ALL_SUM, 33, MLXD_FLOAT32, 0},
     {"all_sum", "33"},
     false},
    {"dtypes of one width",
     {ALL_SUM, 7, MLXD_FLOAT32, 0},
     {ALL_SUM, 7, MLXD_INT32, 0},
     {"float32", "int32"},
     false},
    {"equal bytes",
     {ALL_SUM, 4, MLXD_FLOAT32, 0},
     {ALL_SUM, 2, MLXD_INT64, 0},
     {"float32", "int64"},
     false},
    {"gather of equal bytes",
     {ALL_GATHER, 4, MLXD_FLOAT32, 0},
     {ALL_GATHER, 2, MLXD_INT64, 0},
     {"float32", "int64"},
     false},
    {"gather and sum",
     {ALL_GATHER, 8, MLXD_INT16, 0},
     {ALL_SUM, 8, MLXD_INT16, 0},
     {"all_gather", "all_sum"},
     false},
    {"gather counts",
     {ALL_GATHER, 8, MLXD_INT16, 0},
     {ALL_GATHER, 9, MLXD_INT16, 0},
     {"8", "9"},
     false},
    {"sum and barrier",
     {ALL_SUM, 3, MLXD_INT8, 0},
     {BARRIER, 0, MLXD_INT8, 0},
     {"all_sum", "barrier"},
     false},
    {"barrier and sum",
     {BARRIER, 0, MLXD_INT8, 0},
     {ALL_SUM, 3, MLXD_INT8, 0},
     {"barrier", "all_sum"},
     false},
    {"roots",
     {BROADCAST, 5, MLXD_FLOAT64, 0},
     {BROADCAST, 5, MLXD_FLOAT64, 1},
     {"root 0", "root 1"},
     true},
    {"broadcast counts",
     {BROADCAST, 50, MLXD_INT32, 0},
     {BROADCAST, 51, MLXD_INT32, 0},
     {"50", "51"},
     true},
    {"broadcast and sum",
     {BROADCAST, 5, MLXD_FLOAT64, 0},
     {ALL_SUM, 5, MLXD_FLOAT64, 0},
     {"broadcast", "all_sum"},
     true},
    {"nothing and something",
     {ALL_SUM, 4, MLXD_FLOAT32, 0},
     {ALL_SUM, 0, MLXD_FLOAT32, 0},
     {"all_sum", "4"},
     true},
    {"something and nothing",
     {ALL_SUM, 0, MLXD_FLOAT32, 0},
     {ALL_SUM, 4, MLXD_FLOAT32, 0},
     {"all_sum", "4"},
     true},
    {"split and sum", {ALL_SUM, 4, MLXD_FLOAT32, 0}, {SPLIT, 0, 0, 0}, {"all_sum", "split"}, false},
};

/* All ranks meet on the world, then each looks at what the case did to its group. */
static void check_group_failed(mlxd_group *group, mlxd_status first, bool may_be_ok,
                               const char *const *words, const char *label) {
    /* A rank that got off lightly finds out with its next operation. */
    mlxd_status status = first == MLXD_OK ? mlxd_barrier(group, NULL) : first;
    char message[1024];
    snprintf(message, sizeof message, "%s", mlxd_last_error());
    /* When some rank came through, its next operation may be what tells the ranks apart. */
    bool first_word = words == NULL || strstr(message, words[0]) != NULL;
    bool second_word = words == NULL || strstr(message, words[1]) != NULL;
    bool names = may_be_ok ? first_word || second_word : first_word && second_word;
    if (status != MLXD_ERROR_MISMATCH || !names || (first == MLXD_OK && !may_be_ok)) {
        fprintf(stderr, "rank %d: %s: %s, then %s \"%s\"\n", rank, label, mlxd_status_name(first),
                mlxd_status_name(status), message);
    }
    CHECK(first == MLXD_ERROR_MISMATCH || (first == MLXD_OK && may_be_ok));
    CHECK(status == MLXD_ERROR_MISMATCH);
    CHECK(names);
    CHECK(mlxd_group_status(group) == MLXD_ERROR_MISMATCH);
    CHECK_STATUS(mlxd_barrier(group, NULL), MLXD_ERROR_MISMATCH);
}

static void check_world(void) {
    int32_t one = 1;
    int32_t sum = 0;
    REQUIRE_OK(mlxd_all_sum(world, &one, &sum, 1, MLXD_INT32, NULL));
    CHECK(sum == size);
}

static void run_mismatch(const struct mismatch *mismatch, int odd_rank, bool streamed) {
    char label[96];
    snprintf(label, sizeof label, "%s, rank %d differs%s", mismatch->label, odd_rank,
             streamed ? ", on a stream" : "");
    mlxd_group *group = NULL;
    REQUIRE_OK(mlxd_group_split(world, 0, rank, &group));
    mlxd_stream *stream = streamed ? mlxd_stream_new() : NULL;
    REQUIRE(!streamed || stream != NULL);
    /* One good call first: the sequence number is not the only thing that can differ. */
    struct call good = {ALL_SUM, 8, MLXD_FLOAT32, 0};
    REQUIRE_OK(make(group, good, NULL));
    /* Everyone is through with it before the group fails, which ends pending calls, too. */
    REQUIRE_OK(mlxd_barrier(world, NULL));
    double start = seconds();
    mlxd_status status = make(group, rank == odd_rank ? mismatch->odd : mismatch->even, stream);
    if (status == MLXD_OK && streamed) {
        status = mlxd_stream_synchronize(stream);
    }
    check_group_failed(group, status, mismatch->some_ok, mismatch->words, label);
    CHECK(seconds() - start < SOON_S);
    mlxd_stream_free(stream);
    mlxd_group_free(group);
    check_world();
}

/* A message and the receive it meets; the sender may have got rid of it before anyone looked. */
static void run_message_mismatch(size_t sent, mlxd_dtype sent_dtype, size_t expected,
                                 mlxd_dtype expected_dtype, bool exchange, const char *label) {
    static unsigned char input[8 * ROOM];
    static unsigned char output[8 * ROOM];
    mlxd_group *group = NULL;
    REQUIRE_OK(mlxd_group_split(world, 0, rank, &group));
    int last = size - 1;
    mlxd_status status = MLXD_OK;
    double start = seconds();
    if (rank == 0) {
        status = exchange
                     ? mlxd_send_recv(group, input, sent, last, output, 1, last, sent_dtype, NULL)
                     : mlxd_send(group, input, sent, sent_dtype, last, NULL);
    } else if (rank == last) {
        status = exchange
                     ? mlxd_send_recv(group, input, 1, 0, output, expected, 0, expected_dtype, NULL)
                     : mlxd_recv(group, output, expected, expected_dtype, 0, NULL);
        CHECK(status == MLXD_ERROR_MISMATCH);
    }
    check_group_failed(group, status, rank != last, NULL, label);
    CHECK(seconds() - start < SOON_S);
    mlxd_group_free(group);
    check_world();
}

/* Calls that ranks make in another order are different calls. */
static void run_swapped(void) {
    mlxd_group *group = NULL;
    REQUIRE_OK(mlxd_group_split(world, 0, rank, &group));
    struct call first = {ALL_GATHER, 4, MLXD_INT32, 0};
    struct call second = {ALL_TO_ALL, 4 * (size_t)size, MLXD_INT32, 0};
    const char *const words[] = {"all_gather", "all_to_all"};
    mlxd_status status = make(group, rank == 0 ? second : first, NULL);
    check_group_failed(group, status, false, words, "swapped order");
    mlxd_group_free(group);
    check_world();
}

/* The world itself fails: everything is freed, and the next start works. */
static void world_fails(void) {
    float input = 1;
    float output = 0;
    mlxd_group *aside = NULL;
    REQUIRE_OK(mlxd_group_split(world, 0, 0, &aside));
    REQUIRE_OK(mlxd_barrier(aside, NULL));
    mlxd_status status = rank == 0 ? mlxd_all_max(world, &input, &output, 1, MLXD_FLOAT32, NULL)
                                   : mlxd_all_min(world, &input, &output, 1, MLXD_FLOAT32, NULL);
    const char *const words[] = {"all_max", "all_min"};
    check_group_failed(world, status, false, words, "the world");
    REQUIRE_OK(mlxd_barrier(aside, NULL)); /* another group: untouched */
    mlxd_group_free(aside);
    mlxd_group_free(world);
    world = world_start();
    CHECK(mlxd_group_rank(world) == rank && mlxd_group_size(world) == size);
    check_world();
}

int main(void) {
    check_start(120);
    world = world_start();
    rank = mlxd_group_rank(world);
    size = mlxd_group_size(world);
    REQUIRE(size >= 2);

    for (size_t i = 0; i < sizeof mismatches / sizeof mismatches[0]; i++) {
        run_mismatch(&mismatches[i], size - 1, i % 2 != 0 && mismatches[i].odd.kind != SPLIT);
        run_mismatch(&mismatches[i], 0, false);
    }
    struct mismatch scatter = {"scatter and exchange",
                               {SUM_SCATTER, 4 * (size_t)size, MLXD_INT32, 0},
                               {ALL_TO_ALL, 4 * (size_t)size, MLXD_INT32, 0},
                               {"sum_scatter", "all_to_all"},
                               false};
    run_mismatch(&scatter, 1, false);
    run_message_mismatch(10, MLXD_FLOAT32, 9, MLXD_FLOAT32, false, "message too long");
    run_message_mismatch(9, MLXD_FLOAT32, 10, MLXD_FLOAT32, false, "message too short");
    run_message_mismatch(4, MLXD_FLOAT32, 2, MLXD_INT64, false, "message of equal bytes");
    run_message_mismatch(0, MLXD_FLOAT32, 2, MLXD_FLOAT32, false, "message of nothing");
    run_message_mismatch(10, MLXD_FLOAT32, 11, MLXD_FLOAT32, true, "exchange");
    run_swapped();
    world_fails();
    world_fails();

    mlxd_group_free(world);
    return check_finish("mismatch");
}

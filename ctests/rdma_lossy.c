/* Two ranks on devices between which packets are lost. Over reliable connections every call comes
 * to the right bytes. Over unreliable ones each world fails before long, and says of what; whatever
 * call has said before that all is well has the right bytes.
 *
 *   rdma_lossy reliable
 *   rdma_lossy unreliable UNNAMED: the loss of so many worlds may come out by a limit alone */
#include "pattern.h"

/* Elements: of one packet; of many messages of many packets each, and no whole number of them. */
enum { FEW = 3, MANY = 256 * 1024 + 7 };

static mlxd_group *world;
static int rank;
static struct arena given = {.askew = 4};
static struct arena got;

/* One call of each rank, or two, with values that differ from round to round. */
typedef mlxd_status (*round_function)(size_t count, int salt);

static void check_from(int from, const int32_t *data, size_t count, int salt) {
    struct pattern pattern;
    pattern_of_input(&pattern, MLXD_INT32, from, salt, 0);
    pattern_check(&pattern, data, count * sizeof *data, "what came from a rank");
}

/* What this rank gives in a round. */
static const void *input(size_t count, int salt) {
    struct pattern pattern;
    struct buffer buffer = arena_buffer(&given, count * sizeof(int32_t));
    pattern_of_input(&pattern, MLXD_INT32, rank, salt, 0);
    pattern_write(&pattern, buffer.data, buffer.bytes);
    return buffer.data;
}

static mlxd_status all_sum(size_t count, int salt) {
    struct buffer sum = arena_buffer(&got, count * sizeof(int32_t));
    mlxd_status status = mlxd_all_sum(world, input(count, salt), sum.data, count, MLXD_INT32, NULL);
    if (status == MLXD_OK) {
        struct pattern pattern;
        pattern_of_reduction(&pattern, MLXD_INT32, REDUCE_SUM, 2, salt, 0);
        pattern_check(&pattern, sum.data, sum.bytes, "a sum");
        buffer_check(&sum, "a sum");
    }
    return status;
}

static mlxd_status all_gather(size_t count, int salt) {
    struct buffer all = arena_buffer(&got, 2 * count * sizeof(int32_t));
    mlxd_status status =
        mlxd_all_gather(world, input(count, salt), all.data, count, MLXD_INT32, NULL);
    for (int from = 0; from < 2 && status == MLXD_OK; from++) {
        check_from(from, (const int32_t *)(const void *)all.data + (size_t)from * count, count,
                   salt);
    }
    buffer_check(&all, "what was gathered");
    return status;
}

static mlxd_status exchange(size_t count, int salt) {
    struct buffer theirs = arena_buffer(&got, count * sizeof(int32_t));
    mlxd_status status = mlxd_send_recv(world, input(count, salt), count, 1 - rank, theirs.data,
                                        count, 1 - rank, MLXD_INT32, NULL);
    if (status == MLXD_OK) {
        check_from(1 - rank, (const int32_t *)(const void *)theirs.data, count, salt);
    }
    buffer_check(&theirs, "what was exchanged");
    return status;
}

/* A message, and its answer: behind one that is lost nothing follows by itself. */
static mlxd_status answered(size_t count, int salt) {
    struct buffer theirs = arena_buffer(&got, count * sizeof(int32_t));
    const void *ours = input(count, salt);
    mlxd_status status = MLXD_OK;
    for (int from = 0; from < 2 && status == MLXD_OK; from++) {
        if (rank == from) {
            status = mlxd_send(world, ours, count, MLXD_INT32, 1 - rank, NULL);
            continue;
        }
        status = mlxd_recv(world, theirs.data, count, MLXD_INT32, from, NULL);
        if (status == MLXD_OK) {
            check_from(from, (const int32_t *)(const void *)theirs.data, count, salt);
        }
    }
    buffer_check(&theirs, "an answer");
    return status;
}

/* Of 2000 packets, each of which is lost by 1 in 100, all arrive once in 500 million times:
 * `rounds` of a way are more than that, and so are the `few` of all ways together. */
static const struct way {
    const char *name;
    round_function round;
    size_t count;
    int few;
    int rounds;
} ways[] = {
    {"all_sum", all_sum, FEW, 20, 2000},     {"answered", answered, FEW, 20, 2000},
    {"large all_sum", all_sum, MANY, 2, 16}, {"all_gather", all_gather, MANY, 2, 16},
    {"exchange", exchange, MANY, 2, 16},
};
enum { WAYS = sizeof ways / sizeof ways[0] };

static void met(void) {
    check_rank = rank = mlxd_group_rank(world);
    REQUIRE(mlxd_group_size(world) == 2);
}

static void reliable(void) {
    world = world_start();
    met();
    for (const struct way *way = ways; way < ways + WAYS; way++) {
        for (int salt = 0; salt < way->few; salt++) {
            REQUIRE_OK(way->round(way->count, salt));
        }
    }
    mlxd_group_free(world);
}

/* Whether the failure of the last call says that something was lost; else that it waited in vain.
 */
static bool names_loss(const char *name, int rounds, mlxd_status status) {
    char message[1024];
    snprintf(message, sizeof message, "%s", mlxd_last_error());
    printf("%s: %d rounds, then %s: %s\n", name, rounds, mlxd_status_name(status), message);
    if (status == MLXD_ERROR_TIMEOUT) {
        CHECK(strstr(message, "no progress") != NULL);
        return false;
    }
    CHECK(status == MLXD_ERROR_BACKEND);
    CHECK(strstr(message, "messages were lost on the way") != NULL ||
          strstr(message, "nothing comes from rank") != NULL);
    return true;
}

/* A world for each way. Whatever is lost, also of the start, ranks come to the next one together.
 */
static void unreliable(int unnamed) {
    int started = 0;
    for (const struct way *way = ways; way < ways + WAYS; way++) {
        world = world_try();
        if (world == NULL) {
            /* With the first message over it. */
            CHECK(names_loss("start", 0, mlxd_last_status()));
            continue;
        }
        met();
        started++;
        mlxd_status status = MLXD_OK;
        int rounds = 0;
        while (status == MLXD_OK && rounds < way->rounds) {
            status = way->round(way->count, rounds++);
        }
        unnamed -= !names_loss(way->name, rounds - 1, status);
        CHECK_STATUS(mlxd_barrier(world, NULL), status);
        mlxd_group_free(world);
    }
    CHECK(unnamed >= 0);
    CHECK(started > 0);
}

int main(int argc, char **argv) {
    check_start(150);
    if (argc == 2 && strcmp(argv[1], "reliable") == 0) {
        reliable();
    } else {
        REQUIRE(argc == 3 && strcmp(argv[1], "unreliable") == 0);
        unreliable(atoi(argv[2]));
    }
    free(given.memory);
    free(got.memory);
    return check_finish("rdma_lossy");
}

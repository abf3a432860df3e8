/* Waits over MPI. The one argument is the scene:
 *
 * - crossed: threads of each rank split groups that share ranks, and start worlds, in another order
 * on each rank: all succeed, also where one thread makes all calls of MPI.
 * - stuck: MPI_Comm_split takes too long on rank 1 (ctests/mpi_stuck.c).
 * - init: MPI_Init_thread takes too long.
 * - message: without a limit, a receive of another size or type than what was sent is told so.
 */
#include "check.h"

#include <pthread.h>

static mlxd_group *world;
static int rank;
static int size;

#define ROUNDS 15

struct splitter {
    mlxd_group *group;
    int number;
};

/* Splits a group again and again; ranks come late by turns, so that the order in which threads come
 * differs between ranks. */
static void *split_often(void *argument) {
    struct splitter *splitter = argument;
    for (int round = 0; round < ROUNDS; round++) {
        if (rank % 2 == (splitter->number + round) % 2) {
            sleep_ms(round % 3);
        }
        mlxd_group *part = NULL;
        REQUIRE_OK(mlxd_group_split(splitter->group, 0, -1, &part));
        int32_t one = 1;
        int32_t sum = 0;
        REQUIRE_OK(mlxd_all_sum(part, &one, &sum, 1, MLXD_INT32, NULL));
        CHECK(sum == mlxd_group_size(splitter->group));
        mlxd_group_free(part);
    }
    return NULL;
}

/* Starts a world again and again. */
static void *start_often(void *unused) {
    (void)unused;
    mlxd_options *options = mlxd_options_new();
    REQUIRE(options != NULL);
    for (int round = 0; round < ROUNDS; round++) {
        if (rank == round % size) {
            sleep_ms(round % 3);
        }
        mlxd_group *start = mlxd_init_with_options(true, "mpi", options);
        REQUIRE(start != NULL);
        REQUIRE_OK(mlxd_barrier(start, NULL));
        mlxd_group_free(start);
    }
    mlxd_options_free(options);
    return NULL;
}

/* Two groups of all ranks, the pairs of ranks that follow each other, and starts, all at once. */
static void crossed(void) {
    enum { GROUPS = 2 + 8 };
    struct splitter splitters[GROUPS];
    pthread_t threads[GROUPS + 1];
    int count = 0;
    REQUIRE(size <= 8);
    for (int i = 0; i < 2 + (size > 2 ? size : 0); i++) {
        int first = i - 2;
        bool all = i < 2;
        bool mine = all || rank == first || rank == (first + 1) % size;
        mlxd_group *group = NULL;
        REQUIRE_OK(mlxd_group_split(world, mine ? 0 : -1, -1, &group));
        CHECK(mine == (group != NULL));
        if (mine) {
            splitters[count++] = (struct splitter){group, i};
        }
    }
    for (int i = 0; i < count; i++) {
        REQUIRE(pthread_create(&threads[i], NULL, split_often, &splitters[i]) == 0);
    }
    REQUIRE(pthread_create(&threads[count], NULL, start_often, NULL) == 0);
    for (int i = 0; i <= count; i++) {
        REQUIRE(pthread_join(threads[i], NULL) == 0);
    }
    for (int i = 0; i < count; i++) {
        mlxd_group_free(splitters[i].group);
    }
}

static void stuck(void) {
    double start = seconds();
    mlxd_group *part = NULL;
    CHECK_STATUS(mlxd_group_split(world, 0, -1, &part), MLXD_ERROR_TIMEOUT);
    CHECK(part == NULL);
    CHECK_ERROR_NAMES("MPI_Comm_split");
    CHECK(seconds() - start < 10);
    /* The group has failed; nobody waits for the call that is still under way. */
    int32_t one = 1;
    int32_t sum = 0;
    CHECK_STATUS(mlxd_all_sum(world, &one, &sum, 1, MLXD_INT32, NULL), MLXD_ERROR_TIMEOUT);
    CHECK(seconds() - start < 10);
    /* It ends at last: then MPI can be ended in good order. */
    sleep_ms(12000);
}

/* Each on a group of its own, which it fails. */
static void message(void) {
    static const struct {
        size_t sent;
        mlxd_dtype sent_type;
        size_t wanted;
        mlxd_dtype wanted_type;
        const char *words[2];
    } cases[] = {{5, MLXD_FLOAT32, 4, MLXD_FLOAT32, {"4 float32", "longer"}},
                 {3, MLXD_FLOAT32, 4, MLXD_FLOAT32, {"3 float32", "4 float32"}},
                 {4, MLXD_INT32, 4, MLXD_FLOAT32, {"4 int32", "4 float32"}},
                 {0, MLXD_INT32, 4, MLXD_INT32, {"0 int32", "4 int32"}},
                 {100000, MLXD_INT8, 4, MLXD_INT8, {"4 int8", "longer"}}};
    static char memory[100000];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        mlxd_group *part = NULL;
        REQUIRE_OK(mlxd_group_split(world, 0, -1, &part));
        if (rank == 0) {
            /* It may have left before it is compared. */
            mlxd_status status =
                mlxd_send(part, memory, cases[i].sent, cases[i].sent_type, 1, NULL);
            CHECK(status == MLXD_OK || status == MLXD_ERROR_MISMATCH);
        } else if (rank == 1) {
            CHECK_STATUS(mlxd_recv(part, memory, cases[i].wanted, cases[i].wanted_type, 0, NULL),
                         MLXD_ERROR_MISMATCH);
            CHECK_ERROR_NAMES(cases[i].words[0]);
            CHECK_ERROR_NAMES(cases[i].words[1]);
            CHECK(mlxd_group_status(part) == MLXD_ERROR_MISMATCH);
        }
        /* The world is whole, and then the sender has been told. */
        REQUIRE_OK(mlxd_barrier(world, NULL));
        double begin = seconds();
        while (mlxd_group_status(part) == MLXD_OK && seconds() - begin < 10) {
            sleep_ms(1);
        }
        CHECK(mlxd_group_status(part) == MLXD_ERROR_MISMATCH);
        mlxd_group_free(part);
    }
}

static void init(void) {
    double start = seconds();
    CHECK(mlxd_init(true, "mpi") == NULL);
    CHECK(mlxd_last_status() == MLXD_ERROR_TIMEOUT);
    CHECK_ERROR_NAMES("MPI_Init_thread");
    CHECK_ERROR_NAMES("MLXD_CONNECT_TIMEOUT_MS");
    CHECK(mlxd_init(true, "mpi") == NULL);
    CHECK(mlxd_last_status() == MLXD_ERROR_UNSUPPORTED);
    CHECK_ERROR_NAMES("MPI_Init_thread");
    CHECK(seconds() - start < 10);
}

int main(int argc, char **argv) {
    check_start(120);
    REQUIRE(argc == 2);
    if (strcmp(argv[1], "init") == 0) {
        init();
    } else {
        world = world_start();
        rank = mlxd_group_rank(world);
        size = mlxd_group_size(world);
        REQUIRE(size > 1);
        if (strcmp(argv[1], "crossed") == 0) {
            crossed();
        } else if (strcmp(argv[1], "stuck") == 0) {
            stuck();
        } else {
            REQUIRE(strcmp(argv[1], "message") == 0);
            message();
        }
        mlxd_group_free(world);
    }
    return check_finish("mpi_waits");
}

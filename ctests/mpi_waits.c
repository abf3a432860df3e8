/* Waits over MPI, by what the one argument says:
 *
 *   crossed  two threads of each rank split two groups, in another order on each rank, with all
 * calls of MPI made by one thread: every split succeeds stuck    MPI_Comm_split takes too long on
 * rank 1 (ctests/mpi_stuck.c) init     MPI_Init_thread takes too long message  without a limit: a
 * receive of another size or type than what was sent is told so
 */
#include "check.h"

#include <pthread.h>

static mlxd_group *world;
static int rank;
static int size;

#define ROUNDS 40

struct splitter {
    mlxd_group *group;
    int late_on; /* the rank that comes late, so that orders differ */
};

static void *split_often(void *argument) {
    struct splitter *splitter = argument;
    for (int round = 0; round < ROUNDS; round++) {
        if (rank % 2 == (splitter->late_on + round) % 2) {
            sleep_ms(round % 3);
        }
        mlxd_group *part = NULL;
        REQUIRE_OK(mlxd_group_split(splitter->group, 0, -1, &part));
        int32_t one = 1;
        int32_t sum = 0;
        REQUIRE_OK(mlxd_all_sum(part, &one, &sum, 1, MLXD_INT32, NULL));
        CHECK(sum == size);
        mlxd_group_free(part);
    }
    return NULL;
}

static void crossed(void) {
    struct splitter splitters[2] = {{NULL, 0}, {NULL, 1}};
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        REQUIRE_OK(mlxd_group_split(world, 0, -1, &splitters[i].group));
    }
    for (int i = 0; i < 2; i++) {
        REQUIRE(pthread_create(&threads[i], NULL, split_often, &splitters[i]) == 0);
    }
    for (int i = 0; i < 2; i++) {
        REQUIRE(pthread_join(threads[i], NULL) == 0);
        mlxd_group_free(splitters[i].group);
    }
}

static void stuck(void) {
    double start = seconds();
    mlxd_group *part = NULL;
    CHECK_STATUS(mlxd_group_split(world, 0, -1, &part), MLXD_ERROR_TIMEOUT);
    CHECK(part == NULL);
    CHECK_ERROR_NAMES("MPI_Comm_split");
    CHECK(seconds() - start < 3);
    /* The group has failed; nobody waits for the call that is still under way. */
    int32_t one = 1;
    int32_t sum = 0;
    CHECK_STATUS(mlxd_all_sum(world, &one, &sum, 1, MLXD_INT32, NULL), MLXD_ERROR_TIMEOUT);
    CHECK(seconds() - start < 3);
    /* It ends at last: then MPI can be ended in good order. */
    sleep_ms(5000);
}

/* Each on a group of its own, which it fails. */
static void message(void) {
    static const struct {
        size_t sent;
        mlxd_dtype sent_type;
        size_t wanted;
        mlxd_dtype wanted_type;
        const char *words[2];
    } cases[] = {{5, MLXD_FLOAT32, 4, MLXD_FLOAT32, {"4", "longer"}},
                 {3, MLXD_FLOAT32, 4, MLXD_FLOAT32, {"3", "4"}},
                 {4, MLXD_INT32, 4, MLXD_FLOAT32, {"int32", "float32"}},
                 {0, MLXD_INT32, 4, MLXD_INT32, {"0", "4"}},
                 {100000, MLXD_INT8, 4, MLXD_INT8, {"4", "longer"}}};
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
    check_start(60);
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

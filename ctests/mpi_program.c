/* A program that uses MPI itself: it has initialised it, its communicators work beside ours, and it
 * ends it. One argument:
 *
 *   multiple, funneled  the thread level that it asks for
 *   elsewhere           funneled, and another thread than the main one starts
 *   ended               it ends MPI while it has groups
 */
#include "check.h"

#include <mpi.h>
#include <pthread.h>

static mlxd_group *world;
static int rank;
static int size;

/* The program's own traffic and ours at once: neither meets the other's. */
static void side_by_side(void) {
    MPI_Comm comm;
    MPI_Comm_dup(MPI_COMM_WORLD, &comm);
    int next = (rank + 1) % size;
    int before = (rank + size - 1) % size;
    for (int round = 0; round < 50; round++) {
        int theirs = -1;
        MPI_Request requests[2];
        MPI_Status statuses[2];
        MPI_Irecv(&theirs, 1, MPI_INT, before, MPI_ANY_TAG, MPI_COMM_WORLD, &requests[0]);
        int32_t mine = rank + round;
        int32_t ours = -1;
        if (size > 1) {
            REQUIRE_OK(mlxd_send_recv(world, &mine, 1, next, &ours, 1, before, MLXD_INT32, NULL));
            CHECK(ours == before + round);
        }
        int own = 1000 * rank + round;
        MPI_Isend(&own, 1, MPI_INT, next, 11, MPI_COMM_WORLD, &requests[1]);
        int32_t sum = 0;
        int32_t one = 1;
        REQUIRE_OK(mlxd_all_sum(world, &one, &sum, 1, MLXD_INT32, NULL));
        CHECK(sum == size);
        MPI_Waitall(2, requests, statuses);
        CHECK(theirs == 1000 * before + round);
        int total = 0;
        MPI_Allreduce(&rank, &total, 1, MPI_INT, MPI_SUM, comm);
        CHECK(total == size * (size - 1) / 2);
    }
    MPI_Comm_free(&comm);
}

static void *sum_elsewhere(void *want) {
    int32_t one = 1;
    int32_t sum = 0;
    CHECK_STATUS(mlxd_all_sum(world, &one, &sum, 1, MLXD_INT32, NULL), *(const mlxd_status *)want);
    if (*(const mlxd_status *)want != MLXD_OK) {
        CHECK_ERROR_NAMES("MPI_THREAD_MULTIPLE");
    }
    return NULL;
}

/* Other threads and streams: where MPI grants them, or refused at once with the reason. */
static void other_threads(mlxd_status want) {
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, sum_elsewhere, &want) == 0);
    REQUIRE(pthread_join(thread, NULL) == 0);
    mlxd_stream *stream = mlxd_stream_new();
    REQUIRE(stream != NULL);
    int32_t one = 1;
    int32_t sum = 0;
    CHECK_STATUS(mlxd_all_sum(world, &one, &sum, 1, MLXD_INT32, stream), want);
    CHECK_OK(mlxd_stream_synchronize(stream));
    CHECK(sum == (want == MLXD_OK ? size : 0));
    mlxd_stream_free(stream);
    CHECK(mlxd_group_status(world) == MLXD_OK);
}

static void on_parts(void) {
    mlxd_group *part = NULL;
    REQUIRE_OK(mlxd_group_split(world, rank % 2, 0, &part));
    int32_t one = 1;
    int32_t sum = 0;
    REQUIRE_OK(mlxd_all_sum(part, &one, &sum, 1, MLXD_INT32, NULL));
    CHECK(sum == mlxd_group_size(part));
    mlxd_group_free(part);
}

static void *start_elsewhere(void *unused) {
    (void)unused;
    CHECK(mlxd_init(true, "mpi") == NULL);
    CHECK(mlxd_last_status() == MLXD_ERROR_UNSUPPORTED);
    CHECK_ERROR_NAMES("MPI_THREAD_MULTIPLE");
    return NULL;
}

/* Refused with the reason, before and after the main thread has started; nothing is lost by it. */
static void elsewhere(void) {
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, start_elsewhere, NULL) == 0);
    REQUIRE(pthread_join(thread, NULL) == 0);
    world = mlxd_init(true, "mpi");
    REQUIRE(world != NULL);
    other_threads(MLXD_ERROR_UNSUPPORTED);
    on_parts();
    mlxd_group_free(world);
    mlxd_finalize();
    MPI_Finalize();
}

/* Groups answer with the reason, and can be freed. */
static void ended(void) {
    world = mlxd_init(true, "mpi");
    REQUIRE(world != NULL);
    mlxd_group *part = NULL;
    REQUIRE_OK(mlxd_group_split(world, 0, 0, &part));
    MPI_Finalize();
    mlxd_group *groups[] = {part, world};
    for (int i = 0; i < 2; i++) {
        int32_t one = 1;
        int32_t sum = 0;
        CHECK_STATUS(mlxd_all_sum(groups[i], &one, &sum, 1, MLXD_INT32, NULL), MLXD_ERROR_ABORTED);
        CHECK_ERROR_NAMES("MPI_Finalize");
        CHECK_STATUS(mlxd_recv(groups[i], &sum, 1, MLXD_INT32, 1 - rank, NULL), MLXD_ERROR_ABORTED);
        mlxd_group *child = NULL;
        CHECK_STATUS(mlxd_group_split(groups[i], 0, 0, &child), MLXD_ERROR_ABORTED);
        (void)mlxd_group_abort(groups[i]);
        mlxd_group_free(groups[i]);
    }
    CHECK(mlxd_init(true, "mpi") == NULL);
    CHECK(mlxd_last_status() == MLXD_ERROR_ABORTED);
    CHECK_ERROR_NAMES("MPI_Finalize");
    mlxd_finalize();
}

int main(int argc, char **argv) {
    check_start(60);
    REQUIRE(argc == 2);
    bool multiple = strcmp(argv[1], "multiple") == 0;
    int granted = 0;
    MPI_Init_thread(NULL, NULL, multiple ? MPI_THREAD_MULTIPLE : MPI_THREAD_FUNNELED, &granted);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    check_rank = rank;
    if (strcmp(argv[1], "elsewhere") == 0) {
        elsewhere();
        return check_finish("mpi_program");
    }
    if (strcmp(argv[1], "ended") == 0) {
        ended();
        return check_finish("mpi_program");
    }
    world = mlxd_init(true, "mpi");
    if (world == NULL) {
        fprintf(stderr, "mlxd_init: %s\n", mlxd_last_error());
    }
    REQUIRE(world != NULL);
    CHECK(mlxd_group_rank(world) == rank);
    CHECK(mlxd_group_size(world) == size);
    CHECK(strcmp(mlxd_group_backend(world), "mpi") == 0);

    side_by_side();
    if (size > 1) {
        other_threads(granted == MPI_THREAD_MULTIPLE ? MLXD_OK : MLXD_ERROR_UNSUPPORTED);
    }
    on_parts();
    side_by_side();

    /* Not ours: finalize leaves it, and the program goes on with it. */
    mlxd_finalize();
    int ended = 1;
    MPI_Finalized(&ended);
    CHECK(!ended);
    CHECK_STATUS(mlxd_barrier(world, NULL), MLXD_ERROR_ABORTED);
    int total = 0;
    MPI_Allreduce(&rank, &total, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    CHECK(total == size * (size - 1) / 2);
    MPI_Finalize();
    mlxd_group_free(world);
    return check_finish("mpi_program");
}

/* The end of a world and the start of the next, on any number of ranks: the last free, finalize, a
 * failure, a fork. The same addresses serve every start. */
#include "check.h"

#include <sys/wait.h>

static void check_whole(mlxd_group *group) {
    int32_t one = 1;
    int32_t sum = 0;
    CHECK(mlxd_group_status(group) == MLXD_OK);
    REQUIRE_OK(mlxd_all_sum(group, &one, &sum, 1, MLXD_INT32, NULL));
    CHECK(sum == mlxd_group_size(group));
}

static void after_last_free(void) {
    for (int round = 0; round < 4; round++) {
        mlxd_group *world = world_start();
        check_whole(world);
        mlxd_group_free(world);
    }
}

/* finalize fails this rank's groups; its next start works, but for MPI's, which a process can start
 * only once. */
static void after_finalize(void) {
    mlxd_group *world = world_start();
    mlxd_group *child = NULL;
    check_whole(world);
    REQUIRE_OK(mlxd_group_split(world, 0, 0, &child));
    check_whole(child);
    REQUIRE_OK(mlxd_barrier(world, NULL));
    mlxd_finalize();
    CHECK(mlxd_group_status(world) == MLXD_ERROR_ABORTED);
    CHECK_STATUS(mlxd_barrier(world, NULL), MLXD_ERROR_ABORTED);
    CHECK_STATUS(mlxd_barrier(child, NULL), MLXD_ERROR_ABORTED);
    CHECK(mlxd_init(true, "gloo") == NULL);

    mlxd_group *next = NULL;
    if (over_mpi()) {
        CHECK(mlxd_init(true, "mpi") == NULL);
        CHECK(mlxd_last_status() == MLXD_ERROR_UNSUPPORTED);
        CHECK_ERROR_NAMES("mlxd_finalize");
        CHECK(mlxd_init(false, "mpi") == NULL);
        CHECK(mlxd_last_status() == MLXD_ERROR_UNSUPPORTED);
    } else {
        next = world_start();
        check_whole(next);
    }
    CHECK(mlxd_group_status(world) == MLXD_ERROR_ABORTED);
    mlxd_group_free(child);
    mlxd_group_free(world);
    if (next != NULL) {
        check_whole(next);
    }
    mlxd_group_free(next);
}

/* A failed world is no longer handed out, even while handles of it are held. */
static void after_abort(void) {
    mlxd_group *world = world_start();
    check_whole(world);
    /* Everyone has left the world's calls before it fails, which ends pending ones, too. */
    mlxd_group *aside = NULL;
    REQUIRE_OK(mlxd_group_split(world, 0, 0, &aside));
    REQUIRE_OK(mlxd_barrier(aside, NULL));
    if (mlxd_group_rank(world) == 0) {
        CHECK_OK(mlxd_group_abort(world));
    }
    double end = seconds() + 5;
    while (mlxd_group_status(world) == MLXD_OK && seconds() < end) {
        sleep_ms(5);
    }
    CHECK(mlxd_group_status(world) == MLXD_ERROR_ABORTED);
    mlxd_group *next = world_start();
    check_whole(next);
    CHECK_STATUS(mlxd_barrier(world, NULL), MLXD_ERROR_ABORTED);
    check_whole(aside);
    mlxd_group_free(aside);
    mlxd_group_free(world);
    check_whole(next);
    mlxd_group_free(next);
}

/* The child of a fork owns nothing: its calls are refused and its end says goodbye to nobody. */
static void forked(void) {
    mlxd_group *world = world_start();
    mlxd_stream *stream = mlxd_stream_new();
    REQUIRE(stream != NULL);
    check_whole(world);
    fflush(NULL);
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        int32_t one = 1;
        int32_t sum = 0;
        alarm(20);
        CHECK(mlxd_group_rank(world) == -1);
        CHECK(mlxd_group_size(world) == -1);
        CHECK_INVALID(mlxd_all_sum(world, &one, &sum, 1, MLXD_INT32, NULL));
        CHECK_INVALID(mlxd_barrier(world, NULL));
        CHECK_INVALID(mlxd_group_abort(world));
        CHECK_STATUS(mlxd_group_status(world), MLXD_ERROR_INVALID_ARGUMENT);
        mlxd_group_free(world);
        mlxd_finalize();
        exit(atomic_load(&check_failures) == 0 ? 0 : 1);
    }
    int status = 0;
    REQUIRE(waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    check_whole(world);
    mlxd_stream_free(stream);
    mlxd_group_free(world);
}

/* Groups of their own beside the registry: each call on the same address makes another. */
static void with_options(void) {
    mlxd_options *options = mlxd_options_new();
    REQUIRE(options != NULL);
    mlxd_group *first = mlxd_init_with_options(true, test_backend(), options);
    REQUIRE(first != NULL);
    mlxd_group *second = mlxd_init_with_options(true, test_backend(), options);
    REQUIRE(second != NULL);
    mlxd_group *world = world_start();
    check_whole(second);
    check_whole(world);
    check_whole(first);
    mlxd_group_free(first);
    check_whole(second);
    mlxd_group_free(second);
    check_whole(world);
    mlxd_group_free(world);
    mlxd_options_free(options);
}

int main(void) {
    check_start(90);
    after_last_free();
    if (!over_mpi()) {
        after_finalize();
    }
    after_abort();
    forked();
    with_options();
    after_last_free();
    if (over_mpi()) {
        after_finalize(); /* the last: nothing starts after it */
    }
    return check_finish("restart");
}

/* The contract of one process: facts, errors of this thread, options, streams, and the registry of
 * worlds. Needs no launcher: the environment is cleared, worlds are worlds of one. */
#include "processes.h"

#include <pthread.h>

static char hostfile[] = "/tmp/mlxd-contract-XXXXXX";

/* A hostfile of one: what a launcher writes for one rank. */
static void describe_world_of_one(void) {
    setenv("MLX_RANK", "0", 1);
    setenv("MLX_HOSTFILE", hostfile, 1);
}

static void facts(void) {
    char version[64];
    snprintf(version, sizeof version, "%d.%d.%d", MLXD_VERSION_MAJOR, MLXD_VERSION_MINOR,
             MLXD_VERSION_PATCH);
    CHECK(strcmp(mlxd_version(), version) == 0);

    static const size_t sizes[] = {1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 2, 4, 8, 8};
    static const mlxd_dtype dtypes[] = {MLXD_BOOL,    MLXD_INT8,     MLXD_INT16,    MLXD_INT32,
                                        MLXD_INT64,   MLXD_UINT8,    MLXD_UINT16,   MLXD_UINT32,
                                        MLXD_UINT64,  MLXD_FLOAT16,  MLXD_BFLOAT16, MLXD_FLOAT32,
                                        MLXD_FLOAT64, MLXD_COMPLEX64};
    for (int i = 0; i < 14; i++) {
        CHECK(dtypes[i] == i);
        CHECK(mlxd_dtype_size(dtypes[i]) == sizes[i]);
    }
    CHECK(mlxd_dtype_size(-1) == 0 && mlxd_dtype_size(14) == 0);
    CHECK(mlxd_dtype_size(INT32_MAX) == 0 && mlxd_dtype_size(INT32_MIN) == 0);

    static const mlxd_status statuses[] = {MLXD_OK,
                                           MLXD_ERROR_INVALID_ARGUMENT,
                                           MLXD_ERROR_UNSUPPORTED,
                                           MLXD_ERROR_UNAVAILABLE,
                                           MLXD_ERROR_CONFIG,
                                           MLXD_ERROR_TIMEOUT,
                                           MLXD_ERROR_PEER_LOST,
                                           MLXD_ERROR_ABORTED,
                                           MLXD_ERROR_MISMATCH,
                                           MLXD_ERROR_AUTH,
                                           MLXD_ERROR_SYSTEM,
                                           MLXD_ERROR_BACKEND,
                                           MLXD_ERROR_INTERNAL};
    for (int i = 0; i < 13; i++) {
        CHECK(statuses[i] == i);
        const char *name = mlxd_status_name(i);
        REQUIRE(name != NULL && name[0] != '\0');
        for (int j = 0; j < i; j++) {
            CHECK(strcmp(name, mlxd_status_name(j)) != 0);
        }
    }
    CHECK(mlxd_status_name(-1) != NULL && mlxd_status_name(13) != NULL);
}

static void availability(void) {
    CHECK(mlxd_is_available("ring"));
    CHECK(mlxd_is_available("any"));
    CHECK(mlxd_is_available(NULL));
    CHECK(!mlxd_is_available("gloo"));
    CHECK(!mlxd_is_available(""));
    CHECK(!mlxd_is_available("RING"));
    /* With nothing to start from, whether its library and device are there or not. */
    static const char *const others[] = {"mpi", "nccl", "jaccl"};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        bool here = mlxd_is_available(others[i]);
        if (here && strcmp(others[i], "mpi") == 0) {
            /* A process alone is a world of MPI's: see mpi_start.c. */
            continue;
        }
        CHECK(mlxd_init(true, others[i]) == NULL);
        CHECK(mlxd_last_status() == MLXD_ERROR_CONFIG ||
              (!here && mlxd_last_status() == MLXD_ERROR_UNAVAILABLE));
        CHECK_ERROR_NAMES(others[i]);
        mlxd_group *alone = mlxd_init(false, others[i]);
        REQUIRE(alone != NULL);
        CHECK(strcmp(mlxd_group_backend(alone), "none") == 0);
        mlxd_group_free(alone);
    }
}

/* NULL where a pointer must be, and names that nobody knows. */
static void null_and_unknown(void) {
    CHECK(mlxd_group_rank(NULL) == -1);
    CHECK(mlxd_last_status() == MLXD_ERROR_INVALID_ARGUMENT);
    CHECK(mlxd_group_size(NULL) == -1);
    CHECK(mlxd_last_status() == MLXD_ERROR_INVALID_ARGUMENT);
    CHECK(mlxd_group_backend(NULL) == NULL);
    CHECK(mlxd_last_status() == MLXD_ERROR_INVALID_ARGUMENT);
    CHECK_STATUS(mlxd_group_status(NULL), MLXD_ERROR_INVALID_ARGUMENT);
    CHECK_INVALID(mlxd_group_abort(NULL));
    CHECK_INVALID(mlxd_group_set_timeout(NULL, 1));
    CHECK_INVALID(mlxd_group_dump(NULL, "file"));
    CHECK_INVALID(mlxd_stream_synchronize(NULL));
    mlxd_group_free(NULL);
    mlxd_stream_free(NULL);
    mlxd_options_free(NULL);

    for (int strict = 0; strict < 2; strict++) {
        CHECK(mlxd_init(strict != 0, "gloo") == NULL);
        CHECK(mlxd_last_status() == MLXD_ERROR_INVALID_ARGUMENT);
        CHECK_ERROR_NAMES("gloo");
        CHECK_ERROR_NAMES("ring"); /* what would be right */
        CHECK(mlxd_init(strict != 0, "") == NULL);
        CHECK(mlxd_last_status() == MLXD_ERROR_INVALID_ARGUMENT);
        CHECK(mlxd_init(strict != 0, "\xff\xfe") == NULL); /* no UTF-8 */
        CHECK(mlxd_last_status() == MLXD_ERROR_INVALID_ARGUMENT);
        CHECK(mlxd_init_with_options(strict != 0, "ring", NULL) == NULL);
        CHECK(mlxd_last_status() == MLXD_ERROR_INVALID_ARGUMENT);
    }
    int any_object = 0;
    CHECK(mlxd_stream_from_cuda(NULL) == NULL);
    CHECK(mlxd_last_status() == MLXD_ERROR_UNAVAILABLE);
    CHECK(mlxd_stream_from_cuda(&any_object) == NULL);
    CHECK(mlxd_last_status() == MLXD_ERROR_UNAVAILABLE);
}

static void *fail_elsewhere(void *unused) {
    (void)unused;
    /* Nothing of another thread's failures is seen here. */
    CHECK(mlxd_last_status() == MLXD_OK);
    CHECK(mlxd_last_error()[0] == '\0');
    CHECK(mlxd_init(true, "elsewhere") == NULL);
    CHECK_ERROR_NAMES("elsewhere");
    return NULL;
}

static void last_error(void) {
    CHECK(mlxd_init(true, "here") == NULL);
    CHECK_ERROR_NAMES("here");
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, fail_elsewhere, NULL) == 0);
    REQUIRE(pthread_join(thread, NULL) == 0);
    CHECK(mlxd_last_status() == MLXD_ERROR_INVALID_ARGUMENT);
    CHECK_ERROR_NAMES("here");
    CHECK(strstr(mlxd_last_error(), "elsewhere") == NULL);
    /* Asking does not change the answer; a call that succeeds does. */
    CHECK_ERROR_NAMES("here");
    mlxd_group *alone = mlxd_init(false, NULL);
    REQUIRE(alone != NULL);
    CHECK(mlxd_last_status() == MLXD_OK);
    CHECK(mlxd_last_error()[0] == '\0');
    mlxd_group_free(alone);
}

/* Nothing to start from: a singleton that a later start does not take for a world. */
static void singleton(void) {
    CHECK(mlxd_init(true, NULL) == NULL);
    mlxd_status status = mlxd_last_status();
    CHECK(status == MLXD_ERROR_CONFIG || status == MLXD_ERROR_UNAVAILABLE);
    CHECK(mlxd_last_error()[0] != '\0');
    CHECK(mlxd_init(true, "ring") == NULL);
    CHECK(mlxd_last_status() == MLXD_ERROR_CONFIG);
    CHECK_ERROR_NAMES("MLX_RANK"); /* says what was missing */

    static const char *const names[] = {NULL, "any", "ring"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        mlxd_group *alone = mlxd_init(false, names[i]);
        REQUIRE(alone != NULL);
        CHECK(mlxd_group_rank(alone) == 0);
        CHECK(mlxd_group_size(alone) == 1);
        CHECK(strcmp(mlxd_group_backend(alone), "none") == 0);
        CHECK(mlxd_group_status(alone) == MLXD_OK);
        float input = 4;
        float output = 0;
        CHECK_OK(mlxd_all_sum(alone, &input, &output, 1, MLXD_FLOAT32, NULL));
        CHECK(output == 4);
        CHECK_OK(mlxd_barrier(alone, NULL));
        mlxd_group *child = NULL;
        CHECK_OK(mlxd_group_split(alone, 5, -3, &child));
        REQUIRE(child != NULL);
        CHECK(mlxd_group_size(child) == 1 && mlxd_group_rank(child) == 0);
        mlxd_group_free(alone);
        CHECK_OK(mlxd_all_sum(child, &input, &output, 1, MLXD_FLOAT32, NULL));
        mlxd_group_free(child);
    }
    CHECK(mlxd_init(true, "ring") == NULL);
}

/* The same world again, under both names, as long as a handle lives; afterwards a new start. */
static void registry(void) {
    describe_world_of_one();
    mlxd_group *first = mlxd_init(true, NULL);
    REQUIRE(first != NULL);
    CHECK(strcmp(mlxd_group_backend(first), "ring") == 0);
    CHECK(mlxd_group_rank(first) == 0 && mlxd_group_size(first) == 1);
    /* Nothing to start from any more: these can only be the world that is there. */
    start_variables_clear();
    mlxd_group *second = mlxd_init(true, "ring");
    mlxd_group *third = mlxd_init(true, "any");
    REQUIRE(second != NULL && third != NULL);
    CHECK(second != first && third != first && second != third);
    int32_t one = 1;
    int32_t sum = 0;
    mlxd_group_free(first);
    CHECK_OK(mlxd_all_sum(second, &one, &sum, 1, MLXD_INT32, NULL));
    CHECK(sum == 1);

    /* One world behind all handles. */
    CHECK_OK(mlxd_group_abort(third));
    CHECK(mlxd_group_status(second) == MLXD_ERROR_ABORTED);
    /* A failed world leaves the registry: the next start is a real one. */
    CHECK(mlxd_init(true, "ring") == NULL);
    CHECK(mlxd_last_status() == MLXD_ERROR_CONFIG);
    describe_world_of_one();
    first = mlxd_init(true, "ring");
    REQUIRE(first != NULL);
    CHECK_OK(mlxd_barrier(first, NULL));
    CHECK(mlxd_group_status(second) == MLXD_ERROR_ABORTED);
    mlxd_group_free(second);
    mlxd_group_free(third);
    CHECK_OK(mlxd_barrier(first, NULL));

    /* finalize: handles that are still out answer, until they are freed. */
    mlxd_finalize();
    CHECK_STATUS(mlxd_barrier(first, NULL), MLXD_ERROR_ABORTED);
    CHECK(mlxd_group_status(first) == MLXD_ERROR_ABORTED);
    CHECK_STATUS(mlxd_all_sum(first, &one, &sum, 1, MLXD_INT32, NULL), MLXD_ERROR_ABORTED);
    mlxd_finalize(); /* nothing left to do */
    second = mlxd_init(true, "ring");
    REQUIRE(second != NULL);
    CHECK_OK(mlxd_barrier(second, NULL));
    CHECK(mlxd_group_status(first) == MLXD_ERROR_ABORTED);
    mlxd_group_free(first);
    mlxd_group_free(second);
    start_variables_clear();
}

static int32_t no_all_gather(void *user_data, const void *src, void *dst, size_t bytes) {
    (void)user_data;
    (void)src;
    (void)dst;
    (void)bytes;
    return 1;
}

/* Settings by option: named like variables, checked, and stronger than them. */
static void options(void) {
    mlxd_options *settings = mlxd_options_new();
    REQUIRE(settings != NULL);
    CHECK_INVALID(mlxd_options_set(NULL, "MLX_RANK", "0"));
    CHECK_INVALID(mlxd_options_set(settings, NULL, "0"));
    CHECK_INVALID(mlxd_options_set(settings, "MLX_RANK", NULL));
    CHECK_INVALID(mlxd_options_set(settings, "MLX_RANKS", "0"));
    CHECK_ERROR_NAMES("MLX_RANKS");
    CHECK_INVALID(mlxd_options_set(settings, "", "0"));
    CHECK_INVALID(mlxd_options_set(settings, "HOME", "/"));
    CHECK_INVALID(mlxd_options_set_all_gather(NULL, no_all_gather, NULL));
    CHECK_INVALID(mlxd_options_set_all_gather(settings, NULL, NULL));

    /* Nothing set, nothing in the environment. */
    CHECK(mlxd_init_with_options(true, "ring", settings) == NULL);
    CHECK(mlxd_last_status() == MLXD_ERROR_CONFIG);
    mlxd_group *alone = mlxd_init_with_options(false, "ring", settings);
    REQUIRE(alone != NULL);
    CHECK(strcmp(mlxd_group_backend(alone), "none") == 0);
    mlxd_group_free(alone);

    /* The environment is wrong, the options are right. */
    setenv("MLX_RANK", "7", 1);
    setenv("MLX_HOSTFILE", "/nonexistent/hosts.json", 1);
    CHECK(mlxd_init_with_options(true, "ring", settings) == NULL);
    CHECK_OK(mlxd_options_set(settings, "MLX_RANK", "0"));
    CHECK_OK(mlxd_options_set(settings, "MLX_HOSTFILE", hostfile));
    CHECK_OK(mlxd_options_set(settings, "MLXD_TIMEOUT_MS", "1000"));
    CHECK_OK(mlxd_options_set(settings, "MLXD_TIMEOUT_MS", "2000")); /* the later one counts */
    mlxd_group *made = mlxd_init_with_options(true, "ring", settings);
    REQUIRE(made != NULL);
    CHECK(strcmp(mlxd_group_backend(made), "ring") == 0);
    start_variables_clear();

    /* Beside the registry: not in it, and each call makes another. */
    CHECK(mlxd_init(true, "ring") == NULL);
    mlxd_group *other = mlxd_init_with_options(true, NULL, settings);
    REQUIRE(other != NULL);
    mlxd_options_free(settings); /* used, not kept */
    CHECK_OK(mlxd_group_abort(made));
    CHECK(mlxd_group_status(other) == MLXD_OK);
    CHECK_OK(mlxd_barrier(other, NULL));
    mlxd_group_free(made);
    mlxd_group_free(other);

    /* A value that makes no sense is found at the latest by the start, in both modes. */
    settings = mlxd_options_new();
    REQUIRE(settings != NULL);
    mlxd_status status = mlxd_options_set(settings, "MLXD_TIMEOUT_MS", "soon");
    if (status == MLXD_OK) {
        CHECK_OK(mlxd_options_set(settings, "MLX_RANK", "0"));
        CHECK_OK(mlxd_options_set(settings, "MLX_HOSTFILE", hostfile));
        CHECK(mlxd_init_with_options(false, "ring", settings) == NULL);
        status = mlxd_last_status();
    }
    CHECK(status == MLXD_ERROR_CONFIG || status == MLXD_ERROR_INVALID_ARGUMENT);
    CHECK_ERROR_NAMES("MLXD_TIMEOUT_MS");
    mlxd_options_free(settings);
}

/* Calls on a group of one: copies, also on streams, and in place. */
static void copies(void) {
    mlxd_group *alone = mlxd_init(false, NULL);
    mlxd_stream *stream = mlxd_stream_new();
    REQUIRE(alone != NULL && stream != NULL);
    double input[5] = {1, 2, 3, 4, 5};
    double output[5] = {0};
    CHECK_OK(mlxd_sum_scatter(alone, input, output, 5, MLXD_FLOAT64, stream));
    CHECK_OK(mlxd_stream_synchronize(stream));
    CHECK(memcmp(input, output, sizeof input) == 0);
    CHECK_OK(mlxd_all_max(alone, input, input, 5, MLXD_FLOAT64, stream));
    CHECK_OK(mlxd_broadcast(alone, input, 5, MLXD_FLOAT64, 0, stream));
    CHECK_OK(mlxd_stream_synchronize(stream));
    CHECK(memcmp(input, output, sizeof input) == 0);
    CHECK_INVALID(mlxd_broadcast(alone, input, 5, MLXD_FLOAT64, 1, NULL));
    CHECK_INVALID(mlxd_send(alone, input, 5, MLXD_FLOAT64, 0, NULL));
    CHECK_INVALID(mlxd_recv(alone, output, 5, MLXD_FLOAT64, 0, stream));
    CHECK_OK(mlxd_stream_synchronize(stream));
    mlxd_stream_free(stream);
    mlxd_group_free(alone);
}

int main(void) {
    check_start(60);
    start_variables_clear();
    int fd = mkstemp(hostfile);
    REQUIRE(fd >= 0);
    REQUIRE(write(fd, "[]", 2) == 2);
    close(fd);

    facts();
    availability();
    null_and_unknown();
    last_error();
    singleton();
    registry();
    options();
    copies();

    unlink(hostfile);
    return check_finish("contract");
}

/* Test support: a program that starts itself once for each rank of a world, with the variables that
 * MLX gives the ranks of nccl.
 *
 *     int main(int argc, char **argv) {
 *         check_start(120);
 *         if (!is_rank()) {
 *             return ranks_run(size, argv, NOBODY);
 *         }
 *         ...
 */
#ifndef RANKS_H
#define RANKS_H

#include "nccl_direct.h"
#include "processes.h"

#define NOBODY (-1)

static inline bool is_rank(void) {
    return getenv("MLXD_TEST_IS_RANK") != NULL;
}

static inline pid_t rank_start(int rank, int size, int port, char **argv) {
    char text[32];
    fflush(NULL);
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        /* Limits are the test's to set; what says which world this is, is not. */
        const char *operation_ms = getenv("MLXD_TIMEOUT_MS");
        const char *start_ms = getenv("MLXD_CONNECT_TIMEOUT_MS");
        char *limits[] = {strdup(operation_ms != NULL ? operation_ms : ""),
                          strdup(start_ms != NULL ? start_ms : "")};
        signal(SIGPIPE, SIG_DFL);
        start_variables_clear();
        setenv("MLXD_TIMEOUT_MS", limits[0], 1); /* "": as if it were not there */
        setenv("MLXD_CONNECT_TIMEOUT_MS", limits[1], 1);
        snprintf(text, sizeof text, "%d", rank);
        setenv("MLX_RANK", text, 1);
        snprintf(text, sizeof text, "%d", size);
        setenv("MLX_WORLD_SIZE", text, 1);
        setenv("NCCL_HOST_IP", "127.0.0.1", 1);
        snprintf(text, sizeof text, "%d", port);
        setenv("NCCL_PORT", text, 1);
        snprintf(text, sizeof text, "127.0.0.1:%d", port + 1);
        setenv("MLXD_TEST_OTHER_ADDRESS", text, 1);
        setenv("MLXD_TEST_IS_RANK", "1", 1);
        execv("/proc/self/exe", argv);
        _exit(127);
    }
    return pid;
}

/* Runs all ranks of a world, with this program's arguments, and returns what main should: 0 if all
 * ended well (rank `lost`: by SIGKILL), SKIPPED if all skipped themselves. */
static inline int ranks_run(int size, char **argv, int lost) {
    pid_t pids[64];
    int skipped = 0, failed = 0;
    REQUIRE(size >= 1 && size <= 64);
    int port = free_ports(2);
    for (int rank = 0; rank < size; rank++) {
        pids[rank] = rank_start(rank, size, port, argv);
    }
    for (int rank = 0; rank < size; rank++) {
        int status = 0;
        while (waitpid(pids[rank], &status, 0) < 0 && errno == EINTR) {
        }
        bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
        bool skips = WIFEXITED(status) && WEXITSTATUS(status) == SKIPPED;
        skipped += skips;
        if (!skips && (rank == lost ? !killed : status != 0)) {
            fprintf(stderr, "rank %d of %d ended with status %#x\n", rank, size, (unsigned)status);
            failed++;
        }
    }
    return failed == 0 && skipped == size ? SKIPPED : failed != 0 || skipped != 0;
}

/* A rank's first steps: the driver, a device of its own where there are enough, and a host's name
 * of its own where there are not, so that NCCL lets ranks share one. */
static inline void rank_begin(void) {
    char name[32];
    int devices = 0;
    int rank = atoi(getenv("MLX_RANK"));
    int size = atoi(getenv("MLX_WORLD_SIZE"));
    check_rank = rank;
    device_find();
    if (!device_is_fake()) {
        nccl_find();
    }
    CUDA(cuda.count(&devices));
    if (devices < size) {
        snprintf(name, sizeof name, "host-of-rank-%d", rank);
        setenv("NCCL_HOSTID", name, 0);
    }
}

/* A world of the same ranks on another backend, beside the first. */
static inline mlxd_group *other_world_start(const char *backend) {
    mlxd_options *options = mlxd_options_new();
    REQUIRE(options != NULL);
    REQUIRE_OK(mlxd_options_set(options, "MLXD_COORDINATOR", getenv("MLXD_TEST_OTHER_ADDRESS")));
    REQUIRE_OK(mlxd_options_set(options, "MLXD_RANK", getenv("MLX_RANK")));
    REQUIRE_OK(mlxd_options_set(options, "MLXD_WORLD_SIZE", getenv("MLX_WORLD_SIZE")));
    mlxd_group *world = mlxd_init_with_options(true, backend, options);
    if (world == NULL) {
        fprintf(stderr, "mlxd_init_with_options: %s\n", mlxd_last_error());
    }
    REQUIRE(world != NULL);
    mlxd_options_free(options);
    return world;
}

#endif

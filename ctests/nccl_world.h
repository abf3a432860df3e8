/* Test support: a rank of a world over nccl.
 *
 *     int main(int argc, char **argv) {
 *         int end;
 *         if (nccl_begin(argc, argv, 1, 120, &end)) {
 *             return end;
 *         }
 *         ...
 *         return nccl_finish("nccl_this");
 *     }
 */
#ifndef NCCL_WORLD_H
#define NCCL_WORLD_H

#include "ranks.h"

static mlxd_group *world;
static int rank;
static int size;

/* The world, with a context of this rank's device current. */
static inline void nccl_world_start(void) {
    rank_begin();
    device_start();
    setenv("MLXD_TEST_BACKEND", "nccl", 1);
    world = world_start();
    REQUIRE(strcmp(mlxd_group_backend(world), "nccl") == 0);
    rank = mlxd_group_rank(world);
    size = mlxd_group_size(world);
}

/* The first statement of a main whose first argument is the number of ranks, `ranks` without one:
 * true in the process that has started them all, whose exit status is *end; false in each of them.
 */
static inline bool nccl_begin(int argc, char **argv, int ranks, unsigned limit_s, int *end) {
    check_start(limit_s);
    if (!is_rank()) {
        *end = ranks_run(argc > 1 ? atoi(argv[1]) : ranks, argv, NOBODY);
        return true;
    }
    nccl_world_start();
    return false;
}

/* The last statement of such a main: its exit status. */
static inline int nccl_finish(const char *name) {
    mlxd_group_free(world);
    return check_finish(name);
}

#endif

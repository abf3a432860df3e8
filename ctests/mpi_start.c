/* How a start on MPI goes, by what its one argument says of the scene:
 *
 *   launched    started by mpirun: "any" means mpi
 *   mismatched  by mpirun, but MLX_MPI_LIBNAME names another family's library
 *   absent      no launcher, and there is no MPI library
 *   unnamed     by mpirun, and MLX_MPI_LIBNAME names no file
 *   alone       no launcher: a world of one, if it is asked for by name
 *   disagree    by mpirun, with settings that differ between ranks
 *   late        by mpirun; all ranks but the first come too late */
#include "check.h"

/* Which rank this is, before there is a world. */
static int launched_rank(void) {
    const char *names[] = {"OMPI_COMM_WORLD_RANK", "PMI_RANK"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *value = getenv(names[i]);
        if (value != NULL) {
            return atoi(value);
        }
    }
    return -1;
}

static void check_world(mlxd_group *world, const char *backend, int size) {
    REQUIRE(world != NULL);
    CHECK(strcmp(mlxd_group_backend(world), backend) == 0);
    CHECK(size == 0 || mlxd_group_size(world) == size);
    int32_t one = 1;
    int32_t sum = 0;
    REQUIRE_OK(mlxd_all_sum(world, &one, &sum, 1, MLXD_INT32, NULL));
    CHECK(sum == mlxd_group_size(world));
}

/* No start in this mode; the message names what was wrong. */
static void check_refused(bool strict, const char *backend, mlxd_status want, const char *word) {
    mlxd_group *world = mlxd_init(strict, backend);
    CHECK(world == NULL);
    CHECK(mlxd_last_status() == want);
    CHECK_ERROR_NAMES(word);
    mlxd_group_free(world);
}

static void launched(void) {
    CHECK(mlxd_is_available("mpi"));
    mlxd_group *world = mlxd_init(false, NULL);
    check_world(world, "mpi", 0);
    mlxd_group *again = mlxd_init(true, "mpi");
    check_world(again, "mpi", mlxd_group_size(world));
    mlxd_group_free(again);
    mlxd_group_free(world);
}

static void mismatched(void) {
    CHECK(mlxd_is_available("mpi"));
    check_refused(true, "mpi", MLXD_ERROR_CONFIG, "MLX_MPI_LIBNAME");
    CHECK_ERROR_NAMES("_SIZE=");
    /* MPI was initialised: it cannot be tried again. */
    check_refused(false, "mpi", MLXD_ERROR_UNSUPPORTED, "MLX_MPI_LIBNAME");
}

static void absent(void) {
    CHECK(!mlxd_is_available("mpi"));
    check_refused(true, "mpi", MLXD_ERROR_UNAVAILABLE, "libmpi.so.40");
    CHECK_ERROR_NAMES("libmpi.so.12");
    CHECK_ERROR_NAMES("LD_LIBRARY_PATH");
    mlxd_group *world = mlxd_init(false, "mpi");
    check_world(world, "none", 1);
    mlxd_group_free(world);
}

static void unnamed(void) {
    CHECK(!mlxd_is_available("mpi"));
    check_refused(true, "mpi", MLXD_ERROR_UNAVAILABLE, getenv("MLX_MPI_LIBNAME"));
    /* The launcher announces a world of more than one: one alone would be silently wrong. */
    check_refused(false, "mpi", MLXD_ERROR_CONFIG, "_SIZE=");
    check_refused(false, NULL, MLXD_ERROR_CONFIG, "_SIZE=");
}

static void alone(void) {
    CHECK(mlxd_is_available("mpi"));
    mlxd_group *any = mlxd_init(false, NULL);
    check_world(any, "none", 1);
    mlxd_group_free(any);
    mlxd_group *world = mlxd_init(true, "mpi");
    check_world(world, "mpi", 1);
    mlxd_group *child = NULL;
    REQUIRE_OK(mlxd_group_split(world, 0, 0, &child));
    check_world(child, "mpi", 1);
    mlxd_group_free(child);
    mlxd_group_free(world);
}

static mlxd_group *start_with(const char *name, const char *value) {
    mlxd_options *options = mlxd_options_new();
    REQUIRE(options != NULL);
    REQUIRE_OK(mlxd_options_set(options, name, value));
    mlxd_group *world = mlxd_init_with_options(true, "mpi", options);
    mlxd_options_free(options);
    return world;
}

static void disagree(void) {
    CHECK(start_with("MLXD_CHECK", launched_rank() == 0 ? "1" : "0") == NULL);
    CHECK(mlxd_last_status() == MLXD_ERROR_CONFIG);
    CHECK_ERROR_NAMES("MLXD_CHECK");
    /* MPI itself is whole. */
    mlxd_group *world = mlxd_init(true, "mpi");
    check_world(world, "mpi", 0);
    mlxd_group_free(world);
}

/* A start that not all ranks come to ends in time, and harms no world that is there. */
static void late(void) {
    mlxd_group *first = mlxd_init(true, "mpi");
    check_world(first, "mpi", 0);
    if (launched_rank() != 0) {
        sleep_ms(1500);
    }
    double start = seconds();
    mlxd_group *world = start_with("MLXD_CONNECT_TIMEOUT_MS", "500");
    CHECK(world == NULL && mlxd_last_status() == MLXD_ERROR_TIMEOUT);
    CHECK_ERROR_NAMES("MLXD_CONNECT_TIMEOUT_MS");
    CHECK(seconds() - start < 20); /* the limit that is asked for, not the default */
    mlxd_group_free(world);
    /* Calls of MPI are matched by their order, and one is still under way. */
    CHECK(start_with("MLXD_CONNECT_TIMEOUT_MS", "500") == NULL);
    CHECK(mlxd_last_status() == MLXD_ERROR_UNSUPPORTED);
    CHECK_ERROR_NAMES("MLXD_CONNECT_TIMEOUT_MS");
    check_world(first, "mpi", 0);
    mlxd_group *part = NULL;
    REQUIRE_OK(mlxd_group_split(first, 0, -1, &part));
    check_world(part, "mpi", 0);
    mlxd_group_free(part);
    mlxd_group_free(first);
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(void);
    } scenes[] = {{"launched", launched}, {"mismatched", mismatched}, {"absent", absent},
                  {"unnamed", unnamed},   {"alone", alone},           {"disagree", disagree},
                  {"late", late}};
    check_start(60);
    REQUIRE(argc == 2);
    for (size_t i = 0; i < sizeof scenes / sizeof scenes[0]; i++) {
        if (strcmp(argv[1], scenes[i].name) == 0) {
            scenes[i].run();
            check_rank = launched_rank();
            return check_finish("mpi_start");
        }
    }
    REQUIRE(!"a scene");
    return 1;
}

/* An MPI with a call that takes too long: the one it is linked with, but for the function that
 * MLXD_TEST_STUCK names, MPI_Init_thread on all ranks or MPI_Comm_split on rank 1. A shared library
 * that MLX_MPI_LIBNAME names. */
#define _POSIX_C_SOURCE 200809L
#include <mpi.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void maybe_stay(const char *function, int seconds) {
    const char *stuck = getenv("MLXD_TEST_STUCK");
    struct timespec second = {1, 0};
    for (int i = 0; stuck != NULL && strcmp(stuck, function) == 0 && i < seconds; i++) {
        nanosleep(&second, NULL);
    }
}

int MPI_Init_thread(int *argc, char ***argv, int required, int *provided) {
    maybe_stay("MPI_Init_thread", 600);
    int level = getenv("MLXD_TEST_FUNNELED") != NULL ? MPI_THREAD_FUNNELED : required;
    int code = PMPI_Init_thread(argc, argv, level, provided);
    *provided = *provided < level ? *provided : level;
    return code;
}

int MPI_Comm_split(MPI_Comm comm, int color, int key, MPI_Comm *out) {
    int rank = 0;
    PMPI_Comm_rank(comm, &rank);
    if (rank == 1) {
        maybe_stay("MPI_Comm_split", 12);
    }
    return PMPI_Comm_split(comm, color, key, out);
}

/* An MPI that grants MPI_THREAD_FUNNELED and no more: the one it is linked with, but for that. A
 * shared library that MLX_MPI_LIBNAME names. */
#include <mpi.h>

int MPI_Init_thread(int *argc, char ***argv, int required, int *provided) {
    (void)required;
    return PMPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, provided);
}

int MPI_Query_thread(int *provided) {
    *provided = MPI_THREAD_FUNNELED;
    return MPI_SUCCESS;
}

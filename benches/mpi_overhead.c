/* What libmlxd adds to MPI: all_sum of float32, bfloat16 and float16 beside MPI_Allreduce of
 * float32, called directly, in turn, in one process. Prints a line for each size: medians in
 * microseconds.
 *
 *   mpicc -O2 -Iinclude benches/mpi_overhead.c -o mpi_overhead -L build/lib -lmlxd
 *
 *   LD_LIBRARY_PATH=build/lib mpirun -n 2 ./mpi_overhead
 */
#include <mlxd.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

enum { DIRECT, FLOAT32, BFLOAT16, FLOAT16, WAYS };

static MPI_Comm comm;
static mlxd_group *world;
static float *input;
static float *output;

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

/* One call; its time in microseconds. */
static double time_of(int way, size_t bytes) {
    static const mlxd_dtype types[WAYS] = {MLXD_FLOAT32, MLXD_FLOAT32, MLXD_BFLOAT16, MLXD_FLOAT16};
    mlxd_status status = MLXD_OK;
    MPI_Barrier(comm);
    double start = MPI_Wtime();
    if (way == DIRECT) {
        MPI_Allreduce(input, output, (int)(bytes / 4), MPI_FLOAT, MPI_SUM, comm);
    } else {
        size_t count = bytes / mlxd_dtype_size(types[way]);
        status = mlxd_all_sum(world, input, output, count, types[way], NULL);
    }
    double time = (MPI_Wtime() - start) * 1e6;
    if (status != MLXD_OK) {
        fprintf(stderr, "%s\n", mlxd_last_error());
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    return time;
}

int main(int argc, char **argv) {
    static const size_t sizes[] = {4,       64,      1024,    16384,    65536,
                                   1 << 18, 1 << 20, 4 << 20, 16 << 20, 64 << 20};
    enum { SIZES = sizeof sizes / sizeof sizes[0], MOST = 4000 };
    static double times[WAYS][MOST];
    int granted = 0;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &granted);
    MPI_Comm_dup(MPI_COMM_WORLD, &comm);
    world = mlxd_init(true, "mpi");
    if (world == NULL) {
        fprintf(stderr, "%s\n", mlxd_last_error());
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    input = calloc(sizes[SIZES - 1], 1);
    output = calloc(sizes[SIZES - 1], 1);
    if (input == NULL || output == NULL) {
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    if (mlxd_group_rank(world) == 0) {
        printf("%d ranks\n%10s %12s %12s %12s %12s\n", mlxd_group_size(world), "bytes",
               "MPI float32", "float32", "bfloat16", "float16");
    }
    for (int s = 0; s < SIZES; s++) {
        int rounds = sizes[s] <= 16384 ? MOST : sizes[s] <= 1 << 20 ? 400 : 24;
        for (int round = -2; round < rounds; round++) {
            for (int way = 0; way < WAYS; way++) {
                /* What the call before left in the caches counts for much: it is one of the same
                 * kind. */
                time_of(way, sizes[s]);
                double time = time_of(way, sizes[s]);
                if (round >= 0) {
                    times[way][round] = time;
                }
            }
        }
        double medians[WAYS];
        for (int way = 0; way < WAYS; way++) {
            qsort(times[way], (size_t)rounds, sizeof(double), by_value);
            medians[way] = times[way][rounds / 2];
        }
        if (mlxd_group_rank(world) == 0) {
            printf("%10zu %12.2f %12.2f %12.2f %12.2f\n", sizes[s], medians[DIRECT],
                   medians[FLOAT32], medians[BFLOAT16], medians[FLOAT16]);
            fflush(stdout);
        }
    }
    mlxd_group_free(world);
    mlxd_finalize();
    MPI_Finalize();
    return 0;
}

/* What libmlxd adds to NCCL: mlxd_all_sum of float32 on a CUDA stream beside ncclAllReduce, called
 * directly on a communicator of the same ranks and the same stream, in turn, in one process. Prints
 * a line for each size: medians, in microseconds a call, of the time that the host spends in calls
 * and of the time that the device spends on them (between two events).
 *
 *   cc -O2 -Iinclude -Ictests benches/nccl_overhead.c -o nccl_overhead -L build/lib -lmlxd -ldl
 *
 *   ctests/nccl_run.sh 2 ./nccl_overhead        (two ranks, on one device if there is no other)
 */
#include "nccl_direct.h"

enum { DIRECT, MLXD, WAYS };

/* Calls between two looks at the clock: few enough that no queue fills, which would make the host
 * wait. */
#define CALLS 20
#define MOST_ROUNDS 400

static mlxd_group *world;
static mlxd_stream *stream;
static void *comm, *cuda_stream, *input, *output, *before, *after;

static void must(mlxd_status status) {
    if (status != MLXD_OK) {
        fprintf(stderr, "nccl_overhead: %s\n", mlxd_last_error());
        _exit(1);
    }
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

/* A communicator of the world's ranks; its id travels over the world. */
static void direct_start(void) {
    nccl_id id;
    memset(&id, 0, sizeof id);
    struct nccl_config config = nccl_configuration(true);
    REQUIRE(mlxd_group_rank(world) != 0 || nccl.unique_id(&id) == 0);
    device_write(input, &id, sizeof id);
    must(mlxd_broadcast(world, input, sizeof id, MLXD_UINT8, 0, NULL));
    device_read(&id, input, sizeof id);
    REQUIRE(nccl.init(&comm, mlxd_group_size(world), id, mlxd_group_rank(world), &config) == 0);
}

/* So many calls; microseconds a call, of the host and of the device. */
static void time_of(int way, size_t count, double *host, double *device) {
    float milliseconds = 0;
    CUDA(cuda.stream_synchronize(cuda_stream));
    CUDA(cuda.event_record(before, cuda_stream));
    double start = seconds();
    for (int call = 0; call < CALLS; call++) {
        if (way == DIRECT) {
            REQUIRE(nccl.all_reduce(input, output, count, NCCL_FLOAT32, NCCL_SUM, comm,
                                    cuda_stream) == 0);
        } else {
            must(mlxd_all_sum(world, input, output, count, MLXD_FLOAT32, stream));
        }
    }
    *host = (seconds() - start) * 1e6 / CALLS;
    CUDA(cuda.event_record(after, cuda_stream));
    CUDA(cuda.stream_synchronize(cuda_stream));
    CUDA(cuda.event_elapsed(&milliseconds, before, after));
    *device = (double)milliseconds * 1e3 / CALLS;
}

/* All that a stand-in can tell of the host's time: how many calls of the driver's an operation
 * takes. */
static void count_driver_calls(void) {
    double host, device;
    long calls[WAYS];
    for (int way = 0; way < WAYS; way++) {
        long start = device_live("calls");
        time_of(way, 1024, &host, &device);
        calls[way] = device_live("calls") - start;
    }
    if (mlxd_group_rank(world) == 0) {
        printf(
            "calls of the driver's by %d all_sum, beyond those of the measurement and NCCL: %ld\n",
            CALLS, calls[MLXD] - calls[DIRECT]);
    }
}

static void measure(size_t bytes, int rounds) {
    static double host[WAYS][MOST_ROUNDS], device[WAYS][MOST_ROUNDS];
    for (int round = -3; round < rounds; round++) {
        for (int way = 0; way < WAYS; way++) {
            double host_us, device_us;
            time_of(way, bytes / 4, &host_us, &device_us);
            if (round >= 0) {
                host[way][round] = host_us;
                device[way][round] = device_us;
            }
        }
    }
    for (int way = 0; way < WAYS; way++) {
        qsort(host[way], (size_t)rounds, sizeof(double), by_value);
        qsort(device[way], (size_t)rounds, sizeof(double), by_value);
    }
    if (mlxd_group_rank(world) == 0) {
        printf("%10zu %12.2f %12.2f %12.2f %12.2f\n", bytes, host[DIRECT][rounds / 2],
               host[MLXD][rounds / 2], device[DIRECT][rounds / 2], device[MLXD][rounds / 2]);
        fflush(stdout);
    }
}

int main(void) {
    static const size_t sizes[] = {4, 1024, 16384, 1 << 18, 1 << 20, 8 << 20, 64 << 20, 256 << 20};
    enum { SIZES = sizeof sizes / sizeof sizes[0] };
    check_start(600);
    device_start();
    nccl_find();
    int most = device_is_fake() ? SIZES - 3 : SIZES;
    world = mlxd_init(true, "nccl");
    if (world == NULL) {
        must(mlxd_last_status());
    }
    input = device_alloc(sizes[most - 1]);
    output = device_alloc(sizes[most - 1]);
    cuda_stream = cuda_stream_new(false);
    stream = mlxd_stream_from_cuda(cuda_stream);
    REQUIRE(stream != NULL);
    CUDA(cuda.event_create(&before, 0));
    CUDA(cuda.event_create(&after, 0));
    direct_start();
    if (mlxd_group_rank(world) == 0) {
        printf("%d ranks, microseconds a call%s\n%10s %12s %12s %12s %12s\n",
               mlxd_group_size(world),
               device_is_fake() ? " OF A STAND-IN, WHICH SAYS NOTHING ABOUT A GPU" : "", "bytes",
               "host NCCL", "host mlxd", "device NCCL", "device mlxd");
    }
    for (int s = 0; s < most; s++) {
        int rounds = device_is_fake() ? 20 : sizes[s] <= 1 << 20 ? MOST_ROUNDS : 40;
        measure(sizes[s], rounds);
    }
    if (device_is_fake()) {
        count_driver_calls();
    }
    must(mlxd_barrier(world, NULL));
    REQUIRE(nccl.destroy(comm) == 0);
    mlxd_stream_free(stream);
    mlxd_group_free(world);
    return 0;
}

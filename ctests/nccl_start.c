/* How a start on nccl goes, by scene:
 *
 *     nccl_start refused WORD...     it is unavailable here, and the reason has these words
 *     nccl_start absent FILE WORD... likewise, on a machine that does not have this library
 *     nccl_start real                the same with the real NCCL, without a driver
 *     nccl_start alone               one rank, with device memory
 *     nccl_start mlx RANKS           MLX's variables; also "any", and devices by local rank
 *     nccl_start torchrun RANKS      torchrun's
 *     nccl_start mlxd RANKS          this library's own
 *     nccl_start gathered RANKS      the caller's own all-gather
 *     nccl_start often RANKS         many starts, splits and ends leave nothing behind */
#include "ranks.h"
#include "values.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>

static int32_t *device, *output;

static void memory_open(void) {
    device = device_alloc(4096);
    output = device_alloc(4096);
}

/* The world works: the sum of rank + 1. */
static void check_works(mlxd_group *world, const char *backend, int size) {
    REQUIRE(world != NULL);
    CHECK(strcmp(mlxd_group_backend(world), backend) == 0);
    REQUIRE(mlxd_group_size(world) == size);
    int32_t value = mlxd_group_rank(world) + 1, sum = 0;
    device_write(device, &value, sizeof value);
    REQUIRE_OK(mlxd_all_sum(world, device, output, 1, MLXD_INT32, NULL));
    device_read(&sum, output, sizeof sum);
    CHECK(sum == size * (size + 1) / 2);
}

static mlxd_group *started(mlxd_group *world) {
    if (world == NULL) {
        fprintf(stderr, "rank %d: no world: %s\n", check_rank, mlxd_last_error());
    }
    REQUIRE(world != NULL);
    return world;
}

/* --- not here
 * --------------------------------------------------------------------------------------- */

static void refused(char **words) {
    CHECK(!mlxd_is_available("nccl"));
    /* Nothing to start from. */
    mlxd_group *none = started(mlxd_init(false, "nccl"));
    CHECK(strcmp(mlxd_group_backend(none), "none") == 0);
    mlxd_group_free(none);
    CHECK(mlxd_init(true, "nccl") == NULL);
    CHECK(mlxd_last_status() == MLXD_ERROR_UNAVAILABLE);
    for (int i = 0; words[i] != NULL; i++) {
        CHECK_ERROR_NAMES(words[i]);
    }
    /* A world of two is announced: one alone would be silently wrong. */
    setenv("MLX_RANK", "0", 1);
    setenv("MLX_WORLD_SIZE", "2", 1);
    setenv("NCCL_HOST_IP", "127.0.0.1", 1);
    setenv("NCCL_PORT", "1", 1);
    CHECK(mlxd_init(true, "nccl") == NULL);
    CHECK(mlxd_last_status() == MLXD_ERROR_UNAVAILABLE);
    for (int i = 0; words[i] != NULL; i++) {
        CHECK_ERROR_NAMES(words[i]);
    }
    CHECK(mlxd_init(false, "nccl") == NULL);
    CHECK(mlxd_last_status() == MLXD_ERROR_CONFIG);
    CHECK(mlxd_last_error()[0] != '\0');
}

static int real(void) {
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    const char *name = getenv("MLXD_NCCL_LIBNAME");
    if (driver != NULL) {
        printf("skipped: there is a CUDA driver\n");
        return SKIPPED;
    }
    if (name == NULL || access(name, R_OK) != 0) {
        printf("skipped: no NCCL at %s: scripts/test gets it from PyPI\n",
               name != NULL ? name : "MLXD_NCCL_LIBNAME");
        return SKIPPED;
    }
    char *words[] = {(char *)(uintptr_t) "libcuda.so.1", NULL};
    refused(words);
    return check_finish("nccl_start real");
}

/* --- one rank
 * --------------------------------------------------------------------------------------- */

static void check_copies(mlxd_group *group) {
    unsigned char in[4096], out[4096];
    void *cuda_stream = cuda_stream_new(false);
    mlxd_stream *stream = mlxd_stream_from_cuda(cuda_stream);
    mlxd_group *half = NULL;
    REQUIRE(stream != NULL);
    for (int round = 0; round < 8; round++) {
        for (size_t i = 0; i < sizeof in; i++) {
            in[i] = (unsigned char)(i * 7 + (size_t)round);
        }
        device_write(device, in, sizeof in);
        mlxd_stream *way = round % 2 != 0 ? stream : NULL;
        const mlxd_dtype dtype = round < 4 ? MLXD_INT8 : MLXD_UINT8;
        switch (round / 2) {
        case 0:
            REQUIRE_OK(mlxd_all_sum(group, device, output, sizeof in, dtype, way));
            break;
        case 1:
            REQUIRE_OK(mlxd_all_gather(group, device, output, sizeof in, dtype, way));
            break;
        case 2:
            REQUIRE_OK(mlxd_sum_scatter(group, device, output, sizeof in, dtype, way));
            break;
        default:
            REQUIRE_OK(mlxd_all_to_all(group, device, output, sizeof in, dtype, way));
        }
        if (way != NULL) {
            CUDA(cuda.stream_synchronize(cuda_stream));
        }
        device_read(out, output, sizeof out);
        check_bytes(out, in, sizeof in, "a copy");
    }
    REQUIRE_OK(mlxd_broadcast(group, device, 10, MLXD_INT8, 0, NULL));
    REQUIRE_OK(mlxd_barrier(group, NULL));
    REQUIRE_OK(mlxd_barrier(group, stream));
    CHECK_INVALID(mlxd_send(group, device, 1, MLXD_INT8, 0, NULL));
    REQUIRE_OK(mlxd_group_split(group, 0, 0, &half));
    CHECK(mlxd_group_size(half) == 1);
    REQUIRE_OK(mlxd_all_sum(half, device, output, 16, MLXD_INT32, NULL));
    mlxd_group_free(half);
    CHECK_OK(mlxd_stream_synchronize(stream));
    mlxd_stream_free(stream);
    CUDA(cuda.stream_destroy(cuda_stream));
}

static void alone(void) {
    device_find();
    device_use(0);
    memory_open();
    /* Nothing to start from: backend "none" copies device memory, and the host's. */
    mlxd_group *none = started(mlxd_init(false, "nccl"));
    CHECK(strcmp(mlxd_group_backend(none), "none") == 0);
    check_copies(none);
    int32_t here = 5, there = 0;
    REQUIRE_OK(mlxd_all_sum(none, &here, &there, 1, MLXD_INT32, NULL));
    CHECK(there == 5);
    mlxd_group_free(none);

    setenv("MLX_RANK", "0", 1);
    setenv("MLX_WORLD_SIZE", "1", 1);
    setenv("NCCL_HOST_IP", "127.0.0.1", 1);
    setenv("NCCL_PORT", "23456", 1);
    CHECK(mlxd_is_available("nccl"));
    mlxd_group *world = started(mlxd_init(true, "nccl"));
    check_works(world, "nccl", 1);
    check_copies(world);
    CHECK_INVALID(mlxd_all_sum(world, &here, &there, 1, MLXD_INT32, NULL));
    CHECK_ERROR_NAMES("host memory");
    mlxd_group_free(world);
}

/* --- several
 * ---------------------------------------------------------------------------------------- */

/* Without a context the device is chosen by local rank: were it always the same, NCCL would refuse.
 */
static void by_mlx_variables(int size) {
    mlxd_group *world = started(mlxd_init(true, NULL));
    CHECK(strcmp(mlxd_group_backend(world), "nccl") == 0);
    void *current = NULL;
    CUDA(cuda.current(&current));
    if (current == NULL) {
        device_start();
    }
    memory_open();
    check_works(world, "nccl", size);
    mlxd_group *again = started(mlxd_init(true, "nccl"));
    check_works(again, "nccl", size);
    mlxd_group_free(again);
    mlxd_group_free(world);
}

static void by_torchrun_variables(int size) {
    char address[64];
    snprintf(address, sizeof address, "%s", getenv("MLXD_TEST_OTHER_ADDRESS"));
    char *port = strrchr(address, ':');
    *port = '\0';
    setenv("MASTER_ADDR", address, 1);
    setenv("MASTER_PORT", port + 1, 1);
    setenv("RANK", getenv("MLX_RANK"), 1);
    setenv("LOCAL_RANK", getenv("MLX_RANK"), 1);
    setenv("WORLD_SIZE", getenv("MLX_WORLD_SIZE"), 1);
    const char *const others[] = {"MLX_RANK", "MLX_WORLD_SIZE", "NCCL_HOST_IP", "NCCL_PORT"};
    device_start();
    for (size_t i = 0; i < 4; i++) {
        unsetenv(others[i]);
    }
    memory_open();
    mlxd_group *world = started(mlxd_init(true, "nccl"));
    check_works(world, "nccl", size);
    mlxd_group_free(world);
}

static void by_own_variables(int size) {
    device_start();
    memory_open();
    mlxd_group *world = other_world_start("nccl");
    check_works(world, "nccl", size);
    mlxd_group_free(world);
}

/* An all-gather over a file, as long as all ranks' bytes behind a count of those who have written.
 */
static int32_t gather_in_file(void *user_data, const void *src, void *dst, size_t bytes) {
    static int rounds;
    char path[128];
    int size = *(int *)user_data;
    snprintf(path, sizeof path, "/tmp/mlxd-gather-%ld-%d", (long)getppid(), rounds++);
    size_t length = sizeof(atomic_int) + (size_t)size * bytes;
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    REQUIRE(fd >= 0 && ftruncate(fd, (off_t)length) == 0);
    unsigned char *all = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    REQUIRE(all != MAP_FAILED);
    atomic_int *written = (atomic_int *)(void *)all;
    memcpy(all + sizeof *written + (size_t)check_rank * bytes, src, bytes);
    int before = atomic_fetch_add(written, 1);
    while (atomic_load(written) < size) {
        sleep_ms(1);
    }
    memcpy(dst, all + sizeof *written, (size_t)size * bytes);
    if (before == size - 1) {
        unlink(path);
    }
    munmap(all, length);
    close(fd);
    return 0;
}

static void by_all_gather(int size) {
    device_start();
    memory_open();
    mlxd_options *options = mlxd_options_new();
    REQUIRE(options != NULL);
    REQUIRE_OK(mlxd_options_set_all_gather(options, gather_in_file, &size));
    unsetenv("NCCL_HOST_IP");
    unsetenv("NCCL_PORT");
    mlxd_group *world = started(mlxd_init_with_options(true, "nccl", options));
    mlxd_options_free(options);
    check_works(world, "nccl", size);
    mlxd_group_free(world);
}

/* --- nothing stays
 * ---------------------------------------------------------------------------------- */

static long entries(const char *folder) {
    DIR *all = opendir(folder);
    long count = 0;
    REQUIRE(all != NULL);
    while (readdir(all) != NULL) {
        count++;
    }
    closedir(all);
    return count;
}

static long communicators(void) {
    void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_NOLOAD);
    void *function = library != NULL ? dlsym(library, "fake_nccl_live") : NULL;
    long (*live)(void) = NULL;
    if (function == NULL) {
        return 0;
    }
    memcpy(&live, &function, sizeof function);
    return live();
}

struct left {
    long fds, threads, streams, events, memory, contexts, communicators;
};

static struct left what_is_left(void) {
    struct left left = {entries("/proc/self/fd"), entries("/proc/self/task"), 0, 0, 0, 0, 0};
    if (device_is_fake()) {
        left.streams = device_live("streams");
        left.events = device_live("events");
        left.memory = device_live("memory");
        left.contexts = device_live("contexts");
        left.communicators = communicators();
    }
    return left;
}

static bool is_more(const struct left *now, const struct left *before) {
    return now->fds > before->fds || now->threads > before->threads ||
           now->streams > before->streams || now->events > before->events ||
           now->memory > before->memory || now->contexts > before->contexts ||
           now->communicators > before->communicators;
}

/* A start, work on it and a split of it, their ends. */
static void once(int size, int round) {
    void *cuda_stream = cuda_stream_new(false);
    mlxd_stream *stream = mlxd_stream_from_cuda(cuda_stream);
    mlxd_group *world = started(mlxd_init(true, "nccl"));
    mlxd_group *half = NULL;
    check_works(world, "nccl", size);
    REQUIRE_OK(mlxd_all_max(world, device, output, 100, MLXD_INT16, stream));
    REQUIRE_OK(mlxd_group_split(world, check_rank % 2, 0, &half));
    REQUIRE_OK(mlxd_all_sum(half, device, output, 100, MLXD_COMPLEX64, stream));
    CHECK_OK(mlxd_stream_synchronize(stream));
    mlxd_status met = mlxd_barrier(world, NULL);
    /* Another rank may be through already, and in its abort. */
    CHECK(met == MLXD_OK || (round % 3 == 0 && met == MLXD_ERROR_ABORTED));
    if (round % 3 == 0) {
        CHECK_OK(mlxd_group_abort(world));
    }
    mlxd_group_free(half);
    mlxd_group_free(world);
    if (round % 3 == 1) {
        mlxd_finalize();
    }
    mlxd_stream_free(stream);
    CUDA(cuda.stream_destroy(cuda_stream));
}

static void often(int size) {
    device_start();
    memory_open();
    for (int round = 0; round < 6; round++) {
        once(size, round); /* what is kept once and for all */
    }
    sleep_ms(300);
    struct left before = what_is_left();
    for (int round = 0; round < 30; round++) {
        once(size, round);
    }
    struct left now = what_is_left();
    for (double end = seconds() + 10; is_more(&now, &before) && seconds() < end;) {
        sleep_ms(20); /* ends go on behind the free */
        now = what_is_left();
    }
    if (is_more(&now, &before)) {
        fprintf(
            stderr,
            "rank %d: left after 30 more starts: %ld fds (%ld before), %ld (%ld) threads, %ld "
            "(%ld) "
            "streams, %ld (%ld) events, %ld (%ld) pieces of memory, %ld (%ld) contexts, %ld (%ld) "
            "communicators\n",
            check_rank, now.fds, before.fds, now.threads, before.threads, now.streams,
            before.streams, now.events, before.events, now.memory, before.memory, now.contexts,
            before.contexts, now.communicators, before.communicators);
    }
    CHECK(!is_more(&now, &before));
}

int main(int argc, char **argv) {
    check_start(120);
    REQUIRE(argc > 1);
    const char *scene = argv[1];
    if (strcmp(scene, "refused") == 0) {
        start_variables_clear();
        refused(argv + 2);
        return check_finish("nccl_start refused");
    }
    if (strcmp(scene, "absent") == 0) {
        REQUIRE(argc > 2);
        if (dlopen(argv[2], RTLD_NOW) != NULL) {
            printf("skipped: this machine has %s\n", argv[2]);
            return SKIPPED;
        }
        start_variables_clear();
        refused(argv + 2);
        return check_finish("nccl_start absent");
    }
    if (strcmp(scene, "real") == 0) {
        start_variables_clear();
        return real();
    }
    if (strcmp(scene, "alone") == 0) {
        start_variables_clear();
        alone();
        return check_finish("nccl_start alone");
    }
    REQUIRE(argc > 2);
    int size = atoi(argv[2]);
    if (!is_rank()) {
        return ranks_run(size, argv, NOBODY);
    }
    rank_begin();
    const struct {
        const char *name;
        void (*run)(int size);
    } scenes[] = {
        {"mlx", by_mlx_variables},  {"torchrun", by_torchrun_variables},
        {"mlxd", by_own_variables}, {"gathered", by_all_gather},
        {"often", often},
    };
    for (size_t i = 0; i < sizeof scenes / sizeof scenes[0]; i++) {
        if (strcmp(scene, scenes[i].name) == 0) {
            scenes[i].run(size);
            return check_finish("nccl_start");
        }
    }
    REQUIRE(!"a scene of this name");
    return 1;
}

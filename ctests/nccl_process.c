/* Worlds over nccl and the processes that hold them, by scene:
 *
 *     nccl_process threads RANKS    ranks are threads of one process, each with a device of its own
 *     nccl_process left RANKS       the process ends with everything still open
 *     nccl_process forked RANKS     handles in a forked child
 *     nccl_process opening 1        a fork while another thread opens the driver */
#include "ranks.h"
#include "values.h"

#include <pthread.h>

static int32_t *device, *output;

static mlxd_group *started(mlxd_group *world) {
    if (world == NULL) {
        fprintf(stderr, "rank %d: no world: %s\n", check_rank, mlxd_last_error());
    }
    REQUIRE(world != NULL);
    return world;
}

/* The sum of rank + 1. */
static void check_works(mlxd_group *world, int32_t *memory) {
    int32_t size = mlxd_group_size(world), value = mlxd_group_rank(world) + 1, sum = 0;
    CHECK(strcmp(mlxd_group_backend(world), "nccl") == 0);
    device_write(memory, &value, sizeof value);
    REQUIRE_OK(mlxd_all_sum(world, memory, memory, 1, MLXD_INT32, NULL));
    device_read(&sum, memory, sizeof sum);
    CHECK(sum == size * (size + 1) / 2);
}

/* ---- threads ---- */

struct thread_rank {
    int rank, size;
    char address[32];
};

static void *rank_of_a_thread(void *argument) {
    const struct thread_rank *own = argument;
    char number[16];
    int devices = 0;
    void *context = NULL;
    CUDA(cuda.count(&devices));
    CUDA(cuda.retain(&context, own->rank % devices));
    CUDA(cuda.set_current(context));
    mlxd_options *options = mlxd_options_new();
    REQUIRE(options != NULL);
    REQUIRE_OK(mlxd_options_set(options, "MLXD_COORDINATOR", own->address));
    snprintf(number, sizeof number, "%d", own->rank);
    REQUIRE_OK(mlxd_options_set(options, "MLXD_RANK", number));
    snprintf(number, sizeof number, "%d", own->size);
    REQUIRE_OK(mlxd_options_set(options, "MLXD_WORLD_SIZE", number));
    mlxd_group *world = started(mlxd_init_with_options(true, "nccl", options));
    mlxd_options_free(options);
    REQUIRE(mlxd_group_size(world) == own->size && mlxd_group_rank(world) == own->rank);
    int32_t *memory = device_alloc(64);
    for (int round = 0; round < 20; round++) {
        check_works(world, memory);
        REQUIRE_OK(mlxd_all_max(world, memory, memory, 1, MLXD_INT16, NULL));
    }
    device_free(memory);
    mlxd_group_free(world);
    return NULL;
}

static int in_threads(int size) {
    struct thread_rank ranks[8];
    pthread_t threads[8];
    int devices = 0;
    device_find();
    CUDA(cuda.count(&devices));
    if (devices < size) {
        printf("skipped: %d devices, %d are needed\n", devices, size);
        return SKIPPED;
    }
    REQUIRE(size <= 8);
    int port = free_ports(1);
    for (int i = 0; i < size; i++) {
        ranks[i] = (struct thread_rank){i, size, ""};
        snprintf(ranks[i].address, sizeof ranks[i].address, "127.0.0.1:%d", port);
        REQUIRE(pthread_create(&threads[i], NULL, rank_of_a_thread, &ranks[i]) == 0);
    }
    for (int i = 0; i < size; i++) {
        REQUIRE(pthread_join(threads[i], NULL) == 0);
    }
    return check_finish("nccl_process threads");
}

/* ---- ends and children ---- */

/* Nothing is freed: the exit status must be that of main nevertheless. */
static void left_open(void) {
    mlxd_group *world = started(mlxd_init(true, "nccl"));
    mlxd_group *half = NULL;
    check_works(world, device);
    mlxd_stream *stream = mlxd_stream_from_cuda(cuda_stream_new(false));
    REQUIRE(stream != NULL);
    REQUIRE_OK(mlxd_group_split(world, check_rank % 2, 0, &half));
    REQUIRE_OK(mlxd_all_sum(half, device, output, 100, MLXD_INT16, stream));
    REQUIRE_OK(mlxd_all_sum(world, device, output, 100, MLXD_INT32, stream));
    REQUIRE_OK(mlxd_stream_synchronize(stream));
}

static void in_a_child(void) {
    int status = 0;
    mlxd_group *world = started(mlxd_init(true, "nccl"));
    mlxd_stream *stream = mlxd_stream_from_cuda(NULL);
    REQUIRE(stream != NULL);
    check_works(world, device);
    fflush(NULL);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        check_start(20);
        CHECK_INVALID(mlxd_all_sum(world, device, output, 1, MLXD_INT32, NULL));
        CHECK_INVALID(mlxd_stream_synchronize(stream));
        CHECK(mlxd_group_size(world) == -1);
        mlxd_stream_free(stream);
        mlxd_group_free(world);
        mlxd_finalize();
        exit(atomic_load(&check_failures) == 0 ? 0 : 1);
    }
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
    /* The parent's is whole. */
    check_works(world, device);
    REQUIRE_OK(mlxd_all_sum(world, device, output, 1, MLXD_INT32, stream));
    CHECK_OK(mlxd_stream_synchronize(stream));
    mlxd_stream_free(stream);
    mlxd_group_free(world);
}

/* ---- a fork in the middle of a start ---- */

static void *open_it(void *argument) {
    (void)argument;
    CHECK(mlxd_is_available("nccl"));
    return NULL;
}

/* What a child is told of nccl: this status, with this word. */
static void check_in_a_child(mlxd_status want, const char *word) {
    int status = 0;
    fflush(NULL);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        check_start(20);
        CHECK(!mlxd_is_available("nccl"));
        CHECK(mlxd_init(true, "nccl") == NULL);
        CHECK(mlxd_last_status() == want);
        CHECK_ERROR_NAMES(word);
        _exit(atomic_load(&check_failures) == 0 ? 0 : 1);
    }
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
}

static int opening(void) {
    pthread_t thread;
    void (*go)(void) = NULL;
    cuda.library = dlopen("libcuda.so.1", RTLD_NOW);
    void *function = cuda.library != NULL ? dlsym(cuda.library, "fake_cuda_go") : NULL;
    REQUIRE(function != NULL);
    memcpy(&go, &function, sizeof go);
    REQUIRE(pthread_create(&thread, NULL, open_it, NULL) == 0);
    while (device_live("starts") == 0) {
        sleep_ms(1);
    }
    check_in_a_child(MLXD_ERROR_SYSTEM, "forked");
    go();
    REQUIRE(pthread_join(thread, NULL) == 0);
    check_in_a_child(MLXD_ERROR_UNAVAILABLE, "forked");
    CHECK(mlxd_is_available("nccl"));
    return check_finish("nccl_process opening");
}

int main(int argc, char **argv) {
    check_start(60);
    REQUIRE(argc > 2);
    int size = atoi(argv[2]);
    if (strcmp(argv[1], "threads") == 0) {
        start_variables_clear();
        return in_threads(size);
    }
    if (strcmp(argv[1], "opening") == 0) {
        start_variables_clear();
        return opening();
    }
    if (!is_rank()) {
        return ranks_run(size, argv, NOBODY);
    }
    rank_begin();
    device_start();
    device = device_alloc(4096);
    output = device_alloc(4096);
    if (strcmp(argv[1], "left") == 0) {
        left_open();
    } else {
        in_a_child();
    }
    return check_finish("nccl_process");
}

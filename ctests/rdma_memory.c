/* Memory of the caller's that is sent from where it is: whatever the program does with its memory
 * between calls, what is sent is what is there. With MLXD_RDMA_REGISTER=always each buffer is
 * registered with the device, and kept where the kernel tells when it goes.
 *
 *   rdma_memory [ROUNDS] */
#define _GNU_SOURCE
#include "check.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>

/* Elements: more than one message to each rank, and more bytes than the allocator keeps in its
 * heap. */
enum { COUNT = 34 * 1000, BYTES = COUNT * 4 };

/* Where nothing else comes to be, so that other memory can take the place of what was there. */
static void *const apart = (void *)UINT64_C(0x123400000000);

static mlxd_group *world;
static int rank;
static int size;
static int32_t *output;
static int32_t salt;

static int32_t value(int32_t of, size_t at) {
    return of * 1000 + (int32_t)(at % 997) + salt;
}

static void fill(int32_t *input) {
    salt += 7;
    for (size_t at = 0; at < COUNT; at++) {
        input[at] = value(rank, at);
    }
}

/* Sums what `fill` left in `input`, and passes it on to the next rank: each byte must be right. */
static void use(const int32_t *input, const char *what) {
    size_t wrong = 0;
    memset(output, 0, BYTES);
    REQUIRE_OK(mlxd_all_sum(world, input, output, COUNT, MLXD_INT32, NULL));
    for (size_t at = 0; at < COUNT; at++) {
        int32_t sum = size * value(0, at) + 1000 * size * (size - 1) / 2;
        wrong += output[at] != sum;
    }
    int next = (rank + 1) % size;
    int last = (rank + size - 1) % size;
    memset(output, 0, BYTES);
    REQUIRE_OK(mlxd_send_recv(world, input, COUNT, next, output, COUNT, last, MLXD_INT32, NULL));
    for (size_t at = 0; at < COUNT; at++) {
        wrong += output[at] != value(last, at);
    }
    if (wrong > 0) {
        fprintf(stderr, "%s: rank %d: %zu elements are wrong\n", what, rank, wrong);
    }
    CHECK(wrong == 0);
}

static int32_t *map(void *at) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | (at != NULL ? MAP_FIXED : 0);
    void *memory = mmap(at, BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
    REQUIRE(memory != MAP_FAILED);
    return memory;
}

static void fill_and_use(int32_t *input, const char *what) {
    fill(input);
    use(input, what);
}

static void unmapped_between_calls(void) {
    int32_t *input = map(apart);
    fill_and_use(input, "new");
    fill_and_use(input, "again");
    REQUIRE(munmap(input, BYTES) == 0);
    fill_and_use(map(apart), "unmapped, then other memory");
    fill_and_use(map(apart), "replaced by other memory");
    REQUIRE(madvise(input, BYTES, MADV_DONTNEED) == 0);
    fill_and_use(input, "given back, then used again");
    /* In part, at an odd place. */
    REQUIRE(madvise((char *)input + 4096, 8192, MADV_DONTNEED) == 0);
    fill_and_use(input, "given back in part");
    int32_t *elsewhere = mremap(input, BYTES, BYTES, MREMAP_MAYMOVE | MREMAP_FIXED,
                                (char *)apart + (UINT64_C(1) << 32));
    REQUIRE(elsewhere != MAP_FAILED);
    fill_and_use(map(apart), "moved, then other memory");
    fill_and_use(elsewhere, "where it was moved to");
    REQUIRE(munmap(elsewhere, BYTES) == 0 && munmap(input, BYTES) == 0);
}

static void freed_after_calls(void) {
    for (int round = 0; round < 5; round++) {
        int32_t *input = malloc(BYTES);
        int32_t *other = malloc(BYTES);
        REQUIRE(input != NULL && other != NULL);
        fill(input);
        memcpy(other, input, BYTES);
        use(input, "allocated");
        /* At once: nobody may read it any more. */
        memset(input, 0xff, BYTES);
        free(input);
        use(other, "beside it");
        free(other);
    }
}

/* What can be read only, or is a file's. */
static void odd_mappings(void) {
    char path[] = "/tmp/mlxd-memory-XXXXXX";
    int file = mkstemp(path);
    REQUIRE(file >= 0 && unlink(path) == 0 && ftruncate(file, BYTES) == 0);
    int32_t *shared = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    int32_t *private = mmap(NULL, BYTES, PROT_READ, MAP_PRIVATE, file, 0);
    int32_t *input = map(NULL);
    REQUIRE(shared != MAP_FAILED && private != MAP_FAILED);
    for (int round = 0; round < 2; round++) {
        fill_and_use(shared, "shared with a file");
        use(private, "a file's, read only");
        fill(input);
        REQUIRE(mprotect(input, BYTES, PROT_READ) == 0);
        use(input, "read only");
        REQUIRE(mprotect(input, BYTES, PROT_READ | PROT_WRITE) == 0);
        fill_and_use(input, "writable again");
    }
    REQUIRE(munmap(shared, BYTES) == 0 && munmap(private, BYTES) == 0);
    REQUIRE(munmap(input, BYTES) == 0 && close(file) == 0);
}

/* Whether a child has what was in `input` when it was forked, while this process goes on. */
static void forks_between_calls(void) {
    int32_t *input = map(NULL);
    fill_and_use(input, "before a fork");
    for (int round = 0; round < 3; round++) {
        int go[2];
        REQUIRE(pipe(go) == 0);
        pid_t child = fork();
        REQUIRE(child >= 0);
        if (child == 0) {
            char byte;
            bool same = read(go[0], &byte, 1) == 1;
            for (size_t at = 0; at < COUNT; at++) {
                same = same && input[at] == value(rank, at);
            }
            /* What it changes is its own. */
            memset(input, 0x55, BYTES);
            _exit(same && munmap(input, BYTES) == 0 ? 0 : 1);
        }
        fill_and_use(input, "with a child");
        fill_and_use(input, "with a child");
        REQUIRE(write(go[1], "g", 1) == 1);
        int status = 0;
        REQUIRE(waitpid(child, &status, 0) == child);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        use(input, "after its child");
        REQUIRE(close(go[0]) == 0 && close(go[1]) == 0);
    }
    REQUIRE(munmap(input, BYTES) == 0);
}

static atomic_int churning;

/* Blocks of the sizes that the allocator maps, keeps and gives back. */
static void *churn(void *argument) {
    unsigned seed = *(unsigned *)argument;
    char *blocks[8] = {NULL};
    while (atomic_load(&churning) != 0) {
        seed = seed * 1103515245 + 12345;
        char **block = &blocks[seed >> 16 & 7];
        size_t bytes = 60000 + (seed >> 8) % 400000;
        free(*block);
        *block = malloc(bytes);
        REQUIRE(*block != NULL);
        memset(*block, 0xee, bytes);
        sleep_ms(1);
    }
    for (int at = 0; at < 8; at++) {
        free(blocks[at]);
    }
    return NULL;
}

static void beside_an_allocator(void) {
    pthread_t threads[2];
    unsigned seeds[2] = {1, 2};
    atomic_store(&churning, 1);
    for (int at = 0; at < 2; at++) {
        REQUIRE(pthread_create(&threads[at], NULL, churn, &seeds[at]) == 0);
    }
    for (int round = 0; round < 8; round++) {
        int32_t *input = malloc(BYTES);
        REQUIRE(input != NULL);
        fill_and_use(input, "beside an allocator");
        free(input);
    }
    atomic_store(&churning, 0);
    for (int at = 0; at < 2; at++) {
        REQUIRE(pthread_join(threads[at], NULL) == 0);
    }
}

/* The last: a receiver that is stopped in the middle. The sender's call ends in time, and its
 * memory is nobody else's from then on. */
static void stopped_receiver(void) {
    size_t bytes = 4u << 20;
    REQUIRE_OK(mlxd_barrier(world, NULL));
    if (rank == 0) {
        unsigned char *data = mmap(apart, bytes, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        REQUIRE(data != MAP_FAILED);
        memset(data, 1, bytes);
        REQUIRE_OK(mlxd_group_set_timeout(world, 1000));
        mlxd_status status = mlxd_send(world, data, bytes, MLXD_UINT8, 1, NULL);
        CHECK(munmap(data, bytes) == 0);
        CHECK(status == MLXD_ERROR_TIMEOUT);
    } else if (rank == 1) {
        /* Longer than the sender's patience, shorter than that of the control plane. */
        pid_t parent = getpid();
        pid_t child = fork();
        REQUIRE(child >= 0);
        if (child == 0) {
            kill(parent, SIGSTOP);
            sleep_ms(3000);
            kill(parent, SIGCONT);
            _exit(0);
        }
        int status = 0;
        REQUIRE(waitpid(child, &status, 0) == child);
        unsigned char *data = malloc(bytes);
        REQUIRE(data != NULL);
        CHECK(mlxd_recv(world, data, bytes, MLXD_UINT8, 0, NULL) != MLXD_OK);
        free(data);
    }
}

int main(int argc, char **argv) {
    check_start(180);
    int rounds = argc > 1 ? atoi(argv[1]) : 1;
    world = world_start();
    rank = mlxd_group_rank(world);
    size = mlxd_group_size(world);
    REQUIRE(size >= 2);
    output = malloc(BYTES);
    REQUIRE(output != NULL);
    for (int round = 0; round < rounds; round++) {
        unmapped_between_calls();
        freed_after_calls();
        odd_mappings();
        forks_between_calls();
        beside_an_allocator();
    }
    stopped_receiver();
    mlxd_group_free(world);
    free(output);
    return check_finish("rdma_memory");
}

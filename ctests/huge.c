/* Messages of more than 2 GiB on two ranks: 2.5 GiB of int8, in place, through all_sum, broadcast,
 * send and recv, in 5 GiB of memory; with MLXD_TEST_LONG through every call, in 10 GiB. Skips
 * itself (status 77) where there is less. Every byte is compared. */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* madvise */
#endif
#include "pattern.h"

#include <sys/mman.h>

/* 2.5 GiB and two: no 32 bits hold it, and two ranks can share it. */
#define COUNT ((size_t)(UINT64_C(5) << 29) + 2)
#define SKIPPED 77

static mlxd_group *world;
static int rank;
static double begin;
static struct pattern pattern;
/* `COUNT` bytes each, one after the other; `back` in the long form only. */
static unsigned char *front;
static unsigned char *back;

/* Memory that programs can have, or 0 where the system does not say. */
static uint64_t available_kib(void) {
    char line[128];
    unsigned long long kib = 0;
    FILE *file = fopen("/proc/meminfo", "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL &&
           sscanf(line, "MemAvailable: %llu", &kib) != 1) {
    }
    if (file != NULL) {
        fclose(file);
    }
    return kib;
}

/* Memory in large pages where the system has them: it comes in a fraction of the time. */
static unsigned char *large_pages(size_t bytes) {
    void *memory = NULL;
    REQUIRE(posix_memalign(&memory, 2 << 20, bytes) == 0);
#ifdef MADV_HUGEPAGE
    /* A request only. */
    (void)madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return memory;
}

static void report(const char *what) {
    if (rank == 0) {
        printf("%-12s %5.1f s\n", what, seconds() - begin);
        fflush(stdout);
    }
}

static void write_input(unsigned char *to, size_t count, int of, int salt) {
    pattern_of_input(&pattern, MLXD_INT8, of, salt, 0);
    pattern_write(&pattern, to, count);
}

static void check_input(const unsigned char *got, size_t count, int of, int salt,
                        const char *what) {
    pattern_of_input(&pattern, MLXD_INT8, of, salt, 0);
    pattern_check(&pattern, got, count, what);
}

static void all_sum(void) {
    write_input(front, COUNT, rank, 1);
    REQUIRE_OK(mlxd_all_sum(world, front, front, COUNT, MLXD_INT8, NULL));
    pattern_of_reduction(&pattern, MLXD_INT8, REDUCE_SUM, 2, 1, 0);
    pattern_check(&pattern, front, COUNT, "all_sum");
    report("all_sum");
}

static void sum_scatter(void) {
    size_t share = COUNT / 2;
    write_input(front, COUNT, rank, 2);
    REQUIRE_OK(mlxd_sum_scatter(world, front, back, COUNT, MLXD_INT8, NULL));
    pattern_of_reduction(&pattern, MLXD_INT8, REDUCE_SUM, 2, 2, (size_t)rank * share);
    pattern_check(&pattern, back, share, "sum_scatter");
    report("sum_scatter");
}

static void broadcast(void) {
    if (rank == 1) {
        write_input(front, COUNT, 1, 3);
    }
    REQUIRE_OK(mlxd_broadcast(world, front, COUNT, MLXD_INT8, 1, NULL));
    check_input(front, COUNT, 1, 3, "broadcast");
    report("broadcast");
}

static void send_and_recv(void) {
    if (rank == 0) {
        write_input(front, COUNT, 0, 4);
        REQUIRE_OK(mlxd_send(world, front, COUNT, MLXD_INT8, 1, NULL));
    } else {
        REQUIRE_OK(mlxd_recv(world, front, COUNT, MLXD_INT8, 0, NULL));
        check_input(front, COUNT, 0, 4, "recv");
    }
    REQUIRE_OK(mlxd_barrier(world, NULL));
    report("send, recv");
}

static void send_recv(void) {
    write_input(front, COUNT, rank, 5);
    REQUIRE_OK(
        mlxd_send_recv(world, front, COUNT, 1 - rank, back, COUNT, 1 - rank, MLXD_INT8, NULL));
    check_input(back, COUNT, 1 - rank, 5, "send_recv");
    report("send_recv");
}

static void all_to_all(void) {
    size_t share = COUNT / 2;
    write_input(front, share, rank, 6);
    write_input(front + share, share, rank, 7);
    REQUIRE_OK(mlxd_all_to_all(world, front, back, COUNT, MLXD_INT8, NULL));
    check_input(back, share, 0, 6 + rank, "all_to_all");
    check_input(back + share, share, 1, 6 + rank, "all_to_all");
    report("all_to_all");
}

/* In place; the output has more than 4 GiB. */
static void all_gather(void) {
    unsigned char *own = rank == 0 ? front : back;
    write_input(own, COUNT, rank, 8);
    REQUIRE_OK(mlxd_all_gather(world, own, front, COUNT, MLXD_INT8, NULL));
    check_input(front, COUNT, 0, 8, "all_gather");
    check_input(back, COUNT, 1, 8, "all_gather");
    report("all_gather");
}

int main(void) {
    check_start(280);
    begin = seconds();
    world = world_start();
    rank = mlxd_group_rank(world);
    REQUIRE(mlxd_group_size(world) == 2);

    /* One rank decides for both: by what two ranks take, and a gibibyte for everything else. */
    bool all = getenv("MLXD_TEST_LONG") != NULL;
    uint64_t available = available_kib();
    REQUIRE_OK(mlxd_broadcast(world, &all, 1, MLXD_BOOL, 0, NULL));
    REQUIRE_OK(mlxd_broadcast(world, &available, 1, MLXD_UINT64, 0, NULL));
    size_t bytes = all ? 2 * COUNT : COUNT;
    uint64_t needed = (2 * bytes >> 10) + (1 << 20);
    if (available < needed) {
        if (rank == 0) {
            printf("skipped: %llu MiB of memory are available, %llu are needed\n",
                   (unsigned long long)available >> 10, (unsigned long long)needed >> 10);
            fflush(stdout);
        }
        /* The launcher ends both when the first leaves: not before this was said. */
        REQUIRE_OK(mlxd_barrier(world, NULL));
        mlxd_group_free(world);
        return SKIPPED;
    }

    struct buffer memory = buffer_in(large_pages(bytes + 2 * GUARD_BYTES), bytes);
    front = memory.data;
    report("memory");
    all_sum();
    broadcast();
    send_and_recv();
    if (all) {
        back = front + COUNT;
        sum_scatter();
        send_recv();
        all_to_all();
        all_gather();
    }
    buffer_free(&memory, "huge");
    mlxd_group_free(world);
    return check_finish("huge");
}

/* Ranks that wait for one that comes late use no processor meanwhile, whatever they wait in. Three
 * seconds each; ten with MLXD_TEST_LONG. */
#include "check.h"

#include <sys/resource.h>

/* Of processor time, for a whole wait, all threads of a rank together. */
#define MOST_S 0.1

static mlxd_group *world;
static int rank;
static int size;
static long late_ms;

static double processor_seconds(void) {
    struct rusage use;
    REQUIRE(getrusage(RUSAGE_SELF, &use) == 0);
    return (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
           (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) * 1e-6;
}

enum waiting { IN_BARRIER, IN_ALL_SUM, IN_RECV, IN_STREAM };
static const char *const names[] = {"barrier", "all_sum", "recv", "stream"};

static void in_group(mlxd_stream *stream) {
    int32_t one = 1;
    int32_t sum = 0;
    REQUIRE_OK(mlxd_all_sum(world, &one, &sum, 1, MLXD_INT32, stream));
    if (stream != NULL) {
        REQUIRE_OK(mlxd_stream_synchronize(stream));
    }
    CHECK(sum == size);
}

/* The last rank to every other. */
static void in_messages(void) {
    int32_t token = rank;
    if (rank != size - 1) {
        REQUIRE_OK(mlxd_recv(world, &token, 1, MLXD_INT32, size - 1, NULL));
        CHECK(token == size - 1);
        return;
    }
    for (int to = 0; to < size - 1; to++) {
        REQUIRE_OK(mlxd_send(world, &token, 1, MLXD_INT32, to, NULL));
    }
}

static void wait_in(enum waiting how, mlxd_stream *stream) {
    /* Connections are made and threads have started before it counts. */
    in_messages();
    in_group(stream);
    REQUIRE_OK(mlxd_barrier(world, NULL));
    double begin = seconds();
    double used = processor_seconds();
    if (rank == size - 1) {
        sleep_ms(late_ms);
    }
    if (how == IN_BARRIER) {
        REQUIRE_OK(mlxd_barrier(world, NULL));
    } else if (how == IN_RECV) {
        in_messages();
    } else {
        in_group(how == IN_STREAM ? stream : NULL);
    }
    used = processor_seconds() - used;
    CHECK(used < MOST_S);
    CHECK((seconds() - begin) * 1000 > (double)late_ms / 2); /* it was a wait */

    double most = 0;
    REQUIRE_OK(mlxd_all_max(world, &used, &most, 1, MLXD_FLOAT64, NULL));
    if (rank == 0) {
        printf("idle: %-8s %ld ms on %d ranks: at most %.3f ms of processor time a rank\n",
               names[how], late_ms, size, most * 1000);
    }
}

int main(void) {
    check_start(120);
    late_ms = getenv("MLXD_TEST_LONG") != NULL ? 10000 : 3000;
    world = world_start();
    rank = mlxd_group_rank(world);
    size = mlxd_group_size(world);
    REQUIRE(size > 1);
    mlxd_stream *stream = mlxd_stream_new();
    REQUIRE(stream != NULL);
    for (enum waiting how = IN_BARRIER; how <= IN_STREAM; how++) {
        wait_in(how, stream);
    }
    mlxd_stream_free(stream);
    mlxd_group_free(world);
    return check_finish("idle");
}

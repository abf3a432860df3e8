/* A rank that dies: the others hear of it at once, on whatever they wait, by its rank; groups
 * without it go on. A rank that ends in good order takes nobody with it.
 *
 *   peer_lost TRANSPORT [CASE]       shm; tcp; mixed: shared memory between some ranks, else TCP;
 *                                    rdma: on the devices of the environment
 *
 * As a child: peer_lost member <case> <victim>, peer_lost leave */
#include "rdma.h"

#include <pthread.h>

/* News within a second is the promise; what it came to is printed. */
#define NEWS_LIMIT_S 20.0
/* Longer than that: who is missed here is not missed by its silence. */
#define SILENCE_MS 60000

static mlxd_group *world;
static int rank;
static int size;

/* "tcp", "shm" or "rdma"; and the host of each rank, a letter, or none. */
static const char *transport;
static const char *hosts;

static const char *const cases[] = {"all_sum", "recv",      "recv_other", "large_recv", "barrier",
                                    "stream",  "large_sum", "part",       "split",      "idle",
                                    "send",    "others",    "exit",       "_exit",      "free"};
#define CASES (sizeof cases / sizeof cases[0])

static int32_t one = 1;

static mlxd_status small_sum(mlxd_group *group) {
    int32_t sum = 0;
    return mlxd_all_sum(group, &one, &sum, 1, MLXD_INT32, NULL);
}

/* Elements that are on their way for some time. */
static size_t large_count(void) {
    return strcmp(test_backend(), "jaccl") == 0 ? 1u << 20 : 16u << 20;
}

/* Sums of large vectors, one after the other, until one fails. */
static mlxd_status large_sums(void) {
    size_t count = large_count();
    float *input = calloc(count, sizeof *input);
    float *output = calloc(count, sizeof *output);
    REQUIRE(input != NULL && output != NULL);
    mlxd_status status = MLXD_OK;
    for (int round = 0; round < 2000 && status == MLXD_OK; round++) {
        status = mlxd_all_sum(world, input, output, count, MLXD_FLOAT32, NULL);
    }
    free(output);
    free(input);
    return status;
}

static mlxd_status large_message(int peer, bool sends) {
    size_t count = large_count();
    unsigned char *data = calloc(count, 1);
    REQUIRE(data != NULL);
    mlxd_status status = sends ? mlxd_send(world, data, count, MLXD_UINT8, peer, NULL)
                               : mlxd_recv(world, data, count, MLXD_UINT8, peer, NULL);
    free(data);
    return status;
}

/* Large messages from the victim to the lowest of the others, until one fails. */
static mlxd_status large_messages(int victim) {
    int lowest = victim == 0 ? 1 : 0;
    mlxd_status status = MLXD_OK;
    while (status == MLXD_OK) {
        status = large_message(rank == victim ? lowest : victim, rank == victim);
    }
    return status;
}

/* Waits, in no call, until the world has failed. */
static mlxd_status wait_for_news(void) {
    double end = seconds() + NEWS_LIMIT_S;
    while (mlxd_group_status(world) == MLXD_OK && seconds() < end) {
        sleep_ms(5);
    }
    return mlxd_barrier(world, NULL);
}

/* What the survivors wait on. */
static mlxd_status survive(const char *name, int victim, mlxd_stream *stream, mlxd_group *part) {
    int32_t value = 0;
    if (strcmp(name, "recv") == 0) {
        return mlxd_recv(world, &value, 1, MLXD_INT32, victim, NULL);
    }
    if (strcmp(name, "recv_other") == 0) {
        /* From a rank that lives and sends nothing. */
        int living = 0;
        while (living == rank || living == victim) {
            living++;
        }
        return mlxd_recv(world, &value, 1, MLXD_INT32, living, NULL);
    }
    if (strcmp(name, "barrier") == 0) {
        return mlxd_barrier(world, NULL);
    }
    if (strcmp(name, "stream") == 0) {
        REQUIRE_OK(mlxd_all_sum(world, &one, &value, 1, MLXD_INT32, stream));
        return mlxd_stream_synchronize(stream);
    }
    if (strcmp(name, "large_sum") == 0) {
        return large_sums();
    }
    if (strcmp(name, "large_recv") == 0) {
        return large_messages(victim);
    }
    if (strcmp(name, "part") == 0) {
        return small_sum(part);
    }
    if (strcmp(name, "split") == 0) {
        mlxd_group *child = NULL;
        return mlxd_group_split(world, 0, 0, &child);
    }
    if (strcmp(name, "idle") == 0) {
        return wait_for_news();
    }
    if (strcmp(name, "send") == 0) {
        return large_message(victim, true);
    }
    if (strcmp(name, "others") == 0) {
        /* The group without the victim works before, meanwhile and until all of it have the news.
         */
        double end = seconds() + NEWS_LIMIT_S;
        for (int32_t all_know = 0; all_know == 0;) {
            int32_t know = mlxd_group_status(world) != MLXD_OK || seconds() > end;
            REQUIRE_OK(mlxd_all_min(part, &know, &all_know, 1, MLXD_INT32, NULL));
        }
        return mlxd_barrier(world, NULL);
    }
    return small_sum(world); /* all_sum, exit, _exit, free */
}

static void *kill_soon(void *unused) {
    (void)unused;
    sleep_ms(300);
    report_send(MLXD_OK, world); /* when it happened */
    raise(SIGKILL);
    return NULL;
}

static int victim_main(const char *name) {
    if (strcmp(name, "large_sum") == 0 || strcmp(name, "large_recv") == 0) {
        /* In the middle of a call, by another thread. */
        pthread_t thread;
        REQUIRE(pthread_create(&thread, NULL, kill_soon, NULL) == 0);
        if (strcmp(name, "large_sum") == 0) {
            large_sums();
        } else {
            large_messages(rank);
        }
    } else if (strcmp(name, "exit") == 0 || strcmp(name, "free") == 0 ||
               strcmp(name, "_exit") == 0) {
        sleep_ms(300);
        report_send(MLXD_OK, world);
        if (name[0] == '_') {
            _exit(0); /* no goodbye: as good as dead */
        }
        if (name[0] == 'f') {
            mlxd_group_free(world);
        }
        exit(0);
    } else {
        kill_soon(NULL);
    }
    return 1;
}

static int member_main(char **argv) {
    check_start(60);
    const char *name = argv[2];
    int victim = atoi(argv[3]);
    world = world_start();
    rank = mlxd_group_rank(world);
    size = mlxd_group_size(world);
    mlxd_stream *stream = mlxd_stream_new();
    REQUIRE(stream != NULL);
    /* Those who survive, or everybody in another order. */
    mlxd_group *part = NULL;
    bool is_whole = strcmp(name, "part") == 0;
    bool without = strcmp(name, "others") == 0 && rank != victim;
    REQUIRE_OK(mlxd_group_split(world, is_whole || without ? 0 : -1, size - rank, &part));
    REQUIRE_OK(small_sum(world));
    if (rank == victim) {
        return victim_main(name);
    }
    bool orderly = strcmp(name, "exit") == 0 || strcmp(name, "free") == 0;
    if (orderly && size >= 3) {
        /* The victim is done and goes; those who still have work with each other do it. */
        int first = victim == 0 ? 1 : 0;
        int second = first + 1 == victim ? first + 2 : first + 1;
        if (rank == first || rank == second) {
            int peer = rank == first ? second : first;
            double end = seconds() + 1.0;
            for (int32_t going = 1; going != 0;) {
                /* Asked before the peer can go on to what must fail. */
                CHECK(mlxd_group_status(world) == MLXD_OK);
                int32_t mine = seconds() < end;
                int32_t theirs = 0;
                REQUIRE_OK(
                    mlxd_send_recv(world, &mine, 1, peer, &theirs, 1, peer, MLXD_INT32, NULL));
                going = mine != 0 && theirs != 0;
                sleep_ms(10);
            }
        } else {
            sleep_ms(600);
            CHECK(mlxd_group_status(world) == MLXD_OK);
            /* What this rank does next fails the group: not while the others still use it. */
            sleep_ms(2400);
        }
    }

    mlxd_status status = survive(name, victim, stream, part);
    report_send(status, world);
    if (without) {
        CHECK(mlxd_group_status(part) == MLXD_OK);
        REQUIRE_OK(small_sum(part));
    }
    /* Later calls give the same answer, at once. */
    double begin = seconds();
    CHECK_STATUS(small_sum(world), status);
    CHECK(mlxd_group_status(world) == status);
    CHECK(seconds() - begin < NEWS_LIMIT_S);
    mlxd_stream_free(stream);
    mlxd_group_free(part);
    mlxd_group_free(world);
    return atomic_load(&check_failures) == 0 ? 0 : 1;
}

static struct child member_start(int r, int ranks, int port, const char *const *arguments) {
    struct settings variables = {.count = 0};
    if (strcmp(transport, "rdma") == 0) {
        by_mesh(&variables, r, ranks, port);
    } else {
        by_coordinator(&variables, r, ranks, port);
        SETTING(&variables, "MLXD_TRANSPORT=%s", transport);
    }
    SETTING(&variables, "MLXD_PEER_TIMEOUT_MS=%d", SILENCE_MS);
    if (hosts != NULL) {
        SETTING(&variables, "MLXD_HOST_ID=%c", hosts[r]);
    }
    return child_start(program, arguments, variables.list);
}

static void run_case(const char *name, int ranks, int victim) {
    struct child children[8];
    struct report report;
    int port = free_ports(2);
    char victim_text[16];
    snprintf(victim_text, sizeof victim_text, "%d", victim);
    const char *arguments[] = {"member", name, victim_text, NULL};
    for (int r = 0; r < ranks; r++) {
        children[r] = member_start(r, ranks, port, arguments);
    }
    memset(&report, 0, sizeof report);
    CHECK(report_read(&children[victim], &report));
    double died = report.at;
    double slowest = 0;
    bool orderly = strcmp(name, "exit") == 0 || strcmp(name, "free") == 0;
    for (int r = 0; r < ranks; r++) {
        if (r == victim) {
            continue;
        }
        memset(&report, 0, sizeof report);
        report.status = -1;
        CHECK(report_read(&children[r], &report));
        double took = report.at - died;
        slowest = took > slowest ? took : slowest;
        /* After an orderly end only the operation that needs the rank which left may fail. */
        bool right = report.status == MLXD_ERROR_PEER_LOST ||
                     (orderly && report.status == MLXD_ERROR_ABORTED);
        bool named = names_number(report.message, victim);
        if (!right || !named || (took > 1 && !orderly)) {
            fprintf(stderr, "%s, %d ranks, rank %d of them lost: rank %d after %.3f s: %s \"%s\"\n",
                    name, ranks, victim, r, took, mlxd_status_name(report.status), report.message);
        }
        CHECK(right);
        CHECK(named);
        /* Who leaves in good order is missed a second or more later, when somebody needs it. */
        CHECK(took < NEWS_LIMIT_S);
    }
    for (int r = 0; r < ranks; r++) {
        int end = child_end(&children[r]);
        bool killed = r == victim && !orderly && strcmp(name, "_exit") != 0;
        if (end != (killed ? 128 + SIGKILL : 0)) {
            fprintf(stderr, "%s, %d ranks, rank %d of them lost: rank %d ended with %d\n", name,
                    ranks, victim, r, end);
        }
        CHECK(end == (killed ? 128 + SIGKILL : 0));
    }
    printf("peer_lost: %-10s %d ranks, without rank %d: known everywhere after %.3f s\n", name,
           ranks, victim, slowest);
}

/* Everyone ends in good order, one after the other, without free or finalize. */
static int leave_main(void) {
    check_start(60);
    world = world_start();
    REQUIRE_OK(small_sum(world));
    sleep_ms(100L * mlxd_group_rank(world));
    CHECK(mlxd_group_status(world) == MLXD_OK);
    report_send(mlxd_group_status(world), world);
    return atomic_load(&check_failures) == 0 ? 0 : 1;
}

static void leave_in_turn(void) {
    enum { RANKS = 4 };
    struct child children[RANKS];
    int port = free_ports(2);
    const char *arguments[] = {"leave", NULL};
    for (int r = 0; r < RANKS; r++) {
        children[r] = member_start(r, RANKS, port, arguments);
    }
    for (int r = 0; r < RANKS; r++) {
        struct report report;
        CHECK(report_read(&children[r], &report) && report.status == MLXD_OK);
        CHECK(child_end(&children[r]) == 0);
    }
}

int main(int argc, char **argv) {
    int end;
    if (argc == 4 && strcmp(argv[1], "member") == 0) {
        return member_main(argv);
    }
    if (argc == 2 && strcmp(argv[1], "leave") == 0) {
        return leave_main();
    }
    if (starts_begin(argc, argv, &end)) {
        return end;
    }
    REQUIRE(argc > 1);
    bool mixed = strcmp(argv[1], "mixed") == 0;
    transport = mixed ? "auto" : argv[1];
    hosts = mixed ? "aaba" : NULL;
    bool rdma = strcmp(transport, "rdma") == 0;
    const char *only = argc > 2 ? argv[2] : NULL;
    for (size_t i = 0; i < CASES; i++) {
        if (only != NULL && strcmp(only, cases[i]) != 0) {
            continue;
        }
        if (rdma) {
            /* Where devices are emulated every start takes seconds. */
            run_case(cases[i], 3, (int)i % 3);
            continue;
        }
        run_case(cases[i], 3, 1);
        run_case(cases[i], 3, 0);
        run_case(cases[i], 4, 3);
    }
    if (!mixed && only == NULL) {
        /* With nobody else left: */
        run_case("all_sum", 2, 1);
        run_case("recv", 2, 0);
    }
    if (only == NULL) {
        leave_in_turn();
    }
    return starts_finish("peer_lost");
}

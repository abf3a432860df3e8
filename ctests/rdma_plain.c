/* Worlds of jaccl whose ranks reach each other over RDMA and by an all-gather of the program's, but
 * not over TCP: how they start, and what is noticed of ranks that fail. (The collectives and
 * messages of such worlds are run by rdma_run.sh with MLXD_TEST_NO_TCP.)
 *
 * As a child: rdma_plain member <case> <rank> <size> <folder> <network> */
#define _GNU_SOURCE
#include "rdma.h"

#include <glob.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>

enum { RANKS_MAX = 3 };

static int32_t one = 1;

/* --- a rank -------------------------------------------------------------------------------------
 */

static mlxd_status recv_from(mlxd_group *group, int peer) {
    int32_t value = 0;
    return mlxd_recv(group, &value, 1, MLXD_INT32, peer, NULL);
}

/* Waits for a message that never comes. */
static void *wait_for_rank_0(void *world) {
    CHECK_STATUS(recv_from(world, 0), MLXD_ERROR_ABORTED);
    CHECK_ERROR_NAMES("mlxd_finalize");
    return NULL;
}

/* The last rank dies while rank 0 waits for it, which then tells rank 1 also in a group where
 * neither calls anything. */
static mlxd_status lose_other_groups(mlxd_group *world, int rank, int last) {
    mlxd_group *all = NULL;
    mlxd_group *rest = NULL;
    REQUIRE_OK(mlxd_group_split(world, 0, 0, &all));
    REQUIRE_OK(mlxd_group_split(world, rank == last ? -1 : 0, 0, &rest));
    REQUIRE_OK(mlxd_barrier(all, NULL));
    if (rank == last) {
        sleep_ms(1500);
        report_send(MLXD_OK, world);
        raise(SIGKILL);
    }
    if (rank == 0) {
        CHECK_STATUS(recv_from(world, last), MLXD_ERROR_PEER_LOST);
        /* Comes behind what tells of that. */
        REQUIRE_OK(mlxd_send(rest, &one, 1, MLXD_INT32, 1, NULL));
        REQUIRE_OK(recv_from(rest, 1));
    } else {
        REQUIRE_OK(recv_from(rest, 0));
        /* Sooner than this rank finds out by itself. */
        REQUIRE_OK(mlxd_group_set_timeout(all, 1000));
    }
    CHECK_STATUS(recv_from(all, 1 - rank), MLXD_ERROR_PEER_LOST);
    CHECK_ERROR_NAMES("rank 2");
    if (rank == 1) {
        REQUIRE_OK(mlxd_send(rest, &one, 1, MLXD_INT32, 0, NULL));
    }
    mlxd_group_free(all);
    mlxd_status status = mlxd_barrier(rest, NULL);
    mlxd_group_free(rest);
    return status;
}

/* What this rank's part of the case comes to. */
static mlxd_status play(const char *name, mlxd_group *world, int rank, int size) {
    int last = size - 1;
    if (strcmp(name, "killed") == 0) {
        REQUIRE_OK(mlxd_barrier(world, NULL));
        if (rank == last) {
            sleep_ms(1500); /* the others have seen by then that it is there */
            report_send(MLXD_OK, world);
            raise(SIGKILL);
        }
        /* Rank 0 waits for it; rank 1 for one that is there, and sends nothing. */
        return recv_from(world, rank == 0 ? last : 0);
    }
    if (strcmp(name, "left") == 0) {
        return rank == last ? MLXD_OK : recv_from(world, last);
    }
    if (strcmp(name, "finalized") == 0) {
        if (rank == last) {
            pthread_t waiting;
            REQUIRE(pthread_create(&waiting, NULL, wait_for_rank_0, world) == 0);
            sleep_ms(300);
            mlxd_finalize();
            return pthread_join(waiting, NULL) == 0 ? MLXD_OK : MLXD_ERROR_INTERNAL;
        }
        /* Rank 0 waits while that happens, for one that is there. */
        sleep_ms(rank == 0 ? 0 : 2500);
        return rank == 0 ? recv_from(world, 1) : mlxd_send(world, &one, 1, MLXD_INT32, 0, NULL);
    }
    if (strcmp(name, "aborted") == 0) {
        if (rank == last) {
            sleep_ms(200);
            return mlxd_group_abort(world);
        }
        return rank == 0 ? recv_from(world, 1) : mlxd_barrier(world, NULL);
    }
    if (strcmp(name, "others") == 0) {
        return lose_other_groups(world, rank, last);
    }
    if (strcmp(name, "freed") == 0) {
        mlxd_group *part = NULL;
        REQUIRE_OK(mlxd_group_split(world, 0, 0, &part));
        if (rank != last) {
            CHECK_STATUS(recv_from(part, last), MLXD_ERROR_PEER_LOST);
            CHECK_ERROR_NAMES("has no part in the group");
        }
        mlxd_group_free(part);
        /* The world goes on without it. */
        return mlxd_barrier(world, NULL);
    }
    return MLXD_OK;
}

/* Takes libibverbs out of this process's view of the files. */
static void hide_library(void) {
    glob_t found;
    REQUIRE(unshare(CLONE_NEWNS) == 0);
    REQUIRE(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0);
    REQUIRE(glob("/usr/lib/*/libibverbs.so.1", 0, NULL, &found) == 0);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        REQUIRE(mount("/dev/null", found.gl_pathv[i], NULL, MS_BIND, NULL) == 0);
    }
    globfree(&found);
}

static int member_main(char **argv) {
    const char *name = argv[2];
    int rank = atoi(argv[3]);
    int size = atoi(argv[4]);
    check_start(60);
    check_rank = rank;
    if (strcmp(argv[6], "apart") == 0) {
        REQUIRE(unshare(CLONE_NEWNET) == 0);
    }
    struct file_gather gather = {argv[5], rank, size, 0};
    mlxd_options *options = mlxd_options_new();
    REQUIRE(options != NULL);
    REQUIRE_OK(mlxd_options_set_all_gather(options, gather_by_files, &gather));
    char log[256];
    snprintf(log, sizeof log, "%s/log-%d", argv[5], rank);
    if (strcmp(name, "late") == 0 && rank == 1) {
        sleep_ms(4000);
    }
    if (strcmp(name, "library") == 0 && rank == 1) {
        hide_library();
    }
    int shown = dup(STDERR_FILENO);
    REQUIRE(freopen(log, "w", stderr) != NULL);
    setvbuf(stderr, NULL, _IONBF, 0);
    mlxd_group *world = mlxd_init_with_options(true, "jaccl", options);
    dup2(shown, STDERR_FILENO);
    CHECK(gather.round <= 6);
    mlxd_options_free(options);
    if (world == NULL) {
        report_send(mlxd_last_status(), NULL);
        return atomic_load(&check_failures) == 0 ? 0 : 1;
    }
    int32_t sum = 0;
    CHECK_OK(mlxd_all_sum(world, &one, &sum, 1, MLXD_INT32, NULL));
    CHECK(sum == size);
    report_send(play(name, world, rank, size), world);
    double begin = seconds();
    mlxd_group_free(world);
    /* A rank that died does not hold up the others' ends. */
    CHECK(seconds() - begin < 5.0);
    return atomic_load(&check_failures) == 0 ? 0 : 1;
}

/* --- the test -----------------------------------------------------------------------------------
 */

/* A world that has been started. */
struct running {
    const char *name;
    int size;
    char folder[128];
    struct child children[RANKS_MAX];
    struct report reports[RANKS_MAX];
};

/* How the ranks of a case are, and what one of them has for itself. */
struct way {
    const char *queue_pair;
    const char *apart;    /* per rank: 'a' in a network of its own, else 't' */
    int odd;              /* the rank that is different; -1: none */
    const char *device;   /* its device */
    const char *variable; /* a variable of it */
};

static void begin_case(struct running *run, const char *name, struct way way) {
    static int cases;
    run->name = name;
    run->size = (int)strlen(way.apart);
    snprintf(run->folder, sizeof run->folder, "%s/case-%d", folder, cases++);
    REQUIRE(mkdir(run->folder, 0700) == 0);
    int port = free_ports(1);
    for (int rank = 0; rank < run->size; rank++) {
        struct settings variables = {.count = 0};
        bool odd = rank == way.odd;
        by_devices(&variables, rank, run->size, port, odd ? way.device : NULL);
        SETTING(&variables, "MLXD_RDMA_QP=%s", way.queue_pair);
        SETTING(&variables, "MLXD_LOG=warn");
        SETTING(&variables, "MLXD_CONNECT_TIMEOUT_MS=%d", strcmp(name, "late") == 0 ? 3500 : 20000);
        if (odd && way.variable != NULL) {
            SETTING(&variables, "%s", way.variable);
        } else if (strcmp(way.queue_pair, "uc") == 0) {
            SETTING(&variables, "MLXD_RECV_TIMEOUT_MS=1500");
        }
        char numbers[2][16];
        snprintf(numbers[0], sizeof numbers[0], "%d", rank);
        snprintf(numbers[1], sizeof numbers[1], "%d", run->size);
        const char *network = way.apart[rank] == 'a' ? "apart" : "together";
        const char *arguments[] = {"member",    name,    numbers[0], numbers[1],
                                   run->folder, network, NULL};
        run->children[rank] = child_start(program, arguments, variables.list);
    }
}

/* What a rank wrote to stderr in its start. */
static void read_log(const struct running *run, int rank, char *text, size_t text_size) {
    char path[160];
    snprintf(path, sizeof path, "%s/log-%d", run->folder, rank);
    FILE *log = fopen(path, "r");
    size_t got = log != NULL ? fread(text, 1, text_size - 1, log) : 0;
    text[got] = '\0';
    if (log != NULL) {
        fclose(log);
    }
}

/* The rank that is killed ends by that, all others well. */
static void end_case(struct running *run, int killed) {
    for (int rank = 0; rank < run->size; rank++) {
        memset(&run->reports[rank], 0, sizeof run->reports[rank]);
        run->reports[rank].status = -1;
        CHECK(report_read(&run->children[rank], &run->reports[rank]));
    }
    for (int rank = 0; rank < run->size; rank++) {
        int end = child_end(&run->children[rank]);
        if (end != (rank == killed ? 128 + SIGKILL : 0)) {
            char log[2048];
            read_log(run, rank, log, sizeof log);
            fprintf(stderr, "%s: rank %d ended with %d: %s\n", run->name, rank, end, log);
        }
        CHECK(end == (rank == killed ? 128 + SIGKILL : 0));
    }
}

static void check_rank_of(const struct running *run, int rank, mlxd_status status,
                          const char *word) {
    const struct report *report = &run->reports[rank];
    bool names = strstr(report->message, word) != NULL;
    if (report->status != status || !names) {
        fprintf(stderr, "%s: rank %d: want %s and \"%s\", got %s: \"%s\"\n", run->name, rank,
                mlxd_status_name(status), word, mlxd_status_name(report->status), report->message);
    }
    CHECK(report->status == status);
    CHECK(names);
}

/* Whether each rank has said in its log that the world goes without TCP. */
static void check_warned(const struct running *run, bool warned) {
    for (int rank = 0; rank < run->size; rank++) {
        char log[2048];
        read_log(run, rank, log, sizeof log);
        bool found = strstr(log, "do not all reach each other over TCP") != NULL;
        if (found != warned) {
            fprintf(stderr, "%s: rank %d logged: %s\n", run->name, rank, log);
        }
        CHECK(found == warned);
    }
}

static const struct way apart_rc = {"rc", "aaa", -1, NULL, NULL};
static const struct way apart_uc = {"uc", "aa", -1, NULL, NULL};

/* Ranks that die, leave, abort, free. */
static void ends(void) {
    struct running killed;
    struct running silent;
    struct running aborted;
    struct running left;
    begin_case(&killed, "killed", apart_rc);
    begin_case(&silent, "killed", apart_uc);
    end_case(&killed, 2);
    end_case(&silent, 1);
    check_warned(&killed, true);
    check_rank_of(&killed, 0, MLXD_ERROR_PEER_LOST, "rank 2");
    check_rank_of(&killed, 1, MLXD_ERROR_PEER_LOST, "rank 2");
    printf("rdma_plain: killed over rc: noticed after %.0f and %.0f ms\n",
           1e3 * (killed.reports[0].at - killed.reports[2].at),
           1e3 * (killed.reports[1].at - killed.reports[2].at));
    check_rank_of(&silent, 0, MLXD_ERROR_TIMEOUT, "no progress for 1500 ms");

    begin_case(&aborted, "aborted", apart_rc);
    begin_case(&left, "left", apart_uc);
    end_case(&aborted, -1);
    end_case(&left, -1);
    for (int rank = 0; rank < 2; rank++) {
        check_rank_of(&aborted, rank, MLXD_ERROR_ABORTED, "mlxd_group_abort");
    }
    printf("rdma_plain: aborted: noticed after %.0f and %.0f ms\n",
           1e3 * (aborted.reports[0].at - aborted.reports[2].at),
           1e3 * (aborted.reports[1].at - aborted.reports[2].at));
    /* It frees the handle, then leaves. */
    check_rank_of(&left, 0, MLXD_ERROR_PEER_LOST, "rank 1");
    CHECK(strstr(left.reports[0].message, "has left") != NULL ||
          strstr(left.reports[0].message, "has no part") != NULL);

    struct running freed;
    struct running finalized;
    struct running others;
    begin_case(&others, "others", apart_rc);
    begin_case(&freed, "freed", (struct way){"rc", "aa", -1, NULL, NULL});
    begin_case(&finalized, "finalized", apart_rc);
    end_case(&others, 2);
    end_case(&freed, -1);
    end_case(&finalized, -1);
    for (int rank = 0; rank < 2; rank++) {
        check_rank_of(&others, rank, MLXD_OK, "");
    }
    for (int rank = 0; rank < 3; rank++) {
        check_rank_of(&finalized, rank, MLXD_OK, "");
    }
    check_rank_of(&freed, 0, MLXD_OK, "");
    check_rank_of(&freed, 1, MLXD_OK, "");
}

/* Starts in which some ranks reach each other, or all, one of them late. */
static void starts(void) {
    struct running some;
    struct running bound;
    struct running late;
    begin_case(&late, "late", (struct way){"rc", "tt", -1, NULL, NULL});
    begin_case(&some, "some", (struct way){"rc", "ta", -1, NULL, NULL});
    begin_case(&bound, "bound", (struct way){"uc", "ttt", 1, NULL, "MLXD_BIND=127.0.0.9"});
    end_case(&some, -1);
    end_case(&bound, -1);
    end_case(&late, -1);
    check_rank_of(&some, 1, MLXD_OK, "");
    check_rank_of(&bound, 2, MLXD_OK, "");
    check_warned(&some, true);
    check_warned(&bound, true);
    /* How long a rank takes to come is the all-gather's affair. */
    check_rank_of(&late, 0, MLXD_OK, "");
    check_warned(&late, false);
}

/* Starts in which rank 1 cannot take part: both ranks say why at once, not at the end of a limit.
 */
static void refusals(void) {
    static const struct {
        const char *name;
        struct way way;
        mlxd_status status;
        const char *word;
    } cases[] = {
        {"ring", {"rc", "tt", 1, NULL, "MLX_JACCL_RING=1"}, MLXD_ERROR_CONFIG, "topology=ring"},
        {"library", {"rc", "aa", -1, NULL, NULL}, MLXD_ERROR_UNAVAILABLE, "libibverbs"},
        {"port", {"rc", "aa", 1, NULL, "MLXD_RDMA_PORT=0"}, MLXD_ERROR_CONFIG, "MLXD_RDMA_PORT"},
        {"secret", {"rc", "aa", 1, NULL, "MLXD_SECRET=s"}, MLXD_ERROR_AUTH, "MLXD_SECRET"},
    };
    enum { CASES = sizeof cases / sizeof cases[0] };
    struct running runs[CASES];
    double begin = seconds();
    for (int i = 0; i < CASES; i++) {
        begin_case(&runs[i], cases[i].name, cases[i].way);
    }
    for (int i = 0; i < CASES; i++) {
        end_case(&runs[i], -1);
        for (int rank = 0; rank < 2; rank++) {
            check_rank_of(&runs[i], rank, cases[i].status, cases[i].word);
        }
    }
    CHECK(seconds() - begin < SOON_S);
}

int main(int argc, char **argv) {
    int end;
    if (argc == 7 && strcmp(argv[1], "member") == 0) {
        return member_main(argv);
    }
    if (starts_begin(argc, argv, &end)) {
        return end;
    }
    ends();
    starts();
    refusals();
    return starts_finish("rdma_plain");
}

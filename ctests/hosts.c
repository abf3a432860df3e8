/* Which ranks share memory: what counts as a host, what MLXD_TRANSPORT asks for, and that nothing
 * of it is left behind.
 *
 * As a child: hosts member <host of each rank, a letter; or split; or crowd; or poor and a rank>
 * <bytes that a file may have, 0: any> */
#include "starts.h"

#include <dirent.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/resource.h>
#include <sys/un.h>

/* More than a socket's queue holds. */
#define CALLERS 5000

/* Longest line of /proc that matters here. */
#define LINE 512

static int rank;
static int size;

/* How many segments this process maps. */
static int segments(void) {
    char line[LINE];
    int count = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    REQUIRE(maps != NULL);
    while (fgets(line, sizeof line, maps) != NULL) {
        count += strstr(line, "/memfd:mlxd") != NULL;
    }
    fclose(maps);
    return count;
}

/* How many descriptors this process has; if one of them is a mailbox, the name of that. */
static int descriptors(char *mailbox, size_t mailbox_size) {
    char line[LINE];
    int count = 0;
    unsigned long sockets[256];
    int socket_count = 0;
    DIR *fds = opendir("/proc/self/fd");
    REQUIRE(fds != NULL);
    for (struct dirent *entry; (entry = readdir(fds)) != NULL; count++) {
        char path[LINE];
        snprintf(path, sizeof path, "/proc/self/fd/%s", entry->d_name);
        ssize_t length = readlink(path, line, sizeof line - 1);
        line[length < 0 ? 0 : length] = '\0';
        if (sscanf(line, "socket:[%lu]", &sockets[socket_count]) == 1 && socket_count < 255) {
            socket_count++;
        }
    }
    closedir(fds);
    mailbox[0] = '\0';
    FILE *names = fopen("/proc/net/unix", "r");
    REQUIRE(names != NULL);
    while (fgets(line, sizeof line, names) != NULL) {
        unsigned long inode;
        char name[LINE];
        if (sscanf(line, "%*s %*s %*s %*s %*s %*s %lu @mlxd-%511s", &inode, name) == 2) {
            for (int i = 0; i < socket_count; i++) {
                if (sockets[i] == inode) {
                    CHECK(mailbox[0] == '\0'); /* a world has one at most */
                    snprintf(mailbox, mailbox_size, "%s", name);
                }
            }
        }
    }
    fclose(names);
    return count;
}

static bool is_listed(const char *mailbox) {
    char line[LINE];
    bool found = false;
    FILE *names = fopen("/proc/net/unix", "r");
    REQUIRE(names != NULL);
    while (fgets(line, sizeof line, names) != NULL) {
        found = found || strstr(line, mailbox) != NULL;
    }
    fclose(names);
    return found;
}

/* Calls at a mailbox and hangs up, again and again; as another user where this process may become
 * one. */
static void crowd(const char *mailbox) {
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        int length =
            snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "mlxd-%s", mailbox);
        length += (int)offsetof(struct sockaddr_un, sun_path) + 1;
        int calls = 0;
        alarm(20);
        if (setuid(12345) != 0) {
            errno = 0;
        }
        for (int i = 0; i < CALLERS; i++) {
            int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0);
            calls += connect(fd, (struct sockaddr *)&address, (socklen_t)length) == 0;
            close(fd);
        }
        _exit(calls > 0 ? 0 : 1);
    }
    int status = 0;
    REQUIRE(waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* The child of a fork has no part of the memory, and its end changes nothing. */
static void check_fork(void) {
    fflush(NULL);
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        alarm(20);
        exit(segments() == 0 ? 0 : 1);
    }
    int status = 0;
    REQUIRE(waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void check_sum(mlxd_group *group) {
    int32_t one = 1;
    int32_t sum = 0;
    REQUIRE_OK(mlxd_all_sum(group, &one, &sum, 1, MLXD_INT32, NULL));
    CHECK(sum == mlxd_group_size(group));
}

/* Whether this rank shares its host with another one whose rank is a multiple of `step` away. */
static bool shares(const char *hosts, int step) {
    for (int other = rank % step; other < size; other += step) {
        if (other != rank && hosts[other] == hosts[rank]) {
            return true;
        }
    }
    return false;
}

struct splitter {
    mlxd_group *parent;
    int step;
};

/* Splits and splits, beside others who do the same. */
static void *split_often(void *user_data) {
    const struct splitter *splitter = user_data;
    for (int round = 0; round < 30; round++) {
        mlxd_group *part = NULL;
        int key = round % 2 == 0 ? rank : size - rank;
        REQUIRE_OK(mlxd_group_split(splitter->parent, rank % splitter->step, key, &part));
        check_sum(part);
        mlxd_group_free(part);
    }
    return NULL;
}

static void split_at_once(mlxd_group *world) {
    enum { THREADS = 3 };
    pthread_t threads[THREADS];
    struct splitter splitters[THREADS];
    for (int i = 0; i < THREADS; i++) {
        splitters[i].step = i + 1;
        REQUIRE_OK(mlxd_group_split(world, 0, i % 2 == 0 ? rank : -1, &splitters[i].parent));
        REQUIRE(pthread_create(&threads[i], NULL, split_often, &splitters[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        REQUIRE(pthread_join(threads[i], NULL) == 0);
        mlxd_group_free(splitters[i].parent);
    }
}

/* One life of a world; the descriptors that are left at the end. */
static int live(const char *hosts, bool first) {
    char mailbox[LINE];
    char none[LINE];
    mlxd_group *world = mlxd_init(true, "ring");
    if (first) {
        report_send(mlxd_last_status(), world);
    }
    if (world == NULL) {
        return -1;
    }
    rank = check_rank = mlxd_group_rank(world);
    size = mlxd_group_size(world);
    bool by_tcp = getenv("MLXD_TRANSPORT") != NULL && strcmp(getenv("MLXD_TRANSPORT"), "tcp") == 0;
    descriptors(mailbox, sizeof mailbox);
    CHECK((mailbox[0] == '\0') == by_tcp);
    check_sum(world);
    int before = shares(hosts, 1);
    CHECK(segments() == before);
    if (first) {
        check_fork();
        check_sum(world);
    }
    mlxd_group *part = NULL;
    REQUIRE_OK(mlxd_group_split(world, rank % 2, -1, &part));
    CHECK(segments() == before + shares(hosts, 2));
    check_sum(part);
    mlxd_group_free(part);
    CHECK(segments() == before);
    if (first) {
        split_at_once(world);
        CHECK(segments() == before);
    }
    REQUIRE_OK(mlxd_barrier(world, NULL));
    mlxd_finalize();
    CHECK(by_tcp || !is_listed(mailbox));
    mlxd_group_free(world);
    CHECK(segments() == 0);
    /* The last connections close once the other ranks have closed them, too. */
    int left = descriptors(none, sizeof none);
    int fewer;
    double end = seconds() + 5;
    do {
        fewer = left;
        sleep_ms(100);
        left = descriptors(none, sizeof none);
    } while (left < fewer && seconds() < end);
    CHECK(none[0] == '\0');
    return left;
}

/* Ranks 1 and up make a group whose lowest cannot make shared memory: no group, and the world
 * stays. */
static void split_in_vain(void) {
    mlxd_group *world = mlxd_init(true, "ring");
    report_send(mlxd_last_status(), world);
    REQUIRE(world != NULL);
    rank = check_rank = mlxd_group_rank(world);
    size = mlxd_group_size(world);
    CHECK(segments() == 1);
    mlxd_group *part = NULL;
    mlxd_status status = mlxd_group_split(world, rank > 0, -1, &part);
    if (rank == 0) {
        CHECK(status == MLXD_OK && mlxd_group_size(part) == 1);
    } else {
        CHECK(status == MLXD_ERROR_SYSTEM && part == NULL);
        CHECK_ERROR_NAMES("rank 1 cannot make shared memory");
    }
    mlxd_group_free(part);
    check_sum(world);
    REQUIRE_OK(mlxd_barrier(world, NULL));
    mlxd_group_free(world);
}

/* Strangers at the mailboxes do not keep a group from being made. */
static void split_in_a_crowd(void) {
    char mailbox[LINE];
    mlxd_group *world = mlxd_init(true, "ring");
    report_send(mlxd_last_status(), world);
    REQUIRE(world != NULL);
    rank = check_rank = mlxd_group_rank(world);
    size = mlxd_group_size(world);
    descriptors(mailbox, sizeof mailbox);
    REQUIRE(mailbox[0] != '\0');
    crowd(mailbox);
    REQUIRE_OK(mlxd_barrier(world, NULL));
    mlxd_group *part = NULL;
    REQUIRE_OK(mlxd_group_split(world, 0, size - rank, &part));
    CHECK(segments() == 2);
    check_sum(part);
    mlxd_group_free(part);
    REQUIRE_OK(mlxd_barrier(world, NULL));
    mlxd_group_free(world);
}

/* Opens files until the process may have no more. */
static void use_up_descriptors(void) {
    struct rlimit few = {.rlim_cur = 200, .rlim_max = 200};
    REQUIRE(setrlimit(RLIMIT_NOFILE, &few) == 0);
    while (open("/dev/null", O_RDONLY) >= 0) {
    }
    REQUIRE(errno == EMFILE);
}

/* A rank that has no descriptors left is in no new group, and the others do not wait for it. */
static void split_without_descriptors(int poor) {
    mlxd_group *world = mlxd_init(true, "ring");
    report_send(mlxd_last_status(), world);
    REQUIRE(world != NULL);
    rank = check_rank = mlxd_group_rank(world);
    size = mlxd_group_size(world);
    if (rank == poor) {
        use_up_descriptors();
    }
    mlxd_group *part = NULL;
    double begin = seconds();
    mlxd_status status = mlxd_group_split(world, 0, -1, &part);
    if (rank == poor) {
        CHECK(status == MLXD_ERROR_SYSTEM && part == NULL);
    } else {
        int32_t one = 1;
        int32_t sum = 0;
        REQUIRE_OK(status);
        CHECK_STATUS(mlxd_all_sum(part, &one, &sum, 1, MLXD_INT32, NULL), MLXD_ERROR_SYSTEM);
        CHECK_ERROR_NAMES("eventfd");
    }
    CHECK(seconds() - begin < SOON_S);
    mlxd_group_free(part);
    check_sum(world);
    REQUIRE_OK(mlxd_barrier(world, NULL));
    mlxd_group_free(world);
}

static int member_main(char **argv) {
    check_start(60);
    struct rlimit limit;
    REQUIRE(getrlimit(RLIMIT_FSIZE, &limit) == 0);
    if (atoi(argv[3]) > 0) {
        limit.rlim_cur = (rlim_t)atoi(argv[3]);
        REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    }
    if (strncmp(argv[2], "poor", 4) == 0) {
        split_without_descriptors(atoi(argv[2] + 4));
        return atomic_load(&check_failures) == 0 ? 0 : 1;
    }
    if (strcmp(argv[2], "crowd") == 0) {
        split_in_a_crowd();
        return atomic_load(&check_failures) == 0 ? 0 : 1;
    }
    if (strcmp(argv[2], "split") == 0) {
        split_in_vain();
        return atomic_load(&check_failures) == 0 ? 0 : 1;
    }
    int left = live(argv[2], true);
    if (left >= 0) {
        live(argv[2], false);
        CHECK(live(argv[2], false) == left);
    }
    return atomic_load(&check_failures) == 0 ? 0 : 1;
}

struct world {
    const char *transports; /* of each rank: a(uto), t(cp), s(hm) */
    const char *host_ids;   /* of each rank, '-': none */
    const char *hosts;      /* of each rank, as they come out */
    int limited;            /* a rank that cannot make files of more than a page; -1: none */
};

static void run_world(const struct world *asked, int limit_ms, struct report *reports) {
    static const char *const transports[] = {"auto", "tcp", "shm"};
    struct child children[8];
    int count = (int)strlen(asked->transports);
    int port = free_ports(count);
    for (int i = 0; i < count; i++) {
        struct settings variables = {.count = 0};
        by_coordinator(&variables, i, count, port);
        SETTING(&variables, "MLXD_CONNECT_TIMEOUT_MS=%d", limit_ms);
        for (int t = 0; t < 3; t++) {
            if (transports[t][0] == asked->transports[i]) {
                SETTING(&variables, "MLXD_TRANSPORT=%s", transports[t]);
            }
        }
        if (asked->host_ids[i] != '-') {
            SETTING(&variables, "MLXD_HOST_ID=host %c", asked->host_ids[i]);
        }
        const char *limit = asked->limited == i ? "4096" : "0";
        const char *arguments[] = {"member", asked->hosts, limit, NULL};
        children[i] = child_start(program, arguments, variables.list);
    }
    for (int i = 0; i < count; i++) {
        reports[i] = finish(&children[i]);
    }
}

static void worlds_that_start(void) {
    static const struct world worlds[] = {
        {"aa", "--", "aa", -1},
        {"aaaa", "----", "aaaa", -1},
        {"ssss", "----", "aaaa", -1},
        {"tttt", "----", "abcd", -1},
        {"sss", "aaa", "aaa", -1},
        {"aaaa", "aabb", "aabb", -1},
        {"aaaaa", "abab-", "ababc", -1},
        {"aaa", "abc", "abc", -1},
        {"ttt", "aab", "abc", -1},
        /* Memory that cannot be made is done without, on that host only. */
        {"aaa", "---", "abc", 0},
        {"aaaaa", "abbab", "abcad", 1},
    };
    for (size_t i = 0; i < sizeof worlds / sizeof worlds[0]; i++) {
        struct report reports[8];
        run_world(&worlds[i], 20000, reports);
        for (size_t j = 0; j < strlen(worlds[i].transports); j++) {
            if (reports[j].status != MLXD_OK) {
                fprintf(stderr, "world %zu, rank %zu: %s \"%s\"\n", i, j,
                        mlxd_status_name(reports[j].status), reports[j].message);
            }
            CHECK(reports[j].status == MLXD_OK);
        }
    }
}

static void check_told(const struct report *report, mlxd_status status, const char *words) {
    if (report->status != status || strstr(report->message, words) == NULL) {
        fprintf(stderr, "%s \"%s\" is not %s with \"%s\"\n", mlxd_status_name(report->status),
                report->message, mlxd_status_name(status), words);
    }
    CHECK(report->status == status);
    CHECK(strstr(report->message, words) != NULL);
}

static void worlds_that_do_not(void) {
    struct report reports[8];
    run_world(&(struct world){"ssss", "abab", "", -1}, 20000, reports);
    for (int i = 0; i < 4; i++) {
        check_told(&reports[i], MLXD_ERROR_CONFIG,
                   "ranks 0, 2 are on host \"host a\" and ranks 1, 3 are on host \"host b\"");
    }
    run_world(&(struct world){"sss", "---", "", 0}, 20000, reports);
    for (int i = 0; i < 3; i++) {
        check_told(&reports[i], MLXD_ERROR_SYSTEM, "rank 0 cannot make shared memory");
        check_told(&reports[i], MLXD_ERROR_SYSTEM, "MLXD_TRANSPORT=shm");
    }
    run_world(&(struct world){"aaaa", "----", "split", 1}, 20000, reports);
    for (int i = 0; i < 4; i++) {
        CHECK(reports[i].status == MLXD_OK);
    }
    run_world(&(struct world){"aaa", "---", "crowd", -1}, 20000, reports);
    for (int i = 0; i < 3; i++) {
        CHECK(reports[i].status == MLXD_OK);
    }
    /* Rank 0 makes the memory for the others. */
    static const char *const poor[] = {"poor0", "poor2"};
    for (int i = 0; i < 6; i++) {
        if (i % 3 == 0) {
            run_world(&(struct world){"aaa", "---", poor[i / 3], -1}, 20000, reports);
        }
        CHECK(reports[i % 3].status == MLXD_OK);
    }
    /* All must ask for the same. */
    static const char *const disagreeing[] = {"at", "sa", "ts"};
    static const char *const names[][2] = {{"auto", "tcp"}, {"shm", "auto"}, {"tcp", "shm"}};
    for (int i = 0; i < 3; i++) {
        char words[64];
        run_world(&(struct world){disagreeing[i], "--", "", -1}, 2000, reports);
        snprintf(words, sizeof words, "transport=%s", names[i][1]);
        check_told(&reports[1], MLXD_ERROR_CONFIG, words);
        snprintf(words, sizeof words, "transport=%s", names[i][0]);
        check_told(&reports[1], MLXD_ERROR_CONFIG, words);
        CHECK(reports[0].status != MLXD_OK && strstr(reports[0].message, words) != NULL);
    }
}

int main(int argc, char **argv) {
    if (argc == 4 && strcmp(argv[1], "member") == 0) {
        return member_main(argv);
    }
    int end;
    if (starts_begin(argc, argv, &end)) {
        return end;
    }
    worlds_that_start();
    worlds_that_do_not();
    return starts_finish("hosts");
}

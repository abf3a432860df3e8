/* A world whose processes are all killed in the middle of their calls leaves nothing behind: no
 * shared memory, no file and no socket; on RDMA devices no queue pair, no region and what goes with
 * them.
 *
 * As a child: killed child <collectives or messages> */
#include "rdma.h"

#include <dirent.h>

/* Longest line of /proc that matters here, and most things of one kind that a world has. */
#define LINE 512
#define MANY 64

/* What the ranks of a world hold. */
struct held {
    unsigned long segments[MANY]; /* inodes of memory that was made by this library */
    int segment_count;
    char mailboxes[MANY][LINE]; /* names of sockets */
    int mailbox_count;
};

static bool starts_with(const char *text, const char *prefix) {
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

static void add_segment(struct held *held, unsigned long inode) {
    for (int i = 0; i < held->segment_count; i++) {
        if (held->segments[i] == inode) {
            return;
        }
    }
    REQUIRE(held->segment_count < MANY);
    held->segments[held->segment_count++] = inode;
}

/* The next mapping of a file in /proc/<pid>/maps: its inode and name. */
static bool next_mapping(FILE *maps, unsigned long *inode, char *name) {
    char line[LINE];
    while (fgets(line, sizeof line, maps) != NULL) {
        if (sscanf(line, "%*s %*s %*s %*s %lu %511[^\n]", inode, name) == 2 && *inode != 0) {
            return true;
        }
    }
    return false;
}

static FILE *open_maps(long pid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%ld/maps", pid);
    return fopen(path, "r");
}

/* Nothing that a rank maps has a name in a folder of shared memory. */
static void look_at_maps(struct held *held, long pid) {
    unsigned long inode;
    char name[LINE];
    FILE *maps = open_maps(pid);
    REQUIRE(maps != NULL);
    while (next_mapping(maps, &inode, name)) {
        CHECK(!starts_with(name, "/dev/shm") && !starts_with(name, "/SYSV"));
        if (starts_with(name, "/memfd:mlxd")) {
            add_segment(held, inode);
        }
    }
    fclose(maps);
}

static void add_mailbox(struct held *held, unsigned long socket) {
    char line[LINE];
    FILE *sockets = fopen("/proc/net/unix", "r");
    REQUIRE(sockets != NULL);
    while (fgets(line, sizeof line, sockets) != NULL) {
        unsigned long inode;
        char name[LINE];
        if (sscanf(line, "%*s %*s %*s %*s %*s %*s %lu %511s", &inode, name) == 2 &&
            inode == socket) {
            /* A socket with a path would outlive its process. */
            CHECK(starts_with(name, "@mlxd-"));
            REQUIRE(held->mailbox_count < MANY);
            snprintf(held->mailboxes[held->mailbox_count++], LINE, "%s", name);
        }
    }
    fclose(sockets);
}

static void look_at_descriptors(struct held *held, long pid) {
    char path[LINE];
    char target[LINE];
    unsigned long socket;
    snprintf(path, sizeof path, "/proc/%ld/fd", pid);
    DIR *descriptors = opendir(path);
    REQUIRE(descriptors != NULL);
    for (struct dirent *entry; (entry = readdir(descriptors)) != NULL;) {
        snprintf(path, sizeof path, "/proc/%ld/fd/%.20s", pid, entry->d_name);
        ssize_t length = readlink(path, target, sizeof target - 1);
        target[length < 0 ? 0 : length] = '\0';
        CHECK(!starts_with(target, "/dev/shm"));
        if (sscanf(target, "socket:[%lu]", &socket) == 1) {
            add_mailbox(held, socket);
        }
    }
    closedir(descriptors);
}

/* How many of these segments any process still maps. */
static int segments_mapped(const struct held *held) {
    int found = 0;
    DIR *processes = opendir("/proc");
    REQUIRE(processes != NULL);
    for (struct dirent *entry; (entry = readdir(processes)) != NULL;) {
        FILE *maps = atol(entry->d_name) > 0 ? open_maps(atol(entry->d_name)) : NULL;
        unsigned long inode;
        char name[LINE];
        while (maps != NULL && next_mapping(maps, &inode, name)) {
            for (int i = 0; i < held->segment_count; i++) {
                found += starts_with(name, "/memfd:mlxd") && held->segments[i] == inode;
            }
        }
        if (maps != NULL) {
            fclose(maps);
        }
    }
    closedir(processes);
    return found;
}

static int mailboxes_listed(const struct held *held) {
    char line[LINE];
    int found = 0;
    FILE *sockets = fopen("/proc/net/unix", "r");
    REQUIRE(sockets != NULL);
    while (fgets(line, sizeof line, sockets) != NULL) {
        for (int i = 0; i < held->mailbox_count; i++) {
            found += strstr(line, held->mailboxes[i]) != NULL;
        }
    }
    fclose(sockets);
    return found;
}

/* Entries of a folder that bear the library's name. */
static int files_named(const char *folder_path) {
    int found = 0;
    DIR *entries = opendir(folder_path);
    if (entries == NULL) {
        return 0;
    }
    for (struct dirent *entry; (entry = readdir(entries)) != NULL;) {
        found += strstr(entry->d_name, "mlxd") != NULL;
    }
    closedir(entries);
    return found;
}

/* What the kernel keeps for processes that use RDMA devices; all else is within a context. */
enum kind { QUEUE_PAIRS, REGIONS, CONTEXTS, KINDS };
static const char *const kind_names[] = {"qp", "mr", "ctx"};

/* How many of a kind these processes have, as the program `rdma` of iproute2 tells. */
static int objects_of(enum kind kind, const struct child *children, int ranks) {
    char line[LINE];
    char word[32];
    int found = 0;
    snprintf(line, sizeof line, "PATH=$PATH:/usr/sbin:/sbin rdma resource show %s",
             kind_names[kind]);
    FILE *objects = popen(line, "r");
    REQUIRE(objects != NULL);
    while (fgets(line, sizeof line, objects) != NULL) {
        for (int r = 0; r < ranks; r++) {
            snprintf(word, sizeof word, " pid %ld ", (long)children[r].pid);
            found += strstr(line, word) != NULL;
        }
    }
    CHECK(pclose(objects) == 0);
    return found;
}

/* A rank that sees another one die waits for its own end. */
static void go_on(mlxd_status status) {
    CHECK(status == MLXD_OK || status == MLXD_ERROR_PEER_LOST);
    while (status != MLXD_OK) {
        pause();
    }
}

static bool over_rdma(void) {
    return strcmp(test_backend(), "jaccl") == 0;
}

static int member_main(const char *what) {
    const size_t count = over_rdma() ? 1 << 14 : 1 << 20;
    check_start(60);
    mlxd_group *world = world_start();
    int size = mlxd_group_size(world);
    int right = (check_rank + 1) % size;
    int left = (check_rank + size - 1) % size;
    float *input = calloc(count, sizeof *input);
    float *output = calloc(count, sizeof *output);
    mlxd_group *part = NULL;
    REQUIRE(input != NULL && output != NULL);
    REQUIRE_OK(mlxd_group_split(world, check_rank % 2, -1, &part));
    for (int round = 0;; round++) {
        if (strcmp(what, "collectives") == 0) {
            mlxd_group *more = NULL;
            go_on(mlxd_all_sum(world, input, output, count, MLXD_FLOAT32, NULL));
            go_on(mlxd_all_sum(part, input, output, 10, MLXD_FLOAT32, NULL));
            go_on(mlxd_group_split(world, 0, -1, &more));
            mlxd_group_free(more);
        } else {
            go_on(mlxd_send_recv(world, input, count, right, output, count, left, MLXD_FLOAT32,
                                 NULL));
        }
        if (round == 2) {
            report_send(MLXD_OK, world);
        }
    }
}

enum { RANKS = 4 };

/* Emulated devices are slow. */
static int rank_count(void) {
    return over_rdma() ? 3 : RANKS;
}

/* Starts all ranks; returns when they are at it. */
static void start_all(struct child *children, const char *what, const char *transport) {
    int ranks = rank_count();
    int port = free_ports(2);
    for (int r = 0; r < ranks; r++) {
        struct settings variables = {.count = 0};
        const char *arguments[] = {"child", what, NULL};
        if (over_rdma()) {
            by_mesh(&variables, r, ranks, port);
        } else {
            by_coordinator(&variables, r, ranks, port);
        }
        SETTING(&variables, "MLXD_TRANSPORT=%s", transport);
        children[r] = child_start(program, arguments, variables.list);
    }
    for (int r = 0; r < ranks; r++) {
        struct report report;
        CHECK(report_read(&children[r], &report) && report.status == MLXD_OK);
    }
}

static void signal_all(const struct child *children, int number) {
    for (int r = 0; r < rank_count(); r++) {
        CHECK(kill(children[r].pid, number) == 0);
    }
}

/* Kills all ranks while they are at it. */
static void kill_all(const char *what, const char *transport) {
    static struct held held;
    struct child children[RANKS];
    int ranks = rank_count();
    memset(&held, 0, sizeof held);
    int before = files_named("/dev/shm");
    start_all(children, what, transport);
    for (int r = 0; r < ranks; r++) {
        look_at_maps(&held, children[r].pid);
        look_at_descriptors(&held, children[r].pid);
    }
    if (strcmp(transport, "shm") == 0) {
        /* The world's and both parts'; there may be one more at any moment. */
        CHECK(held.segment_count >= 3);
        CHECK(held.mailbox_count == ranks);
        CHECK(segments_mapped(&held) >= 2 * ranks);
        CHECK(mailboxes_listed(&held) == ranks);
    } else {
        CHECK(held.segment_count == 0 && held.mailbox_count == 0);
    }
    CHECK(files_named("/dev/shm") == before);
    int objects[KINDS] = {0};
    if (over_rdma()) {
        signal_all(children, SIGSTOP); /* they leave no time to anybody else where it is emulated */
    }
    for (enum kind kind = 0; over_rdma() && kind < KINDS; kind++) {
        objects[kind] = objects_of(kind, children, ranks);
    }
    if (over_rdma()) {
        /* Each rank has a wire to each other, and two regions for each. */
        int wires = ranks * (ranks - 1);
        CHECK(objects[QUEUE_PAIRS] == wires);
        CHECK(objects[REGIONS] >= 2 * wires);
        CHECK(objects[CONTEXTS] >= ranks);
        signal_all(children, SIGCONT);
        sleep_ms(100);
    }
    signal_all(children, SIGKILL);
    for (int r = 0; r < ranks; r++) {
        CHECK(child_end(&children[r]) == 128 + SIGKILL);
    }
    CHECK(segments_mapped(&held) == 0);
    CHECK(mailboxes_listed(&held) == 0);
    CHECK(files_named("/dev/shm") == before);
    for (enum kind kind = 0; over_rdma() && kind < KINDS; kind++) {
        CHECK(objects_of(kind, children, ranks) == 0);
    }
    printf(
        "killed: %s over %s: %d segments, %d mailboxes, %d queue pairs and %d regions are gone\n",
        what, over_rdma() ? "rdma" : transport, held.segment_count, held.mailbox_count,
        objects[QUEUE_PAIRS], objects[REGIONS]);
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "child") == 0) {
        return member_main(argv[2]);
    }
    int end;
    if (starts_begin(argc, argv, &end)) {
        return end;
    }
    if (over_rdma()) {
        kill_all("collectives", "tcp");
        kill_all("messages", "tcp");
        return starts_finish("killed");
    }
    for (int round = 0; round < 5; round++) {
        kill_all("collectives", "shm");
        kill_all("messages", "shm");
    }
    kill_all("collectives", "tcp");
    return starts_finish("killed");
}

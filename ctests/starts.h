/* Test support for starts: each runs in a process of its own, which this program starts and listens
 * to.
 *
 * As a child: PROGRAM child <strict|lenient> <backend> [NAME=value ...] (settings given as options)
 */
#ifndef STARTS_H
#define STARTS_H

#include "processes.h"

static const char *program;
static char folder[] = "/tmp/mlxd-starts-XXXXXX";

/* Long enough for anything but a hang. */
#define SOON_S 15.0

static inline int child_main(int argc, char **argv) {
    check_start(30);
    bool strict = strcmp(argv[2], "strict") == 0;
    mlxd_group *world;
    if (argc > 4) {
        mlxd_options *options = mlxd_options_new();
        REQUIRE(options != NULL);
        for (int i = 4; i < argc; i++) {
            char *equals = strchr(argv[i], '=');
            *equals = '\0';
            REQUIRE_OK(mlxd_options_set(options, argv[i], equals + 1));
        }
        world = mlxd_init_with_options(strict, argv[3], options);
        mlxd_options_free(options);
    } else {
        world = mlxd_init(strict, argv[3]);
    }
    mlxd_status status = mlxd_last_status();
    if (world != NULL) {
        int32_t one = 1;
        int32_t sum = 0;
        status = mlxd_all_sum(world, &one, &sum, 1, MLXD_INT32, NULL);
        report_send(status, world);
        CHECK(sum == mlxd_group_size(world));
    } else {
        CHECK(status != MLXD_OK);
        report_send(status, NULL);
    }
    mlxd_group_free(world);
    return atomic_load(&check_failures) == 0 ? 0 : 1;
}

/* A list of up to CHILD_MAX "NAME=value", formatted in place. */
struct settings {
    char text[CHILD_MAX][160];
    const char *list[CHILD_MAX + 1];
    int count;
};

#define SETTING(to, ...)                                                     \
    do {                                                                     \
        REQUIRE((to)->count < CHILD_MAX);                                    \
        snprintf((to)->text[(to)->count], sizeof(to)->text[0], __VA_ARGS__); \
        (to)->list[(to)->count] = (to)->text[(to)->count];                   \
        (to)->list[++(to)->count] = NULL;                                    \
    } while (0)

static inline struct child start(const char *mode, const char *backend,
                                 const struct settings *variables) {
    const char *arguments[] = {"child", mode, backend, NULL};
    return child_start(program, arguments, variables->list);
}

/* The child's report and end; one that died without a word is a failure of its own. */
static inline struct report finish(struct child *child) {
    struct report report;
    memset(&report, 0, sizeof report);
    report.status = -1;
    bool reported = report_read(child, &report);
    int end = child_end(child);
    CHECK(reported);
    CHECK(end == 0);
    return report;
}

static inline void write_file(const char *name, const char *content, char *path, size_t path_size) {
    snprintf(path, path_size, "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    REQUIRE(file != NULL);
    REQUIRE(fputs(content, file) >= 0);
    REQUIRE(fclose(file) == 0);
}

/* How the tests describe a world to the process that is to be `rank` in it. */
typedef void (*describe_rank)(struct settings *variables, int rank, int size, int port);

static inline void by_coordinator(struct settings *variables, int rank, int size, int port) {
    SETTING(variables, "MLXD_RANK=%d", rank);
    SETTING(variables, "MLXD_WORLD_SIZE=%d", size);
    SETTING(variables, "MLXD_COORDINATOR=127.0.0.1:%d", port);
}

static inline void by_torchrun(struct settings *variables, int rank, int size, int port) {
    SETTING(variables, "RANK=%d", rank);
    SETTING(variables, "WORLD_SIZE=%d", size);
    SETTING(variables, "MASTER_ADDR=127.0.0.1");
    SETTING(variables, "MASTER_PORT=%d", port);
}

/* A hostfile where rank r has `many` addresses, as `format` writes host and port. */
static inline void describe_hosts(struct settings *variables, int rank, int size, int port,
                                  const char *host, int many) {
    char content[1024] = "[";
    char path[128];
    for (int r = 0; r < size; r++) {
        size_t at = strlen(content);
        snprintf(content + at, sizeof content - at, "%s[", r == 0 ? "" : ", ");
        for (int i = 0; i < many; i++) {
            at = strlen(content);
            snprintf(content + at, sizeof content - at, "%s\"%s:%d\"", i == 0 ? "" : ", ", host,
                     port + r * many + i);
        }
        at = strlen(content);
        snprintf(content + at, sizeof content - at, "]");
    }
    size_t at = strlen(content);
    snprintf(content + at, sizeof content - at, "]");
    char name[32];
    snprintf(name, sizeof name, "hosts-%d-%d.json", port, rank);
    write_file(name, content, path, sizeof path);
    SETTING(variables, "MLX_RANK=%d", rank);
    SETTING(variables, "MLX_HOSTFILE=%s", path);
}

static inline void by_hostfile(struct settings *variables, int rank, int size, int port) {
    describe_hosts(variables, rank, size, port, "127.0.0.1", 1);
}

/* The first statements of every main here; returns true in a child, whose exit status is *end. */
static inline bool starts_begin(int argc, char **argv, int *end) {
    if (argc >= 4 && strcmp(argv[1], "child") == 0) {
        *end = child_main(argc, argv);
        return true;
    }
    check_start(170);
    signal(SIGPIPE, SIG_IGN); /* a test may talk to someone who has hung up */
    program = argv[0];
    REQUIRE(mkdtemp(folder) != NULL);
    return false;
}

static inline int starts_finish(const char *name) {
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", folder);
    CHECK(system(command) == 0);
    return check_finish(name);
}

#endif

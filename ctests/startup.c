/* Every source that rank and size may come from: hostfile, coordinator, torchrun's variables,
 * options; IPv4, IPv6 and host names; worlds of one. */
#include "starts.h"

/* Worlds of one. */
static void alone(void) {
    char path[128];
    struct settings variables = {.count = 0};
    static const char *const empty[] = {"[]", "",
                                        " \n"}; /* for one rank a launcher writes nothing */
    struct child child;
    struct report report;
    for (size_t i = 0; i < sizeof empty / sizeof empty[0]; i++) {
        write_file("empty.json", empty[i], path, sizeof path);
        variables.count = 0;
        SETTING(&variables, "MLX_RANK=0");
        SETTING(&variables, "MLX_HOSTFILE=%s", path);
        child = start("strict", "any", &variables);
        report = finish(&child);
        CHECK(report.status == MLXD_OK && report.size == 1 && report.rank == 0);
        CHECK(strcmp(report.backend, "ring") == 0);
    }

    write_file("one.json", "[[\"127.0.0.1:20000\"]]", path, sizeof path);
    variables.count = 0;
    SETTING(&variables, "MLX_RANK=0");
    SETTING(&variables, "MLX_HOSTFILE=%s", path);
    child = start("strict", "ring", &variables);
    report = finish(&child);
    CHECK(report.status == MLXD_OK && report.size == 1);

    variables.count = 0;
    SETTING(&variables, "MLXD_RANK=0");
    SETTING(&variables, "MLXD_WORLD_SIZE=1");
    SETTING(&variables, "MLXD_COORDINATOR=127.0.0.1:%d", free_ports(1));
    child = start("strict", "ring", &variables);
    report = finish(&child);
    CHECK(report.status == MLXD_OK && report.size == 1);

    /* Nothing to start from, and a size that announces nobody else. */
    variables.count = 0;
    variables.list[0] = NULL;
    child = start("lenient", "any", &variables);
    report = finish(&child);
    CHECK(report.status == MLXD_OK && report.size == 1);
    CHECK(strcmp(report.backend, "none") == 0);
    SETTING(&variables, "WORLD_SIZE=1");
    child = start("lenient", "any", &variables);
    report = finish(&child);
    CHECK(report.status == MLXD_OK && report.size == 1);
}

/* Starts one child per rank with the variables that `describe` gives it; all must succeed. */
static void check_world(describe_rank describe, int size, const char *backend, const char *label) {
    struct child children[8];
    int port = free_ports(4 * size);
    for (int rank = size - 1; rank >= 0; rank--) { /* rank 0 comes last */
        struct settings variables = {.count = 0};
        describe(&variables, rank, size, port);
        children[rank] = start("strict", backend, &variables);
    }
    for (int rank = 0; rank < size; rank++) {
        struct report report = finish(&children[rank]);
        if (report.status != MLXD_OK) {
            fprintf(stderr, "%s, rank %d: %s \"%s\"\n", label, rank,
                    mlxd_status_name(report.status), report.message);
        }
        CHECK(report.status == MLXD_OK);
        CHECK(report.rank == rank && report.size == size);
        CHECK(strcmp(report.backend, "ring") == 0);
    }
}

static void by_host_name(struct settings *variables, int rank, int size, int port) {
    SETTING(variables, "MLXD_RANK=%d", rank);
    SETTING(variables, "MLXD_WORLD_SIZE=%d", size);
    SETTING(variables, "MLXD_COORDINATOR=localhost:%d", port);
}

static void by_ipv6(struct settings *variables, int rank, int size, int port) {
    SETTING(variables, "MLXD_RANK=%d", rank);
    SETTING(variables, "MLXD_WORLD_SIZE=%d", size);
    SETTING(variables, "MLXD_COORDINATOR=[::1]:%d", port);
}

/* torchrun's own store listens at MASTER_PORT; the test stands in for it. */
static void by_torchrun_with_store(struct settings *variables, int rank, int size, int port) {
    by_torchrun(variables, rank, size, port);
    SETTING(variables, "TORCHELASTIC_USE_AGENT_STORE=True");
}

/* MLXD_ names win over MLX_ names and torchrun's. */
static void by_several(struct settings *variables, int rank, int size, int port) {
    by_coordinator(variables, rank, size, port);
    SETTING(variables, "MLX_RANK=%d", 77);
    SETTING(variables, "RANK=%d", 78);
    SETTING(variables, "WORLD_SIZE=%d", 79);
}

static void by_hostfile_of_names(struct settings *variables, int rank, int size, int port) {
    describe_hosts(variables, rank, size, port, "localhost", 1);
}

static void by_hostfile_of_ipv6(struct settings *variables, int rank, int size, int port) {
    describe_hosts(variables, rank, size, port, "[::1]", 1);
}

static void by_hostfile_of_many(struct settings *variables, int rank, int size, int port) {
    describe_hosts(variables, rank, size, port, "127.0.0.1", 3);
}

static void sources(void) {
    for (int size = 2; size <= 4; size++) {
        check_world(by_coordinator, size, "ring", "coordinator");
        check_world(by_hostfile, size, "ring", "hostfile");
    }
    check_world(by_coordinator, 2, "any", "any");
    check_world(by_host_name, 2, "ring", "host name");
    check_world(by_hostfile_of_names, 3, "ring", "hostfile of names");
    check_world(by_hostfile_of_many, 2, "ring", "several addresses");
    check_world(by_hostfile_of_many, 3, "ring", "several addresses");
    check_world(by_torchrun, 3, "any", "torchrun");
    check_world(by_several, 2, "ring", "several sources");
    if (port_is_free(AF_INET6, free_ports(1))) {
        check_world(by_ipv6, 2, "ring", "IPv6");
        check_world(by_hostfile_of_ipv6, 3, "ring", "hostfile of IPv6");
    } else {
        printf("startup: no IPv6 on this machine, left out\n");
    }
}

static int listen_at(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)port),
                                  .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    REQUIRE(fd >= 0);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    REQUIRE(bind(fd, (struct sockaddr *)&address, sizeof address) == 0);
    REQUIRE(listen(fd, 8) == 0);
    return fd;
}

static void torchrun_store(void) {
    int port = free_ports(2);
    int store = listen_at(port);
    struct child children[2];
    for (int rank = 0; rank < 2; rank++) {
        struct settings variables = {.count = 0};
        by_torchrun_with_store(&variables, rank, 2, port);
        children[rank] = start("strict", "any", &variables);
    }
    for (int rank = 0; rank < 2; rank++) {
        struct report report = finish(&children[rank]);
        CHECK(report.status == MLXD_OK);
        CHECK(report.rank == rank && report.size == 2);
    }
    close(store);
}

/* Options win over variables that would fail. */
static void settings_by_option(void) {
    int port = free_ports(4);
    struct child children[2];
    struct settings wrong = {.count = 0};
    SETTING(&wrong, "MLXD_RANK=9");
    SETTING(&wrong, "MLXD_WORLD_SIZE=nine");
    SETTING(&wrong, "MLXD_COORDINATOR=nowhere.invalid:1");
    for (int rank = 0; rank < 2; rank++) {
        struct settings right = {.count = 0};
        by_coordinator(&right, rank, 2, port);
        const char *arguments[] = {"child",       "strict",      "ring", right.list[0],
                                   right.list[1], right.list[2], NULL};
        children[rank] = child_start(program, arguments, wrong.list);
    }
    for (int rank = 0; rank < 2; rank++) {
        struct report report = finish(&children[rank]);
        CHECK(report.status == MLXD_OK);
        CHECK(report.rank == rank && report.size == 2);
    }
}

static int32_t gather_that_fails(void *user_data, const void *src, void *dst, size_t bytes) {
    (void)user_data;
    (void)src;
    (void)dst;
    (void)bytes;
    return 77;
}

/* As a child: startup gather <rank> <size> <folder> */
static int gather_main(char **argv) {
    check_start(30);
    struct file_gather gather = {argv[4], atoi(argv[2]), atoi(argv[3]), 0};
    mlxd_options *options = mlxd_options_new();
    REQUIRE(options != NULL);
    CHECK_OK(mlxd_options_set(options, "MLXD_RANK", argv[2]));
    CHECK_OK(mlxd_options_set(options, "MLXD_WORLD_SIZE", argv[3]));
    CHECK_OK(mlxd_options_set_all_gather(options, gather_that_fails, NULL));
    CHECK(mlxd_init_with_options(true, "ring", options) == NULL);
    CHECK(mlxd_last_status() != MLXD_OK);
    CHECK_ERROR_NAMES("77");
    CHECK_OK(mlxd_options_set_all_gather(options, gather_by_files, &gather));
    mlxd_group *world = mlxd_init_with_options(true, "ring", options);
    mlxd_status status = mlxd_last_status();
    int32_t one = 1;
    int32_t sum = 0;
    if (world != NULL) {
        status = mlxd_all_sum(world, &one, &sum, 1, MLXD_INT32, NULL);
    }
    report_send(status, world);
    CHECK(sum == gather.size);
    mlxd_group_free(world);
    mlxd_options_free(options);
    return atomic_load(&check_failures) == 0 ? 0 : 1;
}

static void own_all_gather(void) {
    enum { RANKS = 3 };
    struct child children[RANKS];
    for (int rank = 0; rank < RANKS; rank++) {
        char rank_text[16];
        char size_text[16];
        snprintf(rank_text, sizeof rank_text, "%d", rank);
        snprintf(size_text, sizeof size_text, "%d", RANKS);
        const char *arguments[] = {"gather", rank_text, size_text, folder, NULL};
        const char *no_variables[] = {NULL};
        children[rank] = child_start(program, arguments, no_variables);
    }
    for (int rank = 0; rank < RANKS; rank++) {
        struct report report = finish(&children[rank]);
        if (report.status != MLXD_OK) {
            fprintf(stderr, "own all-gather, rank %d: %s \"%s\"\n", rank,
                    mlxd_status_name(report.status), report.message);
        }
        CHECK(report.status == MLXD_OK);
        CHECK(report.rank == rank && report.size == RANKS);
    }
}

int main(int argc, char **argv) {
    if (argc == 5 && strcmp(argv[1], "gather") == 0) {
        return gather_main(argv);
    }
    int end;
    if (starts_begin(argc, argv, &end)) {
        return end;
    }
    alone();
    sources();
    torchrun_store();
    settings_by_option();
    own_all_gather();
    return starts_finish("startup");
}

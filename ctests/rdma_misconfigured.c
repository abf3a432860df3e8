/* What may be wrong with a world of jaccl, and the errors that say so:
 *
 *   rdma_misconfigured matrix      devices files; needs no device
 *   rdma_misconfigured devices     devices, ports, addresses, ranks that disagree */
#include "rdma.h"

static void check_report(const struct report *report, mlxd_status status, const char *word,
                         const char *label) {
    bool names = strstr(report->message, word) != NULL;
    if (report->status != status || !names) {
        fprintf(stderr, "%s: want %s and \"%s\", got %s: \"%s\"\n", label, mlxd_status_name(status),
                word, mlxd_status_name(report->status), report->message);
    }
    CHECK(report->status == status);
    CHECK(names);
}

/* Starts alone, strictly and not: the same error. */
static void check_alone(const struct settings *variables, const char *word, const char *label) {
    static const char *const modes[] = {"strict", "lenient"};
    for (int mode = 0; mode < 2; mode++) {
        double begin = seconds();
        struct child child = start(modes[mode], "jaccl", variables);
        struct report report = finish(&child);
        check_report(&report, MLXD_ERROR_CONFIG, word, label);
        check_report(&report, MLXD_ERROR_CONFIG, "[jaccl] init: ", label);
        CHECK(seconds() - begin < SOON_S);
    }
}

/* Rank 0 with this text as its devices file; the error names the file and `word`. */
static void check_matrix(const char *text, const char *word) {
    char path[128];
    char start_of_message[192];
    write_file("matrix.json", text, path, sizeof path);
    struct settings variables = {.count = 0};
    SETTING(&variables, "MLX_RANK=0");
    SETTING(&variables, "MLX_IBV_DEVICES=%s", path);
    SETTING(&variables, "MLX_JACCL_COORDINATOR=127.0.0.1:20011");
    check_alone(&variables, word, text);
    snprintf(start_of_message, sizeof start_of_message, "MLX_IBV_DEVICES (\"%s\"): ", path);
    check_alone(&variables, start_of_message, text);
}

static void wrong_matrices(void) {
    static const struct {
        const char *text;
        const char *word;
    } cases[] = {
        {"", "not JSON"},
        {"[[null, \"rxe0\"], [\"rxe0\", null]", "not JSON"},
        {"{\"0\": [null]}", "found an object"},
        {"[]", "no row"},
        {"[[null, \"rxe0\"], [\"rxe0\"]]", "row 1 has 1 entries"},
        {"[[null, 1], [\"rxe0\", null]]", "row 0, column 1"},
        {"[[null, \"rxe0\"], [\"\", null]]", "row 1, column 0: a device's name is empty"},
        {"[[null, \"rxe0\"], [[\"a\", \"b\", \"c\", \"d\", \"e\"], null]]", "5 devices"},
        {"[[\"rxe0\", \"rxe0\"], [\"rxe0\", null]]", "row 0, column 0 names a device"},
        {"[[null, \"rxe0\"], [null, null]]", "row 1, column 0 is null"},
        {"[[null, \"rxe0\"], [[\"rxe0\", \"rxe1\"], null]]", "row 1, column 0 names 2 devices"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        check_matrix(cases[i].text, cases[i].word);
    }
}

/* What goes with the devices file. */
static void wrong_variables(void) {
    static const struct {
        const char *variable;
        const char *word;
    } cases[] = {
        {"MLX_RANK=", "MLX_RANK is not set"},
        {"MLX_RANK=2", "MLX_RANK=\"2\" is out of range"},
        {"MLX_RANK=first", "MLX_RANK=\"first\" is not a rank"},
        {"MLX_JACCL_COORDINATOR=", "MLX_JACCL_COORDINATOR is not set"},
        {"MLX_JACCL_COORDINATOR=127.0.0.1", "MLX_JACCL_COORDINATOR: \"127.0.0.1\" has no port"},
        {"MLX_IBV_DEVICES=/no/such/file", "MLX_IBV_DEVICES (\"/no/such/file\")"},
        {"MLX_IBV_DEVICES=", "MLX_IBV_DEVICES is not"},
        {"MLXD_RDMA_QP=ud", "MLXD_RDMA_QP=\"ud\" is not rc or uc"},
        {"MLXD_RDMA_GID_INDEX=first", "MLXD_RDMA_GID_INDEX=\"first\""},
        {"MLXD_RDMA_PORT=0", "MLXD_RDMA_PORT=\"0\""},
        {"MLXD_RDMA_REGISTER=yes", "MLXD_RDMA_REGISTER=\"yes\" is not auto, always or never"},
        {"MLXD_RDMA_SERVICE_LEVEL=16", "MLXD_RDMA_SERVICE_LEVEL=\"16\" is not a service level"},
        {"MLXD_RDMA_TRAFFIC_CLASS=256", "MLXD_RDMA_TRAFFIC_CLASS=\"256\" is not a traffic class"},
        {"MLXD_RDMA_PKEY_INDEX=65536", "MLXD_RDMA_PKEY_INDEX=\"65536\" is not a place"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct settings variables = {.count = 0};
        by_devices(&variables, 0, 2, 20011, "rxe0");
        /* The last of a name is the one that counts. */
        SETTING(&variables, "%s", cases[i].variable);
        check_alone(&variables, cases[i].word, cases[i].variable);
    }
}

/* What one of two ranks does differently: a device of its own, a variable. */
struct difference {
    const char *device;
    const char *variable;
};

/* A world of two whose rank 1 is different: how it fares, and how rank 0 hears of it. What is wrong
 * with rank 1 alone, or is_of_one, may keep it from coming at all. */
static void check_pair(struct difference different, bool is_of_one, mlxd_status status,
                       const char *word) {
    const char *label = different.variable != NULL ? different.variable : different.device;
    struct child children[2];
    int port = free_ports(2);
    double begin = seconds();
    for (int rank = 0; rank < 2; rank++) {
        struct settings variables = {.count = 0};
        by_devices(&variables, rank, 2, port, rank == 1 ? different.device : NULL);
        SETTING(&variables, "MLXD_CONNECT_TIMEOUT_MS=3000");
        if (rank == 1 && different.variable != NULL) {
            SETTING(&variables, "%s", different.variable);
        }
        children[rank] = start("strict", "jaccl", &variables);
    }
    struct report reports[2];
    for (int rank = 0; rank < 2; rank++) {
        reports[rank] = finish(&children[rank]);
    }
    check_report(&reports[1], status, word, label);
    /* The other one is told by it, or says who has not come. */
    bool told = reports[0].status == status && strstr(reports[0].message, word) != NULL;
    bool names = names_number(reports[0].message, 1);
    if (!names || (!told && reports[0].status != MLXD_ERROR_TIMEOUT)) {
        fprintf(stderr, "%s: rank 0: %s: \"%s\"\n", label, mlxd_status_name(reports[0].status),
                reports[0].message);
    }
    CHECK(names);
    CHECK(told || reports[0].status == MLXD_ERROR_TIMEOUT);
    CHECK(told || is_of_one);
    CHECK(seconds() - begin < SOON_S);
}

static void wrong_devices(void) {
    char name[DEVICE_NAME];
    test_device(0, name);
    check_pair((struct difference){"no_such_device", NULL}, true, MLXD_ERROR_CONFIG,
               "no RDMA device \"no_such_device\"");
    /* The names that would be right. */
    check_pair((struct difference){"no_such_device", NULL}, true, MLXD_ERROR_CONFIG, name);
    const char *bare = getenv("MLXD_TEST_RDMA_BARE");
    if (bare != NULL) {
        check_pair((struct difference){bare, NULL}, true, MLXD_ERROR_UNAVAILABLE, bare);
        check_pair((struct difference){bare, NULL}, true, MLXD_ERROR_UNAVAILABLE, "has no address");
    }
    const char *down = getenv("MLXD_TEST_RDMA_DOWN");
    if (down != NULL) {
        check_pair((struct difference){down, NULL}, true, MLXD_ERROR_UNAVAILABLE, down);
        check_pair((struct difference){down, NULL}, true, MLXD_ERROR_UNAVAILABLE, "port 1 is down");
    }
    printf("rdma_misconfigured: without an address: %s, down: %s\n", bare ? bare : "no such device",
           down ? down : "no such device");
}

static void wrong_places(void) {
    check_pair((struct difference){NULL, "MLXD_RDMA_PORT=77"}, true, MLXD_ERROR_CONFIG,
               "MLXD_RDMA_PORT=77");
    check_pair((struct difference){NULL, "MLXD_RDMA_GID_INDEX=255"}, true, MLXD_ERROR_CONFIG,
               "MLXD_RDMA_GID_INDEX=255");
    check_pair(
        (struct difference){NULL, "MLXD_RDMA_PKEY_INDEX=65535"}, true, MLXD_ERROR_CONFIG,
        "MLXD_RDMA_PKEY_INDEX=65535: its table ends before; port 1 has the partition keys 0: ");
}

static void ranks_disagree(void) {
    check_pair((struct difference){NULL, "MLXD_RDMA_QP=uc"}, false, MLXD_ERROR_CONFIG,
               "MLXD_RDMA_QP");
    /* Rank 0 turns such a guest away, and goes on waiting for rank 1. */
    check_pair((struct difference){NULL, "MLX_JACCL_RING=1"}, true, MLXD_ERROR_CONFIG,
               "topology=ring");
}

int main(int argc, char **argv) {
    int end;
    if (starts_begin(argc, argv, &end)) {
        return end;
    }
    REQUIRE(argc == 2);
    if (strcmp(argv[1], "matrix") == 0) {
        wrong_matrices();
        wrong_variables();
    } else {
        wrong_devices();
        wrong_places();
        ranks_disagree();
    }
    return starts_finish("rdma_misconfigured");
}

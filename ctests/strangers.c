/* Starts that go wrong between processes: ranks that never come, ranks that contradict each other,
 * strangers at the door. */
#include "starts.h"

/* Ranks that never come are named when the time is over, in both modes. */
static void peers_that_never_come(void) {
    static const struct {
        describe_rank describe;
        int rank;
        int size;
        int missing[3];
    } cases[] = {
        {by_coordinator, 0, 3, {1, 2, -1}}, {by_coordinator, 1, 2, {0, -1, -1}},
        {by_hostfile, 0, 3, {1, 2, -1}},    {by_hostfile, 1, 2, {0, -1, -1}},
        {by_torchrun, 0, 2, {1, -1, -1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct settings variables = {.count = 0};
        cases[i].describe(&variables, cases[i].rank, cases[i].size, free_ports(8));
        SETTING(&variables, "MLXD_CONNECT_TIMEOUT_MS=500");
        double begin = seconds();
        struct child child = start(i % 2 == 0 ? "strict" : "lenient", "ring", &variables);
        struct report report = finish(&child);
        double took = seconds() - begin;
        CHECK(report.status == MLXD_ERROR_TIMEOUT || report.status == MLXD_ERROR_CONFIG);
        CHECK(took > 0.4 && took < SOON_S);
        for (int j = 0; j < 3 && cases[i].missing[j] >= 0; j++) {
            bool named = names_number(report.message, cases[i].missing[j]);
            if (!named) {
                fprintf(stderr, "case %zu: \"%s\" does not name rank %d\n", i, report.message,
                        cases[i].missing[j]);
            }
            CHECK(named);
        }
        printf("startup: given up after %.2f s: %s\n", took, report.message);
    }
}

/* Ranks that contradict each other: nobody gets a world, somebody is told why. */
static void check_contradiction(const int (*ranks_and_sizes)[2], int count, const char *word,
                                const char *label) {
    struct child children[4];
    int port = free_ports(4);
    bool told = false;
    for (int i = 0; i < count; i++) {
        struct settings variables = {.count = 0};
        by_coordinator(&variables, ranks_and_sizes[i][0], ranks_and_sizes[i][1], port);
        SETTING(&variables, "MLXD_CONNECT_TIMEOUT_MS=2000");
        children[i] = start("strict", "ring", &variables);
    }
    for (int i = 0; i < count; i++) {
        struct report report = finish(&children[i]);
        if (report.status == MLXD_ERROR_CONFIG && strstr(report.message, word) != NULL) {
            told = true;
        } else {
            printf("startup: %s, process %d: %s \"%s\"\n", label, i,
                   mlxd_status_name(report.status), report.message);
        }
        CHECK(report.status != MLXD_OK);
    }
    CHECK(told);
}

static void contradictions(void) {
    static const int twice_one[3][2] = {{0, 3}, {1, 3}, {1, 3}};
    check_contradiction(twice_one, 3, "1", "rank 1 twice");
    static const int other_size[2][2] = {{0, 2}, {1, 3}};
    check_contradiction(other_size, 2, "3", "another world size");
}

/* Connects to rank 0 as soon as it listens. */
static int knock(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)port),
                                  .sin_addr = {htonl(INADDR_LOOPBACK)}};
    double end = seconds() + SOON_S;
    while (seconds() < end) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        REQUIRE(fd >= 0);
        fcntl(fd, F_SETFD, FD_CLOEXEC);
        if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0) {
            return fd;
        }
        close(fd);
        sleep_ms(20);
    }
    REQUIRE(!"rank 0 listens");
    return -1;
}

/* Strangers come before the ranks do: rubbish, a web client, one who says nothing, one who hangs
 * up, one who never stops. They are turned away and the start goes on. */
static void strangers(describe_rank describe, const char *label) {
    int port = free_ports(8);
    struct child children[3];
    struct settings variables = {.count = 0};
    describe(&variables, 0, 3, port);
    children[0] = start("strict", "ring", &variables);

    static const char web[] = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    unsigned char rubbish[512];
    for (size_t i = 0; i < sizeof rubbish; i++) {
        rubbish[i] = (unsigned char)(i * 151 + 17);
    }
    static const unsigned char endless[64] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    int fds[6];
    fds[0] = knock(port);
    CHECK(write(fds[0], web, sizeof web - 1) > 0);
    fds[1] = knock(port);
    CHECK(write(fds[1], rubbish, sizeof rubbish) > 0);
    fds[2] = knock(port); /* says nothing, stays */
    fds[3] = knock(port);
    CHECK(write(fds[3], endless, sizeof endless) > 0);
    fds[4] = knock(port);
    CHECK(write(fds[4], "M", 1) == 1); /* stops in the middle of a word, stays */
    fds[5] = knock(port);
    close(fds[5]); /* hangs up at once */

    for (int rank = 1; rank < 3; rank++) {
        variables.count = 0;
        describe(&variables, rank, 3, port);
        children[rank] = start("strict", "ring", &variables);
    }
    double begin = seconds();
    for (int rank = 0; rank < 3; rank++) {
        struct report report = finish(&children[rank]);
        if (report.status != MLXD_OK) {
            fprintf(stderr, "strangers, %s, rank %d: %s \"%s\"\n", label, rank,
                    mlxd_status_name(report.status), report.message);
        }
        CHECK(report.status == MLXD_OK);
        CHECK(report.rank == rank && report.size == 3);
    }
    CHECK(seconds() - begin < SOON_S);
    for (int i = 0; i < 5; i++) {
        close(fds[i]);
    }
}

int main(int argc, char **argv) {
    int end;
    if (starts_begin(argc, argv, &end)) {
        return end;
    }
    peers_that_never_come();
    contradictions();
    strangers(by_coordinator, "coordinator");
    strangers(by_hostfile, "hostfile");
    return starts_finish("strangers");
}

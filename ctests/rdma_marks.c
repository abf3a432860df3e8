/* How packets of a world of jaccl are marked on the way: each rank's have its traffic class in
 * their IP header, and its partition key. What Soft-RoCE sends goes through the kernel's network,
 * so that it can be looked at; other devices send by themselves. Nothing else may use the devices
 * meanwhile. */
#include "rdma.h"

#include <linux/if_packet.h>
#include <net/ethernet.h>

/* RoCE v2: InfiniBand's headers in UDP, at this port. */
#define ROCE_PORT 4791
#define IP_BYTES 20
#define UDP_BYTES 8
/* The partition that a port is in which nobody put in another. */
#define DEFAULT_KEY 0xffffu

/* What is seen of one rank's packets. */
struct seen {
    in_addr_t from;
    int marked;   /* with its own traffic class */
    int unmarked; /* with another one */
};

static int skip(const char *why) {
    const char *required = getenv("MLXD_TEST_RDMA");
    if (required != NULL && strcmp(required, "required") == 0) {
        fprintf(stderr, "MLXD_TEST_RDMA=required, but %s\n", why);
        return 1;
    }
    printf("skipped: %s\n", why);
    return 77;
}

static bool is_soft(int device) {
    char name[DEVICE_NAME];
    char path[DEVICE_NAME + 64];
    test_device(device, name);
    /* Names the network interface that it is on; other devices have no such file. */
    snprintf(path, sizeof path, "/sys/class/infiniband/%s/parent", name);
    return access(path, R_OK) == 0;
}

static unsigned number_at(const unsigned char *packet) {
    return (unsigned)packet[0] << 8 | packet[1];
}

/* Looks at one IP packet: true if it is RoCE, from the rank that `seen` is of if it is of any yet.
 */
static bool look_at(const unsigned char *packet, ssize_t length, int class, struct seen *seen) {
    bool is_udp =
        length >= IP_BYTES + UDP_BYTES + 4 && packet[0] == 0x45 && packet[9] == IPPROTO_UDP;
    if (!is_udp || number_at(packet + IP_BYTES + 2) != ROCE_PORT) {
        return false;
    }
    in_addr_t from;
    memcpy(&from, packet + 12, sizeof from);
    if (packet[1] == class) {
        seen->marked++;
        /* All of a class come from the rank whose class it is. */
        CHECK(seen->from == 0 || seen->from == from);
        seen->from = from;
    } else {
        seen->unmarked += from == seen->from;
    }
    CHECK(number_at(packet + IP_BYTES + UDP_BYTES + 2) == DEFAULT_KEY);
    return true;
}

/* A world of two with a class for each. */
static void check_classes(int packets, const int class[2]) {
    struct child children[2];
    int port = free_ports(2);
    for (int rank = 0; rank < 2; rank++) {
        struct settings variables = {.count = 0};
        by_mesh(&variables, rank, 2, port);
        SETTING(&variables, "MLXD_RDMA_TRAFFIC_CLASS=%d", class[rank]);
        SETTING(&variables, "MLXD_RDMA_SERVICE_LEVEL=%d", 3 + rank);
        SETTING(&variables, "MLXD_RDMA_PKEY_INDEX=0");
        children[rank] = start("strict", "jaccl", &variables);
    }
    for (int rank = 0; rank < 2; rank++) {
        CHECK(finish(&children[rank]).status == MLXD_OK);
    }
    struct seen seen[2] = {{0, 0, 0}, {0, 0, 0}};
    unsigned char packet[256];
    int roce = 0;
    for (ssize_t length; (length = recv(packets, packet, sizeof packet, MSG_DONTWAIT)) > 0;) {
        bool is_roce = look_at(packet, length, class[0], &seen[0]);
        look_at(packet, length, class[1], &seen[1]);
        roce += is_roce;
    }
    for (int rank = 0; rank < 2; rank++) {
        CHECK(seen[rank].marked > 0);
        CHECK(seen[rank].unmarked == 0);
    }
    CHECK(seen[0].marked + seen[1].marked == roce);
    printf("rdma_marks: classes %d and %d in %d and %d of %d packets\n", class[0], class[1],
           seen[0].marked, seen[1].marked, roce);
}

int main(int argc, char **argv) {
    int end;
    if (starts_begin(argc, argv, &end)) {
        return end;
    }
    if (!is_soft(0) || !is_soft(1)) {
        return skip("packets of these devices pass the kernel by: this takes Soft-RoCE");
    }
    int packets = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, htons(ETH_P_IP));
    if (packets < 0) {
        return skip("packets can be looked at by root only");
    }
    static const int classes[][2] = {{104, 184}, {0, 255}};
    for (size_t i = 0; i < sizeof classes / sizeof classes[0]; i++) {
        check_classes(packets, classes[i]);
    }
    close(packets);
    return starts_finish("rdma_marks");
}

/* Test support: worlds of jaccl on the devices that MLXD_TEST_RDMA_DEVICES names. */
#ifndef RDMA_H
#define RDMA_H

#include "starts.h"

/* Longest name that the system gives a device. */
#define DEVICE_NAME 64

/* The device of this number of the environment's list; beyond its end it begins again. */
static inline void test_device(int number, char *name) {
    char list[8 * DEVICE_NAME];
    char *names[8];
    int many = 0;
    char *rest = list;
    const char *text = getenv("MLXD_TEST_RDMA_DEVICES");
    snprintf(list, sizeof list, "%s", text != NULL ? text : "");
    while (many < 8 && (names[many] = strtok_r(rest, " ", &rest)) != NULL) {
        many++;
    }
    REQUIRE(many > 0 && strlen(names[number % many]) < DEVICE_NAME);
    strcpy(name, names[number % many]);
}

/* The text of a devices file in which `device` is each rank's to all others; NULL: the test's
 * devices, one rank after the other. */
static inline void mesh_text(char *text, size_t text_size, int ranks, const char *device) {
    size_t at = 0;
    for (int row = 0; row < ranks; row++) {
        for (int column = 0; column < ranks; column++) {
            char name[DEVICE_NAME];
            if (device != NULL) {
                snprintf(name, sizeof name, "%s", device);
            } else {
                test_device(row, name);
            }
            const char *quote = row == column ? "" : "\"";
            at += (size_t)snprintf(text + at, text_size - at, "%s%s%s%s%s%s",
                                   row == 0 && column == 0 ? "[" : "", column == 0 ? "[" : "",
                                   quote, row == column ? "null" : name, quote,
                                   column < ranks - 1 ? "," : "]");
            REQUIRE(at < text_size);
        }
        at += (size_t)snprintf(text + at, text_size - at, "%s", row < ranks - 1 ? "," : "]");
        REQUIRE(at < text_size);
    }
}

/* As this rank of a world on these devices (see mesh_text). */
static inline void by_devices(struct settings *variables, int rank, int size, int port,
                              const char *device) {
    char text[2048];
    char name[48];
    char path[128];
    mesh_text(text, sizeof text, size, device);
    snprintf(name, sizeof name, "devices-%d-%d.json", port, rank);
    write_file(name, text, path, sizeof path);
    SETTING(variables, "MLX_RANK=%d", rank);
    SETTING(variables, "MLX_IBV_DEVICES=%s", path);
    SETTING(variables, "MLX_JACCL_COORDINATOR=127.0.0.1:%d", port);
}

/* As describe_rank. */
static inline void by_mesh(struct settings *variables, int rank, int size, int port) {
    by_devices(variables, rank, size, port, NULL);
}

#endif

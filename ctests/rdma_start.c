/* Whether jaccl is available, and the start that says why not: where there is no libibverbs, no
 * device, or both are there. */
#include "starts.h"

#include <dirent.h>
#include <dlfcn.h>

/* Entries of the folder in which the kernel lists its devices. */
static int devices_here(void) {
    int found = 0;
    DIR *folder_of_devices = opendir("/sys/class/infiniband_verbs");
    if (folder_of_devices == NULL) {
        return 0;
    }
    for (struct dirent *entry; (entry = readdir(folder_of_devices)) != NULL;) {
        found += strncmp(entry->d_name, "uverbs", 6) == 0;
    }
    closedir(folder_of_devices);
    return found;
}

static char devices_file[128];

/* The environment of a world of two, of which this is rank 0. */
static void announce_world(void) {
    write_file("devices.json", "[[null, \"rxe0\"], [\"rxe0\", null]]", devices_file,
               sizeof devices_file);
    setenv("MLX_IBV_DEVICES", devices_file, 1);
    setenv("MLX_JACCL_COORDINATOR", "127.0.0.1:20011", 1);
    setenv("MLX_RANK", "0", 1);
}

static void check_refused(bool strict, mlxd_status status, const char *word) {
    mlxd_group *world = mlxd_init(strict, "jaccl");
    CHECK(world == NULL);
    CHECK(mlxd_last_status() == status);
    CHECK_ERROR_NAMES("jaccl");
    CHECK_ERROR_NAMES(word);
    mlxd_group_free(world);
}

/* `word` is what is missing. */
static void unavailable(const char *word) {
    CHECK(!mlxd_is_available("jaccl"));
    /* Nothing to start from: alone. */
    mlxd_group *alone = mlxd_init(false, "jaccl");
    REQUIRE(alone != NULL);
    CHECK(mlxd_group_size(alone) == 1);
    CHECK(strcmp(mlxd_group_backend(alone), "none") == 0);
    mlxd_group_free(alone);
    /* A world is announced: strictly, what is missing; else a world of one would be wrong, too. */
    announce_world();
    check_refused(true, MLXD_ERROR_UNAVAILABLE, word);
    check_refused(false, MLXD_ERROR_CONFIG, word);
    check_refused(false, MLXD_ERROR_CONFIG, devices_file);
}

int main(int argc, char **argv) {
    int end;
    if (starts_begin(argc, argv, &end)) {
        return end;
    }
    start_variables_clear();
    bool library = dlopen("libibverbs.so.1", RTLD_NOW) != NULL;
    int devices = devices_here();
    printf("rdma_start: %s libibverbs, %d devices\n", library ? "with" : "without", devices);
    if (!library) {
        unavailable("libibverbs.so.1");
    } else if (devices == 0) {
        unavailable("no RDMA device");
    } else {
        CHECK(mlxd_is_available("jaccl"));
        check_refused(true, MLXD_ERROR_CONFIG, "MLX_IBV_DEVICES");
    }
    return starts_finish("rdma_start");
}

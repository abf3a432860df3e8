/* Name servers that do not answer: a start keeps to its limit. Run by silent_names.sh, where the
 * system's resolver waits for a minute. */
#include "check.h"

static void start_fails(const char *rank) {
    REQUIRE(setenv("MLXD_RANK", rank, 1) == 0);
    mlxd_group *world = mlxd_init(true, "ring");
    CHECK(world == NULL);
    CHECK(mlxd_last_status() == MLXD_ERROR_TIMEOUT);
    CHECK_ERROR_NAMES("far.example:5000");
    mlxd_group_free(world);
}

int main(void) {
    check_start(30);
    REQUIRE(setenv("MLXD_COORDINATOR", "far.example:5000", 1) == 0);
    REQUIRE(setenv("MLXD_WORLD_SIZE", "2", 1) == 0);
    REQUIRE(setenv("MLXD_CONNECT_TIMEOUT_MS", "500", 1) == 0);
    start_fails("0"); /* where to listen */
    start_fails("1"); /* whom to call */
    return check_finish("silent_names");
}

/* Too short a buffer, on purpose: for scripts/sanitize, which must see that the library writes past
 * it. By argument: `reduce`, where the library itself writes, or `receive`, where the system does
 * on its behalf. On two ranks. */
#include "check.h"

/* More than the library stages: it is received in place. Odd: of streamed stores, which nothing
 * watches, there are only whole lines. */
enum { COUNT = (1 << 20) + 13 };

int main(int count, char **arguments) {
    check_start(60);
    mlxd_group *world = world_start();
    unsigned char *input = calloc(COUNT, 1);
    unsigned char *output = calloc(COUNT - 1, 1);
    REQUIRE(input != NULL && output != NULL && count == 2);
    if (strcmp(arguments[1], "reduce") == 0) {
        CHECK_OK(mlxd_all_sum(world, input, output, COUNT, MLXD_UINT8, NULL));
    } else {
        int peer = 1 - check_rank;
        CHECK_OK(mlxd_send_recv(world, input, COUNT, peer, output, COUNT, peer, MLXD_UINT8, NULL));
    }
    free(output);
    free(input);
    mlxd_group_free(world);
    return check_finish("overflow");
}

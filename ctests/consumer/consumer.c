/* The smallest program of a user: the sum over all ranks, here over one. */
#include <mlxd.h>
#include <stdio.h>
#include <string.h>

int main(void) {
    char header[64];
    snprintf(header, sizeof header, "%d.%d.%d", MLXD_VERSION_MAJOR, MLXD_VERSION_MINOR,
             MLXD_VERSION_PATCH);
    if (strcmp(header, mlxd_version()) != 0 || strcmp(header, CONSUMER_VERSION) != 0) {
        fprintf(stderr, "versions: header %s, library %s, package %s\n", header, mlxd_version(),
                CONSUMER_VERSION);
        return 1;
    }
    mlxd_group *world = mlxd_init(false, NULL);
    if (world == NULL) {
        fprintf(stderr, "%s\n", mlxd_last_error());
        return 1;
    }
    float mine = 1;
    float sum = 0;
    mlxd_status status = mlxd_all_sum(world, &mine, &sum, 1, MLXD_FLOAT32, NULL);
    printf("mlxd %s: rank %d of %d, sum %g\n", mlxd_version(), (int)mlxd_group_rank(world),
           (int)mlxd_group_size(world), (double)sum);
    mlxd_group_free(world);
    return status == MLXD_OK && sum == 1 ? 0 : 1;
}

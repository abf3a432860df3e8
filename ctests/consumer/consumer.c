/* The smallest program of a user: the sum over all ranks, here over one. */
#include <mlxd.h>
#include <stdio.h>

int main(void) {
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

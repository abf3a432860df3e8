/* Groups split from a world over nccl: colours, keys, parts of parts, beside each other and beyond
 * the end of their parents, each with operations in device memory.
 *
 *     nccl_groups RANKS */
#include "device_buffers.h"
#include "nccl_world.h"

static int32_t *device, *output;

/* Every rank of the group puts in its rank in the world: the sum, and their order. */
static void check_members(mlxd_group *group, const int *members, int count) {
    int32_t own = rank, sum = 0, want = 0, order[MAX_RANKS];
    REQUIRE(mlxd_group_size(group) == count);
    CHECK(strcmp(mlxd_group_backend(group), "nccl") == 0);
    CHECK(members[mlxd_group_rank(group)] == rank);
    device_write(device, &own, sizeof own);
    REQUIRE_OK(mlxd_all_sum(group, device, output, 1, MLXD_INT32, NULL));
    device_read(&sum, output, sizeof sum);
    REQUIRE_OK(mlxd_all_gather(group, device, output, 1, MLXD_INT32, NULL));
    device_read(order, output, (size_t)count * sizeof *order);
    for (int i = 0; i < count; i++) {
        want += members[i];
        CHECK(order[i] == members[i]);
    }
    CHECK(sum == want);
}

static void halves(void) {
    int members[MAX_RANKS], count = 0;
    mlxd_group *half = NULL;
    for (int i = rank % 2; i < size; i += 2) {
        members[count++] = i;
    }
    REQUIRE_OK(mlxd_group_split(world, rank % 2, 0, &half));
    check_members(half, members, count);
    mlxd_group_free(half);
}

static void reversed(void) {
    int members[MAX_RANKS];
    mlxd_group *group = NULL;
    for (int i = 0; i < size; i++) {
        members[i] = size - 1 - i;
    }
    REQUIRE_OK(mlxd_group_split(world, 7, size - rank, &group));
    check_members(group, members, size);
    mlxd_group_free(group);
    /* A negative key is replaced by the rank. */
    for (int i = 0; i < size; i++) {
        members[i] = i;
    }
    REQUIRE_OK(mlxd_group_split(world, INT32_MAX, -5, &group));
    check_members(group, members, size);
    mlxd_group_free(group);
}

static void some_stay_out(void) {
    int members[MAX_RANKS];
    mlxd_group *group = (mlxd_group *)(uintptr_t)8;
    REQUIRE_OK(mlxd_group_split(world, rank == 0 ? -1 : 3, 0, &group));
    CHECK((group == NULL) == (rank == 0));
    for (int i = 1; i < size; i++) {
        members[i - 1] = i;
    }
    if (group != NULL) {
        check_members(group, members, size - 1);
    }
    mlxd_group_free(group);
    REQUIRE_OK(mlxd_group_split(world, -1, 0, &group));
    CHECK(group == NULL);
    CHECK_INVALID(mlxd_group_split(world, -2, 0, &group));
}

/* Groups of one copy, on their device. */
static void each_alone(void) {
    mlxd_group *alone = NULL;
    REQUIRE_OK(mlxd_group_split(world, rank, 0, &alone));
    check_members(alone, &rank, 1);
    CHECK_INVALID(mlxd_send(alone, device, 1, MLXD_INT32, 0, NULL));
    mlxd_group_free(alone);
}

/* A part of a part works on after both it came from are freed. */
static void parts_outlive_wholes(void) {
    mlxd_group *whole = NULL, *part = NULL;
    int members[MAX_RANKS], count = 0;
    for (int i = rank % 2; i < size; i += 2) {
        members[count++] = i;
    }
    REQUIRE_OK(mlxd_group_split(world, 0, 0, &whole));
    REQUIRE_OK(mlxd_group_split(whole, rank % 2, 0, &part));
    mlxd_group_free(whole);
    for (int round = 0; round < 10; round++) {
        check_members(part, members, count);
    }
    mlxd_group_free(part);
}

/* Operations of parent and part in turn on one stream, without a wait in between. */
static void parts_beside_wholes(void) {
    const struct way *way = &ways[ON_NONBLOCKING];
    mlxd_group *half = NULL;
    int32_t *value = pinned_alloc(sizeof *value);
    int members = (size + 1 - rank % 2) / 2;
    REQUIRE_OK(mlxd_group_split(world, rank % 2, 0, &half));
    *value = 1;
    CUDA(cuda.to_device_async((device_pointer)(uintptr_t)device, value, sizeof *value, way->up));
    int32_t want = 1;
    for (int round = 0; round < 6; round++) {
        /* The greatest over the world, so that all ranks have the same again. */
        REQUIRE_OK(mlxd_all_sum(half, device, device, 1, MLXD_INT32, way->stream));
        REQUIRE_OK(mlxd_all_max(world, device, device, 1, MLXD_INT32, way->stream));
        want *= (size + 1) / 2;
    }
    CUDA(cuda.to_host_async(value, (device_pointer)(uintptr_t)device, sizeof *value, way->down));
    way_wait(way);
    CHECK(*value == want);
    CHECK(members == mlxd_group_size(half));
    mlxd_group_free(half);
    CUDA(cuda.free_pinned(value));
}

/* Split waits for what this rank called before, on streams too. */
static void after_what_is_queued(void) {
    const struct way *way = &ways[ON_BLOCKING];
    mlxd_group *group = NULL;
    for (int i = 0; i < 10; i++) {
        REQUIRE_OK(mlxd_all_sum(world, device, output, 16, MLXD_INT16, way->stream));
    }
    REQUIRE_OK(mlxd_group_split(world, 0, 0, &group));
    REQUIRE_OK(mlxd_all_sum(group, device, output, 16, MLXD_INT32, way->stream));
    REQUIRE_OK(mlxd_all_sum(world, device, output, 16, MLXD_INT32, way->stream));
    CHECK_OK(mlxd_stream_synchronize(way->stream));
    mlxd_group_free(group);
}

int main(int argc, char **argv) {
    int end;
    if (nccl_begin(argc, argv, 1, 120, &end)) {
        return end;
    }
    device = device_alloc(4096);
    output = device_alloc(4096);
    ways_open();

    for (int round = 0; round < 3; round++) {
        halves();
        reversed();
        some_stay_out();
        each_alone();
        parts_outlive_wholes();
        parts_beside_wholes();
        after_what_is_queued();
    }

    ways_close();
    device_free(device);
    device_free(output);
    return nccl_finish("nccl_groups");
}

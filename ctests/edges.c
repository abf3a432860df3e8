/* Every call with byte counts around those at which the board works in another way, from addresses
 * that no type is aligned to; and in groups whose order is not the world's. With the argument
 * `small`, only counts of up to a tile. */
#include "every_call.h"

/* A cache line, what is reduced at once, a block, and output that goes past the caches:
 * src/collective/choose.rs, src/collective/board/, src/transport/board.rs. */
#define INLINE ((size_t)8)
#define LINE ((size_t)64)
#define TILE ((size_t)8 << 10)
#define FEW_TO_REDUCE_ALL ((size_t)64 << 10)
#define BLOCK ((size_t)256 << 10)
#define STREAMED ((size_t)4 << 20)

static void askew(size_t input, size_t output) {
    inputs.askew = input;
    outputs.askew = output;
}

/* The element that would pass `bytes` bytes, the one before it and the one behind it. */
static void around(mlxd_dtype dtype, size_t bytes) {
    size_t count = bytes / value_size(dtype);
    for (size_t near = count > 0 ? count - 1 : 0; near <= count + 1; near++) {
        all_with(dtype, near);
    }
}

/* As `around`, of a share of what is shared out. */
static void shares_around(mlxd_dtype dtype, size_t bytes) {
    size_t share = bytes / value_size(dtype);
    for (size_t near = share > 0 ? share - 1 : 0; near <= share + 1; near++) {
        for (int in_place = 0; in_place < 2; in_place++) {
            sum_scatter(dtype, near, in_place != 0);
            all_gather(dtype, near, in_place != 0, 0);
        }
        all_to_all(dtype, near);
    }
}

/* Everything small, for every dtype. */
static void small_edges(void) {
    for (mlxd_dtype dtype = 0; dtype < DTYPE_COUNT; dtype++) {
        size_t width = value_size(dtype);
        /* By one element, which one-byte types take to an odd address, and by odd bytes. */
        for (size_t by = 0; by < 3; by++) {
            askew(by == 0 ? width : by, by == 0 ? width : 3 * by);
            around(dtype, INLINE);
            around(dtype, LINE);
            around(dtype, LINE * (size_t)size);
            shares_around(dtype, LINE);
        }
        around(dtype, TILE);
        around(dtype, TILE * (size_t)size);
    }
}

static void large_edges(void) {
    static const mlxd_dtype dtypes[] = {MLXD_UINT8, MLXD_BFLOAT16, MLXD_FLOAT32, MLXD_COMPLEX64};
    for (size_t d = 0; d < sizeof dtypes / sizeof dtypes[0]; d++) {
        mlxd_dtype dtype = dtypes[d];
        askew(value_size(dtype), 1);
        around(dtype, FEW_TO_REDUCE_ALL / (size_t)size);
        around(dtype, BLOCK);
        shares_around(dtype, BLOCK / (size_t)size / LINE * LINE);
        askew(5, value_size(dtype));
        /* Output is streamed or not. */
        around(dtype, STREAMED);
        shares_around(dtype, STREAMED / (size_t)size);
    }
    /* More blocks than may be in flight, the last one short. */
    askew(1, 3);
    all_with(MLXD_UINT8, 5 * BLOCK - 1);
    all_with(MLXD_INT16, (6 * BLOCK + 2) / 2);
    all_with(MLXD_FLOAT32, (9 * BLOCK + 68) / 4);
    sum_scatter(MLXD_UINT8, STREAMED + 1, true);
    sum_scatter(MLXD_UINT8, STREAMED - 1, false);
}

/* Counts of one block and of several, with ranks in another order, and in parts of it side by side.
 */
static void other_orders(mlxd_group *world) {
    int world_rank = mlxd_group_rank(world);
    int world_size = mlxd_group_size(world);
    const struct {
        int32_t color;
        int32_t key;
    } orders[] = {
        {0, world_size - world_rank},
        /* Odd ranks first, each half backwards. */
        {0, (world_rank % 2 != 0 ? 0 : world_size) + world_size - world_rank},
        {world_rank % 2, world_size - world_rank},
        /* One is left out. */
        {world_rank == 1 ? -1 : 0, (world_rank * 3 + 2) % (world_size + 1)},
    };
    for (size_t i = 0; i < sizeof orders / sizeof orders[0]; i++) {
        mlxd_group *part = NULL;
        REQUIRE_OK(mlxd_group_split(world, orders[i].color, orders[i].key, &part));
        if (part == NULL) {
            continue;
        }
        if (mlxd_group_size(part) > 1) {
            use_group(part);
            askew(i, i + 1);
            all_with(MLXD_UINT8, INLINE + 1);
            all_with(MLXD_FLOAT32, 1000);
            around(MLXD_FLOAT16, FEW_TO_REDUCE_ALL / (size_t)size);
            all_with(MLXD_UINT8, 5 * BLOCK + 1);
        }
        mlxd_group_free(part);
    }
}

int main(int argc, char **argv) {
    check_start(240);
    bool only_small = argc > 1 && strcmp(argv[1], "small") == 0;
    mlxd_group *world = world_start();
    use_group(world);
    REQUIRE(size > 1);
    small_edges();
    if (!only_small) {
        large_edges();
        other_orders(world);
    }
    REQUIRE_OK(mlxd_barrier(world, NULL));
    arenas_free();
    mlxd_group_free(world);
    return check_finish("edges");
}

/* Every call with large counts: on both sides of each size at which algorithms may switch or bytes
 * are spread over several connections, 1 MiB worth, and 5 Mi + 3 elements. */
#include "every_call.h"

/* Sums that round depend on the order in which they are made: it is the same on all ranks, in every
 * run, in place and out of place. */
static void rounding(mlxd_dtype dtype, size_t count) {
    uint64_t first = 0;
    for (int run = 0; run < 4; run++) {
        name_case("all_sum that rounds", dtype, count, run % 2 != 0);
        struct buffer input = arena_buffer(&inputs, count * value_size(dtype));
        struct buffer output = arena_buffer(&outputs, input.bytes);
        unsigned char *from = run % 2 != 0 ? output.data : input.data;
        for (size_t i = 0; i < count; i++) {
            /* 1 to 2, of any fraction. */
            uint32_t random = (uint32_t)((i * 31 + (size_t)rank + 1) * 2654435761u);
            if (dtype == MLXD_FLOAT32) {
                uint32_t bits = 0x3f800000u | random >> 9;
                memcpy(from + 4 * i, &bits, sizeof bits);
            } else {
                uint16_t bits = dtype == MLXD_FLOAT16 ? (uint16_t)(0x3c00u | random >> 22)
                                                      : (uint16_t)(0x3f80u | random >> 25);
                memcpy(from + 2 * i, &bits, sizeof bits);
            }
        }
        REQUIRE_OK(mlxd_all_sum(group, from, output.data, count, dtype, NULL));
        uint64_t hash = hash_words(HASH_START, output.data, output.bytes);
        check_same_everywhere(group, hash, what);
        CHECK(run == 0 || hash == first);
        first = hash;
        buffer_check(&output, what);
        buffer_check(&input, what);
    }
}

int main(void) {
    check_start(240);
    mlxd_group *world = world_start();
    use_group(world);
    REQUIRE(size > 1);

    /* Each power of two that is a threshold, or may become one: up to it, and one element more. */
    static const mlxd_dtype edge_dtypes[] = {MLXD_UINT8, MLXD_FLOAT16, MLXD_FLOAT32,
                                             MLXD_COMPLEX64};
    for (size_t d = 0; d < sizeof edge_dtypes / sizeof edge_dtypes[0]; d++) {
        for (size_t bytes = 16 << 10; bytes <= 512 << 10; bytes *= 2) {
            size_t count = bytes / value_size(edge_dtypes[d]);
            size_t share = count / (size_t)size;
            all_with(edge_dtypes[d], count);
            all_with(edge_dtypes[d], count + 1);
            if (share * (size_t)size != count) {
                /* The most elements that ranks can share without passing the threshold. */
                sum_scatter(edge_dtypes[d], share, false);
                all_gather(edge_dtypes[d], share, false, 0);
            }
        }
    }

    static const mlxd_dtype mebibyte_dtypes[] = {MLXD_BOOL,     MLXD_UINT8,    MLXD_FLOAT16,
                                                 MLXD_BFLOAT16, MLXD_FLOAT32,  MLXD_INT64,
                                                 MLXD_FLOAT64,  MLXD_COMPLEX64};
    for (size_t d = 0; d < sizeof mebibyte_dtypes / sizeof mebibyte_dtypes[0]; d++) {
        all_with(mebibyte_dtypes[d], (1 << 20) / value_size(mebibyte_dtypes[d]));
    }

    /* 5 to 40 MiB in each rank; where there are many ranks, not of every width. */
    static const mlxd_dtype largest_dtypes[] = {MLXD_UINT8, MLXD_FLOAT32, MLXD_BFLOAT16,
                                                MLXD_INT64};
    size_t widths = size > 3 ? 2 : sizeof largest_dtypes / sizeof largest_dtypes[0];
    for (size_t d = 0; d < widths; d++) {
        all_with(largest_dtypes[d], (5 << 20) + 3);
    }

    static const mlxd_dtype rounding_dtypes[] = {MLXD_FLOAT16, MLXD_BFLOAT16, MLXD_FLOAT32};
    for (size_t d = 0; d < sizeof rounding_dtypes / sizeof rounding_dtypes[0]; d++) {
        rounding(rounding_dtypes[d], 1000);
        rounding(rounding_dtypes[d], 100001);
        rounding(rounding_dtypes[d], (1 << 20) + 3);
    }

    arenas_free();
    mlxd_group_free(world);
    return check_finish("large");
}

/* The reductions on any number of ranks: all_sum, all_max, all_min and sum_scatter, for every
 * dtype, count, place and kind of stream, against closed forms. */
#include "reductions.h"
#include "values.h"

static mlxd_group *world;
static int rank;
static int size;
static mlxd_stream *queue;

/* One all-reduction; returns `hash` continued with its output. */
static uint64_t all_reduce(size_t op, mlxd_dtype dtype, size_t count, bool in_place,
                           mlxd_stream *stream, uint64_t hash) {
    char what[96];
    snprintf(what, sizeof what, "%s of %zu %s, %s, %s", reductions[op].name, count,
             dtype_name(dtype), in_place ? "in place" : "out of place",
             stream ? "on a stream" : "waiting");
    size_t bytes = count * value_size(dtype);
    int salt = (int)op + (stream != NULL ? 5 : 0);
    struct buffer input = buffer_new(bytes);
    struct buffer output = buffer_new(bytes);
    struct buffer want = buffer_new(bytes);
    values_fill(dtype, input.data, count, rank, salt);
    for (size_t i = 0; i < count; i++) {
        value_store(dtype, want.data, i,
                    value_reduced(dtype, reductions[op].reduction, size, i, salt));
    }
    if (in_place && bytes != 0) {
        memcpy(output.data, input.data, bytes);
    }
    const void *from = in_place ? output.data : input.data;

    REQUIRE_OK(reductions[op].call(world, from, output.data, count, dtype, stream));
    if (stream != NULL) {
        REQUIRE_OK(mlxd_stream_synchronize(stream));
    }

    check_bytes(output.data, want.data, bytes, what);
    hash = hash_bytes(hash, output.data, bytes);
    values_fill(dtype, want.data, count, rank, salt);
    check_bytes(input.data, want.data, bytes, "the input of a reduction");
    buffer_free(&want, what);
    buffer_free(&output, what);
    buffer_free(&input, what);
    return hash;
}

/* One sum_scatter of `share` elements for each rank. */
static void sum_scatter(mlxd_dtype dtype, size_t share, bool in_place, mlxd_stream *stream) {
    char what[96];
    snprintf(what, sizeof what, "sum_scatter of %zu %s a rank, %s, %s", share, dtype_name(dtype),
             in_place ? "in place" : "out of place", stream ? "on a stream" : "waiting");
    size_t count = share * (size_t)size;
    size_t first = share * (size_t)rank;
    size_t width = value_size(dtype);
    struct buffer input = buffer_new(count * width);
    struct buffer output = buffer_new(share * width);
    struct buffer want = buffer_new(count * width);
    values_fill(dtype, input.data, count, rank, 3);
    for (size_t i = 0; i < share; i++) {
        value_store(dtype, want.data, i, value_reduced(dtype, REDUCE_SUM, size, first + i, 3));
    }
    unsigned char *to = in_place ? input.data + first * width : output.data;

    REQUIRE_OK(mlxd_sum_scatter(world, input.data, to, count, dtype, stream));
    if (stream != NULL) {
        REQUIRE_OK(mlxd_stream_synchronize(stream));
    }

    check_bytes(to, want.data, share * width, what);
    if (!in_place) {
        values_fill(dtype, want.data, count, rank, 3);
        check_bytes(input.data, want.data, count * width, "the input of sum_scatter");
    }
    buffer_free(&want, what);
    buffer_free(&output, what);
    buffer_free(&input, what);
}

int main(void) {
    check_start(240);
    world = world_start();
    rank = mlxd_group_rank(world);
    size = mlxd_group_size(world);
    REQUIRE(size <= MAX_RANKS); /* what sums are exact for */
    queue = mlxd_stream_new();
    REQUIRE(queue != NULL);

    for (mlxd_dtype dtype = 0; dtype < DTYPE_COUNT; dtype++) {
        uint64_t hash = HASH_START;
        for (size_t c = 0; c < TEST_COUNTS; c++) {
            /* In place on no rank, on all, on every second one; waiting and on a stream. */
            for (int variant = 0; variant < 6; variant++) {
                bool in_place = variant / 2 == 2 ? rank % 2 != 0 : variant / 2 != 0;
                mlxd_stream *stream = variant % 2 != 0 ? queue : NULL;
                for (size_t op = 0; op < sizeof reductions / sizeof reductions[0]; op++) {
                    if (next_round()) {
                        hash = all_reduce(op, dtype, test_counts[c], in_place, stream, hash);
                    }
                }
                if (next_round()) {
                    sum_scatter(dtype, test_counts[c], in_place, stream);
                }
            }
        }
        check_same_everywhere(world, hash, dtype_name(dtype));
    }

    mlxd_stream_free(queue);
    mlxd_group_free(world);
    return check_finish("matrix_reduce");
}

/* The reductions over nccl, in device memory: all_sum, all_max, all_min and sum_scatter, for every
 * dtype, count, place and way to call, against closed forms.
 *
 *     nccl_reduce RANKS */
#include "nccl_buffers.h"
#include "reductions.h"

/* Elements beside test_counts: past any one piece that staging may be cut into. */
#define LARGE_COUNT ((size_t)300007)

static void all_reduce(size_t op, mlxd_dtype dtype, size_t count, bool in_place,
                       const struct way *way) {
    char what[128];
    snprintf(what, sizeof what, "%s of %zu %s, %s, %s", reductions[op].name, count,
             dtype_name(dtype), in_place ? "in place" : "out of place", way->name);
    size_t bytes = count * value_size(dtype);
    int salt = (int)op + (in_place ? 5 : 0);
    struct device_buffer *from = in_place ? &output : &input;
    if (!in_place) {
        device_buffer_stale(&output, bytes);
        device_buffer_up(&output, way);
    }
    device_buffer_fill(from, way, dtype, count, rank, salt);

    REQUIRE_OK(reductions[op].call(world, from->data, output.data, count, dtype, way->stream));
    device_buffer_down(&output, way);
    device_buffer_down(&input, way);
    way_wait(way);

    for (size_t i = 0; i < count; i++) {
        value_store(dtype, want, i, value_reduced(dtype, reductions[op].reduction, size, i, salt));
    }
    device_buffer_expect(&output, want, what);
    if (!in_place) {
        values_fill(dtype, want, count, rank, salt);
        device_buffer_expect(&input, want, "the input of a reduction");
    }
}

/* `share` elements for each rank. */
static void sum_scatter(mlxd_dtype dtype, size_t share, bool in_place, const struct way *way) {
    char what[128];
    snprintf(what, sizeof what, "sum_scatter of %zu %s a rank, %s, %s", share, dtype_name(dtype),
             in_place ? "in place" : "out of place", way->name);
    size_t count = share * (size_t)size;
    size_t first = share * (size_t)rank;
    size_t width = value_size(dtype);
    device_buffer_fill(&input, way, dtype, count, rank, 3);
    device_buffer_stale(&output, share * width);
    device_buffer_up(&output, way);
    unsigned char *to = in_place ? input.data + first * width : output.data;

    REQUIRE_OK(mlxd_sum_scatter(world, input.data, to, count, dtype, way->stream));
    device_buffer_down(&input, way);
    device_buffer_down(&output, way);
    way_wait(way);

    for (size_t i = 0; i < share; i++) {
        value_store(dtype, want, i, value_reduced(dtype, REDUCE_SUM, size, first + i, 3));
    }
    if (in_place) {
        check_bytes(input.mirror.data + first * width, want, share * width, what);
        buffer_check(&input.mirror, what);
        return;
    }
    device_buffer_expect(&output, want, what);
    values_fill(dtype, want, count, rank, 3);
    device_buffer_expect(&input, want, "the input of sum_scatter");
}

int main(int argc, char **argv) {
    int end;
    if (nccl_begin(argc, argv, 1, 280, &end)) {
        return end;
    }
    buffers_open(LARGE_COUNT * 8);

    for (mlxd_dtype dtype = 0; dtype < DTYPE_COUNT; dtype++) {
        for (int way = 0; way < WAYS; way++) {
            for (size_t c = 0; c < TEST_COUNTS; c++) {
                for (int in_place = 0; in_place < 2; in_place++) {
                    for (size_t op = 0; op < sizeof reductions / sizeof reductions[0]; op++) {
                        all_reduce(op, dtype, test_counts[c], in_place, &ways[way]);
                    }
                    sum_scatter(dtype, test_counts[c], in_place, &ways[way]);
                }
            }
        }
        all_reduce(dtype % 3u, dtype, LARGE_COUNT, false, &ways[WAITING]);
        all_reduce((dtype + 1u) % 3u, dtype, LARGE_COUNT, true, &ways[ON_NONBLOCKING]);
        sum_scatter(dtype, LARGE_COUNT / (size_t)size, false, &ways[ON_BLOCKING]);
    }

    buffers_close();
    return nccl_finish("nccl_reduce");
}

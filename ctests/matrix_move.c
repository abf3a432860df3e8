/* The collectives that only move data, on any number of ranks: all_gather, all_to_all, broadcast
 * and barrier, for every dtype, count, place and kind of stream. */
#include "values.h"

static mlxd_group *world;
static int rank;
static int size;

static void wait_for(mlxd_stream *stream) {
    if (stream != NULL) {
        REQUIRE_OK(mlxd_stream_synchronize(stream));
    }
}

/* Every rank's block in rank order, in place when the input already lies in its block. */
static uint64_t all_gather(mlxd_dtype dtype, size_t count, bool in_place, mlxd_stream *stream,
                           uint64_t hash) {
    size_t width = value_size(dtype);
    size_t bytes = count * width;
    struct buffer input = buffer_new(bytes);
    struct buffer output = buffer_new(bytes * (size_t)size);
    struct buffer want = buffer_new(bytes * (size_t)size);
    values_fill(dtype, input.data, count, rank, 1);
    for (int from = 0; from < size; from++) {
        values_fill(dtype, want.data + (size_t)from * bytes, count, from, 1);
    }
    unsigned char *block = output.data + (size_t)rank * bytes;
    if (in_place) {
        values_fill(dtype, block, count, rank, 1);
    }

    REQUIRE_OK(
        mlxd_all_gather(world, in_place ? block : input.data, output.data, count, dtype, stream));
    wait_for(stream);

    check_bytes(output.data, want.data, output.bytes, "all_gather");
    hash = hash_bytes(hash, output.data, output.bytes);
    check_bytes(input.data, want.data + (size_t)rank * bytes, bytes, "the input of all_gather");
    buffer_free(&want, "all_gather");
    buffer_free(&output, "all_gather");
    buffer_free(&input, "all_gather");
    return hash;
}

/* Chunk j of rank i becomes chunk i of rank j: the salt tells for whom a chunk was. */
static void all_to_all(mlxd_dtype dtype, size_t share, mlxd_stream *stream) {
    size_t bytes = share * value_size(dtype);
    size_t count = share * (size_t)size;
    struct buffer input = buffer_new(bytes * (size_t)size);
    struct buffer output = buffer_new(bytes * (size_t)size);
    struct buffer want = buffer_new(bytes * (size_t)size);
    for (int peer = 0; peer < size; peer++) {
        values_fill(dtype, input.data + (size_t)peer * bytes, share, rank, peer);
        values_fill(dtype, want.data + (size_t)peer * bytes, share, peer, rank);
    }

    REQUIRE_OK(mlxd_all_to_all(world, input.data, output.data, count, dtype, stream));
    wait_for(stream);

    check_bytes(output.data, want.data, output.bytes, "all_to_all");
    for (int peer = 0; peer < size; peer++) {
        values_fill(dtype, want.data + (size_t)peer * bytes, share, rank, peer);
    }
    check_bytes(input.data, want.data, input.bytes, "the input of all_to_all");
    buffer_free(&want, "all_to_all");
    buffer_free(&output, "all_to_all");
    buffer_free(&input, "all_to_all");
}

static uint64_t broadcast(mlxd_dtype dtype, size_t count, int root, mlxd_stream *stream,
                          uint64_t hash) {
    struct buffer buffer = buffer_new(count * value_size(dtype));
    struct buffer want = buffer_new(buffer.bytes);
    values_fill(dtype, want.data, count, root, 2);
    if (rank == root) {
        values_fill(dtype, buffer.data, count, root, 2);
    }

    REQUIRE_OK(mlxd_broadcast(world, buffer.data, count, dtype, root, stream));
    wait_for(stream);

    check_bytes(buffer.data, want.data, buffer.bytes, "broadcast");
    hash = hash_bytes(hash, buffer.data, buffer.bytes);
    buffer_free(&want, "broadcast");
    buffer_free(&buffer, "broadcast");
    return hash;
}

/* Nobody leaves a barrier before the last rank has come. Times are of one machine's clock. */
static void barrier_holds(int late, mlxd_stream *stream) {
    double *left = calloc((size_t)size, sizeof *left);
    double *came = calloc((size_t)size, sizeof *came);
    REQUIRE(left != NULL && came != NULL);
    if (rank == late) {
        sleep_ms(30);
    }
    double my_arrival = seconds();
    REQUIRE_OK(mlxd_barrier(world, stream));
    wait_for(stream);
    double my_leave = seconds();
    REQUIRE_OK(mlxd_all_gather(world, &my_arrival, came, 1, MLXD_FLOAT64, NULL));
    REQUIRE_OK(mlxd_all_gather(world, &my_leave, left, 1, MLXD_FLOAT64, NULL));
    for (int i = 0; i < size; i++) {
        for (int j = 0; j < size; j++) {
            CHECK(left[i] >= came[j]);
        }
    }
    free(came);
    free(left);
}

int main(void) {
    check_start(240);
    world = world_start();
    rank = mlxd_group_rank(world);
    size = mlxd_group_size(world);
    mlxd_stream *queue = mlxd_stream_new();
    REQUIRE(queue != NULL);

    for (mlxd_dtype dtype = 0; dtype < DTYPE_COUNT; dtype++) {
        uint64_t hash = HASH_START;
        for (size_t c = 0; c < TEST_COUNTS; c++) {
            size_t count = test_counts[c];
            for (int variant = 0; variant < 2; variant++) {
                mlxd_stream *stream = variant != 0 ? queue : NULL;
                /* In place on no rank, on all, on every second one. */
                for (int way = 0; way < 3; way++) {
                    bool in_place = way == 2 ? rank % 2 != 0 : way != 0;
                    if (next_round()) {
                        hash = all_gather(dtype, count, in_place, stream, hash);
                    }
                }
                if (next_round()) {
                    all_to_all(dtype, count, stream);
                }
                for (int root = 0; root < size; root++) {
                    if (next_round()) {
                        hash = broadcast(dtype, count, root, stream, hash);
                    }
                }
            }
        }
        check_same_everywhere(world, hash, dtype_name(dtype));
    }
    for (int late = 0; late < size; late++) {
        barrier_holds(late, NULL);
        barrier_holds(late, queue);
    }

    mlxd_stream_free(queue);
    mlxd_group_free(world);
    return check_finish("matrix_move");
}

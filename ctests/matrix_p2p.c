/* send, recv and send_recv between any two of any number of ranks: every pair in both directions,
 * every shift, several messages in order, for every dtype and count. */
#include "values.h"

static mlxd_group *world;
static int rank;
static int size;
static mlxd_stream *queue;

/* On a group of one there is nobody to talk to. */
static void alone(void) {
    float value = 1;
    float other = 2;
    CHECK_INVALID(mlxd_send(world, &value, 1, MLXD_FLOAT32, 0, NULL));
    CHECK_INVALID(mlxd_recv(world, &other, 1, MLXD_FLOAT32, 0, NULL));
    CHECK(value == 1 && other == 2);
    CHECK(mlxd_group_status(world) == MLXD_OK);
}

/* What `from` sends to `to`. */
static int pair_salt(int from, int to) {
    return from * 17 + to;
}

static void send_values(int to, mlxd_dtype dtype, size_t count, mlxd_stream *stream) {
    struct buffer input = buffer_new(count * value_size(dtype));
    struct buffer want = buffer_new(input.bytes);
    values_fill(dtype, input.data, count, rank, pair_salt(rank, to));
    values_fill(dtype, want.data, count, rank, pair_salt(rank, to));
    REQUIRE_OK(mlxd_send(world, input.data, count, dtype, to, stream));
    if (stream != NULL) {
        REQUIRE_OK(mlxd_stream_synchronize(stream));
    }
    check_bytes(input.data, want.data, input.bytes, "the input of send");
    buffer_free(&want, "send");
    buffer_free(&input, "send");
}

static void recv_values(int from, mlxd_dtype dtype, size_t count, mlxd_stream *stream) {
    struct buffer output = buffer_new(count * value_size(dtype));
    struct buffer want = buffer_new(output.bytes);
    values_fill(dtype, want.data, count, from, pair_salt(from, rank));
    REQUIRE_OK(mlxd_recv(world, output.data, count, dtype, from, stream));
    if (stream != NULL) {
        REQUIRE_OK(mlxd_stream_synchronize(stream));
    }
    check_bytes(output.data, want.data, output.bytes, "recv");
    buffer_free(&want, "recv");
    buffer_free(&output, "recv");
}

/* Every pair of ranks, there and back. All ranks walk the pairs in one order: no cycle of waits. */
static void all_pairs(mlxd_dtype dtype, size_t count, mlxd_stream *stream) {
    for (int low = 0; low < size; low++) {
        for (int high = low + 1; high < size; high++) {
            if (rank == low) {
                send_values(high, dtype, count, stream);
                recv_values(high, dtype, count, stream);
            } else if (rank == high) {
                recv_values(low, dtype, count, stream);
                send_values(low, dtype, count, stream);
            }
        }
    }
}

/* Every rank sends `distance` ranks to the right, all at once. */
static void shift(int distance, mlxd_dtype dtype, size_t count, mlxd_stream *stream) {
    int to = (rank + distance) % size;
    int from = (rank + size - distance) % size;
    struct buffer input = buffer_new(count * value_size(dtype));
    struct buffer output = buffer_new(input.bytes);
    struct buffer want = buffer_new(input.bytes);
    values_fill(dtype, input.data, count, rank, pair_salt(rank, to));
    values_fill(dtype, want.data, count, from, pair_salt(from, rank));
    REQUIRE_OK(
        mlxd_send_recv(world, input.data, count, to, output.data, count, from, dtype, stream));
    if (stream != NULL) {
        REQUIRE_OK(mlxd_stream_synchronize(stream));
    }
    check_bytes(output.data, want.data, output.bytes, "send_recv");
    values_fill(dtype, want.data, count, rank, pair_salt(rank, to));
    check_bytes(input.data, want.data, input.bytes, "the input of send_recv");
    buffer_free(&want, "send_recv");
    buffer_free(&output, "send_recv");
    buffer_free(&input, "send_recv");
}

/* The same shift made of a send on a stream and a recv beside it. */
static void shift_in_halves(int distance, size_t count) {
    int to = (rank + distance) % size;
    int from = (rank + size - distance) % size;
    struct buffer input = buffer_new(count * sizeof(float));
    values_fill(MLXD_FLOAT32, input.data, count, rank, pair_salt(rank, to));
    REQUIRE_OK(mlxd_send(world, input.data, count, MLXD_FLOAT32, to, queue));
    recv_values(from, MLXD_FLOAT32, count, NULL);
    REQUIRE_OK(mlxd_stream_synchronize(queue));
    buffer_free(&input, "send on a stream");
}

/* A ring to the right where one rank sends more than it receives. */
static void uneven_exchange(void) {
    int to = (rank + 1) % size;
    int from = (rank + size - 1) % size;
    size_t count = 100 + (size_t)rank * 37;
    size_t output_count = 100 + (size_t)from * 37;
    struct buffer input = buffer_new(count * sizeof(int32_t));
    struct buffer output = buffer_new(output_count * sizeof(int32_t));
    struct buffer want = buffer_new(output.bytes);
    values_fill(MLXD_INT32, input.data, count, rank, 9);
    values_fill(MLXD_INT32, want.data, output_count, from, 9);
    REQUIRE_OK(mlxd_send_recv(world, input.data, count, to, output.data, output_count, from,
                              MLXD_INT32, NULL));
    check_bytes(output.data, want.data, output.bytes, "send_recv of unequal sizes");
    buffer_free(&want, "send_recv");
    buffer_free(&output, "send_recv");
    buffer_free(&input, "send_recv");
}

/* Messages of one pair keep their order, whatever else runs. */
static void order_is_kept(void) {
    enum { MESSAGES = 50 };
    int64_t sent[MESSAGES];
    int64_t got[MESSAGES];
    if (rank == 0) {
        for (int i = 0; i < MESSAGES; i++) {
            sent[i] = 1000 + i;
            REQUIRE_OK(mlxd_send(world, &sent[i], 1, MLXD_INT64, size - 1, queue));
        }
        REQUIRE_OK(mlxd_stream_synchronize(queue));
    } else if (rank == size - 1) {
        for (int i = 0; i < MESSAGES; i++) {
            got[i] = 0;
            REQUIRE_OK(mlxd_recv(world, &got[i], 1, MLXD_INT64, 0, queue));
        }
        REQUIRE_OK(mlxd_stream_synchronize(queue));
        for (int i = 0; i < MESSAGES; i++) {
            CHECK(got[i] == 1000 + i);
        }
    }
    REQUIRE_OK(mlxd_barrier(world, NULL));
}

int main(void) {
    check_start(240);
    world = world_start();
    rank = mlxd_group_rank(world);
    size = mlxd_group_size(world);
    queue = mlxd_stream_new();
    REQUIRE(queue != NULL);
    /* 2 MiB: more than the sockets between two ranks can hold. Parts of the matrix are for places
     * where that takes too long, and have 512 KiB. */
    uint32_t part, parts;
    size_t large = in_parts(&part, &parts) ? 1 << 17 : 1 << 19;

    if (size == 1) {
        alone();
    } else {
        for (mlxd_dtype dtype = 0; dtype < DTYPE_COUNT; dtype++) {
            for (size_t c = 0; c < TEST_COUNTS; c++) {
                if (next_round()) {
                    all_pairs(dtype, test_counts[c], c % 2 != 0 ? queue : NULL);
                }
                for (int distance = 1; distance < size; distance++) {
                    for (int streamed = 0; streamed < 2; streamed++) {
                        if (next_round()) {
                            shift(distance, dtype, test_counts[c], streamed != 0 ? queue : NULL);
                        }
                    }
                }
            }
        }
        for (int distance = 1; distance < size; distance++) {
            shift_in_halves(distance, 1000);
            if (next_round()) {
                shift_in_halves(distance, large);
            }
            if (next_round()) {
                shift(distance, MLXD_FLOAT32, large, NULL);
            }
        }
        uneven_exchange();
        order_is_kept();
    }

    mlxd_stream_free(queue);
    mlxd_group_free(world);
    return check_finish("matrix_p2p");
}

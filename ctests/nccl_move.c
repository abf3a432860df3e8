/* What moves elements over nccl, in device memory: all_gather, all_to_all, broadcast, barrier,
 * send, recv and send_recv between any ranks, for every dtype, count and way to call.
 *
 *     nccl_move RANKS */
#include "nccl_buffers.h"

static const char *named(const char *operation, mlxd_dtype dtype, size_t count,
                         const struct way *way) {
    static char what[128];
    snprintf(what, sizeof what, "%s of %zu %s %s", operation, count, dtype_name(dtype), way->name);
    return what;
}

static void down_and_wait(const struct way *way) {
    device_buffer_down(&input, way);
    device_buffer_down(&output, way);
    way_wait(way);
}

static void all_gather(mlxd_dtype dtype, size_t count, bool in_place, const struct way *way) {
    size_t bytes = count * value_size(dtype);
    device_buffer_fill(&input, way, dtype, count, rank, 1);
    device_buffer_stale(&output, bytes * (size_t)size);
    unsigned char *own = output.mirror.data + (size_t)rank * bytes;
    if (in_place) {
        values_fill(dtype, own, count, rank, 1);
    }
    device_buffer_up(&output, way);
    const void *from = in_place ? output.data + (size_t)rank * bytes : input.data;

    REQUIRE_OK(mlxd_all_gather(world, from, output.data, count, dtype, way->stream));
    down_and_wait(way);

    for (int peer = 0; peer < size; peer++) {
        values_fill(dtype, want + (size_t)peer * bytes, count, peer, 1);
    }
    device_buffer_expect(&output, want, named("all_gather", dtype, count, way));
    values_fill(dtype, want, count, rank, 1);
    device_buffer_expect(&input, want, "the input of all_gather");
}

static void all_to_all(mlxd_dtype dtype, size_t share, const struct way *way) {
    size_t bytes = share * value_size(dtype);
    size_t all = bytes * (size_t)size;
    device_buffer_stale(&input, all);
    for (int peer = 0; peer < size; peer++) {
        values_fill(dtype, input.mirror.data + (size_t)peer * bytes, share, rank, peer);
    }
    device_buffer_up(&input, way);
    device_buffer_stale(&output, all);
    device_buffer_up(&output, way);

    REQUIRE_OK(
        mlxd_all_to_all(world, input.data, output.data, share * (size_t)size, dtype, way->stream));
    down_and_wait(way);

    for (int peer = 0; peer < size; peer++) {
        values_fill(dtype, want + (size_t)peer * bytes, share, peer, rank);
    }
    device_buffer_expect(&output, want, named("all_to_all", dtype, share, way));
}

static void broadcast(mlxd_dtype dtype, size_t count, int root, const struct way *way) {
    device_buffer_stale(&input, count * value_size(dtype));
    if (rank == root) {
        values_fill(dtype, input.mirror.data, count, root, 2);
    }
    device_buffer_up(&input, way);

    REQUIRE_OK(mlxd_broadcast(world, input.data, count, dtype, root, way->stream));
    down_and_wait(way);

    values_fill(dtype, want, count, root, 2);
    device_buffer_expect(&input, want, named("broadcast", dtype, count, way));
}

static int pair_salt(int from, int to) {
    return from * 17 + to;
}

static void send_values(int to, mlxd_dtype dtype, size_t count, const struct way *way) {
    device_buffer_fill(&input, way, dtype, count, rank, pair_salt(rank, to));
    REQUIRE_OK(mlxd_send(world, input.data, count, dtype, to, way->stream));
    device_buffer_down(&input, way);
    way_wait(way);
}

static void recv_values(int from, mlxd_dtype dtype, size_t count, const struct way *way) {
    device_buffer_stale(&output, count * value_size(dtype));
    device_buffer_up(&output, way);
    REQUIRE_OK(mlxd_recv(world, output.data, count, dtype, from, way->stream));
    device_buffer_down(&output, way);
    way_wait(way);
    values_fill(dtype, want, count, from, pair_salt(from, rank));
    device_buffer_expect(&output, want, named("recv", dtype, count, way));
}

/* Every pair of ranks, there and back. All ranks walk the pairs in one order: no cycle of waits. */
static void all_pairs(mlxd_dtype dtype, size_t count, const struct way *way) {
    for (int low = 0; low < size; low++) {
        for (int high = low + 1; high < size; high++) {
            if (rank == low) {
                send_values(high, dtype, count, way);
                recv_values(high, dtype, count, way);
            } else if (rank == high) {
                recv_values(low, dtype, count, way);
                send_values(low, dtype, count, way);
            }
        }
    }
}

/* Every rank sends to the right by `distance` and receives from the left, as much as the left one
 * has. */
static void shift(int distance, mlxd_dtype dtype, size_t count, size_t more,
                  const struct way *way) {
    int to = (rank + distance) % size;
    int from = (rank + size - distance) % size;
    size_t out = count + (size_t)rank * more;
    size_t in = count + (size_t)from * more;
    device_buffer_fill(&input, way, dtype, out, rank, pair_salt(rank, to));
    device_buffer_stale(&output, in * value_size(dtype));
    device_buffer_up(&output, way);

    REQUIRE_OK(
        mlxd_send_recv(world, input.data, out, to, output.data, in, from, dtype, way->stream));
    down_and_wait(way);

    values_fill(dtype, want, in, from, pair_salt(from, rank));
    device_buffer_expect(&output, want, named("send_recv", dtype, count, way));
}

/* Messages of one pair keep their order, all queued before the first is looked at. */
static void order_is_kept(const struct way *way) {
    enum { MESSAGES = 50 };
    int64_t *messages = (int64_t *)(void *)(rank == 0 ? &input : &output)->data;
    int64_t values[MESSAGES] = {0};
    if (rank == 0) {
        for (int i = 0; i < MESSAGES; i++) {
            values[i] = 1000 + i;
        }
        device_write(messages, values, sizeof values);
        for (int i = 0; i < MESSAGES; i++) {
            REQUIRE_OK(mlxd_send(world, messages + i, 1, MLXD_INT64, size - 1, way->stream));
        }
        CUDA(cuda.stream_synchronize(way->down));
    } else if (rank == size - 1) {
        for (int i = 0; i < MESSAGES; i++) {
            REQUIRE_OK(mlxd_recv(world, messages + i, 1, MLXD_INT64, 0, way->stream));
        }
        CUDA(cuda.stream_synchronize(way->down));
        device_read(values, messages, sizeof values);
        for (int i = 0; i < MESSAGES; i++) {
            CHECK(values[i] == 1000 + i);
        }
    }
    REQUIRE_OK(mlxd_barrier(world, NULL));
}

static void gather_times(double own, double *all) {
    device_write(input.data, &own, sizeof own);
    REQUIRE_OK(mlxd_all_gather(world, input.data, output.data, 1, MLXD_FLOAT64, NULL));
    device_read(all, output.data, (size_t)size * sizeof own);
}

/* Nobody leaves a barrier before the last rank has come. Times are of one machine's clock. */
static void barrier_holds(int late, const struct way *way) {
    double came[MAX_RANKS], left[MAX_RANKS];
    if (rank == late) {
        sleep_ms(30);
    }
    double my_arrival = seconds();
    REQUIRE_OK(mlxd_barrier(world, way->stream));
    if (way->stream != NULL) {
        way_wait(way);
    }
    double my_leave = seconds();
    gather_times(my_arrival, came);
    gather_times(my_leave, left);
    for (int i = 0; i < size; i++) {
        for (int j = 0; j < size; j++) {
            CHECK(left[i] >= came[j]);
        }
    }
}

static void collectives(mlxd_dtype dtype, size_t count, const struct way *way) {
    all_gather(dtype, count, false, way);
    all_gather(dtype, count, true, way);
    all_to_all(dtype, count, way);
    for (int root = 0; root < size; root++) {
        broadcast(dtype, count, root, way);
    }
}

static void messages(mlxd_dtype dtype, size_t count, const struct way *way) {
    all_pairs(dtype, count, way);
    for (int distance = 1; distance < size; distance++) {
        shift(distance, dtype, count, 0, way);
        shift(distance, dtype, count, 37, way);
    }
}

int main(int argc, char **argv) {
    int end;
    if (nccl_begin(argc, argv, 1, 280, &end)) {
        return end;
    }
    buffers_open((size_t)4 << 20);

    for (mlxd_dtype dtype = 0; dtype < DTYPE_COUNT; dtype++) {
        for (int way = 0; way < WAYS; way++) {
            for (size_t c = 0; c < TEST_COUNTS; c++) {
                collectives(dtype, test_counts[c], &ways[way]);
                messages(dtype, test_counts[c], &ways[way]);
            }
        }
    }
    for (int way = 0; way < WAYS; way++) {
        for (int distance = 1; distance < size; distance++) {
            shift(distance, MLXD_FLOAT32, 1 << 19, 0, &ways[way]);
        }
        if (size > 1) {
            order_is_kept(&ways[way]);
        }
        for (int late = 0; late < size; late++) {
            barrier_holds(late, &ways[way]);
        }
    }

    buffers_close();
    return nccl_finish("nccl_move");
}

/* Random small operations on any number of ranks: every kind, alone and several at once on a
 * stream, each byte checked. What runs follows from a seed, which all ranks share:
 *
 *   small [OPERATIONS [SEED]] */
#include "reductions.h"

enum kind { ALL_REDUCE, ALL_GATHER, SUM_SCATTER, ALL_TO_ALL, BROADCAST, BARRIER, MESSAGE, SHIFT };
#define KINDS 8

/* Several operations may be on their way at once. */
enum { BATCH = 8, COUNT_MAX = 48, ROOM = 16 * COUNT_MAX * 8 };

struct operation {
    enum kind kind;
    size_t reduction; /* in `reductions` */
    mlxd_dtype dtype;
    size_t count; /* a rank's share */
    int from;     /* a message's ends, or the root */
    int to;
    int salt;
    struct buffer input;
    struct buffer output;
};

static mlxd_group *world;
static int rank;
static int size;
static uint64_t seed;

/* xorshift64*: the same numbers on every rank. */
static uint32_t draw(uint32_t below) {
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return (uint32_t)((seed * UINT64_C(0x2545f4914f6cdd1d)) >> 33) % below;
}

static void draw_operation(struct operation *operation) {
    operation->kind = (enum kind)draw(KINDS);
    operation->reduction = draw(sizeof reductions / sizeof reductions[0]);
    operation->dtype = (mlxd_dtype)draw(DTYPE_COUNT);
    /* One element often: that is what small messages are about. */
    operation->count = draw(3) == 0 ? 1 : draw(COUNT_MAX + 1);
    operation->from = (int)draw((uint32_t)size);
    operation->to = (operation->from + 1 + (int)draw((uint32_t)size - 1)) % size;
    operation->salt = (int)draw(1000);
}

/* Elements that this rank puts in, and gets. */
static void element_counts(const struct operation *operation, size_t *in, size_t *out) {
    size_t all = operation->count * (size_t)size;
    *in = operation->count;
    *out = operation->count;
    switch (operation->kind) {
    case ALL_GATHER:
        *out = all;
        break;
    case SUM_SCATTER:
        *in = all;
        break;
    case ALL_TO_ALL:
        *in = all;
        *out = all;
        break;
    case BARRIER:
        *in = 0;
        *out = 0;
        break;
    case MESSAGE:
        *in = rank == operation->from ? operation->count : 0;
        *out = rank == operation->to ? operation->count : 0;
        break;
    default:
        break;
    }
}

/* The ends of a shift: how far follows from the drawn ranks. */
static int shift_to(const struct operation *operation) {
    return (rank + operation->to - operation->from + size) % size;
}

static int shift_from(const struct operation *operation) {
    return (rank + operation->from - operation->to + size) % size;
}

static void fill(const struct operation *operation) {
    size_t in;
    size_t out;
    element_counts(operation, &in, &out);
    values_fill(operation->dtype, operation->input.data, in, rank, operation->salt);
    if (operation->kind == BROADCAST && rank == operation->from) {
        values_fill(operation->dtype, operation->output.data, out, rank, operation->salt);
    }
}

static mlxd_status run(const struct operation *o, mlxd_stream *stream) {
    const void *input = o->input.data;
    void *output = o->output.data;
    size_t all = o->count * (size_t)size;
    switch (o->kind) {
    case ALL_REDUCE:
        return reductions[o->reduction].call(world, input, output, o->count, o->dtype, stream);
    case ALL_GATHER:
        return mlxd_all_gather(world, input, output, o->count, o->dtype, stream);
    case SUM_SCATTER:
        return mlxd_sum_scatter(world, input, output, all, o->dtype, stream);
    case ALL_TO_ALL:
        return mlxd_all_to_all(world, input, output, all, o->dtype, stream);
    case BROADCAST:
        return mlxd_broadcast(world, output, o->count, o->dtype, o->from, stream);
    case BARRIER:
        return mlxd_barrier(world, stream);
    case MESSAGE:
        if (rank == o->from) {
            return mlxd_send(world, input, o->count, o->dtype, o->to, stream);
        }
        return rank == o->to ? mlxd_recv(world, output, o->count, o->dtype, o->from, stream)
                             : MLXD_OK;
    case SHIFT:
        return mlxd_send_recv(world, input, o->count, shift_to(o), output, o->count, shift_from(o),
                              o->dtype, stream);
    }
    return MLXD_ERROR_INTERNAL;
}

/* What the output must be; returns its bytes. */
static size_t expect(const struct operation *operation, unsigned char *want) {
    mlxd_dtype dtype = operation->dtype;
    size_t width = value_size(dtype);
    size_t count = operation->count;
    size_t in;
    size_t out;
    element_counts(operation, &in, &out);
    for (size_t i = 0; i < out; i++) {
        int salt = operation->salt;
        int64_t value = 0;
        switch (operation->kind) {
        case ALL_REDUCE:
            value = value_reduced(dtype, reductions[operation->reduction].reduction, size, i, salt);
            break;
        case SUM_SCATTER:
            value = value_reduced(dtype, REDUCE_SUM, size, (size_t)rank * count + i, salt);
            break;
        case ALL_GATHER:
            value = value_input(dtype, (int)(i / count), i % count, salt);
            break;
        case ALL_TO_ALL:
            value = value_input(dtype, (int)(i / count), (size_t)rank * count + i % count, salt);
            break;
        case SHIFT:
            value = value_input(dtype, shift_from(operation), i, salt);
            break;
        default:
            value = value_input(dtype, operation->from, i, salt);
        }
        value_store(dtype, want, i, value);
    }
    return out * width;
}

static const char *kind_name(const struct operation *operation) {
    static const char *const names[KINDS] = {"",          "all_gather", "sum_scatter", "all_to_all",
                                             "broadcast", "barrier",    "send",        "send_recv"};
    return operation->kind == ALL_REDUCE ? reductions[operation->reduction].name
                                         : names[operation->kind];
}

/* One batch, on a stream or not; `number` is that of its first operation. */
static void run_batch(struct operation *batch, int many, int number, mlxd_stream *stream) {
    static unsigned char want[ROOM];
    for (int i = 0; i < many; i++) {
        draw_operation(&batch[i]);
        batch[i].input = buffer_in(batch[i].input.base, ROOM);
        batch[i].output = buffer_in(batch[i].output.base, ROOM);
        fill(&batch[i]);
    }
    for (int i = 0; i < many; i++) {
        mlxd_status status = run(&batch[i], stream);
        if (status != MLXD_OK) {
            fprintf(stderr, "operation %d, %s\n", number + i, kind_name(&batch[i]));
        }
        REQUIRE_OK(status);
    }
    if (stream != NULL) {
        REQUIRE_OK(mlxd_stream_synchronize(stream));
    }
    for (int i = 0; i < many; i++) {
        char what[96];
        snprintf(what, sizeof what, "operation %d, %s of %zu %s", number + i, kind_name(&batch[i]),
                 batch[i].count, dtype_name(batch[i].dtype));
        size_t bytes = expect(&batch[i], want);
        check_bytes(batch[i].output.data, want, bytes, what);
        /* Nothing behind it was written either. */
        memset(want, STALE_VALUE, ROOM - bytes);
        check_bytes(batch[i].output.data + bytes, want, ROOM - bytes, what);
        buffer_check(&batch[i].input, what);
        buffer_check(&batch[i].output, what);
    }
}

int main(int argc, char **argv) {
    check_start(590);
    int operations = argc > 1 ? atoi(argv[1]) : 2000;
    seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    printf("small: %d operations of seed %" PRIu64 "\n", operations, seed);
    seed = (seed + 1) * UINT64_C(0x9e3779b97f4a7c15);
    world = world_start();
    rank = mlxd_group_rank(world);
    size = mlxd_group_size(world);
    REQUIRE(size >= 2 && size <= MAX_RANKS);
    mlxd_stream *queue = mlxd_stream_new();
    REQUIRE(queue != NULL);

    static struct operation batch[BATCH];
    for (int i = 0; i < BATCH; i++) {
        batch[i].input = buffer_new(ROOM);
        batch[i].output = buffer_new(ROOM);
    }
    for (int done = 0; done < operations;) {
        int many = 1 + (int)draw(BATCH);
        many = many < operations - done ? many : operations - done;
        mlxd_stream *stream = draw(2) != 0 ? queue : NULL;
        run_batch(batch, many, done, stream);
        done += many;
    }
    for (int i = 0; i < BATCH; i++) {
        buffer_free(&batch[i].input, "at the end");
        buffer_free(&batch[i].output, "at the end");
    }

    mlxd_stream_free(queue);
    mlxd_group_free(world);
    return check_finish("small");
}

/* Every collective and message with large counts: on both sides of each size at which algorithms
 * may switch or bytes are spread over several connections, 1 MiB worth, and 5 Mi + 3 elements.
 * Every byte is compared with a closed form, and with those of the other ranks. */
#include "pattern.h"

typedef mlxd_status (*collective)(mlxd_group *, const void *, void *, size_t, mlxd_dtype,
                                  mlxd_stream *);

static const struct {
    const char *name;
    collective call;
    enum reduction reduction;
} reductions[] = {
    {"all_sum", mlxd_all_sum, REDUCE_SUM},
    {"all_max", mlxd_all_max, REDUCE_MAX},
    {"all_min", mlxd_all_min, REDUCE_MIN},
};

static mlxd_group *world;
static int rank;
static int size;

/* One period each, of an operation's input and of what it should come to. */
static struct pattern mine;
static struct pattern want;

static struct arena inputs;
static struct arena outputs;

/* The start of every message about a case. */
static char what[96];

static void name_case(const char *verb, mlxd_dtype dtype, size_t count, bool in_place) {
    snprintf(what, sizeof what, "%s of %zu %s, %s", verb, count, dtype_name(dtype),
             in_place ? "in place" : "out of place");
}

static uint64_t all_reduce(size_t op, mlxd_dtype dtype, size_t count, bool in_place,
                           uint64_t hash) {
    name_case(reductions[op].name, dtype, count, in_place);
    size_t bytes = count * value_size(dtype);
    int salt = (int)op + (in_place ? 5 : 0);
    pattern_of_input(&mine, dtype, rank, salt, 0);
    pattern_of_reduction(&want, dtype, reductions[op].reduction, size, salt, 0);
    struct buffer output = arena_buffer(&outputs, bytes);
    struct buffer input = arena_buffer(&inputs, in_place ? 0 : bytes);
    void *from = in_place ? output.data : input.data;
    pattern_write(&mine, from, bytes);
    REQUIRE_OK(reductions[op].call(world, from, output.data, count, dtype, NULL));
    pattern_check(&want, output.data, bytes, what);
    if (!in_place) {
        pattern_check(&mine, input.data, bytes, "the input of a reduction");
    }
    hash = hash_words(hash, output.data, bytes);
    buffer_check(&input, what);
    buffer_check(&output, what);
    return hash;
}

/* `share` elements for each rank. */
static void sum_scatter(mlxd_dtype dtype, size_t share, bool in_place) {
    size_t count = share * (size_t)size;
    name_case("sum_scatter", dtype, count, in_place);
    size_t block = share * value_size(dtype);
    size_t bytes = block * (size_t)size;
    size_t first = (size_t)rank * share;
    pattern_of_input(&mine, dtype, rank, 3, 0);
    pattern_of_reduction(&want, dtype, REDUCE_SUM, size, 3, first);
    struct buffer input = arena_buffer(&inputs, bytes);
    struct buffer output = arena_buffer(&outputs, in_place ? 0 : block);
    pattern_write(&mine, input.data, bytes);
    unsigned char *to = in_place ? input.data + (size_t)rank * block : output.data;
    REQUIRE_OK(mlxd_sum_scatter(world, input.data, to, count, dtype, NULL));
    pattern_check(&want, to, block, what);
    if (!in_place) {
        pattern_check(&mine, input.data, bytes, "the input of sum_scatter");
    }
    buffer_check(&output, what);
    buffer_check(&input, what);
}

static uint64_t all_gather(mlxd_dtype dtype, size_t count, bool in_place, uint64_t hash) {
    name_case("all_gather", dtype, count, in_place);
    size_t block = count * value_size(dtype);
    pattern_of_input(&mine, dtype, rank, 1, 0);
    struct buffer output = arena_buffer(&outputs, block * (size_t)size);
    struct buffer input = arena_buffer(&inputs, in_place ? 0 : block);
    void *from = in_place ? output.data + (size_t)rank * block : input.data;
    pattern_write(&mine, from, block);
    REQUIRE_OK(mlxd_all_gather(world, from, output.data, count, dtype, NULL));
    for (int peer = 0; peer < size; peer++) {
        pattern_of_input(&want, dtype, peer, 1, 0);
        pattern_check(&want, output.data + (size_t)peer * block, block, what);
    }
    if (!in_place) {
        pattern_check(&mine, input.data, block, "the input of all_gather");
    }
    hash = hash_words(hash, output.data, output.bytes);
    buffer_check(&input, what);
    buffer_check(&output, what);
    return hash;
}

/* `share` elements for each rank. The salt tells for whom a chunk was. */
static void all_to_all(mlxd_dtype dtype, size_t share) {
    size_t count = share * (size_t)size;
    name_case("all_to_all", dtype, count, false);
    size_t block = share * value_size(dtype);
    struct buffer input = arena_buffer(&inputs, block * (size_t)size);
    struct buffer output = arena_buffer(&outputs, block * (size_t)size);
    for (int to = 0; to < size; to++) {
        pattern_of_input(&mine, dtype, rank, to, 0);
        pattern_write(&mine, input.data + (size_t)to * block, block);
    }
    REQUIRE_OK(mlxd_all_to_all(world, input.data, output.data, count, dtype, NULL));
    for (int peer = 0; peer < size; peer++) {
        pattern_of_input(&want, dtype, peer, rank, 0);
        pattern_check(&want, output.data + (size_t)peer * block, block, what);
        pattern_of_input(&mine, dtype, rank, peer, 0);
        pattern_check(&mine, input.data + (size_t)peer * block, block, "the input of all_to_all");
    }
    buffer_check(&output, what);
    buffer_check(&input, what);
}

static uint64_t broadcast(mlxd_dtype dtype, size_t count, int root, uint64_t hash) {
    name_case("broadcast", dtype, count, true);
    struct buffer buffer = arena_buffer(&outputs, count * value_size(dtype));
    pattern_of_input(&want, dtype, root, 2, 0);
    if (rank == root) {
        pattern_write(&want, buffer.data, buffer.bytes);
    }
    REQUIRE_OK(mlxd_broadcast(world, buffer.data, count, dtype, root, NULL));
    pattern_check(&want, buffer.data, buffer.bytes, what);
    hash = hash_words(hash, buffer.data, buffer.bytes);
    buffer_check(&buffer, what);
    return hash;
}

/* From every rank to the one `distance` to the right: by send_recv, or by send and recv, for which
 * rank 0 sends first and every other rank receives first. */
static void shift(mlxd_dtype dtype, size_t count, int distance, bool at_once) {
    name_case(at_once ? "send_recv" : "send and recv", dtype, count, false);
    int to = (rank + distance) % size;
    int from = (rank + size - distance) % size;
    struct buffer input = arena_buffer(&inputs, count * value_size(dtype));
    struct buffer output = arena_buffer(&outputs, count * value_size(dtype));
    pattern_of_input(&mine, dtype, rank, to, 0);
    pattern_of_input(&want, dtype, from, rank, 0);
    pattern_write(&mine, input.data, input.bytes);
    if (at_once) {
        REQUIRE_OK(
            mlxd_send_recv(world, input.data, count, to, output.data, count, from, dtype, NULL));
    } else if (rank == 0) {
        REQUIRE_OK(mlxd_send(world, input.data, count, dtype, to, NULL));
        REQUIRE_OK(mlxd_recv(world, output.data, count, dtype, from, NULL));
    } else {
        REQUIRE_OK(mlxd_recv(world, output.data, count, dtype, from, NULL));
        REQUIRE_OK(mlxd_send(world, input.data, count, dtype, to, NULL));
    }
    pattern_check(&want, output.data, output.bytes, what);
    pattern_check(&mine, input.data, input.bytes, "the input of a message");
    buffer_check(&output, what);
    buffer_check(&input, what);
}

/* `count` elements through everything; what is shared out among the ranks gets a multiple of their
 * number, `count` or the next one. */
static void all_with(mlxd_dtype dtype, size_t count) {
    size_t share = (count + (size_t)size - 1) / (size_t)size;
    uint64_t hash = HASH_START;
    for (int in_place = 0; in_place < 2; in_place++) {
        for (size_t op = 0; op < sizeof reductions / sizeof reductions[0]; op++) {
            hash = all_reduce(op, dtype, count, in_place != 0, hash);
        }
        sum_scatter(dtype, share, in_place != 0);
        /* First so that the output has `count` elements. */
        hash = all_gather(dtype, share, in_place != 0, hash);
        if (size <= 4 || count <= 1 << 20) {
            hash = all_gather(dtype, count, in_place != 0, hash);
        }
    }
    all_to_all(dtype, share);
    /* Some root: another one each time. */
    static int root = 0;
    root = (root + 1) % size;
    hash = broadcast(dtype, count, root, hash);
    shift(dtype, count, 1, true);
    shift(dtype, count, size - 1, false);
    check_same_everywhere(world, hash, dtype_name(dtype));
}

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
        REQUIRE_OK(mlxd_all_sum(world, from, output.data, count, dtype, NULL));
        uint64_t hash = hash_words(HASH_START, output.data, output.bytes);
        check_same_everywhere(world, hash, what);
        CHECK(run == 0 || hash == first);
        first = hash;
        buffer_check(&output, what);
        buffer_check(&input, what);
    }
}

int main(void) {
    check_start(240);
    world = world_start();
    rank = mlxd_group_rank(world);
    size = mlxd_group_size(world);
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

    free(inputs.memory);
    free(outputs.memory);
    mlxd_group_free(world);
    return check_finish("large");
}

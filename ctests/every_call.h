/* Every call on a group, with any count of any dtype, in place and out of place: every byte is
 * compared with a closed form, and with those of the other ranks. */
#ifndef EVERY_CALL_H
#define EVERY_CALL_H

#include "pattern.h"
#include "reductions.h"

/* Whose calls these are, and this rank in it. */
static mlxd_group *group;
static int rank;
static int size;
/* Of the last broadcast. */
static int last_root;

static inline void use_group(mlxd_group *used) {
    group = used;
    rank = mlxd_group_rank(used);
    size = mlxd_group_size(used);
    last_root = 0;
}

/* One period each, of an operation's input and of what it should come to. */
static struct pattern mine;
static struct pattern want;

static struct arena inputs;
static struct arena outputs;

static inline void arenas_free(void) {
    free(inputs.memory);
    free(outputs.memory);
}

/* The start of every message about a case. */
static char what[96];

static inline void name_case(const char *verb, mlxd_dtype dtype, size_t count, bool in_place) {
    snprintf(what, sizeof what, "%s of %zu %s, %s", verb, count, dtype_name(dtype),
             in_place ? "in place" : "out of place");
}

static inline uint64_t all_reduce(size_t op, mlxd_dtype dtype, size_t count, bool in_place,
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
    REQUIRE_OK(reductions[op].call(group, from, output.data, count, dtype, NULL));
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
static inline void sum_scatter(mlxd_dtype dtype, size_t share, bool in_place) {
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
    REQUIRE_OK(mlxd_sum_scatter(group, input.data, to, count, dtype, NULL));
    pattern_check(&want, to, block, what);
    if (!in_place) {
        pattern_check(&mine, input.data, bytes, "the input of sum_scatter");
    }
    buffer_check(&output, what);
    buffer_check(&input, what);
}

static inline uint64_t all_gather(mlxd_dtype dtype, size_t count, bool in_place, uint64_t hash) {
    name_case("all_gather", dtype, count, in_place);
    size_t block = count * value_size(dtype);
    pattern_of_input(&mine, dtype, rank, 1, 0);
    struct buffer output = arena_buffer(&outputs, block * (size_t)size);
    struct buffer input = arena_buffer(&inputs, in_place ? 0 : block);
    void *from = in_place ? output.data + (size_t)rank * block : input.data;
    pattern_write(&mine, from, block);
    REQUIRE_OK(mlxd_all_gather(group, from, output.data, count, dtype, NULL));
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
static inline void all_to_all(mlxd_dtype dtype, size_t share) {
    size_t count = share * (size_t)size;
    name_case("all_to_all", dtype, count, false);
    size_t block = share * value_size(dtype);
    struct buffer input = arena_buffer(&inputs, block * (size_t)size);
    struct buffer output = arena_buffer(&outputs, block * (size_t)size);
    for (int to = 0; to < size; to++) {
        pattern_of_input(&mine, dtype, rank, to, 0);
        pattern_write(&mine, input.data + (size_t)to * block, block);
    }
    REQUIRE_OK(mlxd_all_to_all(group, input.data, output.data, count, dtype, NULL));
    for (int peer = 0; peer < size; peer++) {
        pattern_of_input(&want, dtype, peer, rank, 0);
        pattern_check(&want, output.data + (size_t)peer * block, block, what);
        pattern_of_input(&mine, dtype, rank, peer, 0);
        pattern_check(&mine, input.data + (size_t)peer * block, block, "the input of all_to_all");
    }
    buffer_check(&output, what);
    buffer_check(&input, what);
}

static inline uint64_t broadcast(mlxd_dtype dtype, size_t count, int root, uint64_t hash) {
    name_case("broadcast", dtype, count, true);
    struct buffer buffer = arena_buffer(&outputs, count * value_size(dtype));
    pattern_of_input(&want, dtype, root, 2, 0);
    if (rank == root) {
        pattern_write(&want, buffer.data, buffer.bytes);
    }
    REQUIRE_OK(mlxd_broadcast(group, buffer.data, count, dtype, root, NULL));
    pattern_check(&want, buffer.data, buffer.bytes, what);
    hash = hash_words(hash, buffer.data, buffer.bytes);
    buffer_check(&buffer, what);
    return hash;
}

/* From every rank to the one `distance` to the right: by send_recv, or by send and recv, for which
 * rank 0 sends first and every other rank receives first. */
static inline void shift(mlxd_dtype dtype, size_t count, int distance, bool at_once) {
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
            mlxd_send_recv(group, input.data, count, to, output.data, count, from, dtype, NULL));
    } else if (rank == 0) {
        REQUIRE_OK(mlxd_send(group, input.data, count, dtype, to, NULL));
        REQUIRE_OK(mlxd_recv(group, output.data, count, dtype, from, NULL));
    } else {
        REQUIRE_OK(mlxd_recv(group, output.data, count, dtype, from, NULL));
        REQUIRE_OK(mlxd_send(group, input.data, count, dtype, to, NULL));
    }
    pattern_check(&want, output.data, output.bytes, what);
    pattern_check(&mine, input.data, input.bytes, "the input of a message");
    buffer_check(&output, what);
    buffer_check(&input, what);
}

/* `count` elements through everything; what is shared out among the ranks gets a multiple of their
 * number, `count` or the next one. */
static inline void all_with(mlxd_dtype dtype, size_t count) {
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
    last_root = (last_root + 1) % size;
    hash = broadcast(dtype, count, last_root, hash);
    shift(dtype, count, 1, true);
    shift(dtype, count, size - 1, false);
    check_same_everywhere(group, hash, dtype_name(dtype));
}

#endif

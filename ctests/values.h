/* Exact values of every dtype, and buffers whose edges are watched.
 *
 * A test computes with small integers ("values"); `value_store` turns one into an element. Each
 * dtype stretches the values by a factor of its own, so that every byte of an element counts,
 * integers wrap in sums over several ranks, and floats stay exact in sums over MAX_RANKS ranks: 16
 * times 15 is less than 2^8, which every float type holds, and times the factor less than 2^24 for
 * float32 and 2^53 for float64. */
#ifndef VALUES_H
#define VALUES_H

#include "check.h"

#include <inttypes.h>

#define DTYPE_COUNT 14
#define MAX_RANKS 16

static const size_t test_counts[] = {0, 1, 2, 3, 7, 1000, 4097};
#define TEST_COUNTS (sizeof test_counts / sizeof test_counts[0])

/* Whether a matrix is to be walked in part: MLXD_TEST_PART=k/n is the k-th (from 0) of n parts. */
static inline bool in_parts(uint32_t *part, uint32_t *parts) {
    const char *text = getenv("MLXD_TEST_PART");
    if (text == NULL || text[0] == '\0') {
        return false;
    }
    if (sscanf(text, "%" SCNu32 "/%" SCNu32, part, parts) != 2 || *part >= *parts) {
        REQUIRE(!"MLXD_TEST_PART is k/n");
    }
    return true;
}

/* Whether the next round of a matrix is to be run, which all ranks ask in one order. Each is in one
 * part, and which one follows no pattern: every part has something of all that a matrix varies. */
static inline bool next_round(void) {
    static uint32_t rounds;
    uint32_t part = 0;
    uint32_t parts = 1;
    if (!in_parts(&part, &parts)) {
        return true;
    }
    uint32_t mixed = (rounds++ * UINT32_C(2654435761)) >> 16;
    return mixed % parts == part;
}

enum reduction { REDUCE_SUM, REDUCE_MAX, REDUCE_MIN };

static inline const char *dtype_name(mlxd_dtype dtype) {
    static const char *const names[DTYPE_COUNT] = {
        "bool",   "int8",   "int16",   "int32",    "int64",   "uint8",   "uint16",
        "uint32", "uint64", "float16", "bfloat16", "float32", "float64", "complex64"};
    return names[dtype];
}

/* Bytes of an element, told apart from the library's own answer. */
static inline size_t value_size(mlxd_dtype dtype) {
    static const size_t sizes[DTYPE_COUNT] = {1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 2, 4, 8, 8};
    return sizes[dtype];
}

/* Unsigned types take values 0..30, signed ones -15..15. */
static inline bool value_is_unsigned(mlxd_dtype dtype) {
    return dtype == MLXD_UINT8 || dtype == MLXD_UINT16 || dtype == MLXD_UINT32 ||
           dtype == MLXD_UINT64;
}

static inline int64_t value_factor(mlxd_dtype dtype) {
    switch (dtype) {
    case MLXD_INT8:
    case MLXD_UINT8:
        return 8;
    case MLXD_INT16:
    case MLXD_UINT16:
        return 2003;
    case MLXD_INT32:
    case MLXD_UINT32:
        return 100000007;
    case MLXD_INT64:
    case MLXD_UINT64:
        return 600000000000000007;
    case MLXD_FLOAT16:
        return 16;
    case MLXD_FLOAT32:
    case MLXD_COMPLEX64:
        return 10007;
    case MLXD_FLOAT64:
        return (INT64_C(1) << 40) + 1;
    default:
        return 1; /* bool, bfloat16 */
    }
}

/* The bits of a binary16 that equals this integer of at most 11 significant bits, |value| < 2^16.
 */
static inline uint16_t half_bits(int64_t value) {
    if (value == 0) {
        return 0;
    }
    uint32_t magnitude = (uint32_t)(value < 0 ? -value : value);
    int exponent = 0;
    while (magnitude >> (exponent + 1) != 0) {
        exponent++;
    }
    uint32_t fraction =
        exponent <= 10 ? magnitude << (10 - exponent) : magnitude >> (exponent - 10);
    return (uint16_t)((value < 0 ? 0x8000u : 0u) | (uint32_t)(exponent + 15) << 10 |
                      (fraction & 0x3ffu));
}

/* The upper half of a binary32, |value| <= 256: nothing is cut off. */
static inline uint16_t bfloat_bits(int64_t value) {
    float wide = (float)value;
    uint32_t bits;
    memcpy(&bits, &wide, sizeof bits);
    return (uint16_t)(bits >> 16);
}

/* Writes element `index` of a buffer of this dtype; integers wrap as the library's sums do. */
static inline void value_store(mlxd_dtype dtype, void *buffer, size_t index, int64_t value) {
    unsigned char *to = (unsigned char *)buffer + index * value_size(dtype);
    uint64_t wrapped = (uint64_t)value * (uint64_t)value_factor(dtype);
    switch (dtype) {
    case MLXD_BOOL:
        *to = value != 0;
        break;
    case MLXD_INT8:
    case MLXD_UINT8:
        *to = (unsigned char)wrapped;
        break;
    case MLXD_INT16:
    case MLXD_UINT16: {
        uint16_t bits = (uint16_t)wrapped;
        memcpy(to, &bits, sizeof bits);
        break;
    }
    case MLXD_INT32:
    case MLXD_UINT32: {
        uint32_t bits = (uint32_t)wrapped;
        memcpy(to, &bits, sizeof bits);
        break;
    }
    case MLXD_INT64:
    case MLXD_UINT64:
        memcpy(to, &wrapped, sizeof wrapped);
        break;
    case MLXD_FLOAT16: {
        uint16_t bits = half_bits(value * value_factor(dtype));
        memcpy(to, &bits, sizeof bits);
        break;
    }
    case MLXD_BFLOAT16: {
        uint16_t bits = bfloat_bits(value * value_factor(dtype));
        memcpy(to, &bits, sizeof bits);
        break;
    }
    case MLXD_FLOAT32: {
        float wide = (float)(value * value_factor(dtype));
        memcpy(to, &wide, sizeof wide);
        break;
    }
    case MLXD_FLOAT64: {
        double wide = (double)(value * value_factor(dtype));
        memcpy(to, &wide, sizeof wide);
        break;
    }
    case MLXD_COMPLEX64: {
        /* The imaginary part is a multiple of the real one: sums stay sums. */
        int64_t real = value * value_factor(dtype);
        float parts[2] = {(float)real, (float)(-2 * real)};
        memcpy(to, parts, sizeof parts);
        break;
    }
    default:
        REQUIRE(!"a dtype that the tests do not know");
    }
}

/* What rank `rank` puts into element `index` of round `salt`. */
static inline int64_t value_input(mlxd_dtype dtype, int rank, size_t index, int salt) {
    if (dtype == MLXD_BOOL) {
        /* Even places are rarely true and odd ones rarely false, so that neither *or* nor *and*
         * over MAX_RANKS ranks is the same everywhere. */
        bool rare = (index / 2 + (size_t)rank * 5 + (size_t)salt) % 17 == 0;
        return (index % 2 == 0) == rare;
    }
    int64_t value = (int64_t)((index * 7 + index / 31 + (size_t)rank * 13 + (size_t)salt * 3) % 31);
    return value_is_unsigned(dtype) ? value : value - 15;
}

/* Element `index` reduced over the ranks 0..size-1. */
static inline int64_t value_reduced(mlxd_dtype dtype, enum reduction op, int size, size_t index,
                                    int salt) {
    int64_t total = value_input(dtype, 0, index, salt);
    for (int rank = 1; rank < size; rank++) {
        int64_t next = value_input(dtype, rank, index, salt);
        if (op == REDUCE_SUM) {
            total += next;
        } else if (op == REDUCE_MAX ? next > total : next < total) {
            total = next;
        }
    }
    return total;
}

static inline void values_fill(mlxd_dtype dtype, void *buffer, size_t count, int rank, int salt) {
    for (size_t index = 0; index < count; index++) {
        value_store(dtype, buffer, index, value_input(dtype, rank, index, salt));
    }
}

/* Bytes on each side of a buffer that nobody may write. */
#define GUARD_BYTES 64
#define GUARD_VALUE 0xa5
/* What an output holds before a call. */
#define STALE_VALUE 0x5a

struct buffer {
    unsigned char *base; /* guard, data, guard */
    unsigned char *data;
    size_t bytes;
};

/* The first bytes of this memory, GUARD_BYTES more on each side of them. */
static inline struct buffer buffer_in(unsigned char *memory, size_t bytes) {
    struct buffer buffer = {memory, memory + GUARD_BYTES, bytes};
    memset(buffer.base, GUARD_VALUE, GUARD_BYTES);
    memset(buffer.data, STALE_VALUE, bytes);
    memset(buffer.data + bytes, GUARD_VALUE, GUARD_BYTES);
    return buffer;
}

static inline struct buffer buffer_new(size_t bytes) {
    unsigned char *memory = malloc(bytes + 2 * GUARD_BYTES);
    REQUIRE(memory != NULL);
    return buffer_in(memory, bytes);
}

/* Both guards must be as they were. */
static inline void buffer_check(const struct buffer *buffer, const char *what) {
    bool intact = true;
    for (size_t i = 0; i < GUARD_BYTES; i++) {
        intact = intact && buffer->base[i] == GUARD_VALUE &&
                 buffer->data[buffer->bytes + i] == GUARD_VALUE;
    }
    if (!intact) {
        fprintf(stderr, "rank %d: %s: bytes beside the buffer were written\n", check_rank, what);
    }
    CHECK(intact);
}

static inline void buffer_free(struct buffer *buffer, const char *what) {
    buffer_check(buffer, what);
    free(buffer->base);
    buffer->base = NULL;
}

/* The same bytes, or a line that tells the first difference. */
static inline void check_bytes(const void *got, const void *want, size_t bytes, const char *what) {
    bool same = bytes == 0 || memcmp(got, want, bytes) == 0;
    if (!same) {
        const unsigned char *a = got;
        const unsigned char *b = want;
        size_t at = 0;
        while (a[at] == b[at]) {
            at++;
        }
        fprintf(stderr, "rank %d: %s: byte %zu of %zu is %02x, not %02x\n", check_rank, what, at,
                bytes, a[at], b[at]);
    }
    CHECK(same);
}

/* FNV-1a, continued from `hash`. */
#define HASH_START UINT64_C(0xcbf29ce484222325)
static inline uint64_t hash_bytes(uint64_t hash, const void *data, size_t bytes) {
    const unsigned char *at = data;
    for (size_t i = 0; i < bytes; i++) {
        hash = (hash ^ at[i]) * UINT64_C(0x100000001b3);
    }
    return hash;
}

/* Every rank must have come to the same hash. */
static inline void check_same_everywhere(mlxd_group *group, uint64_t hash, const char *what) {
    int size = mlxd_group_size(group);
    uint64_t *all = calloc((size_t)size, sizeof *all);
    REQUIRE(all != NULL);
    REQUIRE_OK(mlxd_all_gather(group, &hash, all, 1, MLXD_UINT64, NULL));
    for (int rank = 0; rank < size; rank++) {
        if (all[rank] != hash) {
            fprintf(stderr, "rank %d: %s: rank %d has other bytes\n", check_rank, what, rank);
        }
        CHECK(all[rank] == hash);
    }
    free(all);
}

#endif

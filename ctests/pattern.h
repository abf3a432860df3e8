/* Large buffers of the values of values.h: the first PERIOD elements again and again, so that they
 * are made and checked at the speed of memory, every byte of them. PERIOD is a prime: bytes that
 * went to the place of another block, segment or lane are found out. */
#ifndef PATTERN_H
#define PATTERN_H

#include "values.h"

#define PERIOD 1021

struct pattern {
    size_t bytes; /* of one period */
    unsigned char data[PERIOD * 8];
};

/* One period of what rank `rank` puts in from element `first` on. */
static inline void pattern_of_input(struct pattern *pattern, mlxd_dtype dtype, int rank, int salt,
                                    size_t first) {
    pattern->bytes = PERIOD * value_size(dtype);
    for (size_t i = 0; i < PERIOD; i++) {
        int64_t value = value_input(dtype, rank, (first + i) % PERIOD, salt);
        value_store(dtype, pattern->data, i, value);
    }
}

/* The same of the ranks 0..size-1 reduced. */
static inline void pattern_of_reduction(struct pattern *pattern, mlxd_dtype dtype,
                                        enum reduction op, int size, int salt, size_t first) {
    pattern->bytes = PERIOD * value_size(dtype);
    for (size_t i = 0; i < PERIOD; i++) {
        int64_t value = value_reduced(dtype, op, size, (first + i) % PERIOD, salt);
        value_store(dtype, pattern->data, i, value);
    }
}

static inline void pattern_write(const struct pattern *pattern, void *to, size_t bytes) {
    for (size_t at = 0; at < bytes; at += pattern->bytes) {
        size_t left = bytes - at;
        memcpy((unsigned char *)to + at, pattern->data,
               left < pattern->bytes ? left : pattern->bytes);
    }
}

/* Every byte is the pattern's, or a line that tells the first that is not. */
static inline void pattern_check(const struct pattern *pattern, const void *got, size_t bytes,
                                 const char *what) {
    const unsigned char *data = got;
    for (size_t at = 0; at < bytes; at += pattern->bytes) {
        size_t left = bytes - at;
        size_t part = left < pattern->bytes ? left : pattern->bytes;
        if (memcmp(data + at, pattern->data, part) == 0) {
            continue;
        }
        size_t i = 0;
        while (data[at + i] == pattern->data[i]) {
            i++;
        }
        fprintf(stderr, "rank %d: %s: byte %zu of %zu is %02x, not %02x\n", check_rank, what,
                at + i, bytes, data[at + i], pattern->data[i]);
        CHECK(!"the bytes that were expected");
        return;
    }
    CHECK(true);
}

/* Memory that one buffer after the other uses: fresh memory costs more than what is done in it. */
struct arena {
    unsigned char *memory;
    size_t bytes;
    size_t askew; /* bytes from a multiple of 16 to where buffers begin, less than GUARD_BYTES */
};

/* To be checked with buffer_check; good until the next one. */
static inline struct buffer arena_buffer(struct arena *arena, size_t bytes) {
    if (arena->bytes < bytes || arena->memory == NULL) {
        free(arena->memory);
        arena->memory = malloc(bytes + 3 * GUARD_BYTES);
        arena->bytes = bytes;
        REQUIRE(arena->memory != NULL);
    }
    return buffer_in(arena->memory + arena->askew, bytes);
}

/* As hash_bytes, eight bytes at a time. */
static inline uint64_t hash_words(uint64_t hash, const void *data, size_t bytes) {
    const unsigned char *at = data;
    size_t words = bytes / 8;
    for (size_t i = 0; i < words; i++) {
        uint64_t word;
        memcpy(&word, at + 8 * i, sizeof word);
        hash = (hash ^ word) * UINT64_C(0x100000001b3);
        hash ^= hash >> 29; /* the upper bits of a word reach the lower ones of the hash */
    }
    return hash_bytes(hash, at + 8 * words, bytes % 8);
}

#endif

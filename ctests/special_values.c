/* What small integers do not show: NaN, infinities, ties of complex numbers, rounding of the half
 * types, sums that are not exact (the same bytes on every rank and in every run), odd addresses. */
#include "values.h"

#include <math.h>
#ifdef __SSE__
#include <xmmintrin.h>
#endif

static mlxd_group *world;
static int rank;
static int size;

/* NaN from any one rank wins in max and min, and stays in sums. */
static void nan_wins(void) {
    for (int owner = 0; owner < size; owner++) {
        float input[3] = {rank == owner ? NAN : (float)rank, (float)rank, -(float)rank};
        float output[3];
        REQUIRE_OK(mlxd_all_max(world, input, output, 3, MLXD_FLOAT32, NULL));
        CHECK(isnan(output[0]) && output[1] == (float)(size - 1) && output[2] == 0);
        REQUIRE_OK(mlxd_all_min(world, input, output, 3, MLXD_FLOAT32, NULL));
        CHECK(isnan(output[0]) && output[1] == 0 && output[2] == -(float)(size - 1));
        REQUIRE_OK(mlxd_all_sum(world, input, output, 3, MLXD_FLOAT32, NULL));
        CHECK(isnan(output[0]) && !isnan(output[1]));

        double wide = input[0];
        double wide_output;
        REQUIRE_OK(mlxd_all_max(world, &wide, &wide_output, 1, MLXD_FLOAT64, NULL));
        CHECK(isnan(wide_output));
        REQUIRE_OK(mlxd_all_min(world, &wide, &wide_output, 1, MLXD_FLOAT64, NULL));
        CHECK(isnan(wide_output));

        /* A NaN's exponent is all ones and its fraction is not zero. */
        uint16_t half = rank == owner ? 0x7e00 : half_bits(rank);
        uint16_t half_output;
        REQUIRE_OK(mlxd_all_max(world, &half, &half_output, 1, MLXD_FLOAT16, NULL));
        CHECK((half_output & 0x7fff) > 0x7c00);
        REQUIRE_OK(mlxd_all_min(world, &half, &half_output, 1, MLXD_FLOAT16, NULL));
        CHECK((half_output & 0x7fff) > 0x7c00);
        uint16_t brain = rank == owner ? 0x7fc0 : bfloat_bits(rank);
        uint16_t brain_output;
        REQUIRE_OK(mlxd_all_max(world, &brain, &brain_output, 1, MLXD_BFLOAT16, NULL));
        CHECK((brain_output & 0x7fff) > 0x7f80);
        REQUIRE_OK(mlxd_all_min(world, &brain, &brain_output, 1, MLXD_BFLOAT16, NULL));
        CHECK((brain_output & 0x7fff) > 0x7f80);
    }
}

/* Subnormal numbers are kept, although this program has them flushed to zero and its threads begin
 * so, as programs built with -ffast-math do. */
static void subnormals(void) {
    uint32_t input[2] = {1, UINT32_C(0x80000001)};
    uint32_t output[2];
    uint16_t brain = 1;
    uint16_t brain_output = 0;
    REQUIRE_OK(mlxd_all_sum(world, input, output, 2, MLXD_FLOAT32, NULL));
    CHECK(output[0] == (uint32_t)size && output[1] == UINT32_C(0x80000000) + (uint32_t)size);
    REQUIRE_OK(mlxd_all_max(world, input, output, 2, MLXD_FLOAT32, NULL));
    CHECK(output[0] == 1 && output[1] == UINT32_C(0x80000001));
    REQUIRE_OK(mlxd_all_sum(world, &brain, &brain_output, 1, MLXD_BFLOAT16, NULL));
    CHECK(brain_output == size);
}

static void infinities(void) {
    float input[2] = {rank == 0 ? INFINITY : 1.0f, rank == 0 ? -INFINITY : 1.0f};
    float output[2];
    REQUIRE_OK(mlxd_all_sum(world, input, output, 2, MLXD_FLOAT32, NULL));
    CHECK(output[0] == INFINITY && output[1] == -INFINITY);
    REQUIRE_OK(mlxd_all_max(world, input, output, 2, MLXD_FLOAT32, NULL));
    CHECK(output[0] == INFINITY && output[1] == (size == 1 ? -INFINITY : 1.0f));
    /* 65504 is the largest binary16: two of them are infinity. */
    uint16_t largest = 0x7bff;
    uint16_t sum;
    REQUIRE_OK(mlxd_all_sum(world, &largest, &sum, 1, MLXD_FLOAT16, NULL));
    CHECK(sum == (size == 1 ? 0x7bff : 0x7c00));
}

/* Equal real parts: the imaginary parts decide. */
static void complex_ties(void) {
    float input[2] = {5, (float)(rank * 3 % size)};
    float output[2];
    float most = 0;
    for (int i = 0; i < size; i++) {
        most = fmaxf(most, (float)(i * 3 % size));
    }
    REQUIRE_OK(mlxd_all_max(world, input, output, 1, MLXD_COMPLEX64, NULL));
    CHECK(output[0] == 5 && output[1] == most);
    REQUIRE_OK(mlxd_all_min(world, input, output, 1, MLXD_COMPLEX64, NULL));
    CHECK(output[0] == 5 && output[1] == 0);
    /* The real part comes first, however large the imaginary one is. */
    float crossed[2] = {(float)rank, (float)(size - rank)};
    REQUIRE_OK(mlxd_all_max(world, crossed, output, 1, MLXD_COMPLEX64, NULL));
    CHECK(output[0] == (float)(size - 1) && output[1] == 1);
}

/* What rank 0 and rank 1 give when all others give 0: one sum that is not exact, wherever they
 * meet. */
static int64_t of_two(int64_t first, int64_t second) {
    return rank == 0 ? first : rank == 1 ? second : 0;
}

/* Half types add in float32 and round to nearest, ties to even. */
static void half_rounding(void) {
    if (size < 2) {
        return;
    }
    uint16_t brain[2] = {bfloat_bits(of_two(256, 1)), bfloat_bits(of_two(256, 3))};
    uint16_t output[2];
    REQUIRE_OK(mlxd_all_sum(world, brain, output, 2, MLXD_BFLOAT16, NULL));
    CHECK(output[0] == bfloat_bits(256)); /* 257 lies between 256 and 258: even */
    CHECK(output[1] == 0x4382);           /* 259 lies between 258 and 260: even is 260 */
    uint16_t half[2] = {half_bits(of_two(2048, 1)), half_bits(of_two(2048, 3))};
    REQUIRE_OK(mlxd_all_sum(world, half, output, 2, MLXD_FLOAT16, NULL));
    CHECK(output[0] == half_bits(2048)); /* 2049 */
    CHECK(output[1] == 0x6802);          /* 2051: even is 2052 */
}

static void integer_extremes(void) {
    int64_t input[2] = {rank == 0 ? INT64_MAX : 1, rank == 0 ? INT64_MIN : 1};
    int64_t output[2];
    REQUIRE_OK(mlxd_all_max(world, input, output, 2, MLXD_INT64, NULL));
    CHECK(output[0] == INT64_MAX && output[1] == (size == 1 ? INT64_MIN : 1));
    REQUIRE_OK(mlxd_all_min(world, input, output, 2, MLXD_INT64, NULL));
    CHECK(output[0] == (size == 1 ? INT64_MAX : 1) && output[1] == INT64_MIN);
    uint64_t large = rank == 0 ? UINT64_MAX : (uint64_t)INT64_MAX;
    uint64_t most;
    REQUIRE_OK(mlxd_all_max(world, &large, &most, 1, MLXD_UINT64, NULL));
    CHECK(most == UINT64_MAX);
}

/* Sums that depend on their order: the same bytes on every rank, and again. */
static void same_bytes(void) {
    static const mlxd_dtype types[] = {MLXD_FLOAT16, MLXD_BFLOAT16, MLXD_FLOAT32, MLXD_FLOAT64,
                                       MLXD_COMPLEX64};
    enum { COUNT = 10007 };
    for (size_t t = 0; t < sizeof types / sizeof types[0]; t++) {
        size_t width = value_size(types[t]);
        size_t bytes = COUNT * width;
        unsigned char *input = calloc(COUNT, width);
        unsigned char *first = calloc(COUNT, width);
        unsigned char *again = calloc(COUNT, width);
        REQUIRE(input != NULL && first != NULL && again != NULL);
        uint32_t state = 12345u + (uint32_t)rank * 977u;
        for (size_t i = 0; i < bytes; i++) {
            state = state * 1664525u + 1013904223u;
            input[i] = (unsigned char)(state >> 24);
        }
        /* Random bits, but finite and of like size: clear the top of every exponent. */
        for (size_t i = 0; i < COUNT; i++) {
            for (size_t top = 0; top < width; top += types[t] == MLXD_COMPLEX64 ? 4 : width) {
                size_t last = top + (types[t] == MLXD_COMPLEX64 ? 4 : width) - 1;
                input[i * width + last] = (unsigned char)((input[i * width + last] & 0x80) | 0x3a);
            }
        }
        REQUIRE_OK(mlxd_all_sum(world, input, first, COUNT, types[t], NULL));
        REQUIRE_OK(mlxd_all_sum(world, input, again, COUNT, types[t], NULL));
        check_bytes(again, first, bytes, "the same sum again");
        check_same_everywhere(world, hash_bytes(HASH_START, first, bytes), dtype_name(types[t]));
        free(again);
        free(first);
        free(input);
    }
}

/* Nothing says that buffers lie at multiples of their element size. */
static void odd_addresses(void) {
    enum { COUNT = 1000 };
    for (mlxd_dtype dtype = 0; dtype < DTYPE_COUNT; dtype++) {
        size_t bytes = COUNT * value_size(dtype);
        struct buffer input = buffer_new(bytes + 1);
        struct buffer output = buffer_new(bytes + 1);
        struct buffer want = buffer_new(bytes);
        values_fill(dtype, want.data, COUNT, rank, 4);
        memcpy(input.data + 1, want.data, bytes);
        for (size_t i = 0; i < COUNT; i++) {
            value_store(dtype, want.data, i, value_reduced(dtype, REDUCE_SUM, size, i, 4));
        }
        REQUIRE_OK(mlxd_all_sum(world, input.data + 1, output.data + 1, COUNT, dtype, NULL));
        check_bytes(output.data + 1, want.data, bytes, "all_sum at an odd address");
        CHECK(output.data[0] == STALE_VALUE);
        buffer_free(&want, "odd address");
        buffer_free(&output, "odd address");
        buffer_free(&input, "odd address");
    }
}

int main(void) {
    check_start(120);
#ifdef __SSE__
    /* Flush to zero, and denormals are zero. */
    unsigned int usual = _mm_getcsr();
    _mm_setcsr(usual | 0x8040);
    world = world_start();
    rank = mlxd_group_rank(world);
    size = mlxd_group_size(world);
    subnormals();
    CHECK((_mm_getcsr() & 0x8040) == 0x8040);
    _mm_setcsr(usual);
#else
    world = world_start();
    rank = mlxd_group_rank(world);
    size = mlxd_group_size(world);
#endif

    subnormals();
    nan_wins();
    infinities();
    complex_ties();
    half_rounding();
    integer_extremes();
    same_bytes();
    odd_addresses();

    mlxd_group_free(world);
    return check_finish("special_values");
}

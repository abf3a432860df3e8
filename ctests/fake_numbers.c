/* The stand-in for libnccl.so.2, continued: sums, maxima and minima of every type that NCCL has. */
#include "fake_nccl.h"

#include <math.h>
#include <string.h>

size_t type_size(int type) {
    static const size_t sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
    return type >= 0 && type < 10 ? sizes[type] : 0;
}

static float half_to_float(uint16_t bits) {
    int exponent = bits >> 10 & 31;
    int fraction = bits & 1023;
    float value = exponent == 0    ? ldexpf((float)fraction, -24)
                  : exponent == 31 ? (fraction != 0 ? NAN : INFINITY)
                                   : ldexpf((float)(fraction + 1024), exponent - 25);
    return (bits & 0x8000) != 0 ? -value : value;
}

/* Rounded to the nearest, ties to even: scaled so that the last bit kept is a unit, then
 * nearbyintf. */
static uint16_t half_from_float(float value) {
    uint16_t sign = signbit(value) ? 0x8000 : 0;
    float magnitude = fabsf(value);
    if (isnan(value)) {
        return sign | 0x7e00;
    }
    if (isinf(value)) {
        return sign | 0x7c00;
    }
    int exponent;
    frexpf(magnitude, &exponent);
    exponent = magnitude == 0 || exponent < -13 ? -13 : exponent; /* subnormal */
    float units = nearbyintf(ldexpf(magnitude, 11 - exponent));
    unsigned bits = (unsigned)((exponent + 13) << 10) + (unsigned)units;
    return (uint16_t)(sign | (magnitude == 0 ? 0 : bits >= 0x7c00 ? 0x7c00 : bits));
}

static float bfloat_to_float(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

static uint16_t bfloat_from_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (isnan(value)) {
        return (uint16_t)(bits >> 16 | 0x40);
    }
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#define INTEGERS(type, unsigned_type)                                              \
    for (size_t i = 0; i < count; i++) {                                           \
        type *to = (type *)into + i;                                               \
        type a = *to, b = ((const type *)from)[i];                                 \
        *to = reduction == ncclSum   ? (type)((unsigned_type)a + (unsigned_type)b) \
              : reduction == ncclMax ? (a > b ? a : b)                             \
                                     : (a < b ? a : b);                            \
    }                                                                              \
    return

/* As on a GPU, a NaN loses against a number in max and min. */
#define FLOATS(type, load, store)                                \
    for (size_t i = 0; i < count; i++) {                         \
        type *to = (type *)into + i;                             \
        double a = load(*to), b = load(((const type *)from)[i]); \
        *to = store(reduction == ncclSum   ? a + b               \
                    : reduction == ncclMax ? fmax(a, b)          \
                                           : fmin(a, b));        \
    }                                                            \
    return

#define AS_IT_IS(value) (value)
#define NARROWED(value) ((float)(value))

void reduce(void *into, const void *from, size_t count, int type, int reduction) {
    switch (type) {
    case ncclInt8:
        INTEGERS(int8_t, uint8_t);
    case ncclUint8:
        INTEGERS(uint8_t, uint8_t);
    case ncclInt32:
        INTEGERS(int32_t, uint32_t);
    case ncclUint32:
        INTEGERS(uint32_t, uint32_t);
    case ncclInt64:
        INTEGERS(int64_t, uint64_t);
    case ncclUint64:
        INTEGERS(uint64_t, uint64_t);
    case ncclFloat16:
        FLOATS(uint16_t, half_to_float, half_from_float);
    case ncclBfloat16:
        FLOATS(uint16_t, bfloat_to_float, bfloat_from_float);
    case ncclFloat32:
        FLOATS(float, AS_IT_IS, NARROWED);
    case ncclFloat64:
        FLOATS(double, AS_IT_IS, AS_IT_IS);
    }
}

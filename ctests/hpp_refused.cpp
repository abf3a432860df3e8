// The C++ layer by itself, included twice; and what it refuses to compile, one case per REFUSED,
// for which CTest looks for the reason.
#include "mlxd.hpp"
#include "mlxd.hpp"

#ifndef REFUSED
#define REFUSED 0
#endif

void refused(const mlxd::Group &world);

void refused(const mlxd::Group &world) {
#if REFUSED == 0
    float number = 1;
    mlxd::broadcast(number, 0, world);
#elif REFUSED == 1
    std::vector<bool> flags(3);
    mlxd::all_sum(flags, flags, world);
#elif REFUSED == 2
    std::vector<long double> numbers(3);
    mlxd::broadcast(numbers, 0, world);
#elif REFUSED == 3
    const std::vector<float> numbers(3);
    mlxd::all_sum(numbers, numbers, world);
#elif REFUSED == 4
    std::vector<float> numbers(3);
    std::vector<double> sums(3);
    mlxd::all_sum(numbers, sums, world);
#elif REFUSED == 5
    const mlxd::Group ring = mlxd::init("ring");
#elif REFUSED == 6
    const mlxd::Group copy = world;
#endif
}

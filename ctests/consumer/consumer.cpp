// The smallest program of a user in C++: the sum over all ranks, here over one.
#include <mlxd.hpp>

#include <cstdio>

int main() {
    if (mlxd::version() != CONSUMER_VERSION) {
        std::fprintf(stderr, "version %s, not %s\n", mlxd_version(), CONSUMER_VERSION);
        return 1;
    }
    try {
        const mlxd::Group world = mlxd::init();
        const float sum = mlxd::all_sum(1.0F);
        std::printf("mlxd %s: rank %d of %d, sum %g\n", mlxd_version(), world.rank(), world.size(),
                    static_cast<double>(sum));
        return sum == static_cast<float>(world.size()) ? 0 : 1;
    } catch (const mlxd::Error &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}

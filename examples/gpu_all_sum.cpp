// Sums a vector over all ranks on their GPUs, on a CUDA stream of the program's own.
//
// The sum is enqueued between two copies, as a kernel would be: nothing waits until the end.
//
//     host to device | mlxd::all_sum | device to host      on one stream
//
// Needs a CUDA driver and NCCL to run, neither to compile: the driver's few functions are looked up
// here; a program that includes cuda.h or cuda_runtime.h passes its cudaStream_t and its device
// pointers instead. Alone it is a world of one. Several ranks are told apart by MLX's variables, or
// torchrun's:
//
//     torchrun --no-python --nproc-per-node 2 ./gpu_all_sum
//     for rank in 0 1; do
//         NCCL_HOST_IP=127.0.0.1 NCCL_PORT=12345 MLX_WORLD_SIZE=2 MLX_RANK=$rank ./gpu_all_sum &
//     done
//
// Each rank takes a device of its own; NCCL refuses two on the same one.

#include "mlxd.hpp"

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// ---- CUDA's driver --------------------------------------------------------------------------

using DevicePointer = std::uint64_t; // CUdeviceptr

class Driver {
public:
    Driver() {
        if (library_ == nullptr) {
            throw std::runtime_error(std::string("no CUDA driver here: ") + dlerror());
        }
        check(find<int (*)(unsigned)>("cuInit")(0), "cuInit");
    }

    // Calls a function of the driver by its name in the library, which for some has a version.
    template <class... Parameters> void call(const char *name, Parameters... parameters) const {
        check(find<int (*)(Parameters...)>(name)(parameters...), name);
    }

private:
    template <class Function> Function find(const char *name) const {
        void *found = dlsym(library_, name);
        if (found == nullptr) {
            throw std::runtime_error(std::string("the CUDA driver has no ") + name);
        }
        return reinterpret_cast<Function>(found);
    }

    static void check(int result, const char *name) {
        if (result != 0) {
            throw std::runtime_error(std::string(name) + ": CUDA error " + std::to_string(result));
        }
    }

    void *library_ = dlopen("libcuda.so.1", RTLD_NOW);
};

// A start with other ranks has chosen a device; a process that is alone takes the first.
void have_device(const Driver &driver) {
    void *context = nullptr;
    driver.call("cuCtxGetCurrent", &context);
    if (context == nullptr) {
        driver.call("cuDevicePrimaryCtxRetain", &context, 0);
        driver.call("cuCtxSetCurrent", context);
    }
}

// ---- The sum --------------------------------------------------------------------------------

// Whether every element came out right: rank r puts i % 100 + r into element i.
bool sum_over_ranks(const Driver &driver, const mlxd::Group &world, std::size_t count) {
    const std::size_t bytes = count * sizeof(float);
    const int rank = world.rank();
    const int size = world.size();
    std::vector<float> host(count);
    for (std::size_t i = 0; i < count; i++) {
        host[i] = static_cast<float>(i % 100) + static_cast<float>(rank);
    }

    DevicePointer memory = 0;
    void *cuda_stream = nullptr;
    driver.call("cuMemAlloc_v2", &memory, bytes);
    driver.call("cuStreamCreate", &cuda_stream, 1U); // CU_STREAM_NON_BLOCKING
    auto *device = reinterpret_cast<float *>(memory);
    {
        mlxd::Stream stream = mlxd::Stream::from_cuda(cuda_stream);
        driver.call("cuMemcpyHtoDAsync_v2", memory, static_cast<const void *>(host.data()), bytes,
                    cuda_stream);
        mlxd::all_sum(device, device, count, world, stream);
        driver.call("cuMemcpyDtoHAsync_v2", static_cast<void *>(host.data()), memory, bytes,
                    cuda_stream);
        stream.synchronize(); // throws what went wrong in the sum
    }
    driver.call("cuStreamDestroy_v2", cuda_stream);
    driver.call("cuMemFree_v2", memory);

    std::size_t wrong = 0;
    for (std::size_t i = 0; i < count; i++) {
        const auto want = static_cast<float>(size) * static_cast<float>(i % 100) +
                          static_cast<float>(size * (size - 1) / 2);
        wrong += host[i] != want ? 1 : 0;
    }
    std::printf("rank %d of %d (%s): %zu elements, %zu wrong\n", rank, size,
                std::string(world.backend()).c_str(), count, wrong);
    return wrong == 0;
}

} // namespace

int main() {
    try {
        const Driver driver;
        const mlxd::Group world = mlxd::init(false, "nccl");
        have_device(driver);
        return sum_over_ranks(driver, world, 1 << 20) ? 0 : 1;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "gpu_all_sum: %s\n", error.what());
        return 1;
    }
}

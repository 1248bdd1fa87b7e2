// Stands in for engine/backend/cuda/launch.cuh in the emulation: runs the kernel to its end.
#pragma once

#include <cuda_runtime.h>

#include <string>
#include <thread>

#include "engine/base/status.h"

namespace holdfast {
namespace cuda {

template <typename Args>
Status Launch(const char*, void (*kernel)(Args), dim3 grid, int threads, size_t, cudaStream_t,
              const Args& args) {
  for (unsigned n = 0; n < grid.x * grid.y; ++n) {
    emulation::block = std::make_unique<emulation::Block>(threads);
    std::vector<std::thread> running;
    for (int t = 0; t < threads; ++t) {
      running.emplace_back([=] {
        threadIdx = dim3(t, 0);
        blockIdx = dim3(n % grid.x, n / grid.x);
        blockDim = dim3(threads);
        kernel(args);
        emulation::block->all.arrive_and_drop();
      });
    }
    for (std::thread& thread : running) thread.join();
  }
  return {};
}

}  // namespace cuda
}  // namespace holdfast

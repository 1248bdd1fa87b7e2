// As much of CUDA as the kernels use, on CPU threads: one thread per CUDA thread, barriers for
// __syncthreads and shuffles, blocks one after another (so `static` is shared memory). Slow, and only
// for tests: it runs the very source that nvcc compiles, so that its bits can be compared with
// reference where there is no GPU. It can't show races that a GPU's scheduling would.
#pragma once

#include <barrier>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

struct dim3 {
  dim3(unsigned x_size = 1, unsigned y_size = 1) : x(x_size), y(y_size) {}
  unsigned x, y;
};
struct int4 {
  int x, y, z, w;
};
using cudaStream_t = struct CUstream_st*;

inline thread_local dim3 threadIdx, blockIdx, blockDim;

namespace emulation {
struct Block {
  explicit Block(int threads) : all(threads), exchanged(threads) {
    for (int w = 0; w < threads / 32; ++w) warps.push_back(std::make_unique<std::barrier<>>(32));
  }
  std::barrier<> all;
  std::vector<std::unique_ptr<std::barrier<>>> warps;
  std::vector<float> exchanged;
};
inline std::unique_ptr<Block> block;  // the one that runs now
}  // namespace emulation

inline void __syncthreads() { emulation::block->all.arrive_and_wait(); }

inline float __shfl_xor_sync(unsigned, float value, int mask) {
  emulation::Block& block = *emulation::block;
  std::barrier<>& warp = *block.warps[threadIdx.x / 32];
  block.exchanged[threadIdx.x] = value;
  warp.arrive_and_wait();
  const float other = block.exchanged[threadIdx.x ^ mask];
  warp.arrive_and_wait();
  return other;
}

template <typename T>
T __ldg(const T* p) {
  return *p;
}

inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 32; i += 8) c += int{static_cast<int8_t>(a >> i)} * static_cast<int8_t>(b >> i);
  return c;
}
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline uint32_t __float_as_uint(float a) { return std::bit_cast<uint32_t>(a); }
inline float __uint_as_float(uint32_t a) { return std::bit_cast<float>(a); }

// One row (or a few) times a quantised matrix: decoding is this, bound by reading the weights.
//
// The law (NUMERICS.md sections 1, 4) fixes one chain of float operations per output and part of
// 1024 elements: 32 groups in order. It says nothing about integers, whose sums are exact in any
// order. So the work is done in two phases with two meanings of a lane:
//
//   1. lane = group. A warp takes one output at a time; its 32 lanes hold the 32 groups of a part,
//      so it reads 1 KiB (Q8_0) or 512 bytes (Q4_K) of codes without a gap, 16 bytes per load.
//      A lane makes the exact S of its group by __dp4a, and dw * da, and leaves both in shared
//      memory.
//   2. lane = output. Warp 0 walks the 32 groups of its outputs in order:
//      acc = fma(S, dw * da, acc).
//
// Nothing floating-point ever crosses lanes, and the activations of a part stay in registers, since
// a lane keeps its group for all outputs of the warp.
//
// Grid: x = outputs / 16, y = rows; 8 warps a block, each with 2 of the 16 outputs. A block walks
// all parts of K: parts are added left to right, and doing so in one register needs no other block.
// With 16 outputs a block, a matrix of 1536 outputs gives 96 blocks, about one per multiprocessor;
// 32 would leave half of them idle. The terms of a part are double-buffered, so that warp 0 sums
// one part while the other seven read the next; one barrier per part suffices.
//
// Shared memory: 2 buffers x 16 outputs x 33 groups (33: lanes of phase 2 are 33 words apart, in
// different banks) x 2 or 3 terms = 12.4 KiB at most.
//
// Rejected: a warp per output with the chain done by shuffles (32 x 2 shuffles for one result;
// phase 2 does 16 results with as many loads); tensor cores in INT8 for one row (7/8 of them would
// idle, and the reads bound it anyway).
#include <cuda_runtime.h>

#include "engine/backend/cuda/exact.cuh"
#include "engine/backend/cuda/gemv.h"
#include "engine/backend/cuda/launch.cuh"

namespace holdfast {
namespace cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kOutputs = 16;     // per block
constexpr int kPartGroups = 32;  // 1024 elements
constexpr int kPitch = kPartGroups + 1;

// What phase 1 hands to phase 2, for one part.
template <bool kHasMin>
struct Terms {
  float s[kOutputs][kPitch];      // float(S)
  float scale[kOutputs][kPitch];  // dw * da
  float min[kHasMin ? kOutputs : 1][kPitch];  // -min
  float sum[kHasMin ? kPartGroups : 1];       // da * float(sum q)
};

struct Q8_0 {
  static constexpr bool kHasMin = false;

  __device__ static int Dot(const GemvWeight& w, int64_t at, const int (&q)[8]) {
    const int4* codes = static_cast<const int4*>(w.codes) + at * 2;
    const int4 a = __ldg(codes), b = __ldg(codes + 1);
    int s = __dp4a(a.x, q[0], 0);
    s = __dp4a(a.y, q[1], s);
    s = __dp4a(a.z, q[2], s);
    s = __dp4a(a.w, q[3], s);
    s = __dp4a(b.x, q[4], s);
    s = __dp4a(b.y, q[5], s);
    s = __dp4a(b.z, q[6], s);
    return __dp4a(b.w, q[7], s);
  }
  __device__ static float Scale(const GemvWeight& w, int64_t at) { return Half(__ldg(w.d + at)); }
  __device__ static float Min(const GemvWeight&, int64_t) { return 0.0f; }
};

struct Q4_K {
  static constexpr bool kHasMin = true;

  __device__ static int Dot(const GemvWeight& w, int64_t at, const int (&q)[8]) {
    const int4 a = __ldg(static_cast<const int4*>(w.codes) + at);
    const int words[4] = {a.x, a.y, a.z, a.w};
    int s = 0;
    for (int i = 0; i < 4; ++i) {
      s = __dp4a(words[i] & 0x0f0f0f0f, q[i], s);
      s = __dp4a((words[i] >> 4) & 0x0f0f0f0f, q[4 + i], s);
    }
    return s;
  }
  // Products of an 11-bit and a 6-bit number: exact.
  __device__ static float Scale(const GemvWeight& w, int64_t at) {
    return __fmul_rn(Half(__ldg(w.d + at / 8)), static_cast<float>(__ldg(w.scale + at)));
  }
  __device__ static float Min(const GemvWeight& w, int64_t at) {
    return __fmul_rn(Half(__ldg(w.dmin + at / 8)), static_cast<float>(__ldg(w.min + at)));
  }
};

// Phase 1 for the part that starts at group `first`: lane = group.
template <typename Type>
__device__ void MakeTerms(const GemvArgs& args, int first, Terms<Type::kHasMin>& terms) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int group = first + lane;
  if (group >= args.w.groups) return;
  const int64_t x = static_cast<int64_t>(blockIdx.y) * args.w.groups + group;
  const int4* codes = reinterpret_cast<const int4*>(args.q) + x * 2;
  const int4 low = codes[0], high = codes[1];
  const int q[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
  const float da = args.scale[x];
  if (Type::kHasMin && warp == 0) {
    terms.sum[lane] = __fmul_rn(da, static_cast<float>(args.sum[x]));
  }
  for (int o = warp; o < kOutputs; o += kWarps) {
    const int output = blockIdx.x * kOutputs + o;
    if (output >= args.w.outputs) break;
    const int64_t at = static_cast<int64_t>(output) * args.w.groups + group;
    terms.s[o][lane] = static_cast<float>(Type::Dot(args.w, at, q));
    terms.scale[o][lane] = __fmul_rn(Type::Scale(args.w, at), da);
    if (Type::kHasMin) terms.min[o][lane] = -Type::Min(args.w, at);
  }
}

// Phase 2: lane = output.
template <bool kHasMin>
__device__ float SumPart(const Terms<kHasMin>& terms, int o, int groups) {
  float acc = 0.0f;
  for (int g = 0; g < groups; ++g) {
    acc = __fmaf_rn(terms.s[o][g], terms.scale[o][g], acc);
    if (kHasMin) acc = __fmaf_rn(terms.min[o][g], terms.sum[g], acc);
  }
  return acc;
}

template <typename Type>
__global__ void __launch_bounds__(kWarps * 32) GemvKernel(const GemvArgs args) {
  __shared__ Terms<Type::kHasMin> terms[2];
  const int output = blockIdx.x * kOutputs + threadIdx.x;
  const bool sums = threadIdx.x < kOutputs && output < args.w.outputs;
  float y = 0.0f;
  for (int first = 0, part = 0; first < args.w.groups; first += kPartGroups, ++part) {
    MakeTerms<Type>(args, first, terms[part % 2]);
    __syncthreads();
    if (!sums) continue;
    const int left = args.w.groups - first;
    const float acc = SumPart<Type::kHasMin>(terms[part % 2], threadIdx.x,
                                             left < kPartGroups ? left : kPartGroups);
    y = part == 0 ? acc : __fadd_rn(y, acc);
  }
  if (!sums) return;
  if (args.bias != nullptr) y = __fadd_rn(y, args.bias[output]);
  args.y[static_cast<int64_t>(blockIdx.y) * args.w.outputs + output] = y;
}

}  // namespace

Status LaunchGemv(const GemvArgs& args, CUstream_st* stream) {
  const GemvWeight& w = args.w;
  if (w.outputs <= 0 || w.groups <= 0 || args.rows <= 0 || args.rows > 65535) {
    return Status::Invalid("cuda gemv: " + std::to_string(args.rows) + " rows, " +
                           std::to_string(w.outputs) + " outputs, " + std::to_string(w.groups) +
                           " groups");
  }
  const dim3 grid((w.outputs + kOutputs - 1) / kOutputs, args.rows);
  if (w.type == WeightType::kQ8_0) {
    return Launch("gemv Q8_0", GemvKernel<Q8_0>, grid, kWarps * 32, 0, stream, args);
  }
  if (w.type == WeightType::kQ4_K && w.groups % 8 == 0) {
    return Launch("gemv Q4_K", GemvKernel<Q4_K>, grid, kWarps * 32, 0, stream, args);
  }
  return Status::Invalid("cuda gemv: no kernel for " + std::string(WeightTypeName(w.type)) +
                         " with " + std::to_string(w.groups) + " groups");
}

}  // namespace cuda
}  // namespace holdfast

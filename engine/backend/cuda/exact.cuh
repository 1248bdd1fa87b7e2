// The few operations that every kernel is made of. The `_rn` intrinsics round to nearest even and
// are never contracted or reassociated, whatever the compiler's flags; -ftz=false keeps denormals.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "engine/backend/exact_math.h"

namespace holdfast {
namespace cuda {

// Exact.
__device__ inline float Half(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }

// max(a, b) of NUMERICS.md: fmaxf would treat NaN otherwise.
__device__ inline float Larger(float a, float b) { return a > b ? a : b; }

// exp of NUMERICS.md section 8; see ExpF.
__device__ inline float Exp(float x) {
  const bool zero = x < exp_f::kLowest;
  x = x > exp_f::kHighest ? exp_f::kHighest : x;
  const float t = __fadd_rn(__fmul_rn(x, exp_f::kLog2E), exp_f::kMagic);
  const float n = __fsub_rn(t, exp_f::kMagic);
  float r = __fmaf_rn(n, -exp_f::kLn2Hi, x);
  r = __fmaf_rn(n, -exp_f::kLn2Lo, r);
  float p = __fmaf_rn(exp_f::kC6, r, exp_f::kC5);
  p = __fmaf_rn(p, r, exp_f::kC4);
  p = __fmaf_rn(p, r, exp_f::kC3);
  p = __fmaf_rn(p, r, exp_f::kC2);
  p = __fmaf_rn(p, r, 1.0f);
  p = __fmaf_rn(p, r, 1.0f);
  const uint32_t steps = __float_as_uint(t) - __float_as_uint(exp_f::kMagic);
  const float y = __fmul_rn(p, __uint_as_float((steps + 127u) << 23));
  return zero ? 0.0f : y;
}

}  // namespace cuda
}  // namespace holdfast

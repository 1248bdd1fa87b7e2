// Row-wise kernels of one instruction set: pure functions of their arguments, one thread, any
// alignment. Which rows go to which thread is decided above, in cpu_backend.cc.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/backend/backend.h"

namespace holdfast {

inline constexpr int kMaxHeadDim = 512;  // of StoreHeadArgs::k_dim; models have 64 to 256

// One KV head of one row on its way into a page. `k` and `v` are fp32, `turn` a row of a RopeTable.
struct StoreHeadArgs {
  KvType k_type, v_type;
  int k_dim, v_dim, rope_dim;
  const float* turn;
  const float* k;  // [k_dim], not yet turned
  const float* v;  // [v_dim]
  std::byte* k_out;  // number 0 of the token's K (layout.h)
  std::byte* v_out;  // the token's V, contiguous
};

// out[i] = exp((x[i] - max) / temperature), as NUMERICS.md section 8 has exp.
struct ExpRowArgs {
  int64_t n = 0;
  const float* x = nullptr;
  float max = 0;
  float temperature = 1;
  float* out = nullptr;  // may be x; null: only the sum is wanted
};

struct ElementwiseKernels {
  void (*norm_row)(int64_t n, const float* x, const float* w, float eps, float* y);
  // `cols` need not be a multiple of 32; the outputs cover it rounded up. False: not finite.
  bool (*quantize_row)(int64_t cols, const float* x, int8_t* q, float* scale, int32_t* sum_lo,
                       int32_t* sum_hi);
  void (*swiglu)(int64_t n, const float* gate, const float* up, float* h);
  void (*geglu)(int64_t n, const float* gate, const float* up, float* h);
  void (*add)(int64_t n, const float* x, float* y);
  void (*scale)(int64_t n, float factor, float* x);
  void (*soft_cap)(int64_t n, float cap, float* x);
  float (*exp_row)(const ExpRowArgs& args);  // the row sum of what it writes
  bool (*finite)(int64_t n, const float* x);
  bool (*store_head)(const StoreHeadArgs& args);  // false: a stored number is not finite
};

const ElementwiseKernels& ElementwisePortable();
const ElementwiseKernels& ElementwiseAvx2();
const ElementwiseKernels& ElementwiseAvx512();
const ElementwiseKernels& ElementwiseNeon();

}  // namespace holdfast

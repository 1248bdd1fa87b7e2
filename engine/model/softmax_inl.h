// The kernels of softmax.h over a Lanes type (engine/backend/cpu/lanes_portable.h).
#pragma once

#include <cstdint>

#include "engine/backend/exact_math.h"

namespace holdfast {

struct ExpRowArgs {
  int64_t n = 0;
  const float* x = nullptr;
  float max = 0;
  float temperature = 1;
  float* out = nullptr;  // null: only the sum is wanted
};

float ExpRowPortable(const ExpRowArgs& args);
float ExpRowAvx2(const ExpRowArgs& args);  // needs AVX2, FMA

// Chain j of the row sum is lane j % kWidth of accumulator j / kWidth.
template <typename L>
float ExpRowLanes(const ExpRowArgs& a) {
  constexpr int kVectors = 64 / L::kWidth;
  const typename L::F max = L::Set(a.max), temperature = L::Set(a.temperature);
  typename L::F acc[kVectors];
  for (int v = 0; v < kVectors; ++v) acc[v] = L::Set(0.0f);
  int64_t i = 0;
  for (; i + 64 <= a.n; i += 64) {
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = i + v * L::kWidth;
      const typename L::F e = L::Exp(L::Div(L::Sub(L::Load(a.x + at), max), temperature));
      if (a.out != nullptr) L::Store(a.out + at, e);
      acc[v] = L::Add(acc[v], e);
    }
  }
  float chain[64];
  for (int v = 0; v < kVectors; ++v) L::Store(chain + v * L::kWidth, acc[v]);
  for (int j = 0; i < a.n; ++i, ++j) {
    const float e = ExpF((a.x[i] - a.max) / a.temperature);
    if (a.out != nullptr) a.out[i] = e;
    chain[j] = chain[j] + e;
  }
  for (int w = 32; w > 0; w /= 2) {
    for (int j = 0; j < w; ++j) chain[j] = chain[j] + chain[j + w];
  }
  return chain[0];
}

}  // namespace holdfast

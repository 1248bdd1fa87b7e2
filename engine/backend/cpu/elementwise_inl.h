// The row-wise kernels, written once over a Lanes type (lanes_portable.h). Each
// elementwise_<level>.cc includes this with its own lanes and its own QuantizeGroup, which turns 32
// numbers into integers and is the only part that differs.
#pragma once

#include <cmath>
#include <cstring>

#include "engine/backend/cpu/elementwise.h"
#include "engine/backend/cpu/quantize_head.h"
#include "engine/backend/exact_math.h"
#include "engine/backend/half.h"

namespace holdfast {

// The end of a row sum.
static inline float SumOfChains(float (&chain)[64]) {
  for (int w = 32; w > 0; w /= 2) {
    for (int j = 0; j < w; ++j) chain[j] = chain[j] + chain[j + w];
  }
  return chain[0];
}

// Row sum of squares: chain j of NUMERICS.md section 1 is lane j % kWidth of accumulator j /
// kWidth.
template <typename L>
float SumOfSquares(int64_t n, const float* x) {
  constexpr int kVectors = 64 / L::kWidth;
  typename L::F acc[kVectors];
  for (int v = 0; v < kVectors; ++v) acc[v] = L::Set(0.0f);
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    for (int v = 0; v < kVectors; ++v) {
      const typename L::F a = L::Load(x + i + v * L::kWidth);
      acc[v] = L::Fma(a, a, acc[v]);
    }
  }
  float chain[64];
  for (int v = 0; v < kVectors; ++v) L::Store(chain + v * L::kWidth, acc[v]);
  for (int j = 0; i < n; ++i, ++j) chain[j] = std::fma(x[i], x[i], chain[j]);
  return SumOfChains(chain);
}

template <typename L>
void NormRow(int64_t n, const float* x, const float* w, float eps, float* y) {
  const float mean = SumOfSquares<L>(n, x) / static_cast<float>(n);
  const float scale = 1.0f / std::sqrt(mean + eps);
  const typename L::F r = L::Set(scale);
  int64_t i = 0;
  for (; i + L::kWidth <= n; i += L::kWidth) {
    L::Store(y + i, L::Mul(L::Mul(L::Load(x + i), r), L::Load(w + i)));
  }
  for (; i < n; ++i) y[i] = (x[i] * scale) * w[i];
}

template <typename L>
void SwiGluRow(int64_t n, const float* gate, const float* up, float* h) {
  const typename L::F one = L::Set(1.0f);
  int64_t i = 0;
  for (; i + L::kWidth <= n; i += L::kWidth) {
    const typename L::F g = L::Load(gate + i);
    const typename L::F silu = L::Div(g, L::Add(one, L::Exp(L::Negate(g))));
    L::Store(h + i, L::Mul(silu, L::Load(up + i)));
  }
  for (; i < n; ++i) h[i] = (gate[i] / (1.0f + ExpF(-gate[i]))) * up[i];
}

template <typename L>
void GeGluRow(int64_t n, const float* gate, const float* up, float* h) {
  const typename L::F one = L::Set(1.0f), a = L::Set(gelu_f::kA), b = L::Set(gelu_f::kB);
  int64_t i = 0;
  for (; i + L::kWidth <= n; i += L::kWidth) {
    const typename L::F g = L::Load(gate + i);
    const typename L::F t = L::Mul(g, L::Fma(L::Mul(g, g), b, a));
    const typename L::F gelu = L::Div(g, L::Add(one, L::Exp(t)));
    L::Store(h + i, L::Mul(gelu, L::Load(up + i)));
  }
  for (; i < n; ++i) {
    const float g = gate[i], t = g * std::fma(g * g, gelu_f::kB, gelu_f::kA);
    h[i] = (g / (1.0f + ExpF(t))) * up[i];
  }
}

template <typename L>
void ScaleRow(int64_t n, float factor, float* x) {
  int64_t i = 0;
  for (; i + L::kWidth <= n; i += L::kWidth) {
    L::Store(x + i, L::Mul(L::Load(x + i), L::Set(factor)));
  }
  for (; i < n; ++i) x[i] = x[i] * factor;
}

template <typename L>
void SoftCapRow(int64_t n, float cap, float* x) {
  const typename L::F one = L::Set(1.0f), two = L::Set(2.0f);
  int64_t i = 0;
  for (; i + L::kWidth <= n; i += L::kWidth) {
    const typename L::F t = L::Div(L::Load(x + i), L::Set(cap));
    const typename L::F part = L::Div(two, L::Add(one, L::Exp(L::Add(t, t))));
    L::Store(x + i, L::Mul(L::Sub(one, part), L::Set(cap)));
  }
  for (; i < n; ++i) {
    const float t = x[i] / cap;
    x[i] = (1.0f - 2.0f / (1.0f + ExpF(t + t))) * cap;
  }
}

// Chain j of the row sum is lane j % kWidth of accumulator j / kWidth.
template <typename L>
float ExpRow(const ExpRowArgs& a) {
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
  return SumOfChains(chain);
}

template <typename L>
void AddRow(int64_t n, const float* x, float* y) {
  int64_t i = 0;
  for (; i + L::kWidth <= n; i += L::kWidth) {
    L::Store(y + i, L::Add(L::Load(y + i), L::Load(x + i)));
  }
  for (; i < n; ++i) y[i] = y[i] + x[i];
}

template <typename L>
bool FiniteRow(int64_t n, const float* x) {
  typename L::Bits largest = L::NoBits();
  int64_t i = 0;
  for (; i + L::kWidth <= n; i += L::kWidth) largest = L::MaxMagnitude(largest, L::Load(x + i));
  uint32_t bits = L::Largest(largest);
  for (; i < n; ++i) {
    const uint32_t one = std::bit_cast<uint32_t>(x[i]) & 0x7fffffff;
    bits = bits > one ? bits : one;
  }
  return bits < 0x7f800000;
}

// QuantizeGroup: bool(const float x[32], int8_t q[32], float*, int32_t*, int32_t*).
template <typename L, auto QuantizeGroup>
bool QuantizeRow(int64_t cols, const float* x, int8_t* q, float* scale, int32_t* sum_lo,
                 int32_t* sum_hi) {
  bool finite = true;
  const int64_t whole = cols / kQuantGroup;
  for (int64_t g = 0; g < whole; ++g) {
    finite &= QuantizeGroup(x + g * kQuantGroup, q + g * kQuantGroup, scale + g, sum_lo + g,
                            sum_hi + g);
  }
  if (whole * kQuantGroup < cols) {
    float padded[kQuantGroup] = {};
    std::memcpy(padded, x + whole * kQuantGroup, (cols - whole * kQuantGroup) * sizeof(float));
    finite &= QuantizeGroup(padded, q + whole * kQuantGroup, scale + whole, sum_lo + whole,
                            sum_hi + whole);
  }
  return finite;
}

// y = x turned by a row of a RopeTable; dims from rope_dim on stay. y must not overlap x.
template <typename L>
void TurnHead(int dim, int rope_dim, const float* turn, const float* x, float* y) {
  const int half = rope_dim / 2;
  const float* cos = turn;
  const float* sin = turn + half;
  int i = 0;
  for (; i + L::kWidth <= half; i += L::kWidth) {
    const typename L::F a = L::Load(x + i), b = L::Load(x + half + i);
    const typename L::F c = L::Load(cos + i), s = L::Load(sin + i);
    L::Store(y + i, L::Fma(L::Negate(b), s, L::Mul(a, c)));
    L::Store(y + half + i, L::Fma(a, s, L::Mul(b, c)));
  }
  for (; i < half; ++i) {
    y[i] = std::fma(-x[half + i], sin[i], x[i] * cos[i]);
    y[half + i] = std::fma(x[i], sin[i], x[half + i] * cos[i]);
  }
  for (i = rope_dim; i < dim; ++i) y[i] = x[i];
}

// False when one of them overflows or was not finite.
template <typename L>
bool ToHalf(int n, const float* x, uint16_t* out) {
  int i = 0;
  for (; i + L::kWidth <= n; i += L::kWidth) L::StoreHalf(out + i, L::Load(x + i));
  for (; i < n; ++i) out[i] = FloatToHalf(x[i]);
  unsigned largest = 0;
  for (i = 0; i < n; ++i) {
    const unsigned magnitude = out[i] & 0x7fffu;
    largest = largest > magnitude ? largest : magnitude;
  }
  return largest < 0x7c00;
}

template <typename L>
bool StoreV(KvType type, int n, const float* v, std::byte* out) {
  if (type == KvType::kF16) return ToHalf<L>(n, v, reinterpret_cast<uint16_t*>(out));
  std::memcpy(out, v, n * sizeof(float));
  return FiniteRow<L>(n, v);
}

static inline bool StoreCodes(int n, float* k, std::byte* out) {  // mixes k
  int8_t codes[kMaxHeadDim];
  float scale;
  MixHead(n, k);
  const bool finite = QuantizeHead(n, k, kKeyCodes, codes, &scale);
  for (int d = 0; d < n; d += 4) std::memcpy(out + d * kPageTokens, codes + d, 4);
  std::memcpy(out + n * kPageTokens, &scale, 4);
  return finite;
}

template <typename L>
bool StoreHead(const StoreHeadArgs& args) {
  float k[kMaxHeadDim];
  uint16_t half[kMaxHeadDim];
  bool finite = StoreV<L>(args.v_type, args.v_dim, args.v, args.v_out);
  TurnHead<L>(args.k_dim, args.rope_dim, args.turn, args.k, k);
  if (args.k_type == KvType::kI8) return StoreCodes(args.k_dim, k, args.k_out) && finite;
  if (args.k_type == KvType::kF32) {
    for (int d = 0; d < args.k_dim; ++d) {
      std::memcpy(args.k_out + int64_t{4} * d * kPageTokens, k + d, 4);
    }
    return FiniteRow<L>(args.k_dim, k) && finite;
  }
  finite &= ToHalf<L>(args.k_dim, k, half);
  for (int d = 0; d < args.k_dim; ++d) {
    std::memcpy(args.k_out + int64_t{2} * d * kPageTokens, half + d, 2);
  }
  return finite;
}

template <typename L, auto QuantizeGroup>
constexpr ElementwiseKernels MakeElementwise() {
  return {NormRow<L>, QuantizeRow<L, QuantizeGroup>, SwiGluRow<L>, GeGluRow<L>, AddRow<L>,
          ScaleRow<L>, SoftCapRow<L>, ExpRow<L>, FiniteRow<L>, StoreHead<L>};
}

}  // namespace holdfast

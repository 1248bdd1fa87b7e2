// The loops of roofline.h over the vectors of an instruction set. V lives in the anonymous
// namespace of its file, so that these templates stay there too.
//
// Twelve chains: enough for two units with a latency of five, few enough for sixteen registers.
// The steps themselves are assembly: compilers put copies of registers between intrinsics (gcc 12),
// and would compute a product of the same two vectors once.
#pragma once

#include "engine/backend/cpu/roofline.h"

namespace holdfast {

inline constexpr int kRooflineChains = 12;

template <typename V>
uint64_t ReadStreams(const uint8_t* data, int64_t bytes) {
  constexpr int64_t kLine = 256;
  const int64_t part = bytes / kReadStreams;
  auto a = V::Zero(), b = V::Zero(), c = V::Zero(), d = V::Zero();
  for (int64_t i = 0; i < part; i += kLine) {
    for (int s = 0; s < kReadStreams; ++s) {
      const uint8_t* p = data + s * part + i;
      for (int64_t j = 0; j < kLine; j += 4 * V::kBytes) {
        a = V::Xor(a, V::Load(p + j));
        b = V::Xor(b, V::Load(p + j + V::kBytes));
        c = V::Xor(c, V::Load(p + j + 2 * V::kBytes));
        d = V::Xor(d, V::Load(p + j + 3 * V::kBytes));
      }
    }
  }
  return V::Fold(V::Xor(V::Xor(a, b), V::Xor(c, d)));
}

template <typename V>
double Int8Steps(int64_t rounds) {
  const auto a = V::Zero(), b = V::Zero();
  decltype(V::Zero()) sum[kRooflineChains] = {};
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (auto& chain : sum) V::MultiplyAddInt8(chain, a, b);
  }
  return 2.0 * static_cast<double>(rounds) * kRooflineChains * V::kBytes;
}

template <typename V>
double Fp32Steps(int64_t rounds) {
  const auto a = V::ZeroFloat(), b = V::ZeroFloat();
  decltype(V::ZeroFloat()) sum[kRooflineChains] = {};
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (auto& chain : sum) V::MultiplyAdd(chain, a, b);
  }
  return 2.0 * static_cast<double>(rounds) * kRooflineChains * (V::kBytes / 4);
}

}  // namespace holdfast

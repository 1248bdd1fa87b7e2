// One lane in plain C++: what the vector lanes of lanes_avx2.h and lanes_avx512.h mean.
//
// A Lanes type has kWidth fp32 numbers side by side that never meet: each is one output or one of
// the 64 chains of a row sum. Kernels written over it are the same code on every instruction set.
// Every Lanes type has its own name, so that templates over it are never merged by the linker.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "engine/backend/exact_math.h"
#include "engine/backend/half.h"

namespace holdfast {

struct LanesPortable {
  static constexpr int kWidth = 1;
  using F = float;

  static F Load(const float* p) { return *p; }
  static void Store(float* p, F a) { *p = a; }
  static F Set(float a) { return a; }
  static F Add(F a, F b) { return a + b; }
  static F Sub(F a, F b) { return a - b; }
  static F Mul(F a, F b) { return a * b; }
  static F Div(F a, F b) { return a / b; }
  static F Negate(F a) { return -a; }
  static F Fma(F a, F b, F c) { return std::fma(a, b, c); }  // a * b + c, rounded once
  static F Exp(F x) { return ExpF(x); }
  static void StoreHalf(uint16_t* p, F a) { *p = FloatToHalf(a); }

  // The largest |x| as bits: >= 0x7f800000 when one is not finite.
  using Bits = uint32_t;
  static Bits NoBits() { return 0; }
  static Bits MaxMagnitude(Bits m, F a) {
    return std::max(m, std::bit_cast<uint32_t>(a) & 0x7fffffff);
  }
  static uint32_t Largest(Bits m) { return m; }
};

}  // namespace holdfast

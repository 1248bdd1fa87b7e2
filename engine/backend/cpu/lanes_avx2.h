// Eight lanes of AVX2 with FMA and F16C. See lanes_portable.h. Include only from *_avx2.cc.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "engine/backend/exact_math.h"

namespace holdfast {

struct LanesAvx2 {
  static constexpr int kWidth = 8;
  using F = __m256;

  static F Load(const float* p) { return _mm256_loadu_ps(p); }
  static void Store(float* p, F a) { _mm256_storeu_ps(p, a); }
  static F Set(float a) { return _mm256_set1_ps(a); }
  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm256_div_ps(a, b); }
  static F Negate(F a) { return _mm256_xor_ps(a, Set(-0.0f)); }
  static F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }

  static F Exp(F x) {
    using namespace exp_f;
    const F zero_mask = _mm256_cmp_ps(x, Set(kLowest), _CMP_LT_OQ);
    x = _mm256_min_ps(Set(kHighest), x);  // of a NaN and a number the second comes out
    const F t = Add(Mul(x, Set(kLog2E)), Set(kMagic));
    const F n = Sub(t, Set(kMagic));
    F r = Fma(n, Set(-kLn2Hi), x);
    r = Fma(n, Set(-kLn2Lo), r);
    F p = Fma(Set(kC6), r, Set(kC5));
    p = Fma(p, r, Set(kC4));
    p = Fma(p, r, Set(kC3));
    p = Fma(p, r, Set(kC2));
    p = Fma(p, r, Set(1.0f));
    p = Fma(p, r, Set(1.0f));
    const __m256i steps =
        _mm256_sub_epi32(_mm256_castps_si256(t), _mm256_castps_si256(Set(kMagic)));
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(steps, _mm256_set1_epi32(127)), 23);
    return _mm256_andnot_ps(zero_mask, Mul(p, _mm256_castsi256_ps(power)));
  }

  static void StoreHalf(uint16_t* p, F a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  using Bits = __m256i;
  static Bits NoBits() { return _mm256_setzero_si256(); }
  static Bits MaxMagnitude(Bits m, F a) {
    const __m256i magnitude =
        _mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(0x7fffffff));
    return _mm256_max_epu32(m, magnitude);
  }
  static uint32_t Largest(Bits m) {
    __m128i h = _mm_max_epu32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    h = _mm_max_epu32(h, _mm_shuffle_epi32(h, 0x4e));
    h = _mm_max_epu32(h, _mm_shuffle_epi32(h, 0xb1));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(h));
  }
};

}  // namespace holdfast

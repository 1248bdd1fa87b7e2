// Sixteen lanes of AVX-512. See lanes_portable.h. Include only from *_avx512.cc.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "engine/backend/exact_math.h"

namespace holdfast {

struct LanesAvx512 {
  static constexpr int kWidth = 16;
  using F = __m512;

  static F Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(float* p, F a) { _mm512_storeu_ps(p, a); }
  static F Set(float a) { return _mm512_set1_ps(a); }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm512_div_ps(a, b); }
  static F Negate(F a) { return _mm512_xor_ps(a, Set(-0.0f)); }
  static F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }

  static F Exp(F x) {
    using namespace exp_f;
    const __mmask16 keep = _mm512_cmp_ps_mask(x, Set(kLowest), _CMP_NLT_UQ);  // NaN too
    x = _mm512_min_ps(Set(kHighest), x);  // of a NaN and a number the second comes out
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
    return _mm512_maskz_scalef_ps(keep, p, n);  // p * 2^n, rounded once
  }

  static void StoreHalf(uint16_t* p, F a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  using Bits = __m512i;
  static Bits NoBits() { return _mm512_setzero_si512(); }
  static Bits MaxMagnitude(Bits m, F a) {
    const __m512i magnitude =
        _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffffff));
    return _mm512_max_epu32(m, magnitude);
  }
  static uint32_t Largest(Bits m) { return _mm512_reduce_max_epu32(m); }
};

}  // namespace holdfast

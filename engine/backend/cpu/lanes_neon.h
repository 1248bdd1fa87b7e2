// Four lanes of NEON. See lanes_portable.h. Include only from *_neon.cc.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "engine/backend/exact_math.h"

namespace holdfast {

struct LanesNeon {
  static constexpr int kWidth = 4;
  using F = float32x4_t;

  static F Load(const float* p) { return vld1q_f32(p); }
  static void Store(float* p, F a) { vst1q_f32(p, a); }
  static F Set(float a) { return vdupq_n_f32(a); }
  static F Add(F a, F b) { return vaddq_f32(a, b); }
  static F Sub(F a, F b) { return vsubq_f32(a, b); }
  static F Mul(F a, F b) { return vmulq_f32(a, b); }
  static F Div(F a, F b) { return vdivq_f32(a, b); }
  static F Negate(F a) { return vnegq_f32(a); }
  static F Fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }

  static F Exp(F x) {
    using namespace exp_f;
    const uint32x4_t zero_mask = vcltq_f32(x, Set(kLowest));
    x = vminq_f32(x, Set(kHighest));  // of a NaN and a number the NaN comes out
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
    const uint32x4_t steps =
        vsubq_u32(vreinterpretq_u32_f32(t), vreinterpretq_u32_f32(Set(kMagic)));
    const uint32x4_t power = vshlq_n_u32(vaddq_u32(steps, vdupq_n_u32(127)), 23);
    const F e = Mul(p, vreinterpretq_f32_u32(power));
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(e), zero_mask));
  }

  static void StoreHalf(uint16_t* p, F a) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a))); }

  using Bits = uint32x4_t;
  static Bits NoBits() { return vdupq_n_u32(0); }
  static Bits MaxMagnitude(Bits m, F a) {
    return vmaxq_u32(m, vreinterpretq_u32_f32(vabsq_f32(a)));
  }
  static uint32_t Largest(Bits m) { return vmaxvq_u32(m); }
};

}  // namespace holdfast

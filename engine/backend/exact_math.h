// exp, log, sin and cos out of operations that IEEE 754 fixes, so that each machine gives the same
// bits. Law 1 of NUMERICS.md forbids libm's: two releases of it may differ in the last bit.
//
// fp32 exp is the softmax and SiLU exp of NUMERICS.md section 8 and is mirrored lane by lane in
// cpu/lanes_*.h. The fp64 functions feed rotation tables (section 6) and the sampler. Coefficients
// are interpolations at Chebyshev nodes, solved with 200 bits and rounded once; where the
// polynomial stands in for a function whose first terms are exact (1, r, r^2/2), those are kept
// exact. Changing any of them changes kNumericsVersion.
//
// Errors, against the true value (asserted in tests/engine/backend/exact_math_test.cc):
//   ExpF <= 2 ulp; Exp, Log <= 2 ulp; SinCos <= 2^-52 absolute for |x| <= 2^30.
//
// `static` on purpose: files compiled for other instruction sets include this header, and a shared
// inline definition from one of them could end up in code that must run everywhere.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace holdfast {

namespace exp_f {
inline constexpr float kLog2E = 0x1.715476p+0f;
inline constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
inline constexpr float kLn2Hi = 0x1.62e430p-1f;
inline constexpr float kLn2Lo = -0x1.05c610p-29f;
inline constexpr float kC2 = 0x1.000000p-1f;
inline constexpr float kC3 = 0x1.5554dcp-3f;
inline constexpr float kC4 = 0x1.55551ap-5f;
inline constexpr float kC5 = 0x1.120ba2p-7f;
inline constexpr float kC6 = 0x1.6d113cp-10f;
inline constexpr float kLowest = -87.0f;  // below: +0
inline constexpr float kHighest = 88.0f;  // above: as if 88
}  // namespace exp_f

// Of GELU's tanh form: gelu(x) = x / (1 + exp(x * (kA + kB * x^2))).
namespace gelu_f {
inline constexpr float kA = -0x1.988454p+0f;  // -2 * sqrt(2 / pi)
inline constexpr float kB = -0x1.2444f2p-4f;  // 0.044715 * kA
}  // namespace gelu_f

// e^x; +0 below -87, e^88 above 88, 1 at zero, NaN for NaN.
[[maybe_unused]] static inline float ExpF(float x) {
  using namespace exp_f;
  if (x < kLowest) return 0.0f;
  if (x > kHighest) x = kHighest;
  const float t = x * kLog2E + kMagic;
  const float n = t - kMagic;
  float r = std::fma(n, -kLn2Hi, x);
  r = std::fma(n, -kLn2Lo, r);
  float p = kC6;
  p = std::fma(p, r, kC5);
  p = std::fma(p, r, kC4);
  p = std::fma(p, r, kC3);
  p = std::fma(p, r, kC2);
  p = std::fma(p, r, 1.0f);
  p = std::fma(p, r, 1.0f);
  const uint32_t steps = std::bit_cast<uint32_t>(t) - std::bit_cast<uint32_t>(kMagic);
  return p * std::bit_cast<float>((steps + 127u) << 23);
}

// e^x; +0 below -708, e^709 above 709, NaN for NaN.
[[maybe_unused]] static inline double Exp(double x) {
  constexpr double kLog2E = 0x1.71547652b82fep+0, kMagic = 6755399441055744.0;  // 1.5 * 2^52
  constexpr double kLn2Hi = 0x1.62e42fefa39efp-1, kLn2Lo = 0x1.abc9e3b39803fp-56;
  constexpr double kC[] = {0x1.1f731ea5352cap-29, 0x1.af4e196027428p-26, 0x1.27e4db57442fbp-22,
                           0x1.71de021a90822p-19, 0x1.a01a01a6dcaffp-16, 0x1.a01a01abef415p-13,
                           0x1.6c16c16c162ccp-10, 0x1.11111111100cep-7,  0x1.5555555555556p-5,
                           0x1.5555555555557p-3,  0x1.0p-1,              1.0,
                           1.0};
  if (x < -708.0) return 0.0;
  if (x > 709.0) x = 709.0;
  const double t = x * kLog2E + kMagic;
  const double n = t - kMagic;
  double r = std::fma(n, -kLn2Hi, x);
  r = std::fma(n, -kLn2Lo, r);
  double p = kC[0];
  for (int i = 1; i < 13; ++i) p = std::fma(p, r, kC[i]);
  const uint64_t steps = std::bit_cast<uint64_t>(t) - std::bit_cast<uint64_t>(kMagic);
  return p * std::bit_cast<double>((steps + 1023u) << 52);
}

// Natural logarithm; -inf at zero, NaN below zero, +inf at +inf.
[[maybe_unused]] static inline double Log(double x) {
  constexpr double kLn2Hi = 0x1.62e42fefa39efp-1, kLn2Lo = 0x1.abc9e3b39803fp-56;
  constexpr double kC[] = {0x1.0c1263e1bac13p-3, 0x1.0fbd2bafa02d6p-3, 0x1.3b1c42e3df02cp-3,
                           0x1.745cf8c4c7bcap-3, 0x1.c71c7201f207cp-3, 0x1.2492492476765p-2,
                           0x1.9999999999a3ap-2, 0x1.5555555555555p-1};
  if (!(x > 0.0)) return x == 0.0 ? -HUGE_VAL : NAN;
  if (x > 0x1.fffffffffffffp+1023) return x;
  int64_t exponent = 0;
  if (x < 0x1.0p-1022) {  // denormal
    x *= 0x1.0p54;
    exponent = -54;
  }
  // x = 2^exponent * m with m in [sqrt(1/2), sqrt(2)).
  const uint64_t bits = std::bit_cast<uint64_t>(x) - 0x3fe6a09e667f3bcdu;  // sqrt(1/2)
  exponent += static_cast<int64_t>(bits) >> 52;
  const uint64_t kept = (bits & 0x000fffffffffffffu) + 0x3fe6a09e667f3bcdu;
  const double f = std::bit_cast<double>(kept) - 1.0;
  const double s = f / (2.0 + f);
  const double z = s * s;
  double p = kC[0];
  for (int i = 1; i < 8; ++i) p = std::fma(p, z, kC[i]);
  const double e = static_cast<double>(exponent);
  const double tail = std::fma(-s, f - z * p, e * kLn2Lo);  // log(1+f) = f - s * (f - z * p)
  return std::fma(e, kLn2Hi, f + tail);
}

struct SinCosResult {
  double sin, cos;
};

// For |x| <= 2^30; the argument is reduced by three parts of pi/2, of which the first is exact.
[[maybe_unused]] static inline SinCosResult SinCos(double x) {
  constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1, kMagic = 6755399441055744.0;
  constexpr double kS[] = {-0x1.ab161757f0c63p-41, 0x1.61217c1864fa1p-33, -0x1.ae64540f0ba18p-26,
                           0x1.71de3a545e700p-19,  -0x1.a01a01a019926p-13, 0x1.1111111111110p-7,
                           -0x1.5555555555555p-3};
  constexpr double kC[] = {0x1.ab76cf6e9b365p-45, -0x1.9394b76d1f265p-37, 0x1.1eed8de9ef73ep-29,
                           -0x1.27e4fb7711e1dp-22, 0x1.a01a01a019d02p-16, -0x1.6c16c16c16c16p-10,
                           0x1.5555555555555p-5};
  const double t = x * kTwoOverPi + kMagic;
  const double n = t - kMagic;
  double r = std::fma(n, -0x1.921fb54442d18p+0, x);
  r = std::fma(n, -0x1.1a62633145c07p-54, r);
  r = std::fma(n, 0x1.f1976b7ed8fbcp-110, r);
  const double z = r * r;
  double s = kS[0], c = kC[0];
  for (int i = 1; i < 7; ++i) {
    s = std::fma(s, z, kS[i]);
    c = std::fma(c, z, kC[i]);
  }
  s = std::fma(r * z, s, r);
  c = std::fma(z * z, c, std::fma(z, -0.5, 1.0));
  switch (std::bit_cast<uint64_t>(t) & 3) {
    case 0: return {s, c};
    case 1: return {c, -s};
    case 2: return {-s, -c};
    default: return {-c, s};
  }
}

}  // namespace holdfast

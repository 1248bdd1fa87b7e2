// Attention kernels for AVX-512 (F, BW, VL, DQ): 16 lanes, up to 14 query rows x 2 vectors in registers.
#if defined(__AVX512F__)
#if defined(__GNUC__) && !defined(__clang__)
// gcc 12's own header starts the unused source of masked operations as `__Y = __Y` and warns of it.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "engine/backend/cpu/attend_kernels.h"
#include "engine/backend/exact_math.h"
#else
#include "engine/backend/cpu/attend_tile.h"
#endif

namespace holdfast {

#if defined(__AVX512F__)
namespace {

struct Avx512 {
  using F = __m512;
  static constexpr int kLanes = 16, kCols = 2, kMaxRows = 14, kPackRows = 48;

  static F Load(const float* p) { return _mm512_loadu_ps(p); }
  static F Load(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void Store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void StoreFirst(float* p, F x, int n) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>(n < kLanes ? (1 << n) - 1 : 0xffff), x);
  }
  static F Set1(float x) { return _mm512_set1_ps(x); }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F Max(F a, F b) { return _mm512_max_ps(a, b); }
  static F Keep(F x, F other, uint64_t bits) {
    return _mm512_mask_blend_ps(static_cast<__mmask16>(bits), other, x);
  }
  static float ReduceMax(F x) { return _mm512_reduce_max_ps(x); }
  static bool AnyNan(F x, F y) { return _mm512_cmp_ps_mask(x, y, _CMP_UNORD_Q) != 0; }
  static void Fetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

  // The last step multiplies by 2^n with one rounding, as the definition's product does.
  static F Exp(F x) {
    using namespace exp_f;
    const __mmask16 kept = _mm512_cmp_ps_mask(x, Set1(kLowest), _CMP_NLT_UQ);
    x = _mm512_min_ps(Set1(kHighest), x);  // NaN stays: the second operand wins
    const F t = Add(Mul(x, Set1(kLog2E)), Set1(kMagic));
    const F n = Sub(t, Set1(kMagic));
    F r = Fma(n, Set1(-kLn2Hi), x);
    r = Fma(n, Set1(-kLn2Lo), r);
    F p = Fma(Set1(kC6), r, Set1(kC5));
    p = Fma(p, r, Set1(kC4));
    p = Fma(p, r, Set1(kC3));
    p = Fma(p, r, Set1(kC2));
    p = Fma(p, r, Set1(1.0f));
    p = Fma(p, r, Set1(1.0f));
    return _mm512_maskz_scalef_ps(kept, p, n);
  }
};

constexpr AttendKernels kKernels = attend::KernelsOf<Avx512>();

}  // namespace

const AttendKernels* AttendAvx512() { return &kKernels; }
#else
const AttendKernels* AttendAvx512() { return nullptr; }
#endif

}  // namespace holdfast

// Attention kernels for AVX2 with FMA and F16C: 8 lanes, up to 6 query rows x 2 vectors in registers.
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>

#include "engine/backend/cpu/attend_kernels.h"
#include "engine/backend/exact_math.h"
#else
#include "engine/backend/cpu/attend_tile.h"
#endif

namespace holdfast {

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
namespace {

struct Avx2 {
  using F = __m256;
  static constexpr int kLanes = 8, kCols = 2, kMaxRows = 6, kPackRows = 18;

  static F Load(const float* p) { return _mm256_loadu_ps(p); }
  static F Load(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void Store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static void StoreFirst(float* p, F x, int n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_maskstore_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane), x);
  }
  static F Set1(float x) { return _mm256_set1_ps(x); }
  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F Max(F a, F b) { return _mm256_max_ps(a, b); }
  static F Keep(F x, F other, uint64_t bits) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane);
    return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane)));
  }
  static float ReduceMax(F x) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
  }
  static bool AnyNan(F x, F y) {
    return _mm256_movemask_ps(_mm256_cmp_ps(x, y, _CMP_UNORD_Q)) != 0;
  }
  static void Fetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

  static F Exp(F x) {
    using namespace exp_f;
    const F kept = _mm256_cmp_ps(x, Set1(kLowest), _CMP_NLT_UQ);
    x = _mm256_min_ps(Set1(kHighest), x);  // NaN stays: the second operand wins
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
    // bits(t) - bits(kMagic) is n; the low 9 bits of bits(kMagic) are zero, so t alone will do.
    const __m256i power = _mm256_slli_epi32(
        _mm256_add_epi32(_mm256_castps_si256(t), _mm256_set1_epi32(127)), 23);
    return _mm256_and_ps(kept, Mul(p, _mm256_castsi256_ps(power)));
  }
};

constexpr AttendKernels kKernels = attend::KernelsOf<Avx2>();

}  // namespace

const AttendKernels* AttendAvx2() { return &kKernels; }
#else
const AttendKernels* AttendAvx2() { return nullptr; }
#endif

}  // namespace holdfast

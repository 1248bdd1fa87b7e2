// Attention kernels for AVX2 with FMA and F16C: up to 6 query rows x 2 vectors in registers.
#include <immintrin.h>

#include "engine/backend/cpu/attend_kernels.h"
#include "engine/backend/cpu/lanes_avx2.h"

namespace holdfast {
namespace {

struct Avx2 : LanesAvx2 {
  static constexpr int kCols = 2, kMaxRows = 6, kPackRows = 18;

  using LanesAvx2::Load;
  static F Load(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void StoreFirst(float* p, F x, int n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_maskstore_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane), x);
  }
  static F Max(F a, F b) { return _mm256_max_ps(a, b); }
  static F Keep(F x, F other, uint64_t bits) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane);
    return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane)));
  }
  using I = __m256i;
  static constexpr int kCodeCols = 1, kCodeOffset = 0;
  static I SetI(int32_t x) { return _mm256_set1_epi32(x); }
  static I LoadCodes(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  // |k| * (q with k's sign): two products of at most 127 * 127 can't saturate 16 bits.
  static I Dot(I acc, I k, const float* q) {
    int32_t four;
    __builtin_memcpy(&four, q, 4);
    const I pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(k),
                                         _mm256_sign_epi8(_mm256_set1_epi32(four), k));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static F ToFloat(I x) { return _mm256_cvtepi32_ps(x); }
  static float ReduceMax(F x) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
  }
  static void Fetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
};

constexpr AttendKernels kKernels = attend::KernelsOf<Avx2>();

}  // namespace

const AttendKernels& AttendAvx2() { return kKernels; }

}  // namespace holdfast

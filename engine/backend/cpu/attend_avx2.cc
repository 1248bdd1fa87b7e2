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
  // Codes as 16 bits, four tokens to a vector; each token has two sums until the end.
  static constexpr int kCodeRows = 3;
  struct Codes {
    __m256i low, high;  // tokens 0..3, 4..7
  };
  using Sum = __m256i;
  static constexpr int kSums = 2;  // of tokens 0..3, of 4..7
  static void PutQuery(const int16_t* c, float* q) { __builtin_memcpy(q, c, 8); }
  static Codes LoadCodes(const void* p) {
    const __m128i* half = static_cast<const __m128i*>(p);
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128(half)),
            _mm256_cvtepi8_epi16(_mm_loadu_si128(half + 1))};
  }
  static Sum NoSum(int, int32_t) { return _mm256_setzero_si256(); }
  static Sum Dot(int part, Sum sum, const Codes& k, const float* q) {
    int64_t four;
    __builtin_memcpy(&four, q, sizeof(four));
    const __m256i tokens = part == 0 ? k.low : k.high;
    return _mm256_add_epi32(sum, _mm256_madd_epi16(tokens, _mm256_set1_epi64x(four)));
  }
  static F Total(const Sum* sums) {
    const __m256i tokens = _mm256_hadd_epi32(sums[0], sums[1]);  // 0 1 4 5, 2 3 6 7
    return _mm256_cvtepi32_ps(_mm256_permute4x64_epi64(tokens, _MM_SHUFFLE(3, 1, 2, 0)));
  }
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

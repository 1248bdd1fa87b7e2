// Attention kernels for AVX-512 (F, BW, VL, DQ): up to 14 query rows x 2 vectors in registers.
#if defined(__GNUC__) && !defined(__clang__)
// gcc 12's own header starts the unused source of masked operations as `__Y = __Y` and warns of it.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "engine/backend/cpu/attend_kernels.h"
#include "engine/backend/cpu/lanes_avx512.h"

namespace holdfast {
namespace {

struct Avx512 : LanesAvx512 {
  static constexpr int kCols = 2, kMaxRows = 14, kPackRows = 48;

  using LanesAvx512::Load;
  static F Load(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void StoreFirst(float* p, F x, int n) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>(n < kWidth ? (1 << n) - 1 : 0xffff), x);
  }
  static F Max(F a, F b) { return _mm512_max_ps(a, b); }
  static F Keep(F x, F other, uint64_t bits) {
    return _mm512_mask_blend_ps(static_cast<__mmask16>(bits), other, x);
  }
  // vpdpbusd multiplies 8 bits by 8, so a query comes in two parts, and K, which it wants unsigned,
  // is 128 too large.
  static constexpr int kCodeRows = 7;
  using Codes = __m512i;
  struct Sums {
    __m512i high, low;
  };
  static void PutQuery(const int16_t* c, float* q) { SplitQuery(c, q); }
  static Codes LoadCodes(const void* p) {
    return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(static_cast<char>(0x80)));
  }
  static Sums NoSums(int32_t query_sum) {
    return {_mm512_setzero_si512(), _mm512_set1_epi32(-128 * query_sum)};
  }
  static Sums Dot(const Sums& sums, Codes k, const float* q) {
    int32_t part[2];
    __builtin_memcpy(part, q, sizeof(part));
    return {_mm512_dpbusd_epi32(sums.high, k, _mm512_set1_epi32(part[0])),
            _mm512_dpbusd_epi32(sums.low, k, _mm512_set1_epi32(part[1]))};
  }
  static F Total(const Sums& sums) {
    return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(sums.high, 7), sums.low));
  }
  static float ReduceMax(F x) { return _mm512_reduce_max_ps(x); }
  static void Fetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
};

constexpr AttendKernels kKernels = attend::KernelsOf<Avx512>();

}  // namespace

const AttendKernels& AttendAvx512() { return kKernels; }

}  // namespace holdfast

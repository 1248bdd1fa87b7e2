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
  using Sum = __m512i;
  static constexpr int kSums = 2;  // of the query's high part, of its low one
  static void PutQuery(const int16_t* c, float* q) { SplitQuery(c, q); }
  static Codes LoadCodes(const void* p) {
    return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(static_cast<char>(0x80)));
  }
  static Sum NoSum(int part, int32_t query_sum) {
    return _mm512_set1_epi32(part == 0 ? 0 : -128 * query_sum);
  }
  static Sum Dot(int part, Sum sum, Codes k, const float* q) {
    // gcc 12 stores every sum of the intrinsic at each step.
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(k), "m"(q[part]));
    return sum;
  }
  static F Total(const Sum* sums) {
    return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(sums[0], 7), sums[1]));
  }
  static float ReduceMax(F x) { return _mm512_reduce_max_ps(x); }
  static void Fetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
};

constexpr AttendKernels kKernels = attend::KernelsOf<Avx512>();

}  // namespace

const AttendKernels& AttendAvx512() { return kKernels; }

}  // namespace holdfast

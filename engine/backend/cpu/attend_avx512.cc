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
  using I = __m512i;
  static constexpr int kCodeCols = 2, kCodeOffset = 128;  // vpdpbusd wants K unsigned
  static I SetI(int32_t x) { return _mm512_set1_epi32(x); }
  static I LoadCodes(const void* p) {
    return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(static_cast<char>(0x80)));
  }
  static I Dot(I acc, I k, const float* q) {
    int32_t four;
    __builtin_memcpy(&four, q, 4);
    return _mm512_dpbusd_epi32(acc, k, _mm512_set1_epi32(four));
  }
  static F ToFloat(I x) { return _mm512_cvtepi32_ps(x); }
  static float ReduceMax(F x) { return _mm512_reduce_max_ps(x); }
  static void Fetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
};

constexpr AttendKernels kKernels = attend::KernelsOf<Avx512>();

}  // namespace

const AttendKernels& AttendAvx512() { return kKernels; }

}  // namespace holdfast

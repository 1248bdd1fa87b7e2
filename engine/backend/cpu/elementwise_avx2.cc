#include "engine/backend/cpu/elementwise_inl.h"
#include "engine/backend/cpu/lanes_avx2.h"

namespace holdfast {
namespace {

using L = LanesAvx2;

int32_t Sum(__m256i a) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
  return _mm_cvtsi128_si32(s);
}

// Conversion rounds half to even, as SetFpControl sees to.
__m256i ToInt(const float* x, __m256 id) {
  const __m256i v = _mm256_cvtps_epi32(L::Mul(L::Load(x), id));
  return _mm256_max_epi32(_mm256_min_epi32(v, _mm256_set1_epi32(127)), _mm256_set1_epi32(-127));
}

bool QuantizeGroup(const float* x, int8_t* q, float* scale, int32_t* sum_lo, int32_t* sum_hi) {
  L::Bits magnitudes = L::NoBits();
  for (int i = 0; i < kQuantGroup; i += 8) magnitudes = L::MaxMagnitude(magnitudes, L::Load(x + i));
  const uint32_t bits = L::Largest(magnitudes);
  const float amax = std::bit_cast<float>(bits);
  const bool finite = bits < 0x7f800000;
  if (!finite || amax < 0x1.0p-100f) {
    std::memset(q, 0, kQuantGroup);
    *scale = 0;
    *sum_lo = *sum_hi = 0;
    return finite;
  }
  *scale = amax / 127.0f;
  const __m256 id = L::Set(127.0f / amax);
  const __m256i a = ToInt(x, id), b = ToInt(x + 8, id);
  const __m256i c = ToInt(x + 16, id), d = ToInt(x + 24, id);
  *sum_lo = Sum(_mm256_add_epi32(a, b));
  *sum_hi = Sum(_mm256_add_epi32(c, d));
  // Packing works inside 128-bit halves; the permutation brings the dwords back in order.
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), _mm256_permutevar8x32_epi32(bytes, order));
  return true;
}

constexpr ElementwiseKernels kKernels = MakeElementwise<LanesAvx2, QuantizeGroup>();

}  // namespace

const ElementwiseKernels& ElementwiseAvx2() { return kKernels; }

}  // namespace holdfast

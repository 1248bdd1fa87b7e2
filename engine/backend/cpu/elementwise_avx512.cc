#include "engine/backend/cpu/elementwise_inl.h"
#include "engine/backend/cpu/lanes_avx512.h"

namespace holdfast {
namespace {

using L = LanesAvx512;

// Conversion rounds half to even, as SetFpControl sees to.
__m512i ToInt(__m512 x, __m512 id) {
  const __m512i v = _mm512_cvtps_epi32(L::Mul(x, id));
  return _mm512_max_epi32(_mm512_min_epi32(v, _mm512_set1_epi32(127)), _mm512_set1_epi32(-127));
}

bool QuantizeGroup(const float* x, int8_t* q, float* scale, int32_t* sum_lo, int32_t* sum_hi) {
  const __m512 low = L::Load(x), high = L::Load(x + 16);
  const uint32_t bits = L::Largest(L::MaxMagnitude(L::MaxMagnitude(L::NoBits(), low), high));
  const float amax = std::bit_cast<float>(bits);
  const bool finite = bits < 0x7f800000;
  if (!finite || amax < 0x1.0p-100f) {
    std::memset(q, 0, kQuantGroup);
    *scale = 0;
    *sum_lo = *sum_hi = 0;
    return finite;
  }
  *scale = amax / 127.0f;
  const __m512 id = L::Set(127.0f / amax);
  const __m512i a = ToInt(low, id), b = ToInt(high, id);
  *sum_lo = _mm512_reduce_add_epi32(a);
  *sum_hi = _mm512_reduce_add_epi32(b);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm512_cvtepi32_epi8(a));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q + 16), _mm512_cvtepi32_epi8(b));
  return true;
}

constexpr ElementwiseKernels kKernels = MakeElementwise<LanesAvx512, QuantizeGroup>();

}  // namespace

const ElementwiseKernels& ElementwiseAvx512() { return kKernels; }

}  // namespace holdfast

#include "engine/backend/cpu/elementwise_inl.h"
#include "engine/backend/cpu/lanes_neon.h"

namespace holdfast {
namespace {

using L = LanesNeon;

int32x4_t ToInt(const float* x, float id) {
  const int32x4_t v = vcvtnq_s32_f32(vmulq_n_f32(L::Load(x), id));  // rounds half to even
  return vmaxq_s32(vminq_s32(v, vdupq_n_s32(127)), vdupq_n_s32(-127));
}

// 16 of a group's numbers; the sum of their integers.
int32_t QuantizeHalf(const float* x, float id, int8_t* q) {
  const int32x4_t a = ToInt(x, id), b = ToInt(x + 4, id);
  const int32x4_t c = ToInt(x + 8, id), d = ToInt(x + 12, id);
  const int16x8_t low = vcombine_s16(vmovn_s32(a), vmovn_s32(b));
  const int16x8_t high = vcombine_s16(vmovn_s32(c), vmovn_s32(d));
  vst1q_s8(q, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
  return vaddvq_s32(vaddq_s32(vaddq_s32(a, b), vaddq_s32(c, d)));
}

bool QuantizeGroup(const float* x, int8_t* q, float* scale, int32_t* sum_lo, int32_t* sum_hi) {
  L::Bits magnitudes = L::NoBits();
  for (int i = 0; i < kQuantGroup; i += 4) magnitudes = L::MaxMagnitude(magnitudes, L::Load(x + i));
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
  const float id = 127.0f / amax;
  *sum_lo = QuantizeHalf(x, id, q);
  *sum_hi = QuantizeHalf(x + 16, id, q + 16);
  return true;
}

constexpr ElementwiseKernels kKernels = MakeElementwise<LanesNeon, QuantizeGroup>();

}  // namespace

const ElementwiseKernels& ElementwiseNeon() { return kKernels; }

}  // namespace holdfast

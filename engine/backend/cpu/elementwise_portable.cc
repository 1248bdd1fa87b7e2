#include "engine/backend/cpu/elementwise_inl.h"
#include "engine/backend/cpu/lanes_portable.h"

namespace holdfast {
namespace {

bool QuantizeGroup(const float* x, int8_t* q, float* scale, int32_t* sum_lo, int32_t* sum_hi) {
  uint32_t bits = 0;
  for (int i = 0; i < kQuantGroup; ++i) bits = LanesPortable::MaxMagnitude(bits, x[i]);
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
  int32_t sum[2] = {};
  for (int i = 0; i < kQuantGroup; ++i) {
    // The low bits of 1.5 * 2^23 + v are v rounded half to even, for any |v| <= 2^22.
    const uint32_t shifted = std::bit_cast<uint32_t>(x[i] * id + exp_f::kMagic);
    const int32_t value = static_cast<int32_t>(shifted - std::bit_cast<uint32_t>(exp_f::kMagic));
    q[i] = static_cast<int8_t>(std::clamp(value, -127, 127));
    sum[i / 16] += q[i];
  }
  *sum_lo = sum[0];
  *sum_hi = sum[1];
  return true;
}

constexpr ElementwiseKernels kKernels = MakeElementwise<LanesPortable, QuantizeGroup>();

}  // namespace

const ElementwiseKernels& ElementwisePortable() { return kKernels; }

}  // namespace holdfast

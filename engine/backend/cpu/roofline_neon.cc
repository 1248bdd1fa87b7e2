#include <arm_neon.h>

#include "engine/backend/cpu/roofline_inl.h"

namespace holdfast {
namespace {

struct Vectors {
  static constexpr int kBytes = 16;
  static uint8x16_t Zero() { return vdupq_n_u8(0); }
  static float32x4_t ZeroFloat() { return vdupq_n_f32(0); }
  static uint8x16_t Load(const uint8_t* p) { return vld1q_u8(p); }
  static uint8x16_t Xor(uint8x16_t a, uint8x16_t b) { return veorq_u8(a, b); }
  static uint64_t Fold(uint8x16_t v) {
    const uint64x2_t words = vreinterpretq_u64_u8(v);
    return vgetq_lane_u64(words, 0) ^ vgetq_lane_u64(words, 1);
  }
  static void MultiplyAddInt8(uint8x16_t& sum, uint8x16_t a, uint8x16_t b) {
    __asm__ volatile("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(a), "w"(b));
  }
  static void MultiplyAdd(float32x4_t& sum, float32x4_t a, float32x4_t b) {
    __asm__ volatile("fmla %0.4s, %1.4s, %2.4s" : "+w"(sum) : "w"(a), "w"(b));
  }
};

constexpr RooflineKernels kKernels = {ReadStreams<Vectors>, Int8Steps<Vectors>, Fp32Steps<Vectors>};

}  // namespace

const RooflineKernels& RooflineNeon() { return kKernels; }

}  // namespace holdfast

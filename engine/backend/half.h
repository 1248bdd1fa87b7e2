// Small number formats by integers. IEEE 754 binary16 to and from fp32: exact one way, to nearest
// even the other, denormals kept, equal to the F16C and AVX-512 instructions for every number (a
// NaN is only sure to stay one). BF16 (upper half of an fp32) and E8M0 (power of two) to fp32.
// `static` for the reason in exact_math.h.
#pragma once

#include <bit>
#include <cstdint>

namespace holdfast {

[[maybe_unused]] static inline float HalfToFloat(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  const uint32_t magnitude = h & 0x7fff;
  if (magnitude >= 0x7c00) {  // infinity, NaN
    return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ff) << 13);
  }
  if (magnitude < 0x400) {  // denormal: an exact product
    const float value = static_cast<float>(magnitude) * 0x1.0p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
  }
  return std::bit_cast<float>(sign | ((magnitude << 13) + (112u << 23)));
}

[[maybe_unused]] static inline uint16_t FloatToHalf(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00;
  } else if (magnitude >= 0x477ff000) {  // rounds to 65536 or more
    half = 0x7c00;
  } else if (magnitude < 0x38800000) {  // below 2^-14: the unit is 2^-24; adding 0.5 rounds to it
    half = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
  } else {
    half = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  }
  return static_cast<uint16_t>(sign | half);
}

[[maybe_unused]] static inline float Bf16ToFloat(uint16_t b) {
  return std::bit_cast<float>(static_cast<uint32_t>(b) << 16);
}

// 2^(e - 128): half of what e says, for codes that are twice their value. Denormal for 0 and 1.
[[maybe_unused]] static inline float HalfOfE8M0(uint8_t e) {
  return std::bit_cast<float>(e < 2 ? 0x00200000u << e : static_cast<uint32_t>(e - 1) << 23);
}

}  // namespace holdfast

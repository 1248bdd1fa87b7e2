// One head of one token as signed codes with one scale (NUMERICS.md section 7): keys on their way
// into a page, and the queries that meet them. Included by the sources of every instruction set, so
// the function is `static`.
#pragma once

#include <cstdint>

namespace holdfast {

// False, codes of 0 and a scale of NaN when a number is not finite. The result is fixed to the bit.
static inline bool QuantizeHead(int n, const float* x, int8_t* codes, float* scale) {
  uint32_t largest = 0;
  for (int d = 0; d < n; ++d) {
    uint32_t bits;
    __builtin_memcpy(&bits, x + d, 4);
    bits &= 0x7fffffff;
    largest = largest > bits ? largest : bits;
  }
  float amax;
  __builtin_memcpy(&amax, &largest, 4);
  const bool finite = largest < 0x7f800000;
  if (!finite || amax < 0x1.0p-100f) {
    for (int d = 0; d < n; ++d) codes[d] = 0;
    *scale = finite ? 0.0f : __builtin_nanf("");
    return finite;
  }
  constexpr float kMagic = 12582912.0f;  // adding it rounds to an integer, half to even
  const float id = 127.0f / amax;
  for (int d = 0; d < n; ++d) {
    float r = (x[d] * id + kMagic) - kMagic;
    r = r > 127.0f ? 127.0f : r;
    r = r < -127.0f ? -127.0f : r;
    codes[d] = static_cast<int8_t>(static_cast<int32_t>(r));
  }
  *scale = amax / 127.0f;
  return true;
}

}  // namespace holdfast

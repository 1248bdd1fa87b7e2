// 16-bit floats of CUDA for the emulation in cuda_runtime.h.
#pragma once

#include "engine/backend/half.h"

struct __half {
  uint16_t bits;
};
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline float __half2float(__half h) { return holdfast::HalfToFloat(h.bits); }

// Values of 4-bit codes that are no arithmetic progression (NUMERICS.md section 4). Data alone, for
// reference/ and for kernels.
#pragma once

#include <cstdint>

namespace holdfast {

inline constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                          1,    13,   25,  38,  53,  69,  89,  113};
// Twice the FP4 number (sign, two bits of exponent, one of mantissa).
inline constexpr int8_t kMxfp4Values[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                            0, -1, -2, -3, -4, -6, -8, -12};

}  // namespace holdfast

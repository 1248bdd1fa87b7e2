// One head of one token, turned, as signed codes with one scale (NUMERICS.md section 7): keys on
// their way into a page, and the queries that meet them. Included by the sources of every
// instruction set, so the functions are `static`.
#pragma once

#include <cstdint>

namespace holdfast {

inline constexpr int kMostMixed = 512;       // numbers of a head
inline constexpr float kKeyCodes = 127.0f;   // the largest code of a key
// And of a query: 128 * 63.5, so that it is two codes of 8 bits, each in -64..64.
inline constexpr float kQueryCodes = 8128.0f;

// Numbers that are mixed with each other: the largest power of two that divides n.
static inline int MixBlock(int n) { return n & -n; }

// x, made of blocks, becomes M x with M M' = MixBlock(n) * identity: each number of M x has a share
// of each number of its block, so that none is much larger than the others. Adds and subtracts.
static inline void MixHead(int n, float* x) {
  const int block = MixBlock(n), half = block / 2;
  float other[kMostMixed];
  float *from = x, *to = other;
  for (int step = 1; step < block; step *= 2) {
    for (int at = 0; at < n; at += block) {
      for (int i = 0; i < half; ++i) {
        const float a = from[at + i], b = from[at + half + i];
        to[at + 2 * i] = a + b;
        to[at + 2 * i + 1] = a - b;
      }
    }
    float* const written = to;
    to = from;
    from = written;
  }
  if (from != x) __builtin_memcpy(x, from, n * sizeof(float));
}

// Codes in -most..most. False, codes of 0 and a scale of NaN when a number is not finite.
template <typename Code>
static inline bool QuantizeHead(int n, const float* x, float most, Code* codes, float* scale) {
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
  const float id = most / amax;
  for (int d = 0; d < n; ++d) {
    float r = (x[d] * id + kMagic) - kMagic;
    r = r > most ? most : r;
    r = r < -most ? -most : r;
    codes[d] = static_cast<Code>(static_cast<int32_t>(r));
  }
  *scale = amax / most;
  return true;
}

// 4 codes of a query, each 128 * high + low, as 4 signed bytes of high, then 4 of low, for
// instructions that multiply 8 bits by 8.
static inline void SplitQuery(const int16_t* codes, void* parts) {
  int8_t out[8];
  for (int i = 0; i < 4; ++i) {
    const int high = (codes[i] + 64) >> 7;
    out[i] = static_cast<int8_t>(high);
    out[4 + i] = static_cast<int8_t>(codes[i] - 128 * high);
  }
  __builtin_memcpy(parts, out, sizeof(out));
}

}  // namespace holdfast

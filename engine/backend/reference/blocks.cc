#include "engine/backend/reference/blocks.h"

#include <cassert>
#include <cstring>

#include "engine/backend/half.h"

namespace holdfast {
namespace {

float ReadHalf(const uint8_t* p) { return HalfToFloat(static_cast<uint16_t>(p[0] | p[1] << 8)); }

// 16 bytes: element j in the low nibble of byte j, element j + 16 in the high one.
void ReadNibbles(const uint8_t* p, int8_t* w) {
  for (int j = 0; j < 16; ++j) {
    w[j] = static_cast<int8_t>(p[j] & 15);
    w[j + 16] = static_cast<int8_t>(p[j] >> 4);
  }
}

WeightGroup ReadQ4_1(const uint8_t* b) {
  WeightGroup g;
  g.d = ReadHalf(b);
  g.min = -ReadHalf(b + 2);
  ReadNibbles(b + 4, g.w);
  return g;
}

WeightGroup ReadQ5_0(const uint8_t* b) {
  WeightGroup g;
  g.d = ReadHalf(b);
  const uint32_t high = b[2] | b[3] << 8 | b[4] << 16 | static_cast<uint32_t>(b[5]) << 24;
  ReadNibbles(b + 6, g.w);
  for (int j = 0; j < 32; ++j) g.w[j] = static_cast<int8_t>(g.w[j] + (high >> j & 1) * 16 - 16);
  return g;
}

WeightGroup ReadQ8_0(const uint8_t* b) {
  WeightGroup g;
  g.d = ReadHalf(b);
  std::memcpy(g.w, b + 2, 32);
  return g;
}

// d, dmin, 12 bytes of 6-bit scales and mins, then 4 x 32 bytes: the low nibbles are an even group,
// the high ones the odd group after it. Scales 0..3 (mins 0..3) are the low 6 bits of bytes 0..3
// (4..7); those of groups 4..7 have their low 4 bits in bytes 8..11 (scale low, min high nibble)
// and their high 2 bits on top of bytes 0..3 (4..7).
WeightGroup ReadQ4_K(const uint8_t* b, int j) {
  const uint8_t* s = b + 4;
  int sc, mn;
  if (j < 4) {
    sc = s[j] & 63;
    mn = s[j + 4] & 63;
  } else {
    sc = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
    mn = (s[j + 4] >> 4) | (s[j] >> 6) << 4;
  }
  WeightGroup g;
  g.d = ReadHalf(b) * static_cast<float>(sc);
  g.min = ReadHalf(b + 2) * static_cast<float>(mn);
  const uint8_t* q = b + 16 + j / 2 * 32;
  for (int i = 0; i < 32; ++i) g.w[i] = static_cast<int8_t>(j % 2 == 0 ? q[i] & 15 : q[i] >> 4);
  return g;
}

// 128 bytes of low nibbles, 64 of high bit pairs, 16 scales, d. In each half of 128 elements, group
// j has its nibbles in 32 bytes that it shares with group j + 2, and its pairs at bits 2 j.
WeightGroup ReadQ6_K(const uint8_t* b, int group) {
  const int half = group / 4, j = group % 4;
  const uint8_t* low = b + half * 64 + j % 2 * 32;
  const uint8_t* high = b + 128 + half * 32;
  WeightGroup g;
  for (int i = 0; i < 32; ++i) {
    const int nibble = j < 2 ? low[i] & 15 : low[i] >> 4;
    g.w[i] = static_cast<int8_t>((nibble | (high[i] >> 2 * j & 3) << 4) - 32);
  }
  std::memcpy(g.sc, b + 192 + group * 2, 2);
  g.d = ReadHalf(b + 208);
  return g;
}

}  // namespace

WeightGroup ReadWeightGroup(WeightType type, const std::byte* row, int64_t group) {
  const BlockShape shape = WeightBlock(type);
  const int64_t per_block = shape.elements / 32;
  const uint8_t* b =
      reinterpret_cast<const uint8_t*>(row) + group / per_block * shape.bytes;
  const int in_block = static_cast<int>(group % per_block);
  switch (type) {
    case WeightType::kQ4_1: return ReadQ4_1(b);
    case WeightType::kQ5_0: return ReadQ5_0(b);
    case WeightType::kQ8_0: return ReadQ8_0(b);
    case WeightType::kQ4_K: return ReadQ4_K(b, in_block);
    case WeightType::kQ6_K: return ReadQ6_K(b, in_block);
    case WeightType::kF32:
    case WeightType::kF16: break;
  }
  assert(false && "a float type has no groups");
  return {};
}

}  // namespace holdfast

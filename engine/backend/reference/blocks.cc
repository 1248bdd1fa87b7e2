#include "engine/backend/reference/blocks.h"

#include <cassert>
#include <cstring>

#include "engine/backend/code_tables.h"
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

// 4 bytes: bit j is the fifth of element j.
void AddFifthBits(const uint8_t* p, int8_t* w) {
  for (int j = 0; j < 32; ++j) w[j] = static_cast<int8_t>(w[j] + (p[j / 8] >> j % 8 & 1) * 16);
}

void TakeOff(int offset, int8_t* w) {
  for (int j = 0; j < 32; ++j) w[j] = static_cast<int8_t>(w[j] - offset);
}

void LookUp(const int8_t* values, int8_t* w) {
  for (int j = 0; j < 32; ++j) w[j] = values[w[j]];
}

// Q4_0, Q4_1, Q5_0, Q5_1: d, the minimum of a _1, the fifth bits of a Q5, nibbles. Without a
// minimum a weight is its code less half of the range.
WeightGroup ReadNibbleBlock(const uint8_t* b, bool has_min, bool has_fifth_bits) {
  WeightGroup g;
  const uint8_t* fifth_bits = b + (has_min ? 4 : 2);
  g.d = ReadHalf(b);
  if (has_min) g.min = -ReadHalf(b + 2);
  ReadNibbles(fifth_bits + (has_fifth_bits ? 4 : 0), g.w);
  if (has_fifth_bits) AddFifthBits(fifth_bits, g.w);
  if (!has_min) TakeOff(has_fifth_bits ? 16 : 8, g.w);
  return g;
}

WeightGroup ReadIq4Nl(const uint8_t* b) {
  WeightGroup g;
  g.d = ReadHalf(b);
  ReadNibbles(b + 2, g.w);
  LookUp(kIq4Values, g.w);
  return g;
}

WeightGroup ReadMxfp4(const uint8_t* b) {
  WeightGroup g;
  g.d = HalfOfE8M0(b[0]);
  ReadNibbles(b + 1, g.w);
  LookUp(kMxfp4Values, g.w);
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
WeightGroup ReadQ4_K(const uint8_t* b, int j, const uint8_t* nibbles) {
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
  const uint8_t* q = nibbles + j / 2 * 32;
  for (int i = 0; i < 32; ++i) g.w[i] = static_cast<int8_t>(j % 2 == 0 ? q[i] & 15 : q[i] >> 4);
  return g;
}

// As Q4_K, with 32 bytes between scales and nibbles: the fifth bit of element i of group j is bit j
// of byte i.
WeightGroup ReadQ5_K(const uint8_t* b, int j) {
  WeightGroup g = ReadQ4_K(b, j, b + 16 + 32);
  for (int i = 0; i < 32; ++i) g.w[i] = static_cast<int8_t>(g.w[i] + (b[16 + i] >> j & 1) * 16);
  return g;
}

// d, 16 bits with the upper two bits of each group's scale, 4 bytes with its lower four, then 16
// bytes of nibbles for each group. The scale is the six bits less 32.
WeightGroup ReadIq4Xs(const uint8_t* b, int j) {
  const int high = (b[2] | b[3] << 8) >> 2 * j & 3, low = b[4 + j / 2] >> j % 2 * 4 & 15;
  WeightGroup g;
  g.d = ReadHalf(b) * static_cast<float>((low | high << 4) - 32);
  ReadNibbles(b + 8 + 16 * j, g.w);
  LookUp(kIq4Values, g.w);
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
    case WeightType::kQ4_0: return ReadNibbleBlock(b, false, false);
    case WeightType::kQ4_1: return ReadNibbleBlock(b, true, false);
    case WeightType::kQ5_0: return ReadNibbleBlock(b, false, true);
    case WeightType::kQ5_1: return ReadNibbleBlock(b, true, true);
    case WeightType::kQ8_0: return ReadQ8_0(b);
    case WeightType::kQ4_K: return ReadQ4_K(b, in_block, b + 16);
    case WeightType::kQ5_K: return ReadQ5_K(b, in_block);
    case WeightType::kQ6_K: return ReadQ6_K(b, in_block);
    case WeightType::kIQ4_NL: return ReadIq4Nl(b);
    case WeightType::kIQ4_XS: return ReadIq4Xs(b, in_block);
    case WeightType::kMXFP4: return ReadMxfp4(b);
    case WeightType::kF32:
    case WeightType::kF16:
    case WeightType::kBF16: break;
  }
  assert(false && "a float type has no groups");
  return {};
}

}  // namespace holdfast

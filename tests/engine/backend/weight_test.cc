// What reference reads out of GGUF blocks, against blocks written by hand, and the small tables.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "engine/backend/half.h"
#include "engine/backend/reference/reference.h"
#include "tests/engine/backend/fixtures.h"

using namespace holdfast;

namespace {

class Block {
 public:
  Block& Half(float value) {
    const uint16_t half = FloatToHalf(value);
    return Byte(half & 255).Byte(half >> 8);
  }
  Block& Byte(int value) {
    bytes_.push_back(static_cast<std::byte>(value));
    return *this;
  }
  Block& Repeat(int count, int value) {
    for (int i = 0; i < count; ++i) Byte(value);
    return *this;
  }
  // The row of one block as Embed gives it.
  std::vector<float> Read(WeightType type) const {
    const BlockShape shape = WeightBlock(type);
    REQUIRE(static_cast<int>(bytes_.size()) == shape.bytes);
    const auto weight = reference::Pack({type, 1, shape.elements, bytes_.data()});
    REQUIRE(weight.ok());
    std::vector<float> row(shape.elements);
    const TokenId id = 0;
    reference::Embed(**weight, {&id, 1}, row.data());
    return row;
  }

 private:
  std::vector<std::byte> bytes_;
};

}  // namespace

TEST_CASE("Q8_0: 32 signed bytes times d") {
  Block block;
  block.Half(0.5f);
  for (int i = 0; i < 32; ++i) block.Byte(i * 8 - 128);
  const std::vector<float> row = block.Read(WeightType::kQ8_0);
  for (int i = 0; i < 32; ++i) CHECK(row[i] == static_cast<float>(i * 8 - 128) * 0.5f);
}

TEST_CASE("Q4_1: low nibbles are elements 0..15, high ones 16..31; plus m") {
  Block block;
  block.Half(2.0f).Half(-1.0f);
  for (int j = 0; j < 16; ++j) block.Byte(j | (15 - j) << 4);
  const std::vector<float> row = block.Read(WeightType::kQ4_1);
  for (int j = 0; j < 16; ++j) {
    CHECK(row[j] == static_cast<float>(j) * 2 - 1);
    CHECK(row[j + 16] == static_cast<float>(15 - j) * 2 - 1);
  }
}

TEST_CASE("Q5_0: the fifth bit of element j is bit j; minus 16") {
  Block block;
  block.Half(1.0f).Byte(0x01).Byte(0x00).Byte(0x02).Byte(0x80);  // elements 0, 17, 31
  block.Repeat(16, 0x73);
  const std::vector<float> row = block.Read(WeightType::kQ5_0);
  for (int j = 0; j < 32; ++j) {
    const bool high = j == 0 || j == 17 || j == 31;
    CHECK(row[j] == static_cast<float>((j < 16 ? 3 : 7) + (high ? 16 : 0) - 16));
  }
}

TEST_CASE("BF16: the upper half of an fp32") {
  const uint8_t bytes[] = {0x80, 0x3f, 0x49, 0xc0, 0x01, 0x00, 0x80, 0xff};
  const auto weight = reference::Pack(
      {WeightType::kBF16, 1, 4, reinterpret_cast<const std::byte*>(bytes)});
  REQUIRE(weight.ok());
  float row[4];
  const TokenId id = 0;
  reference::Embed(**weight, {&id, 1}, row);
  CHECK(row[0] == 1.0f);
  CHECK(row[1] == -3.140625f);
  CHECK(row[2] == 0x1.0p-133f);  // denormal
  CHECK(row[3] == -HUGE_VALF);
}

TEST_CASE("Q4_0: nibbles minus 8") {
  Block block;
  block.Half(0.5f);
  for (int j = 0; j < 16; ++j) block.Byte(j | (15 - j) << 4);
  const std::vector<float> row = block.Read(WeightType::kQ4_0);
  for (int j = 0; j < 16; ++j) {
    CHECK(row[j] == static_cast<float>(j - 8) * 0.5f);
    CHECK(row[j + 16] == static_cast<float>(7 - j) * 0.5f);
  }
}

TEST_CASE("Q5_1: the fifth bit of element j is bit j; plus m") {
  Block block;
  block.Half(2.0f).Half(-3.0f).Byte(0x01).Byte(0x00).Byte(0x02).Byte(0x80);  // elements 0, 17, 31
  block.Repeat(16, 0x73);
  const std::vector<float> row = block.Read(WeightType::kQ5_1);
  for (int j = 0; j < 32; ++j) {
    const bool high = j == 0 || j == 17 || j == 31;
    CHECK(row[j] == static_cast<float>((j < 16 ? 3 : 7) + (high ? 16 : 0)) * 2 - 3);
  }
}

constexpr int kIq4[] = {-127, -104, -83, -65, -49, -35, -22, -10,
                        1,    13,   25,  38,  53,  69,  89,  113};

TEST_CASE("IQ4_NL: nibbles name one of 16 values") {
  Block block;
  block.Half(0.25f);
  for (int j = 0; j < 16; ++j) block.Byte(j | (15 - j) << 4);
  const std::vector<float> row = block.Read(WeightType::kIQ4_NL);
  for (int j = 0; j < 16; ++j) {
    CHECK(row[j] == static_cast<float>(kIq4[j]) * 0.25f);
    CHECK(row[j + 16] == static_cast<float>(kIq4[15 - j]) * 0.25f);
  }
}

TEST_CASE("IQ4_XS: the same values, a six-bit scale less 32 per group") {
  int high = 0, low[4] = {};
  const int sc[8] = {-32, -17, -1, 0, 1, 15, 16, 31};
  for (int g = 0; g < 8; ++g) {
    high |= (sc[g] + 32) >> 4 << 2 * g;
    low[g / 2] |= ((sc[g] + 32) & 15) << g % 2 * 4;
  }
  Block block;
  block.Half(0.5f).Byte(high & 255).Byte(high >> 8);
  for (int b : low) block.Byte(b);
  for (int g = 0; g < 8; ++g) {
    for (int j = 0; j < 16; ++j) block.Byte((j + g) % 16 | (15 - j) << 4);
  }
  const std::vector<float> row = block.Read(WeightType::kIQ4_XS);
  for (int i = 0; i < 256; ++i) {
    const int g = i / 32, j = i % 16, code = i % 32 < 16 ? (j + g) % 16 : 15 - j;
    CHECK(row[i] == static_cast<float>(kIq4[code] * sc[g]) * 0.5f);
  }
}

TEST_CASE("MXFP4: FP4 numbers times a power of two") {
  constexpr float kFp4[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
  for (int e : {0, 1, 2, 3, 64, 127, 128, 253}) {
    Block block;
    block.Byte(e);
    for (int j = 0; j < 16; ++j) block.Byte(j | (15 - j) << 4);
    const std::vector<float> row = block.Read(WeightType::kMXFP4);
    for (int j = 0; j < 16; ++j) {
      CAPTURE(e);
      CHECK(row[j] == std::ldexp(kFp4[j], e - 127));
      CHECK(row[j + 16] == std::ldexp(kFp4[15 - j], e - 127));
    }
  }
}

TEST_CASE("Q5_K: as Q4_K, and the fifth bit of element i of group g is bit g of byte i") {
  int value[256];
  for (int i = 0; i < 256; ++i) value[i] = i * 37 % 32;
  int high[32] = {}, low[128] = {};
  for (int i = 0; i < 256; ++i) {
    const int g = i / 32, at = i % 32;
    high[at] |= (value[i] >> 4) << g;
    low[g / 2 * 32 + at] |= (value[i] & 15) << (g % 2 * 4);
  }
  Block block;
  block.Half(0.25f).Half(0.5f);
  // Groups 0..3 have scale 3 and min 5; the others scale 18 = 2 + 1 << 4, min 49 = 1 + 3 << 4.
  block.Repeat(4, 3 | 1 << 6).Repeat(4, 5 | 3 << 6).Repeat(4, 2 | 1 << 4);
  for (int b : high) block.Byte(b);
  for (int b : low) block.Byte(b);
  const std::vector<float> row = block.Read(WeightType::kQ5_K);
  for (int i = 0; i < 256; ++i) {
    const int sc = i < 128 ? 3 : 18, mn = i < 128 ? 5 : 49;
    CHECK(row[i] == static_cast<float>(value[i] * sc) * 0.25f - static_cast<float>(mn) * 0.5f);
  }
}

TEST_CASE("Q4_K: six-bit scales and mins, two groups per 32 bytes") {
  // Group g has scale 33 + g (bit 5 set: the high bits of groups 4..7 are used) and min 7 * g.
  int sc[8], mn[8], packed[12] = {};
  for (int g = 0; g < 8; ++g) sc[g] = 33 + g, mn[g] = 7 * g;
  for (int g = 0; g < 4; ++g) {
    packed[g] = sc[g] | (sc[g + 4] >> 4) << 6;
    packed[g + 4] = mn[g] | (mn[g + 4] >> 4) << 6;
    packed[g + 8] = (sc[g + 4] & 15) | (mn[g + 4] & 15) << 4;
  }
  Block block;
  block.Half(0.25f).Half(0.5f);
  for (int b : packed) block.Byte(b);
  for (int pair = 0; pair < 4; ++pair) block.Repeat(32, (2 * pair) | (2 * pair + 1) << 4);
  const std::vector<float> row = block.Read(WeightType::kQ4_K);
  for (int i = 0; i < 256; ++i) {
    const int g = i / 32;
    CHECK(row[i] == static_cast<float>(g * sc[g]) * 0.25f - static_cast<float>(mn[g]) * 0.5f);
  }
}

TEST_CASE("Q6_K: four low bits, two high bits, a signed scale per 16 elements; minus 32") {
  int value[256];
  for (int i = 0; i < 256; ++i) value[i] = i * 37 % 64;
  int low[128] = {}, high[64] = {};
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, quarter = i % 128 / 32, at = i % 32;
    low[half * 64 + quarter % 2 * 32 + at] |= (value[i] & 15) << (quarter / 2 * 4);
    high[half * 32 + at] |= (value[i] >> 4) << (quarter * 2);
  }
  Block block;
  for (int b : low) block.Byte(b);
  for (int b : high) block.Byte(b);
  for (int s = 0; s < 16; ++s) block.Byte(s * 16 - 128);
  block.Half(0.125f);
  const std::vector<float> row = block.Read(WeightType::kQ6_K);
  for (int i = 0; i < 256; ++i) {
    CHECK(row[i] == static_cast<float>((value[i] - 32) * (i / 16 * 16 - 128)) * 0.125f);
  }
}

TEST_CASE("a quantised product is near the product of what Embed reads") {
  testing::Random random(1);
  for (WeightType type : AllWeightTypes()) {
    const int64_t inputs = 1280, outputs = 5;
    const testing::TestMatrix m(random, type, outputs, inputs);
    const auto weight = reference::Pack(m.Source());
    const std::vector<float> x = testing::RandomFloats(random, inputs, testing::Numbers::kPlain);
    const QuantizedRows xq = testing::QuantizeRows(x, 1, inputs);
    std::vector<float> y(outputs), w(outputs * inputs);
    reference::MatMul({.w = weight->get(), .rows = 1, .x = x.data(), .xq = &xq, .y = y.data(),
                       .y_stride = outputs});
    const TokenId ids[] = {0, 1, 2, 3, 4};
    reference::Embed(**weight, ids, w.data());
    for (int64_t o = 0; o < outputs; ++o) {
      double want = 0, size = 0;
      for (int64_t i = 0; i < inputs; ++i) {
        want += static_cast<double>(w[o * inputs + i]) * x[i];
        size += std::abs(static_cast<double>(w[o * inputs + i]) * x[i]);
      }
      CAPTURE(WeightTypeName(type));
      CHECK(std::abs(y[o] - want) <= size * 0.003);
    }
  }
}

TEST_CASE("names and block shapes") {
  CHECK(WeightTypeName(WeightType::kQ4_K) == "Q4_K");
  CHECK(AllWeightTypes().size() == 14);
  CHECK(WeightTypeName(static_cast<WeightType>(77)) == "unknown");
  CHECK(WeightBlock(WeightType::kQ6_K).bytes == 210);
  CHECK(WeightBlock(static_cast<WeightType>(77)).elements == 0);
  QuantizedRows rows;
  rows.Resize(3, 33);
  CHECK(rows.cols == 64);
  CHECK(rows.q.size() == 3 * 64);
  CHECK(rows.scale.size() == 6);
}

// Packed weights and products at every level against the reference, to the bit. One packed weight
// serves all levels, any number of rows and any number of threads.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "engine/backend/backend.h"
#include "engine/backend/cpu/levels.h"
#include "engine/backend/cpu/matmul.h"
#include "engine/backend/cpu/pack.h"
#include "engine/backend/cpu/thread_pool.h"
#include "engine/backend/half.h"
#include "engine/backend/reference/reference.h"
#include "tests/engine/backend/fixtures.h"

namespace holdfast {
namespace {

using testing::Difference;
using testing::Numbers;
using testing::Random;
using testing::RandomFloats;
using testing::TestMatrix;

constexpr float kUntouched = -12345.0f;

Result<std::unique_ptr<Weight>> Packed(const WeightSource& source) {
  static WeightMemory memory;
  return PackCpuWeight(source, memory);
}

// A matrix, rows to multiply it with, and what the reference makes of them.
class Product {
 public:
  Product(const TestMatrix& m, std::vector<float> x, int64_t rows, std::vector<float> bias = {})
      : m_(m), x_(std::move(x)), bias_(std::move(bias)), want_(rows * m.outputs) {
    weight_ = std::move(Packed(m.Source()).value());
    const std::unique_ptr<Weight> raw = std::move(reference::Pack(m.Source()).value());
    reference::MatMul(Args(*raw, rows, Quantized(rows), want_.data(), m.outputs));
  }

  const Weight& weight() const { return *weight_; }

  // Every level, with the first `rows` rows.
  void Check(int64_t rows, ThreadPool& pool) const {
    const int64_t stride = m_.outputs + 5;
    const QuantizedRows xq = Quantized(rows);
    MatMulScratch scratch;
    for (const CpuLevel& level : CpuLevels()) {
      if (!level.present()) continue;
      std::vector<float> y(rows * stride, kUntouched), got;
      const MatMulArgs args = Args(*weight_, rows, xq, y.data(), stride);
      CpuMatMul(pool, level.matmul(), {&args, 1}, scratch);
      for (int64_t r = 0; r < rows; ++r) {
        const float* row = &y[r * stride];
        got.insert(got.end(), row, row + m_.outputs);
        REQUIRE(std::count(row + m_.outputs, row + stride, kUntouched) == stride - m_.outputs);
      }
      CAPTURE(level.name);
      CAPTURE(WeightTypeName(m_.type));
      CAPTURE(m_.outputs);
      CAPTURE(m_.inputs);
      CAPTURE(rows);
      CAPTURE(pool.threads());
      const std::string difference = Difference(got, std::span(want_).first(got.size()));
      CHECK_MESSAGE(difference.empty(), difference);
    }
  }

 private:
  QuantizedRows Quantized(int64_t rows) const {
    return NeedsQuantized(m_.type) ? testing::QuantizeRows(x_, rows, m_.inputs) : QuantizedRows();
  }
  MatMulArgs Args(const Weight& w, int64_t rows, const QuantizedRows& xq, float* y,
                  int64_t stride) const {
    return {.w = &w, .rows = rows, .x = x_.data(), .xq = &xq,
            .bias = bias_.empty() ? nullptr : bias_.data(), .y = y, .y_stride = stride};
  }

  const TestMatrix& m_;
  std::vector<float> x_, bias_;
  std::vector<float> want_;
  std::unique_ptr<Weight> weight_;
};

// The nearest length not below that the type can have.
int64_t InputsFor(WeightType type, int64_t inputs) {
  const int64_t block = WeightBlock(type).elements;
  return (inputs + block - 1) / block * block;
}

// `at` bytes into each block: `count` times `value`.
void FillBlocks(TestMatrix* m, int at, int count, uint8_t value) {
  const int bytes = WeightBlock(m->type).bytes;
  for (size_t b = 0; b < m->bytes.size(); b += bytes) std::memset(&m->bytes[b + at], value, count);
}
void FillHalf(TestMatrix* m, int at, uint16_t half) {
  FillBlocks(m, at, 1, static_cast<uint8_t>(half));
  FillBlocks(m, at + 1, 1, static_cast<uint8_t>(half >> 8));
}

// d of every block; of an exponent, some byte.
void FillScale(TestMatrix* m, uint16_t half) {
  if (m->type == WeightType::kMXFP4) return FillBlocks(m, 0, 1, static_cast<uint8_t>(half >> 7));
  FillHalf(m, m->type == WeightType::kQ6_K ? 208 : 0, half);
}
bool HasMin(WeightType type) {
  return type == WeightType::kQ4_1 || type == WeightType::kQ5_1 || type == WeightType::kQ4_K ||
         type == WeightType::kQ5_K;
}

TEST_CASE("products of any shape equal the reference's") {
  Random random(1);
  ThreadPool one(1), three(3);
  for (WeightType type : AllWeightTypes()) {
    for (int64_t outputs : {1, 15, 16, 17, 33, 100}) {
      for (int64_t length : {1, 32, 96, 480, 512, 992, 1024, 1056, 2080}) {
        if (random.Skips()) continue;
        const int64_t inputs = InputsFor(type, NeedsQuantized(type) ? length : length + 1);
        const TestMatrix m(random, type, outputs, inputs);
        const Product product(m, RandomFloats(random, 13 * inputs, Numbers::kPlain), 13,
                              RandomFloats(random, outputs, Numbers::kPlain));
        for (int64_t rows : {1, 2, 3, 4, 5, 13}) {
          product.Check(rows, random.OneIn(2) ? one : three);
        }
      }
    }
  }
}

TEST_CASE("1 to 70 rows, each computed alone") {
  Random random(2);
  ThreadPool pool(2);
  for (WeightType type : AllWeightTypes()) {
    const int64_t inputs = InputsFor(type, 1100);
    const TestMatrix m(random, type, 49, inputs);
    const Product product(m, RandomFloats(random, 70 * inputs, Numbers::kWide), 70);
    for (int64_t rows = 1; rows <= 70; ++rows) {
      if (!random.Skips()) product.Check(rows, pool);
    }
  }
}

TEST_CASE("shapes of models") {
  Random random(3);
  ThreadPool pool(2);
  constexpr int64_t kShapes[][2] = {{576, 576}, {1536, 576}, {192, 576}, {896, 4864}, {4864, 896}};
  for (WeightType type : AllWeightTypes()) {
    for (const auto& shape : kShapes) {
      if (random.Skips()) continue;
      const int64_t inputs = InputsFor(type, shape[1]);
      const TestMatrix m(random, type, shape[0], inputs);
      const Product product(m, RandomFloats(random, 9 * inputs, Numbers::kPlain), 9);
      for (int64_t rows : {1, 4, 9}) product.Check(rows, pool);
    }
  }
}

TEST_CASE("more rows than one pass takes") {
  Random random(4);
  ThreadPool pool(3);
  for (WeightType type : AllWeightTypes()) {
    if (random.Skips()) continue;
    const int64_t inputs = InputsFor(type, 300);
    const TestMatrix m(random, type, 37, inputs);
    const Product product(m, RandomFloats(random, 900 * inputs, Numbers::kPlain), 900,
                          RandomFloats(random, 37, Numbers::kPlain));
    for (int64_t rows : {383, 385, 900}) product.Check(rows, pool);
  }
}

// Codes at their ends times activations at theirs: where a sum of products that is too narrow would
// saturate or wrap.
TEST_CASE("extreme codes meet extreme activations") {
  Random random(5);
  ThreadPool pool(1);
  for (WeightType type : AllWeightTypes()) {
    if (!NeedsQuantized(type)) continue;
    const BlockShape block = WeightBlock(type);
    const int64_t inputs = 1280;
    for (uint8_t codes : {0x00, 0xff, 0x80, 0x7f, 0x77}) {
      for (uint8_t scales : {0x00, 0x80, 0x7f, 0xff}) {
        const bool six_bits = type == WeightType::kQ4_K || type == WeightType::kQ5_K;
        if (scales > 0 && type != WeightType::kQ6_K && !six_bits) continue;
        TestMatrix m(random, type, 20, inputs);
        FillBlocks(&m, 0, block.bytes, codes);
        if (type == WeightType::kQ6_K) FillBlocks(&m, 192, 16, scales);
        if (six_bits) FillBlocks(&m, 4, 12, scales);
        FillScale(&m, FloatToHalf(0.01f));
        if (HasMin(type)) FillHalf(&m, 2, 0xbc00);
        std::vector<float> x(10 * inputs);
        for (int64_t i = 0; i < 10 * inputs; ++i) {
          const int64_t r = i / inputs;
          x[i] = r < 3 ? 1.0f : r < 6 ? -1.0f : random.OneIn(2) ? 1.0f : -1.0f;
        }
        const Product product(m, x, 10);
        for (int64_t rows : {1, 4, 10}) product.Check(rows, pool);
      }
    }
  }
}

TEST_CASE("extreme scales") {
  Random random(6);
  ThreadPool pool(1);
  // Largest, smallest normal, denormals, both zeros, infinity, NaN; positive and negative.
  constexpr uint16_t kHalves[] = {0x7bff, 0xfbff, 0x0400, 0x0001, 0x83ff, 0x0000,
                                  0x8000, 0x7c00, 0xfc00, 0x7e00};
  for (WeightType type : AllWeightTypes()) {
    if (!NeedsQuantized(type)) continue;
    for (uint16_t half : kHalves) {
      for (Numbers numbers : {Numbers::kPlain, Numbers::kExtreme}) {
        const int64_t inputs = InputsFor(type, 1088);
        TestMatrix m(random, type, 18, inputs);
        FillScale(&m, half);
        const Product product(m, RandomFloats(random, 10 * inputs, numbers), 10);
        for (int64_t rows : {1, 3, 10}) product.Check(rows, pool);
      }
    }
    const TestMatrix any(random, type, 40, InputsFor(type, 2048), Numbers::kExtreme);
    const Product product(any, RandomFloats(random, 12 * any.inputs, Numbers::kExtreme), 12);
    for (int64_t rows : {1, 12}) product.Check(rows, pool);
  }
}

TEST_CASE("float weights carry NaN and infinity to their own outputs alone") {
  Random random(7);
  ThreadPool pool(2);
  for (WeightType type : {WeightType::kF32, WeightType::kF16, WeightType::kBF16}) {
    const TestMatrix m(random, type, 35, 1030, Numbers::kExtreme);
    std::vector<float> x = RandomFloats(random, 14 * m.inputs, Numbers::kWide);
    for (int i = 0; i < 6; ++i) {
      x[random.Below(14 * m.inputs)] = testing::RandomFloat(random, Numbers::kPoison);
    }
    const Product product(m, x, 14);
    for (int64_t rows = 1; rows <= 14; ++rows) product.Check(rows, pool);
  }
}

TEST_CASE("embedding rows equal the reference's") {
  Random random(8);
  for (WeightType type : AllWeightTypes()) {
    for (Numbers numbers : {Numbers::kPlain, Numbers::kExtreme}) {
      const TestMatrix m(random, type, 35, InputsFor(type, 544), numbers);
      const auto packed = Packed(m.Source());
      const auto raw = reference::Pack(m.Source());
      std::vector<TokenId> ids;
      for (TokenId id = 34; id >= 0; --id) ids.push_back(id);
      std::vector<float> got(ids.size() * m.inputs), want(got.size());
      CpuEmbed(**packed, ids, got.data());
      reference::Embed(**raw, ids, want.data());
      CAPTURE(WeightTypeName(type));
      CHECK_MESSAGE(Difference(got, want).empty(), Difference(got, want));
    }
  }
}

TEST_CASE("packed weights take no more memory than the file's, but 4 %") {
  Random random(9);
  for (WeightType type : AllWeightTypes()) {
    const TestMatrix m(random, type, 256, InputsFor(type, 896));
    const auto packed = Packed(m.Source());
    REQUIRE(packed.ok());
    CAPTURE(WeightTypeName(type));
    CHECK((*packed)->bytes() >= m.bytes.size());
    CHECK((*packed)->bytes() <= m.bytes.size() * 104 / 100);
  }
}

TEST_CASE("what is not a matrix is refused") {
  const std::byte data[512] = {};
  CHECK(Packed({WeightType::kQ8_0, 1, 33, data}).status().code() == Code::kInvalid);
  CHECK(Packed({WeightType::kQ4_K, 1, 128, data}).status().code() == Code::kInvalid);
  CHECK(Packed({WeightType::kF32, 0, 4, data}).status().code() == Code::kInvalid);
  CHECK(Packed({WeightType::kF32, 1, 4, nullptr}).status().code() == Code::kInvalid);
  CHECK(Packed({static_cast<WeightType>(5), 1, 32, data}).status().code() == Code::kInvalid);
  // A shape whose size has no memory is an error, not an end.
  const WeightSource huge = {WeightType::kQ8_0, int64_t{1} << 40, 1024, data};
  CHECK(Packed(huge).status().code() == Code::kExhausted);
}

}  // namespace
}  // namespace holdfast

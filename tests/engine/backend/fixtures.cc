#include "tests/engine/backend/fixtures.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

#include "engine/backend/half.h"
#include "engine/backend/reference/reference.h"

namespace holdfast {
namespace testing {
namespace {

uint16_t RandomScale(Random& random, Numbers numbers) {
  if (numbers == Numbers::kExtreme) {
    const uint16_t bits = static_cast<uint16_t>(random.Next());
    return (bits & 0x7c00) == 0x7c00 ? bits & 0xbfff : bits;
  }
  if (random.OneIn(17)) return static_cast<uint16_t>(random.Below(0x400));  // zero or denormal
  return FloatToHalf(static_cast<float>(random.Below(4001) - 2000) * 0x1.0p-15f);
}

void PutHalf(std::byte* at, uint16_t half) { std::memcpy(at, &half, 2); }

// Byte offsets of the f16 numbers in a block.
std::vector<int> ScaleOffsets(WeightType type) {
  switch (type) {
    case WeightType::kQ4_1:
    case WeightType::kQ5_1:
    case WeightType::kQ4_K:
    case WeightType::kQ5_K: return {0, 2};
    case WeightType::kQ4_0:
    case WeightType::kQ5_0:
    case WeightType::kQ8_0:
    case WeightType::kIQ4_NL:
    case WeightType::kIQ4_XS: return {0};
    case WeightType::kQ6_K: return {208};
    default: return {};
  }
}

void PutKv(KvType type, std::byte* array, int64_t index, float value) {
  if (type == KvType::kI8) {  // any byte, -128 too where the number is not finite
    const float code = std::isfinite(value) ? std::fmod(value * 31.0f, 128.0f) : -128.0f;
    array[index] = static_cast<std::byte>(static_cast<int8_t>(code));
  } else if (type == KvType::kF32) {
    std::memcpy(array + 4 * index, &value, 4);
  } else {
    PutHalf(array + 2 * index, FloatToHalf(value));
  }
}

}  // namespace

uint64_t Random::Next() {  // splitmix64
  state_ += 0x9e3779b97f4a7c15u;
  uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

int64_t Random::Below(int64_t n) {
  assert(n > 0);
  return static_cast<int64_t>(Next() % static_cast<uint64_t>(n));
}

float RandomFloat(Random& random, Numbers numbers) {
  switch (numbers) {
    case Numbers::kPlain: return static_cast<float>(random.Below(1 << 23) - (1 << 22)) * 0x1.0p-20f;
    case Numbers::kWide: {
      if (random.OneIn(16)) return random.OneIn(2) ? 0.0f : -0.0f;
      const float mantissa = RandomFloat(random, Numbers::kPlain);
      return std::ldexp(mantissa, static_cast<int>(random.Below(81)) - 40);
    }
    case Numbers::kExtreme: {
      constexpr float kSome[] = {0.0f,    -0.0f,    0x1.0p-149f,      0x1.fffffcp-127f,
                                 1e-30f,  0x1.fffffep+127f, -0x1.fffffep+127f, 1.0f};
      if (random.OneIn(4)) return kSome[random.Below(8)];
      uint32_t bits = static_cast<uint32_t>(random.Next());
      if ((bits & 0x7f800000) == 0x7f800000) bits &= 0xbfffffff;
      return std::bit_cast<float>(bits);
    }
    case Numbers::kPoison: {
      constexpr float kInf = std::numeric_limits<float>::infinity();
      constexpr float kSome[] = {NAN, kInf, -kInf, -0.0f};
      return random.OneIn(5) ? 3e4f : kSome[random.Below(4)];
    }
  }
  return 0;
}

std::vector<float> RandomFloats(Random& random, int64_t count, Numbers numbers) {
  std::vector<float> x(static_cast<size_t>(count));
  for (float& value : x) value = RandomFloat(random, numbers);
  return x;
}

TestMatrix::TestMatrix(Random& random, WeightType t, int64_t n_outputs, int64_t n_inputs,
                       Numbers numbers)
    : type(t), outputs(n_outputs), inputs(n_inputs) {
  const BlockShape shape = WeightBlock(type);
  assert(inputs % shape.elements == 0);
  const int64_t blocks = outputs * (inputs / shape.elements);
  bytes.resize(static_cast<size_t>(blocks) * shape.bytes);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random.Next() >> 32);
  for (int64_t i = 0; i < blocks; ++i) {
    std::byte* block = bytes.data() + i * shape.bytes;
    if (type == WeightType::kF32) {
      const float value = RandomFloat(random, numbers);
      std::memcpy(block, &value, 4);
    } else if (type == WeightType::kF16) {
      PutHalf(block, numbers == Numbers::kExtreme
                         ? RandomScale(random, numbers)
                         : FloatToHalf(RandomFloat(random, Numbers::kPlain)));
    } else if (type == WeightType::kBF16) {
      PutHalf(block, static_cast<uint16_t>(
                         std::bit_cast<uint32_t>(RandomFloat(random, numbers)) >> 16));
    } else if (type == WeightType::kMXFP4 && numbers != Numbers::kExtreme) {
      block[0] = static_cast<std::byte>(random.OneIn(17) ? 0 : 110 + random.Below(20));
    }
    for (int at : ScaleOffsets(type)) PutHalf(block + at, RandomScale(random, numbers));
  }
}

QuantizedRows QuantizeRows(const std::vector<float>& x, int64_t rows, int64_t cols) {
  QuantizedRows out;
  std::vector<uint8_t> failed(static_cast<size_t>(rows));
  reference::Quantize({rows, cols, x.data(), {&out, failed.data()}});
  for (uint8_t f : failed) assert(f == 0), static_cast<void>(f);
  return out;
}

TestPages::TestPages(Random& random, const LayerGroup& group, int count, Numbers numbers)
    : group_(group), count_(count), stride_((group.PayloadBytes() + 63) / 64 * 64) {
  bytes_.resize(stride_ * count + 64);
  const auto address = reinterpret_cast<uintptr_t>(bytes_.data());
  aligned_ = bytes_.data() + (64 - address % 64) % 64;
  for (int p = 0; p < count; ++p) {
    for (int slot = 0; slot < kPageTokens; ++slot) FillSlot(random, p, slot, numbers);
  }
}

void TestPages::FillSlot(Random& random, int page_index, int slot, Numbers numbers) {
  for (int layer = 0; layer < group_.layers; ++layer) {
    for (int head = 0; head < group_.heads; ++head) {
      std::byte* k = page(page_index) + group_.HeadOffset(layer, head);
      std::byte* v = k + group_.KBytes();
      for (int d = 0; d < group_.k_dim; ++d) {
        const size_t at = group_.KOffset(d, slot) / KvTypeBytes(group_.k_type);
        PutKv(group_.k_type, k, static_cast<int64_t>(at), RandomFloat(random, numbers));
      }
      if (group_.k_type == KvType::kI8) {
        PutKv(KvType::kF32, k + group_.KScaleOffset(slot), 0, RandomFloat(random, numbers));
      }
      for (int d = 0; d < group_.v_dim; ++d) {
        PutKv(group_.v_type, v, int64_t{slot} * group_.v_dim + d, RandomFloat(random, numbers));
      }
    }
  }
}

namespace {

std::vector<KvRun> MakeRuns(Random& random, int64_t length, Cut cut) {
  std::vector<KvRun> runs;
  for (int64_t i = 0; i < length;) {
    KvRun run;
    if (cut != Cut::kAligned) run.first = static_cast<int32_t>(random.Below(kPageTokens));
    int64_t count = kPageTokens - run.first;
    if (cut != Cut::kAligned && random.OneIn(2)) count = 1 + random.Below(count);
    run.count = static_cast<int32_t>(std::min(count, length - i));
    if (cut == Cut::kShifted) {
      // A row at position p >= i reads the table at p - shift, which must not be negative.
      const int64_t lowest = -kMaxTestShift, highest = std::min<int64_t>(kMaxTestShift, i);
      run.shift = static_cast<int32_t>(lowest + random.Below(highest - lowest + 1));
    }
    runs.push_back(run);
    i += run.count;
  }
  return runs;
}

}  // namespace

TestSequence::TestSequence(Random& random, const LayerGroup& group, int64_t length, Cut cut)
    : pages(random, group, 0), runs(MakeRuns(random, length, cut)) {
  pages = TestPages(random, group, static_cast<int>(runs.size()), Numbers::kPoison);
  for (size_t r = 0; r < runs.size(); ++r) {
    // Pages of a sequence lie in memory in no particular order.
    page_of_run.push_back(static_cast<int>(runs.size() - 1 - r));
    runs[r].page = pages.page(page_of_run[r]);
    for (int n = 0; n < runs[r].count; ++n) {
      pages.FillSlot(random, page_of_run[r], runs[r].first + n, Numbers::kPlain);
    }
  }
}

void TestSequence::Poison(Random& random, int64_t index) {
  for (size_t r = 0; r < runs.size(); ++r) {
    if (index < runs[r].count) {
      pages.FillSlot(random, page_of_run[r], runs[r].first + static_cast<int>(index),
                     Numbers::kPoison);
      return;
    }
    index -= runs[r].count;
  }
}

std::string Difference(std::span<const float> got, std::span<const float> want) {
  if (got.size() != want.size()) return "sizes differ";
  for (size_t i = 0; i < got.size(); ++i) {
    const uint32_t g = std::bit_cast<uint32_t>(got[i]), w = std::bit_cast<uint32_t>(want[i]);
    if (g == w || (std::isnan(got[i]) && std::isnan(want[i]))) continue;
    char text[160];
    std::snprintf(text, sizeof(text), "element %zu: got %a (%08x), want %a (%08x)", i,
                  static_cast<double>(got[i]), g, static_cast<double>(want[i]), w);
    return text;
  }
  return "";
}

}  // namespace testing
}  // namespace holdfast

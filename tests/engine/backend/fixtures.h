// Inputs for the backend tests: numbers, weights and KV, all from one small generator, so that a seed
// names a case on every machine. Also the comparison: equal bytes once NaNs are canonical.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/backend/backend.h"

namespace holdfast {
namespace testing {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next();
  int64_t Below(int64_t n);  // 0..n-1
  bool OneIn(int64_t n) { return Below(n) == 0; }
  // For loops over shapes: sanitizers, which are slow and look at code rather than at results, see
  // every fourth one.
  bool Skips() {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
    return !OneIn(4);
#else
    return false;
#endif
  }

 private:
  uint64_t state_;
};

enum class Numbers {
  kPlain,    // -4..4, all finite
  kWide,     // any exponent from 2^-40 to 2^40, some +0 and -0
  kExtreme,  // any finite number at all: denormals, both zeros, the largest
  kPoison,   // NaN, infinities, -0, and finite numbers between them
};
float RandomFloat(Random& random, Numbers numbers);
std::vector<float> RandomFloats(Random& random, int64_t count, Numbers numbers);

// A matrix of valid blocks (every bit of the integers random, scales finite, now and then zero or
// denormal). Owns the bytes that Source() points to. With kExtreme, scales of any finite f16.
struct TestMatrix {
  TestMatrix(Random& random, WeightType type, int64_t outputs, int64_t inputs,
             Numbers numbers = Numbers::kPlain);
  WeightSource Source() const { return {type, outputs, inputs, bytes.data()}; }

  WeightType type;
  int64_t outputs, inputs;
  std::vector<std::byte> bytes;
};

// reference::Quantize; no row of `x` may fail.
QuantizedRows QuantizeRows(const std::vector<float>& x, int64_t rows, int64_t cols);

// Payloads of pages of one group, 64-byte aligned as in a pool. Their contents is what `numbers`
// says, in the group's own dtypes (kPlain unless the test overwrites it).
class TestPages {
 public:
  TestPages(Random& random, const LayerGroup& group, int count, Numbers numbers = Numbers::kPlain);
  TestPages(TestPages&&) = default;
  TestPages& operator=(TestPages&&) = default;

  int count() const { return count_; }
  std::byte* page(int i) { return aligned_ + stride_ * i; }
  const std::byte* page(int i) const { return aligned_ + stride_ * i; }
  // Writes `numbers` over the K and V of one slot, in all layers and heads.
  void FillSlot(Random& random, int page, int slot, Numbers numbers);

 private:
  LayerGroup group_;
  int count_;
  size_t stride_;
  std::vector<std::byte> bytes_;
  std::byte* aligned_;
};

// How a sequence lies over its pages.
enum class Cut {
  kAligned,     // full pages, shift 0, the last run partial
  kMisaligned,  // runs of any length from any slot, shift 0
  kShifted,     // the same, each with a shift of its own, negative ones too
};

// A sequence of `length` indices. Slots that no run covers are poison.
struct TestSequence {
  TestSequence(Random& random, const LayerGroup& group, int64_t length, Cut cut);
  // Poisons the stored K and V of one index.
  void Poison(Random& random, int64_t index);

  TestPages pages;
  std::vector<KvRun> runs;
  std::vector<int> page_of_run;
};
inline constexpr int kMaxTestShift = 50;  // |shift| of kShifted; tables reach length + this

// Empty when equal; else a report of the first difference: index, both values, both bit patterns.
// NaNs compare equal to each other.
std::string Difference(std::span<const float> got, std::span<const float> want);

}  // namespace testing
}  // namespace holdfast

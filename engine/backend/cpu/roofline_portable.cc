#include <cmath>

#include "engine/backend/cpu/roofline_inl.h"

namespace holdfast {
namespace {

// Vectors are what the compiler makes of a u64 and of a few products side by side.
struct Words {
  static constexpr int kBytes = 8;
  static uint64_t Zero() { return 0; }
  static uint64_t Load(const uint8_t* p) { return *reinterpret_cast<const uint64_t*>(p); }
  static uint64_t Xor(uint64_t a, uint64_t b) { return a ^ b; }
  static uint64_t Fold(uint64_t v) { return v; }
};

constexpr int kElements = 512;  // of each operand: in L1

double Int8Steps(int64_t rounds) {
  int16_t w[kElements] = {}, x[kElements] = {};
  for (int64_t r = 0; r < rounds; ++r) {
    __asm__ volatile("" : : "r"(w), "r"(x) : "memory");  // they may have changed
    int32_t sum = 0;
    for (int i = 0; i < kElements; ++i) sum += int32_t{w[i]} * x[i];
    __asm__ volatile("" : : "r"(sum));
  }
  return 2.0 * static_cast<double>(rounds) * kElements;
}

double Fp32Steps(int64_t rounds) {
  float sum[kRooflineChains] = {}, a = 0, b = 0;
  for (int64_t r = 0; r < rounds; ++r) {
    __asm__ volatile("" : "+m"(a), "+m"(b));
    for (float& chain : sum) chain = std::fma(a, b, chain);
  }
  __asm__ volatile("" : : "r"(sum) : "memory");
  return 2.0 * static_cast<double>(rounds) * kRooflineChains;
}

constexpr RooflineKernels kKernels = {ReadStreams<Words>, Int8Steps, Fp32Steps};

}  // namespace

const RooflineKernels& RooflinePortable() { return kKernels; }

}  // namespace holdfast

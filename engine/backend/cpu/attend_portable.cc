// Attention kernels in plain C++: any processor, and the one to read first.
#include <cmath>

#include "engine/backend/cpu/attend_kernels.h"
#include "engine/backend/exact_math.h"
#include "engine/backend/half.h"

namespace holdfast {
namespace {

struct Portable {
  static constexpr int kWidth = 16, kCols = 1, kMaxRows = 4, kPackRows = 5;
  struct F {
    float at[kWidth];
  };

  template <class Fn>
  static F Each(const Fn& fn) {
    F out;
    for (int j = 0; j < kWidth; ++j) out.at[j] = fn(j);
    return out;
  }
  static F Load(const float* p) {
    return Each([&](int j) { return p[j]; });
  }
  static F Load(const uint16_t* p) {
    return Each([&](int j) { return HalfToFloat(p[j]); });
  }
  static void Store(float* p, const F& x) {
    for (int j = 0; j < kWidth; ++j) p[j] = x.at[j];
  }
  static void StoreFirst(float* p, const F& x, int n) {
    for (int j = 0; j < kWidth && j < n; ++j) p[j] = x.at[j];
  }
  static F Set(float x) {
    return Each([&](int) { return x; });
  }
  static F Add(const F& a, const F& b) {
    return Each([&](int j) { return a.at[j] + b.at[j]; });
  }
  static F Sub(const F& a, const F& b) {
    return Each([&](int j) { return a.at[j] - b.at[j]; });
  }
  static F Mul(const F& a, const F& b) {
    return Each([&](int j) { return a.at[j] * b.at[j]; });
  }
  static F Negate(const F& a) {
    return Each([&](int j) { return -a.at[j]; });
  }
  static F Fma(const F& a, const F& b, const F& c) {
    return Each([&](int j) { return std::fma(a.at[j], b.at[j], c.at[j]); });
  }
  static F Max(const F& a, const F& b) {
    return Each([&](int j) { return a.at[j] > b.at[j] ? a.at[j] : b.at[j]; });
  }
  static F Exp(const F& x) {
    return Each([&](int j) { return ExpF(x.at[j]); });
  }
  static F Keep(const F& x, const F& other, uint64_t bits) {
    return Each([&](int j) { return (bits >> j & 1) != 0 ? x.at[j] : other.at[j]; });
  }
  static constexpr int kCodeRows = kMaxRows;
  struct Codes {
    int8_t at[4 * kWidth];
  };
  struct Sum {
    int32_t at[kWidth];
  };
  static constexpr int kSums = 1;
  static void PutQuery(const int16_t* c, float* q) { __builtin_memcpy(q, c, 8); }
  static Codes LoadCodes(const void* p) {
    Codes out;
    __builtin_memcpy(out.at, p, sizeof(out.at));
    return out;
  }
  static Sum NoSum(int, int32_t) { return {}; }
  static Sum Dot(int, Sum sum, const Codes& k, const float* q) {
    int16_t four[4];
    __builtin_memcpy(four, q, sizeof(four));
    for (int j = 0; j < 4 * kWidth; ++j) sum.at[j / 4] += k.at[j] * four[j % 4];
    return sum;
  }
  static F Total(const Sum* sum) {
    return Each([&](int j) { return static_cast<float>(sum->at[j]); });
  }
  static float ReduceMax(const F& x) {
    float m = x.at[0];
    for (float value : x.at) m = m > value ? m : value;
    return m;
  }
  static void Fetch(const void* p) { __builtin_prefetch(p); }
};

constexpr AttendKernels kKernels = attend::KernelsOf<Portable>();

}  // namespace

const AttendKernels& AttendPortable() { return kKernels; }

}  // namespace holdfast

// Attention kernels for NEON with dot products: up to 6 query rows x 4 vectors in registers.
#include "engine/backend/cpu/attend_kernels.h"
#include "engine/backend/cpu/lanes_neon.h"

namespace holdfast {
namespace {

struct Neon : LanesNeon {
  static constexpr int kCols = 4, kMaxRows = 6, kPackRows = 12;

  using LanesNeon::Load;
  static F Load(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
  static void StoreFirst(float* p, F x, int n) {
    if (n >= kWidth) return Store(p, x);
    float all[kWidth];
    Store(all, x);
    for (int j = 0; j < n; ++j) p[j] = all[j];
  }
  static F Max(F a, F b) { return vmaxq_f32(a, b); }  // but of zeros, and NaN: see RowMax
  static F Keep(F x, F other, uint64_t bits) {
    static constexpr uint32_t kLane[kWidth] = {1, 2, 4, 8};
    const uint32x4_t set = vtstq_u32(vdupq_n_u32(static_cast<uint32_t>(bits)), vld1q_u32(kLane));
    return vbslq_f32(set, x, other);
  }
  // `sdot` multiplies 8 bits by 8, and takes either part of a query from one register.
  static constexpr int kCodeRows = 3;
  using Codes = int8x16_t;
  using Sum = int32x4_t;
  static constexpr int kSums = 2;  // of the query's high part, of its low one
  static void PutQuery(const int16_t* c, float* q) { SplitQuery(c, q); }
  static Codes LoadCodes(const void* p) { return vld1q_s8(static_cast<const int8_t*>(p)); }
  static Sum NoSum(int, int32_t) { return vdupq_n_s32(0); }
  static Sum Dot(int part, Sum sum, Codes k, const float* q) {
    return vdotq_s32(sum, k, vreinterpretq_s8_f32(vdupq_n_f32(q[part])));
  }
  static F Total(const Sum* sums) {
    return vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(sums[0], 7), sums[1]));
  }
  static float ReduceMax(F x) { return vmaxvq_f32(x); }
  static void Fetch(const void* p) { __builtin_prefetch(p, 0, 2); }
};

constexpr AttendKernels kKernels = attend::KernelsOf<Neon>();

}  // namespace

const AttendKernels& AttendNeon() { return kKernels; }

}  // namespace holdfast

// Matrix products with NEON's dot products. A vector is 4 outputs, a tile four vectors; sdot
// multiplies four signed codes of each output by four activations, which are one lane of a register
// that holds half a group of a row. Sums are 32 bits wide from the start.
//
// How many outputs go at once is a matter of the 32 registers: sums and chains of 24, the rest for
// codes and activations.
//
// Everything here is in an unnamed namespace or an intrinsic: an inline function shared with other
// files could be the copy that the linker keeps, with instructions that the processor lacks.
#include <arm_neon.h>

#include <utility>

#include "engine/backend/cpu/matmul_kernels.h"

namespace holdfast {
namespace {

constexpr int kFewRows = 4;
constexpr int kFewRowsMax = 8;
constexpr int kPanelRows = 4;
constexpr int kWidth = 4;                             // outputs of a vector
constexpr int kVectors = kTileOutputs / kWidth;       // of a tile
constexpr int kPanelVectors = 2;                      // of a panel that go at once

using W = WeightType;

// fn(0) .. fn(kCount - 1), as constants: sdot names its lane.
template <int kCount, typename F>
[[gnu::always_inline]] inline void ForConstants(const F& fn) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (fn(std::integral_constant<int, I>()), ...);
  }
  (std::make_integer_sequence<int, kCount>());
}

// A table's values: unsigned, but signed where they are wide.
template <Values kValues>
int8x16_t Table(const Format& f) {
  const int8_t* values = kValues == Values::kIq4 ? kIq4Values : kMxfp4Values;
  return vaddq_s8(vld1q_s8(values), vdupq_n_s8(static_cast<int8_t>(IsWide(f) ? 0 : f.offset)));
}

// The codes of 4 outputs of a group; p is their part of the group's first plane. Unsigned (and
// below 64), but signed where they are wide.
template <W kType>
struct Group {
  static constexpr Format kFormat = FormatOf(kType);

  explicit Group(const uint8_t* p) : at(p) {}

  template <int kStep>
  int8x16_t Step() const {
    if constexpr (kFormat.codes == Codes::kBytes) {
      return vreinterpretq_s8_u8(veorq_u8(Plane(kStep), vdupq_n_u8(0x80)));
    } else {
      return Nibbles<kStep>();
    }
  }

 private:
  template <int kStep>
  int8x16_t Nibbles() const {
    uint8x16_t code = Plane(kStep % 4);
    if constexpr (kStep < 4) {
      code = vandq_u8(code, vdupq_n_u8(15));
    } else {
      code = vshrq_n_u8(code, 4);
    }
    if constexpr (kFormat.values != Values::kCode) {
      return vqtbl1q_s8(Table<kFormat.values>(kFormat), code);
    }
    if constexpr (kFormat.high_bits == 1) code = Join<4 - kStep>(code, Plane(4), 0x10);
    if constexpr (kFormat.high_bits == 2) {
      code = Join<4 - kStep % 4 * 2>(code, Plane(4 + kStep / 4), 0x30);
    }
    return vreinterpretq_s8_u8(code);
  }

  // `low`, but the bits of `mask` from `high` shifted left.
  template <int kLeft>
  static uint8x16_t Join(uint8x16_t low, uint8x16_t high, uint8_t mask) {
    if constexpr (kLeft > 0) high = vshlq_n_u8(high, kLeft);
    if constexpr (kLeft < 0) high = vshrq_n_u8(high, -kLeft);
    return vbslq_u8(vdupq_n_u8(mask), high, low);
  }

  uint8x16_t Plane(int i) const { return vld1q_u8(at + 64 * i); }

  const uint8_t* at;
};

float32x4_t LoadF16(const uint8_t* p) {
  return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
}
float32x4_t LoadBF16(const uint8_t* p) {
  return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16));
}
uint8x8_t LoadFour(const uint8_t* p) {
  uint32_t four;
  __builtin_memcpy(&four, p, 4);
  return vcreate_u8(four);
}
uint32x4_t LoadBytes(const uint8_t* p) {
  return vmovl_u16(vget_low_u16(vmovl_u8(LoadFour(p))));
}
float32x4_t LoadSigned(const uint8_t* p) {
  const int16x8_t halves = vmovl_s8(vreinterpret_s8_u8(LoadFour(p)));
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(halves)));
}

// 2^(e - 128) as a product of two powers: e may be too small for the bits of one.
float32x4_t LoadExponents(const uint8_t* p) {
  const uint32x4_t e = LoadBytes(p), half = vshrq_n_u32(e, 1);
  const auto power = [](uint32x4_t n) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vaddq_u32(n, vdupq_n_u32(127 - 64)), 23));
  };
  return vmulq_f32(power(half), power(vsubq_u32(e, half)));
}

// Scales of group g for the tile's outputs 4 v .. 4 v + 3: [0] dw; [1] -min, or: [1], [2] the two
// scales.
template <W kType>
void LoadScales(const uint8_t* scales, int64_t g, int v, float32x4_t* out) {
  constexpr Scales kScales = FormatOf(kType).scales;
  const uint8_t* halves = scales + v * kWidth * 2;
  if constexpr (kScales == Scales::kExponent) {
    out[0] = LoadExponents(scales + v * kWidth);
    return;
  }
  out[0] = LoadF16(halves);
  if constexpr (kScales == Scales::kHalfMin) out[1] = LoadF16(halves + 32);
  if constexpr (kScales == Scales::kByte) {
    out[0] = vmulq_f32(out[0], LoadSigned(scales + 32 + v * kWidth + g % 8 * 16));
  }
  const uint8_t* bytes = scales + 32 + v * kWidth + g % 8 * 32;
  if constexpr (kScales == Scales::kByteMin) {
    out[0] = vmulq_f32(out[0], vcvtq_f32_u32(LoadBytes(bytes + 32)));
    out[1] = vnegq_f32(
        vmulq_f32(LoadF16(halves + 32), vcvtq_f32_u32(LoadBytes(bytes + 32 + 16))));
  }
  if constexpr (kScales == Scales::kTwoBytes) {
    out[1] = LoadSigned(bytes);
    out[2] = LoadSigned(bytes + 16);
  }
}

// acc after one group: its sum s (with two scales: s over elements 0..15, s1 over the rest).
template <W kType>
float32x4_t AddGroup(float32x4_t acc, int32x4_t s, int32x4_t s1, const float32x4_t* scale,
                     const MatMulCall& c, int64_t at) {
  float32x4_t sum = vcvtq_f32_s32(s);
  if constexpr (FormatOf(kType).two_scales()) {
    // Every step is exact: |result| < 2^24. Adding +0 keeps it from being -0, as float(S) is not.
    sum = vfmaq_f32(vdupq_n_f32(0), sum, scale[1]);
    sum = vfmaq_f32(sum, vcvtq_f32_s32(s1), scale[2]);
  }
  acc = vfmaq_f32(acc, sum, vmulq_n_f32(scale[0], c.da[at]));
  if constexpr (FormatOf(kType).has_min()) acc = vfmaq_n_f32(acc, scale[1], c.dsum[at]);
  return acc;
}

// Integer sums of one group for kRows rows, q_stride apart, and kCount vectors of outputs; code(v,
// step), a constant, gives the codes of vector v. `at` is the group's place in the call's terms.
template <W kType, int kRows, int kCount, typename Code>
[[gnu::always_inline]] inline void SumGroup(const MatMulCall& c, int64_t at, const int8_t* q,
                                            int64_t q_stride, const Code& code,
                                            int32x4_t (*s)[kRows], int32x4_t (*s1)[kRows]) {
  constexpr Format kFormat = FormatOf(kType);
  constexpr bool kFromZero = kFormat.has_min() || IsWide(kFormat);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kCount; ++v) {
      s[v][r] = kFromZero ? vdupq_n_s32(0) : vdupq_n_s32(c.start[0][at + r]);
      if constexpr (kFormat.two_scales()) s1[v][r] = vdupq_n_s32(c.start[1][at + r]);
    }
  }
  ForConstants<2>([&](auto half) __attribute__((always_inline)) {
    // Or gcc keeps a half's planes, whose high nibbles the other one needs, and spills the sums.
    if constexpr (kRows > 1) __asm__ volatile("" : : : "memory");
    auto& sum = kFormat.two_scales() && half == 1 ? s1 : s;
    int8x16_t x[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) x[r] = vld1q_s8(q + r * q_stride + 16 * half);
    ForConstants<4>([&](auto lane) __attribute__((always_inline)) {
      constexpr std::integral_constant<int, half * 4 + lane> kStep;
#pragma GCC unroll 4
      for (int v = 0; v < kCount; ++v) {
        const int8x16_t w = code(v, kStep);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sum[v][r] = vdotq_laneq_s32(sum[v][r], w, x[r], lane);
      }
    });
  });
}

// y[0..outputs) = v, outputs <= 4 or more; lane by lane, as a loop would become a call of memcpy.
void StoreOutputs(float* y, int64_t outputs, float32x4_t v) {
  if (outputs >= kWidth) return vst1q_f32(y, v);
  if (outputs > 0) vst1q_lane_f32(y, v, 0);
  if (outputs > 1) vst1q_lane_f32(y + 1, v, 1);
  if (outputs > 2) vst1q_lane_f32(y + 2, v, 2);
}
float32x4_t LoadOutputs(const float* y, int64_t outputs) {
  if (outputs >= kWidth) return vld1q_f32(y);
  float32x4_t v = vdupq_n_f32(0);
  if (outputs > 0) v = vld1q_lane_f32(y, v, 0);
  if (outputs > 1) v = vld1q_lane_f32(y + 1, v, 1);
  if (outputs > 2) v = vld1q_lane_f32(y + 2, v, 2);
  return v;
}

// Chains of a tile's outputs for some rows, and their parts' sums: what products by `few` end with.
template <int kRows>
using TileSums = float32x4_t[kVectors][kRows];

template <int kRows>
void AddPart(int64_t begin, const TileSums<kRows>& acc, TileSums<kRows>& total) {
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      total[v][r] = begin == 0 ? acc[v][r] : vaddq_f32(total[v][r], acc[v][r]);
    }
  }
}

template <int kRows>
void StoreTile(const MatMulCall& c, int64_t row, int64_t tile, const TileSums<kRows>& total) {
  for (int v = 0; v < kVectors; ++v) {
    const int64_t o = tile * kTileOutputs + v * kWidth;
    const int64_t outputs = c.w.outputs - o;
    for (int r = 0; r < kRows; ++r) {
      float32x4_t y = total[v][r];
      if (c.bias != nullptr) y = vaddq_f32(y, LoadOutputs(c.bias + o, outputs));
      StoreOutputs(c.y + (row + r) * c.y_stride + o, outputs, y);
    }
  }
}

// Vectors of outputs whose sums find room beside the chains of all.
constexpr int SumsAtOnce(bool two_scales, int rows) {
  int count = kVectors;
  while (kVectors * rows + count * rows * (two_scales ? 2 : 1) > 24) count /= 2;
  return count;
}

// Rows [row, row + kRows) times one tile.
template <W kType, int kRows>
void FewQuantized(const MatMulCall& c, int64_t row, int64_t tile) {
  constexpr int kCount = SumsAtOnce(FormatOf(kType).two_scales(), kRows);
  const uint8_t* data = c.w.data + tile * c.w.tile_bytes;
  const int64_t q_stride = c.groups * kQuantGroup;
  const int8_t* q = c.q + row * q_stride;
  TileSums<kRows> total;
  for (int64_t begin = 0; begin < c.groups; begin += kPartGroups) {
    const int64_t end = begin + kPartGroups < c.groups ? begin + kPartGroups : c.groups;
    TileSums<kRows> acc = {};
    for (int64_t g = begin; g < end; ++g) {
      const GroupPlace place = PlaceOf(TileShapeOf(kType), data, g);
      const int64_t at = g * c.rows + row;
#pragma GCC unroll 4
      for (int first = 0; first < kVectors; first += kCount) {
        const uint8_t* codes = place.codes + first * 16;
        int32x4_t s[kCount][kRows], s1[kCount][kRows];
        SumGroup<kType, kRows, kCount>(
            c, at, q + g * kQuantGroup, q_stride,
            [codes](int v, auto step) __attribute__((always_inline)) {
              return Group<kType>(codes + v * 16).template Step<step>();
            },
            s, s1);
#pragma GCC unroll 4
        for (int v = 0; v < kCount; ++v) {
          float32x4_t scale[3];
          LoadScales<kType>(place.scales, g, first + v, scale);
#pragma GCC unroll 4
          for (int r = 0; r < kRows; ++r) {
            float32x4_t& chain = acc[first + v][r];
            chain = AddGroup<kType>(chain, s[v][r], s1[v][r], scale, c, at + r);
          }
        }
      }
    }
    AddPart<kRows>(begin, acc, total);
  }
  StoreTile<kRows>(c, row, tile, total);
}

// Element i of the tile's outputs 4 v .. 4 v + 3.
template <W kType>
float32x4_t LoadWeights(const uint8_t* codes, int64_t i, int v) {
  if constexpr (kType == W::kF16) return LoadF16(codes + 32 * i + 8 * v);
  if constexpr (kType == W::kBF16) return LoadBF16(codes + 32 * i + 8 * v);
  return vreinterpretq_f32_u8(vld1q_u8(codes + 64 * i + 16 * v));
}

// Adds elements [begin, end) of float weights, of which weight(i, v) is one for vector v, times
// those of rows `stride` apart.
template <int kRows, typename Weight>
[[gnu::always_inline]] inline void AddFloats(int64_t begin, int64_t end, const float* x,
                                             int64_t stride, const Weight& weight,
                                             TileSums<kRows>& acc) {
  for (int64_t i = begin; i < end; ++i) {
    float32x4_t w[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) w[v] = weight(i, v);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        acc[v][r] = vfmaq_n_f32(acc[v][r], w[v], x[r * stride + i]);
      }
    }
  }
}

template <W kType, int kRows>
void FewFloat(const MatMulCall& c, int64_t row, int64_t tile) {
  const uint8_t* codes = c.w.data + tile * c.w.tile_bytes;
  const int64_t inputs = c.w.inputs;
  TileSums<kRows> total;
  for (int64_t begin = 0; begin < inputs; begin += kPartElements) {
    const int64_t end = begin + kPartElements < inputs ? begin + kPartElements : inputs;
    TileSums<kRows> acc = {};
    AddFloats<kRows>(begin, end, c.x + row * inputs, inputs,
                     [codes](int64_t i, int v) { return LoadWeights<kType>(codes, i, v); }, acc);
    AddPart<kRows>(begin, acc, total);
  }
  StoreTile<kRows>(c, row, tile, total);
}

template <W kType, int kRows>
void FewTile(const MatMulCall& c, int64_t row, int64_t tile) {
  if constexpr (NeedsQuantized(kType)) {
    FewQuantized<kType, kRows>(c, row, tile);
  } else {
    FewFloat<kType, kRows>(c, row, tile);
  }
}

template <W kType>
void FewOfType(const MatMulCall& c, int64_t rows, int64_t tile, int64_t tiles) {
  const int64_t passes = (rows + kFewRows - 1) / kFewRows;
  for (int64_t t = tile; t < tile + tiles; ++t) {
    for (int64_t i = 0; i < passes; ++i) {
      const int64_t row = rows * i / passes;
      switch (rows * (i + 1) / passes - row) {
        case 1: FewTile<kType, 1>(c, row, t); break;
        case 2: FewTile<kType, 2>(c, row, t); break;
        case 3: FewTile<kType, 3>(c, row, t); break;
        default: FewTile<kType, kFewRows>(c, row, t); break;
      }
    }
  }
}

void Few(const MatMulCall& c, int64_t rows, int64_t tile, int64_t tiles) {
  ForType(c.w.type, [&](auto type) { FewOfType<type>(c, rows, tile, tiles); });
}

template <W kType>
void UnpackTile(const uint8_t* tile, int64_t first, int t, Panel* p) {
  constexpr Format kFormat = FormatOf(kType);
  for (int u = 0; u < p->units; ++u) {
    for (int v = 0; v < kVectors; ++v) {
      const int column = t * kTileOutputs + v * kWidth;
      if constexpr (NeedsQuantized(kType)) {
        const GroupPlace place = PlaceOf(TileShapeOf(kType), tile, first + u);
        const Group<kType> group(place.codes + v * 16);
        ForConstants<8>([&](auto step) {
          vst1q_u8(p->codes.q[u][step][t] + v * 16,
                   vreinterpretq_u8_s8(group.template Step<step>()));
        });
        float32x4_t scale[3];
        LoadScales<kType>(place.scales, first + u, v, scale);
        constexpr int kScales = kFormat.two_scales() ? 3 : kFormat.has_min() ? 2 : 1;
        for (int i = 0; i < kScales; ++i) vst1q_f32(p->scale[u][i] + column, scale[i]);
      } else {
        vst1q_f32(p->codes.f[u] + column, LoadWeights<kType>(tile, first + u, v));
      }
    }
  }
}

void Unpack(WeightType type, const uint8_t* tile, int64_t first, int t, Panel* p) {
  ForType(type, [&](auto constant) { UnpackTile<constant>(tile, first, t, p); });
}

// Adds a part's chains for the panel's outputs from `column` on to y, and the bias after the last
// part. Always inline: a call would send all of acc through memory.
template <int kRows, int kCount>
[[gnu::always_inline]] inline void StorePart(const MatMulCall& c, const Panel& p, int64_t row,
                                             int column, const float32x4_t (&acc)[kCount][kRows]) {
#pragma GCC unroll 4
  for (int v = 0; v < kCount; ++v, column += kWidth) {
    const int64_t outputs = p.outputs - column, o = p.first_output + column;
    if (outputs <= 0) return;
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      float* to = c.y + (row + r) * c.y_stride + o;
      float32x4_t y = acc[v][r];
      if (p.part > 0) y = vaddq_f32(LoadOutputs(to, outputs), y);
      if (p.last && c.bias != nullptr) y = vaddq_f32(y, LoadOutputs(c.bias + o, outputs));
      StoreOutputs(to, outputs, y);
    }
  }
}

// Eight outputs of the panel from `column` on.
template <W kType, int kRows>
void PanelQuantized(const MatMulCall& c, const Panel& p, int64_t row, int column) {
  const int64_t q_stride = c.groups * kQuantGroup;
  const int64_t first = p.part * kPartGroups;
  const int8_t* q = c.q + row * q_stride + first * kQuantGroup;
  const int tile = column / kTileOutputs, lane = column % kTileOutputs * 4;
  float32x4_t acc[kPanelVectors][kRows] = {};
  for (int g = 0; g < p.units; ++g, q += kQuantGroup) {
    const uint8_t* codes = p.codes.q[g][0][tile] + lane;
    const int64_t at = (first + g) * c.rows + row;
    int32x4_t s[kPanelVectors][kRows], s1[kPanelVectors][kRows];
    SumGroup<kType, kRows, kPanelVectors>(
        c, at, q, q_stride,
        [codes](int v, int step) __attribute__((always_inline)) {
          return vreinterpretq_s8_u8(vld1q_u8(codes + step * kPanelTiles * 64 + v * 16));
        },
        s, s1);
#pragma GCC unroll 2
    for (int v = 0; v < kPanelVectors; ++v) {
      const float* scales = p.scale[g][0] + column + v * kWidth;
      const float32x4_t scale[3] = {vld1q_f32(scales), vld1q_f32(scales + kPanelOutputs),
                                    vld1q_f32(scales + 2 * kPanelOutputs)};
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        acc[v][r] = AddGroup<kType>(acc[v][r], s[v][r], s1[v][r], scale, c, at + r);
      }
    }
  }
  StorePart(c, p, row, column, acc);
}

template <int kRows>
void PanelFloat(const MatMulCall& c, const Panel& p, int64_t row, int column) {
  const float* x = c.x + row * c.w.inputs + p.part * kPartElements;
  TileSums<kRows> acc = {};
  AddFloats<kRows>(0, p.units, x, c.w.inputs,
                   [&](int64_t i, int v) { return vld1q_f32(p.codes.f[i] + column + v * kWidth); },
                   acc);
  StorePart(c, p, row, column, acc);
}

template <int kRows>
void PanelOfRows(const MatMulCall& c, const Panel& p, int64_t row) {
  ForType(c.w.type, [&](auto type) {
    if constexpr (NeedsQuantized(type)) {
      for (int column = 0; column < p.outputs; column += kPanelVectors * kWidth) {
        PanelQuantized<PanelType(type), kRows>(c, p, row, column);
      }
    } else {
      for (int column = 0; column < p.outputs; column += kTileOutputs) {
        PanelFloat<kRows>(c, p, row, column);
      }
    }
  });
}

void RunPanel(const MatMulCall& c, const Panel& p, int64_t row, int rows) {
  switch (rows) {
    case 1: return PanelOfRows<1>(c, p, row);
    case 2: return PanelOfRows<2>(c, p, row);
    case 3: return PanelOfRows<3>(c, p, row);
    default: return PanelOfRows<kPanelRows>(c, p, row);
  }
}

}  // namespace

const MatMulKernels& NeonMatMulKernels() {
  static constexpr MatMulKernels kKernels{kFewRowsMax, kPanelRows, Few, Unpack, RunPanel};
  return kKernels;
}

}  // namespace holdfast

// Matrix products in plain C++, always by panels. Codes are unpacked to signed 16 bits, [element]
// [output], so that compilers vectorise over the outputs: products of 8-bit numbers and sums of a
// few of them fit into 16 bits.
#include <cmath>
#include <cstring>

#include "engine/backend/cpu/matmul_kernels.h"
#include "engine/backend/half.h"

namespace holdfast {
namespace {

constexpr int kPanelRows = 4;

using W = WeightType;

// Products whose sum fits into 16 bits: 127 * (largest |w|) * products <= 32767.
constexpr int ProductsIn16Bits(W t) {
  return t == W::kQ8_0 ? 2 : t == W::kQ6_K ? 8 : 16;
}

float LoadHalf(const uint8_t* halves, int lane) {
  uint16_t h;
  std::memcpy(&h, halves + 2 * lane, 2);
  return HalfToFloat(h);
}

// Element i of the group as the file has it, less the type's offset.
template <W kType>
int16_t CodeOf(const uint8_t* planes, int lane, int i) {
  const int step = i / 4;
  const uint8_t* at = planes + 4 * lane + i % 4;
  if constexpr (kType == W::kQ8_0) return static_cast<int16_t>(at[64 * step] - 128);
  int code = at[step % 4 * 64] >> step / 4 * 4 & 15;
  if constexpr (kType == W::kQ5_0) code += (at[256] >> step & 1) * 16 - 16;
  if constexpr (kType == W::kQ6_K) {
    code += (at[256 + step / 4 * 64] >> step % 4 * 2 & 3) * 16 - 32;
  }
  return static_cast<int16_t>(code);
}

template <W kType>
void UnpackScales(const uint8_t* scales, int64_t g, int lane, int column,
                  float (*out)[kPanelOutputs]) {
  constexpr TileShape kShape = TileShapeOf(kType);
  const uint8_t* record = scales + g / kShape.scale_groups * kShape.scale_bytes;
  const uint8_t* bytes = record + g % 8 * 32 + lane;
  const float d = LoadHalf(record, lane);
  out[0][column] = d;
  if constexpr (kType == W::kQ4_1) out[1][column] = LoadHalf(record + 32, lane);
  if constexpr (kType == W::kQ4_K) {
    out[0][column] = d * static_cast<float>(bytes[64]);
    out[1][column] = -(LoadHalf(record + 32, lane) * static_cast<float>(bytes[64 + 16]));
  }
  if constexpr (kType == W::kQ6_K) {
    out[1][column] = static_cast<float>(static_cast<int8_t>(bytes[32]));
    out[2][column] = static_cast<float>(static_cast<int8_t>(bytes[32 + 16]));
  }
}

template <W kType>
void UnpackTile(const uint8_t* codes, const uint8_t* scales, int64_t first, int t, Panel* p) {
  constexpr TileShape kShape = TileShapeOf(kType);
  for (int u = 0; u < p->units; ++u) {
    const uint8_t* at = codes + (first + u) * kShape.code_bytes;
    for (int lane = 0; lane < kTileOutputs; ++lane) {
      const int column = t * kTileOutputs + lane;
      if constexpr (kType == W::kF32) {
        std::memcpy(&p->codes.f[u][column], at + 4 * lane, 4);
      } else if constexpr (kType == W::kF16) {
        p->codes.f[u][column] = LoadHalf(at, lane);
      } else {
        UnpackScales<kType>(scales, first + u, lane, column, p->scale[u]);
      }
    }
    if constexpr (NeedsQuantized(kType)) {
      for (int i = 0; i < kQuantGroup; ++i) {
        int16_t* to = p->codes.w[u * kQuantGroup + i] + t * kTileOutputs;
        for (int lane = 0; lane < kTileOutputs; ++lane) to[lane] = CodeOf<kType>(at, lane, i);
      }
    }
  }
}

void Unpack(const PackedView& w, Panel* p) {
  const int64_t tile = p->first_output / kTileOutputs;
  const int64_t first = p->part * (NeedsQuantized(w.type) ? kPartGroups : kPartElements);
  for (int t = 0; t < kPanelTiles; ++t) {
    const int64_t from = tile + t < w.tiles ? tile + t : tile;  // a last odd tile stands twice
    const uint8_t* codes = w.codes + from * w.tile_bytes;
    const uint8_t* scales = w.scales + from * w.tile_bytes;
    switch (w.type) {
      case W::kQ4_1: UnpackTile<W::kQ4_1>(codes, scales, first, t, p); break;
      case W::kQ5_0: UnpackTile<W::kQ5_0>(codes, scales, first, t, p); break;
      case W::kQ8_0: UnpackTile<W::kQ8_0>(codes, scales, first, t, p); break;
      case W::kQ4_K: UnpackTile<W::kQ4_K>(codes, scales, first, t, p); break;
      case W::kQ6_K: UnpackTile<W::kQ6_K>(codes, scales, first, t, p); break;
      case W::kF16: UnpackTile<W::kF16>(codes, scales, first, t, p); break;
      case W::kF32: UnpackTile<W::kF32>(codes, scales, first, t, p); break;
    }
  }
}

// sum[o] = sum of w[i][o] * q[i] over kCount elements.
template <int kCount, int kProducts>
void SumProducts(const int16_t (*w)[kPanelOutputs], const int8_t* q, int32_t* sum) {
  for (int o = 0; o < kPanelOutputs; ++o) sum[o] = 0;
  for (int begin = 0; begin < kCount; begin += kProducts) {
    int16_t part[kPanelOutputs] = {};
    for (int i = begin; i < begin + kProducts; ++i) {
      const int16_t x = q[i];
      for (int o = 0; o < kPanelOutputs; ++o) {
        part[o] = static_cast<int16_t>(part[o] + static_cast<int16_t>(w[i][o] * x));
      }
    }
    for (int o = 0; o < kPanelOutputs; ++o) sum[o] += part[o];
  }
}

// float(S) of a group.
template <W kType>
void GroupSums(const Panel& p, int g, const int8_t* q, float* s) {
  constexpr int kProducts = ProductsIn16Bits(kType);
  const auto* w = p.codes.w + g * kQuantGroup;
  int32_t sum[kPanelOutputs];
  if constexpr (kType == W::kQ6_K) {
    int32_t high[kPanelOutputs];
    SumProducts<16, kProducts>(w, q, sum);
    SumProducts<16, kProducts>(w + 16, q + 16, high);
    for (int o = 0; o < kPanelOutputs; ++o) {
      sum[o] = static_cast<int32_t>(p.scale[g][1][o]) * sum[o] +
               static_cast<int32_t>(p.scale[g][2][o]) * high[o];
    }
  } else {
    SumProducts<32, kProducts>(w, q, sum);
  }
  for (int o = 0; o < kPanelOutputs; ++o) s[o] = static_cast<float>(sum[o]);
}

template <W kType>
void RowQuantized(const MatMulCall& c, const Panel& p, int64_t row, float* acc) {
  const int64_t first = p.part * kPartGroups;
  for (int g = 0; g < p.units; ++g) {
    float s[kPanelOutputs];
    GroupSums<kType>(p, g, c.q + (row * c.groups + first + g) * kQuantGroup, s);
    const float da = c.da[(first + g) * c.rows + row];
    for (int o = 0; o < kPanelOutputs; ++o) acc[o] = std::fmaf(s[o], p.scale[g][0][o] * da, acc[o]);
    if constexpr (kType == W::kQ4_1) {
      const float dsum = c.dsum[(first + g) * c.rows + row];
      for (int o = 0; o < kPanelOutputs; ++o) acc[o] = std::fmaf(p.scale[g][1][o], dsum, acc[o]);
    }
  }
}

void RowFloat(const MatMulCall& c, const Panel& p, int64_t row, float* acc) {
  const float* x = c.x + row * c.w.inputs + p.part * kPartElements;
  for (int i = 0; i < p.units; ++i) {
    for (int o = 0; o < kPanelOutputs; ++o) acc[o] = std::fmaf(p.codes.f[i][o], x[i], acc[o]);
  }
}

void RunPanel(const MatMulCall& c, const Panel& p, int64_t row, int rows) {
  for (int64_t r = row; r < row + rows; ++r) {
    float acc[kPanelOutputs] = {};
    switch (c.w.type) {
      case W::kQ4_1:
      case W::kQ4_K: RowQuantized<W::kQ4_1>(c, p, r, acc); break;
      case W::kQ5_0: RowQuantized<W::kQ5_0>(c, p, r, acc); break;
      case W::kQ8_0: RowQuantized<W::kQ8_0>(c, p, r, acc); break;
      case W::kQ6_K: RowQuantized<W::kQ6_K>(c, p, r, acc); break;
      case W::kF16:
      case W::kF32: RowFloat(c, p, r, acc); break;
    }
    float* y = c.y + r * c.y_stride + p.first_output;
    for (int o = 0; o < p.outputs; ++o) {
      y[o] = p.part == 0 ? acc[o] : y[o] + acc[o];
      if (p.last && c.bias != nullptr) y[o] += c.bias[p.first_output + o];
    }
  }
}

}  // namespace

const MatMulKernels& PortableMatMulKernels() {
  static constexpr MatMulKernels kKernels{0, kPanelRows, nullptr, Unpack, RunPanel};
  return kKernels;
}

}  // namespace holdfast

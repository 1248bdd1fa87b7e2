// Matrix products in plain C++, always by panels. Codes are unpacked to signed 16 bits, [element]
// [output], so that compilers vectorise over the outputs: products of 8-bit numbers and sums of a
// few of them fit into 16 bits.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/backend/cpu/matmul_kernels.h"
#include "engine/backend/half.h"

namespace holdfast {
namespace {

constexpr int kPanelRows = 4;

using W = WeightType;

uint16_t LoadBits16(const uint8_t* bits, int lane) {
  uint16_t v;
  std::memcpy(&v, bits + 2 * lane, 2);
  return v;
}
float LoadHalf(const uint8_t* halves, int lane) { return HalfToFloat(LoadBits16(halves, lane)); }

template <W kType>
void UnpackScales(const uint8_t* scales, int64_t g, int lane, int column,
                  float (*out)[kPanelOutputs]) {
  constexpr Scales kScales = FormatOf(kType).scales;
  if constexpr (kScales == Scales::kExponent) {
    out[0][column] = HalfOfE8M0(scales[lane]);
    return;
  }
  const float d = LoadHalf(scales, lane);
  out[0][column] = d;
  if constexpr (kScales == Scales::kHalfMin) out[1][column] = LoadHalf(scales + 32, lane);
  if constexpr (kScales == Scales::kByte) {
    out[0][column] = d * static_cast<float>(static_cast<int8_t>(scales[32 + g % 8 * 16 + lane]));
  }
  const uint8_t* bytes = scales + 32 + g % 8 * 32 + lane;
  if constexpr (kScales == Scales::kByteMin) {
    out[0][column] = d * static_cast<float>(bytes[32]);
    out[1][column] = -(LoadHalf(scales + 32, lane) * static_cast<float>(bytes[32 + 16]));
  }
  if constexpr (kScales == Scales::kTwoBytes) {
    out[1][column] = static_cast<float>(static_cast<int8_t>(bytes[0]));
    out[2][column] = static_cast<float>(static_cast<int8_t>(bytes[16]));
  }
}

template <W kType>
void UnpackTile(const uint8_t* tile, int64_t first, int t, Panel* p) {
  constexpr Format kFormat = FormatOf(kType);
  for (int u = 0; u < p->units; ++u) {
    const GroupPlace place = PlaceOf(TileShapeOf(kType), tile, first + u);
    const uint8_t* at = place.codes;
    for (int lane = 0; lane < kTileOutputs; ++lane) {
      const int column = t * kTileOutputs + lane;
      if constexpr (kType == W::kF32) {
        std::memcpy(&p->codes.f[u][column], at + 4 * lane, 4);
      } else if constexpr (kType == W::kF16) {
        p->codes.f[u][column] = LoadHalf(at, lane);
      } else if constexpr (kType == W::kBF16) {
        p->codes.f[u][column] = Bf16ToFloat(LoadBits16(at, lane));
      } else {
        UnpackScales<kType>(place.scales, first + u, lane, column, p->scale[u]);
      }
    }
    if constexpr (NeedsQuantized(kType)) {
      for (int i = 0; i < kQuantGroup; ++i) {
        int16_t* to = p->codes.w[u * kQuantGroup + i] + t * kTileOutputs;
        for (int lane = 0; lane < kTileOutputs; ++lane) {
          to[lane] = static_cast<int16_t>(WeightOf(kFormat, at + 4 * lane, i));
        }
      }
    }
  }
}

void Unpack(WeightType type, const uint8_t* tile, int64_t first, int t, Panel* p) {
  ForType(type, [&](auto constant) { UnpackTile<constant>(tile, first, t, p); });
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
  constexpr Format kFormat = FormatOf(kType);
  constexpr int kProducts =
      ProductsIn16Bits(std::max(kFormat.offset, kFormat.most - kFormat.offset));
  const auto* w = p.codes.w + g * kQuantGroup;
  int32_t sum[kPanelOutputs];
  if constexpr (kFormat.two_scales()) {
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
    if constexpr (FormatOf(kType).has_min()) {
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
    ForType(c.w.type, [&](auto type) {
      if constexpr (NeedsQuantized(type)) {
        RowQuantized<PanelType(type)>(c, p, r, acc);
      } else {
        RowFloat(c, p, r, acc);
      }
    });
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

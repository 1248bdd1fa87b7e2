// Matrix products with AVX-512 VNNI. A vector is the 16 outputs of a tile; vpdpbusd multiplies four
// unsigned codes of each by the same four signed activations, broadcast from memory.
//
// Everything here is in an unnamed namespace or an intrinsic: an inline function shared with other
// files could be the copy that the linker keeps, with instructions that the processor lacks.

// gcc 12's own intrinsics pass undefined vectors on purpose and warn of it.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

#include <immintrin.h>

#include "engine/backend/cpu/matmul_kernels.h"

namespace holdfast {
namespace {

constexpr int kFewRows = 4;      // of one pass
constexpr int kFewRowsMax = 32;
constexpr int kPanelRows = 6;

// 1.5 * 2^23: the fp32 number whose bits, with an integer |n| < 2^22 added, are the number plus n.
constexpr float kMagic = 12582912.0f;
constexpr int32_t kMagicBits = 0x4b400000;

using W = WeightType;

__m512i LoadPlane(const uint8_t* p) { return _mm512_loadu_si512(p); }

__m512i Broadcast4(const int8_t* p) {
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return _mm512_set1_epi32(v);
}

// A table's values as vpshufb takes them, unsigned.
template <Values kValues>
__m512i Table(const Format& f) {
  const int8_t* values = kValues == Values::kIq4 ? kIq4Values : kMxfp4Values;
  const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
  return _mm512_broadcast_i32x4(
      _mm_add_epi8(table, _mm_set1_epi8(static_cast<char>(f.offset))));
}

// The codes of one group, read when made; Step(s) gives those of step s, unsigned.
template <W kType>
struct Group {
  static constexpr Format kFormat = FormatOf(kType);

  explicit Group(const uint8_t* p) {
    if constexpr (kFormat.codes == Codes::kBytes) {
      at = p;
    } else {
      for (int i = 0; i < 4; ++i) nibbles[i] = LoadPlane(p + 64 * i);
      for (int i = 0; i < kFormat.high_bits; ++i) high[i] = LoadPlane(p + 256 + 64 * i);
    }
  }

  __m512i Step(int s) const {
    if constexpr (kFormat.codes == Codes::kBytes) return LoadPlane(at + 64 * s);
    const __m512i nibble = s < 4 ? nibbles[s] : _mm512_srli_epi16(nibbles[s - 4], 4);
    const __m512i low = _mm512_and_si512(nibble, _mm512_set1_epi8(15));
    if constexpr (kFormat.values != Values::kCode) {
      return _mm512_shuffle_epi8(Table<kFormat.values>(kFormat), low);
    }
    if constexpr (kFormat.high_bits == 1) return Join(low, Shift(high[0], 4 - s), 0x10);
    if constexpr (kFormat.high_bits == 2) {
      return Join(low, Shift(high[s / 4], 4 - s % 4 * 2), 0x30);
    }
    return low;
  }

 private:
  static __m512i Shift(__m512i v, int left) {  // what crosses a byte's edge is masked by Join
    if (left == 0) return v;
    return left > 0 ? _mm512_slli_epi16(v, left) : _mm512_srli_epi16(v, -left);
  }
  static __m512i Join(__m512i low, __m512i high_bits, char mask) {  // low | (high_bits & mask)
    return _mm512_ternarylogic_epi32(low, high_bits, _mm512_set1_epi8(mask), 0xf8);
  }

  const uint8_t* at = nullptr;
  __m512i nibbles[4];
  __m512i high[2];
};

__m512 LoadHalf(const uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
__m512 LoadBF16(const uint8_t* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
__m512 LoadBytes(const uint8_t* p) {
  return _mm512_cvtepi32_ps(
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
__m512 LoadSigned(const uint8_t* p) {
  return _mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

// 2^(e - 128) as a product of two powers: e may be too small for the bits of one.
__m512 LoadExponents(const uint8_t* p) {
  const __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m512i half = _mm512_srli_epi32(e, 1), bias = _mm512_set1_epi32(127 - 64);
  const auto power = [bias](__m512i n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, bias), 23));
  };
  return _mm512_mul_ps(power(half), power(_mm512_sub_epi32(e, half)));
}

// Scales of group g: [0] dw; [1] -min, or: [1], [2] the two scales, and
// [3] +0 - [1] * kMagic.
template <W kType>
void LoadScales(const uint8_t* scales, int64_t g, __m512* out) {
  constexpr Scales kScales = FormatOf(kType).scales;
  const __m512 zero = _mm512_setzero_ps();
  if constexpr (kScales == Scales::kExponent) {
    out[0] = LoadExponents(scales);
    return;
  }
  out[0] = LoadHalf(scales);
  if constexpr (kScales == Scales::kHalfMin) out[1] = LoadHalf(scales + 32);
  if constexpr (kScales == Scales::kByte) {
    out[0] = _mm512_mul_ps(out[0], LoadSigned(scales + 32 + g % 8 * 16));
  }
  if constexpr (kScales == Scales::kByteMin) {
    const uint8_t* bytes = scales + 64 + g % 8 * 32;
    const __m512 min = _mm512_mul_ps(LoadHalf(scales + 32), LoadBytes(bytes + 16));
    out[0] = _mm512_mul_ps(out[0], LoadBytes(bytes));
    out[1] = _mm512_sub_ps(zero, min);
  }
  if constexpr (kScales == Scales::kTwoBytes) {
    const uint8_t* bytes = scales + 32 + g % 8 * 32;
    out[1] = LoadSigned(bytes);
    out[2] = LoadSigned(bytes + 16);
    out[3] = _mm512_fnmadd_ps(out[1], _mm512_set1_ps(kMagic), zero);
  }
}

// acc after one group: its sum s (with two scales: s over elements 0..15, with kMagicBits, s1 over
// the rest).
template <W kType>
__m512 AddGroup(__m512 acc, __m512i s, __m512i s1, const __m512* scale,
                const MatMulCall& c, int64_t at) {
  __m512 sum;
  if constexpr (FormatOf(kType).two_scales()) {
    // (magic + lo) * sc0 - magic * sc0 = lo * sc0; every step is exact: |result| < 2^24. It is
    // never -0, which float(S) isn't either.
    const __m512 low = _mm512_fmadd_ps(_mm512_castsi512_ps(s), scale[1], scale[3]);
    sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s1), scale[2], low);
  } else {
    sum = _mm512_cvtepi32_ps(s);
  }
  acc = _mm512_fmadd_ps(sum, _mm512_mul_ps(scale[0], _mm512_set1_ps(c.da[at])), acc);
  if constexpr (FormatOf(kType).has_min()) {
    acc = _mm512_fmadd_ps(scale[1], _mm512_set1_ps(c.dsum[at]), acc);
  }
  return acc;
}

template <W kType>
__m512i StartSum(const MatMulCall& c, int64_t at) {
  constexpr Format kFormat = FormatOf(kType);
  if constexpr (kFormat.has_min()) return _mm512_setzero_si512();
  const int32_t magic = kFormat.two_scales() ? kMagicBits : 0;
  return _mm512_set1_epi32(c.start[0][at] + magic);
}

__mmask16 OutputMask(int64_t outputs) {
  return outputs >= kTileOutputs ? 0xffff
                                 : outputs <= 0 ? 0 : static_cast<__mmask16>((1 << outputs) - 1);
}

// y of a row's outputs in a tile, with the bias.
void StoreTile(const MatMulCall& c, int64_t row, int64_t tile, __m512 y) {
  const int64_t o = tile * kTileOutputs;
  const __mmask16 mask = OutputMask(c.w.outputs - o);
  if (c.bias != nullptr) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, c.bias + o));
  _mm512_mask_storeu_ps(c.y + row * c.y_stride + o, mask, y);
}

// Which of the passes that a product's rows make over each set of tiles.
struct Pass {
  int64_t row = 0;  // its first row
  int index = 0;
  int count = 1;
};

// With several passes memory would rest during the later ones: each asks for its share of the tiles
// that follow.
[[gnu::always_inline]] inline void FetchNext(const uint8_t* tiles, int64_t bytes, int64_t g,
                                             int64_t groups, const Pass& pass) {
  FetchPiece(tiles, bytes, pass.index * groups + g, pass.count * groups,
             pass.count > 1 ? bytes : kFetchAhead);
}

// Rows [row, row + kRows) times kTiles tiles.
template <W kType, int kRows, int kTiles>
void FewQuantized(const MatMulCall& c, const Pass& pass, int64_t tile) {
  const int64_t row = pass.row, stride = c.w.tile_bytes;
  const uint8_t* data = c.w.data + tile * stride;
  const int8_t* q = c.q + row * c.groups * kQuantGroup;
  const int64_t q_stride = c.groups * kQuantGroup;
  __m512 total[kTiles][kRows];
  for (int64_t begin = 0; begin < c.groups; begin += kPartGroups) {
    const int64_t end = begin + kPartGroups < c.groups ? begin + kPartGroups : c.groups;
    __m512 acc[kTiles][kRows];
    for (auto& tile_acc : acc) {
      for (auto& a : tile_acc) a = _mm512_setzero_ps();
    }
    for (int64_t g = begin; g < end; ++g) {
      static_assert(kTiles <= 2);
      const GroupPlace place[2] = {PlaceOf(TileShapeOf(kType), data, g),
                                   PlaceOf(TileShapeOf(kType), data + (kTiles - 1) * stride, g)};
      const Group<kType> group[2] = {Group<kType>(place[0].codes), Group<kType>(place[1].codes)};
      FetchNext(data, kTiles * stride, g, c.groups, pass);
      __m512i s[kTiles][kRows], s1[kTiles][kRows];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const int64_t at = g * c.rows + row + r;
        for (int t = 0; t < kTiles; ++t) s[t][r] = StartSum<kType>(c, at);
        if constexpr (FormatOf(kType).two_scales()) {
          for (int t = 0; t < kTiles; ++t) s1[t][r] = _mm512_set1_epi32(c.start[1][at]);
        }
      }
#pragma GCC unroll 8
      for (int step = 0; step < 8; ++step) {
        __m512i w[kTiles];
#pragma GCC unroll 2
        for (int t = 0; t < kTiles; ++t) w[t] = group[t].Step(step);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const __m512i x = Broadcast4(q + r * q_stride + g * kQuantGroup + 4 * step);
#pragma GCC unroll 2
          for (int t = 0; t < kTiles; ++t) {
            __m512i& sum = FormatOf(kType).two_scales() && step >= 4 ? s1[t][r] : s[t][r];
            sum = _mm512_dpbusd_epi32(sum, w[t], x);
          }
        }
      }
#pragma GCC unroll 2
      for (int t = 0; t < kTiles; ++t) {
        __m512 scale[4];
        LoadScales<kType>(place[t].scales, g, scale);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const int64_t at = g * c.rows + row + r;
          acc[t][r] = AddGroup<kType>(acc[t][r], s[t][r], s1[t][r], scale, c, at);
        }
      }
    }
    for (int t = 0; t < kTiles; ++t) {
      for (int r = 0; r < kRows; ++r) {
        total[t][r] = begin == 0 ? acc[t][r] : _mm512_add_ps(total[t][r], acc[t][r]);
      }
    }
  }
  for (int t = 0; t < kTiles; ++t) {
    for (int r = 0; r < kRows; ++r) StoreTile(c, row + r, tile + t, total[t][r]);
  }
}

__m512 LoadWeights(const uint8_t* codes, int64_t i, W type) {
  if (type == W::kF16) return LoadHalf(codes + 32 * i);
  if (type == W::kBF16) return LoadBF16(codes + 32 * i);
  return _mm512_loadu_ps(codes + 64 * i);
}

// Several tiles at once: one row's chain of FMAs alone would wait for itself.
template <W kType, int kRows, int kTiles>
void FewFloat(const MatMulCall& c, int64_t row, int64_t tile) {
  const uint8_t* codes = c.w.data + tile * c.w.tile_bytes;
  const int64_t stride = c.w.tile_bytes;
  const int64_t inputs = c.w.inputs;
  const float* x = c.x + row * inputs;
  __m512 total[kTiles][kRows];
  for (int64_t begin = 0; begin < inputs; begin += kPartElements) {
    const int64_t end = begin + kPartElements < inputs ? begin + kPartElements : inputs;
    __m512 acc[kTiles][kRows];
    for (auto& tile_acc : acc) {
      for (auto& a : tile_acc) a = _mm512_setzero_ps();
    }
    for (int64_t i = begin; i < end; ++i) {
#pragma GCC unroll 4
      for (int t = 0; t < kTiles; ++t) {
        const uint8_t* at = codes + t * stride;
        const __m512 w = LoadWeights(at, i, kType);
        __builtin_prefetch(at + kFetchAhead + i * (kType == W::kF32 ? 64 : 32), 0, 2);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          acc[t][r] = _mm512_fmadd_ps(w, _mm512_set1_ps(x[r * inputs + i]), acc[t][r]);
        }
      }
    }
    for (int t = 0; t < kTiles; ++t) {
      for (int r = 0; r < kRows; ++r) {
        total[t][r] = begin == 0 ? acc[t][r] : _mm512_add_ps(total[t][r], acc[t][r]);
      }
    }
  }
  for (int t = 0; t < kTiles; ++t) {
    for (int r = 0; r < kRows; ++r) StoreTile(c, row + r, tile + t, total[t][r]);
  }
}

template <W kType, int kRows, int kTiles>
void FewTiles(const MatMulCall& c, const Pass& pass, int64_t tile) {
  if constexpr (NeedsQuantized(kType)) {
    FewQuantized<kType, kRows, kTiles>(c, pass, tile);
  } else {
    FewFloat<kType, kRows, kTiles>(c, pass.row, tile);
  }
}

template <W kType, int kTiles>
void FewOfRows(const MatMulCall& c, const Pass& pass, int rows, int64_t tile) {
  switch (rows) {
    case 1: return FewTiles<kType, 1, kTiles>(c, pass, tile);
    case 2: return FewTiles<kType, 2, kTiles>(c, pass, tile);
    case 3: return FewTiles<kType, 3, kTiles>(c, pass, tile);
    default: return FewTiles<kType, kFewRows, kTiles>(c, pass, tile);
  }
}

template <W kType, int kTiles>
void FewPasses(const MatMulCall& c, int64_t rows, int64_t tile) {
  Pass pass;
  pass.count = static_cast<int>((rows + kFewRows - 1) / kFewRows);
  for (; pass.index < pass.count; ++pass.index) {
    pass.row = rows * pass.index / pass.count;
    const int64_t end = rows * (pass.index + 1) / pass.count;
    FewOfRows<kType, kTiles>(c, pass, static_cast<int>(end - pass.row), tile);
  }
}

// One row of quantised weights is bound by memory, and that is fastest as one stream. Two tiles
// share the activations' loads, which would bind several rows.
template <W kType>
void FewOfType(const MatMulCall& c, int64_t rows, int64_t tile, int64_t tiles) {
  const int64_t end = tile + tiles;
  if constexpr (!NeedsQuantized(kType)) {
    for (; tile + 4 <= end; tile += 4) FewPasses<kType, 4>(c, rows, tile);
  }
  if (rows > 1) {
    for (; tile + 2 <= end; tile += 2) FewPasses<kType, 2>(c, rows, tile);
  }
  for (; tile < end; ++tile) FewPasses<kType, 1>(c, rows, tile);
}

void Few(const MatMulCall& c, int64_t rows, int64_t tile, int64_t tiles) {
  ForType(c.w.type, [&](auto type) { FewOfType<type>(c, rows, tile, tiles); });
}

template <W kType>
void UnpackTile(const uint8_t* tile, int64_t first, int t, Panel* p) {
  constexpr Format kFormat = FormatOf(kType);
  for (int u = 0; u < p->units; ++u) {
    if constexpr (NeedsQuantized(kType)) {
      const GroupPlace place = PlaceOf(TileShapeOf(kType), tile, first + u);
      const Group<kType> group(place.codes);
#pragma GCC unroll 8
      for (int s = 0; s < 8; ++s) _mm512_store_si512(p->codes.q[u][s][t], group.Step(s));
      __m512 scale[4];
      LoadScales<kType>(place.scales, first + u, scale);
      _mm512_store_ps(p->scale[u][0] + t * 16, scale[0]);
      if constexpr (kFormat.has_min()) _mm512_store_ps(p->scale[u][1] + t * 16, scale[1]);
      if constexpr (kFormat.two_scales()) {
        for (int i = 1; i < 4; ++i) _mm512_store_ps(p->scale[u][i] + t * 16, scale[i]);
      }
    } else {
      _mm512_store_ps(p->codes.f[u] + t * 16, LoadWeights(tile, first + u, kType));
    }
  }
}

void Unpack(WeightType type, const uint8_t* tile, int64_t first, int t, Panel* p) {
  ForType(type, [&](auto constant) { UnpackTile<constant>(tile, first, t, p); });
}

// Adds a part's chains to y, and the bias after the last.
// Always inline: a call would send all of acc through memory.
template <int kRows>
[[gnu::always_inline]] inline void StorePart(const MatMulCall& c, const Panel& p, int64_t row,
                                             const __m512 (*acc)[kPanelTiles]) {
#pragma GCC unroll 2
  for (int t = 0; t < kPanelTiles; ++t) {
    const __mmask16 mask = OutputMask(p.outputs - t * kTileOutputs);
    const int64_t o = p.first_output + t * kTileOutputs;
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      float* to = c.y + (row + r) * c.y_stride + o;
      __m512 y = acc[r][t];
      if (p.part > 0) y = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), y);
      if (p.last && c.bias != nullptr) {
        y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, c.bias + o));
      }
      _mm512_mask_storeu_ps(to, mask, y);
    }
  }
}

template <W kType, int kRows>
void PanelRows(const MatMulCall& c, const Panel& p, int64_t row) {
  constexpr Format kFormat = FormatOf(kType);
  const int64_t q_stride = c.groups * kQuantGroup;
  const int64_t first = p.part * kPartGroups;
  const int8_t* q = c.q + row * q_stride + first * kQuantGroup;
  __m512 acc[kRows][kPanelTiles];
  for (auto& row_acc : acc) {
    for (auto& a : row_acc) a = _mm512_setzero_ps();
  }
  for (int g = 0; g < p.units; ++g, q += kQuantGroup) {
    const int64_t at = (first + g) * c.rows + row;
    __m512i s[kRows][kPanelTiles], s1[kRows][kPanelTiles];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      s[r][0] = s[r][1] = StartSum<kType>(c, at + r);
    }
#pragma GCC unroll 8
    for (int step = 0; step < 8; ++step) {
      const __m512i w0 = _mm512_load_si512(p.codes.q[g][step][0]);
      const __m512i w1 = _mm512_load_si512(p.codes.q[g][step][1]);
      if constexpr (kFormat.two_scales()) {
        if (step == 4) {
          for (int r = 0; r < kRows; ++r) {
            for (int t = 0; t < kPanelTiles; ++t) {
              const __m512 low = _mm512_fmadd_ps(_mm512_castsi512_ps(s[r][t]),
                  _mm512_load_ps(p.scale[g][1] + 16 * t), _mm512_load_ps(p.scale[g][3] + 16 * t));
              s1[r][t] = _mm512_castps_si512(low);
              s[r][t] = _mm512_set1_epi32(c.start[1][at + r]);
            }
          }
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m512i x = Broadcast4(q + r * q_stride + 4 * step);
        s[r][0] = _mm512_dpbusd_epi32(s[r][0], w0, x);
        s[r][1] = _mm512_dpbusd_epi32(s[r][1], w1, x);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512 da = _mm512_set1_ps(c.da[at + r]);
#pragma GCC unroll 2
      for (int t = 0; t < kPanelTiles; ++t) {
        __m512 sum = _mm512_cvtepi32_ps(s[r][t]);
        if constexpr (kFormat.two_scales()) {
          sum = _mm512_fmadd_ps(sum, _mm512_load_ps(p.scale[g][2] + 16 * t),
                                _mm512_castsi512_ps(s1[r][t]));
        }
        const __m512 d = _mm512_mul_ps(da, _mm512_load_ps(p.scale[g][0] + 16 * t));
        acc[r][t] = _mm512_fmadd_ps(sum, d, acc[r][t]);
        if constexpr (kFormat.has_min()) {
          acc[r][t] = _mm512_fmadd_ps(_mm512_load_ps(p.scale[g][1] + 16 * t),
                                      _mm512_set1_ps(c.dsum[at + r]), acc[r][t]);
        }
      }
    }
  }
  StorePart<kRows>(c, p, row, acc);
}

template <int kRows>
void PanelRowsFloat(const MatMulCall& c, const Panel& p, int64_t row) {
  const int64_t inputs = c.w.inputs;
  const float* x = c.x + row * inputs + p.part * kPartElements;
  __m512 acc[kRows][kPanelTiles];
  for (auto& row_acc : acc) {
    for (auto& a : row_acc) a = _mm512_setzero_ps();
  }
  for (int i = 0; i < p.units; ++i) {
    const __m512 w0 = _mm512_load_ps(p.codes.f[i]);
    const __m512 w1 = _mm512_load_ps(p.codes.f[i] + 16);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512 v = _mm512_set1_ps(x[r * inputs + i]);
      acc[r][0] = _mm512_fmadd_ps(w0, v, acc[r][0]);
      acc[r][1] = _mm512_fmadd_ps(w1, v, acc[r][1]);
    }
  }
  StorePart<kRows>(c, p, row, acc);
}

// Sums are 32 bits wide from the start, so that the width of the codes does not matter either.
constexpr W PanelTypeHere(W type) {
  const Format f = FormatOf(type);
  return f.two_scales() ? W::kQ6_K : f.has_min() ? W::kQ4_1 : W::kQ8_0;
}

template <int kRows>
void PanelOfRows(const MatMulCall& c, const Panel& p, int64_t row) {
  ForType(c.w.type, [&](auto type) {
    if constexpr (NeedsQuantized(type)) {
      PanelRows<PanelTypeHere(type), kRows>(c, p, row);
    } else {
      PanelRowsFloat<kRows>(c, p, row);
    }
  });
}

void RunPanel(const MatMulCall& c, const Panel& p, int64_t row, int rows) {
  switch (rows) {
    case 1: return PanelOfRows<1>(c, p, row);
    case 2: return PanelOfRows<2>(c, p, row);
    case 3: return PanelOfRows<3>(c, p, row);
    case 4: return PanelOfRows<4>(c, p, row);
    case 5: return PanelOfRows<5>(c, p, row);
    default: return PanelOfRows<kPanelRows>(c, p, row);
  }
}

}  // namespace

const MatMulKernels& Avx512MatMulKernels() {
  static constexpr MatMulKernels kKernels{kFewRowsMax, kPanelRows, Few, Unpack, RunPanel};
  return kKernels;
}

}  // namespace holdfast

// Matrix products with AVX2. A tile is two vectors of 8 outputs, its halves; vpmaddubsw multiplies
// unsigned codes by signed activations and adds pairs to 16 bits. Codes of up to 6 bits can't
// saturate there and several steps fit into 16 bits before they are widened; for bytes |w| is
// multiplied by x with w's sign: 2 * 128 * 127 fits too.
//
// Everything here is in an unnamed namespace or an intrinsic: an inline function shared with other
// files could be the copy that the linker keeps, with instructions that the processor lacks.
#include <immintrin.h>

#include "engine/backend/cpu/matmul_kernels.h"

namespace holdfast {
namespace {

constexpr int kFewRows = 4;
constexpr int kFewRowsMax = 8;
constexpr int kPanelRows = 4;
constexpr int kHalf = 8;  // outputs of a vector

using W = WeightType;

// Steps whose pair sums fit into 16 bits together.
constexpr int StepsIn16Bits(const Format& f) {
  return IsWide(f) ? 1 : ProductsIn16Bits(f.most) / 2;
}

__m256i LoadHalfPlane(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

__m256i Broadcast4(const int8_t* p) {
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return _mm256_set1_epi32(v);
}

// A table's values as vpshufb takes them: unsigned, but signed where they are wide.
template <Values kValues>
__m256i Table(const Format& f) {
  const int8_t* values = kValues == Values::kIq4 ? kIq4Values : kMxfp4Values;
  const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
  const int offset = IsWide(f) ? 0 : f.offset;
  return _mm256_broadcastsi128_si256(
      _mm_add_epi8(table, _mm_set1_epi8(static_cast<char>(offset))));
}

// The codes of 8 outputs of a group; p is their half of the group's first plane. Unsigned, but
// signed where they are wide.
template <W kType>
struct Group {
  static constexpr Format kFormat = FormatOf(kType);

  explicit Group(const uint8_t* p) : at(p) {}

  __m256i Step(int s) const {
    if constexpr (kFormat.codes == Codes::kBytes) {
      return _mm256_xor_si256(LoadHalfPlane(at + 64 * s), _mm256_set1_epi8(-128));
    }
    const __m256i plane = LoadHalfPlane(at + s % 4 * 64);
    const __m256i low =
        _mm256_and_si256(s < 4 ? plane : _mm256_srli_epi16(plane, 4), _mm256_set1_epi8(15));
    if constexpr (kFormat.values != Values::kCode) {
      return _mm256_shuffle_epi8(Table<kFormat.values>(kFormat), low);
    }
    if constexpr (kFormat.high_bits == 1) return Join(low, LoadHalfPlane(at + 256), 4 - s, 0x10);
    if constexpr (kFormat.high_bits == 2) {
      return Join(low, LoadHalfPlane(at + 256 + s / 4 * 64), 4 - s % 4 * 2, 0x30);
    }
    return low;
  }

 private:
  // low | (high shifted left & mask); what crosses a byte's edge is masked.
  static __m256i Join(__m256i low, __m256i high, int left, char mask) {
    const __m256i moved =
        left >= 0 ? _mm256_slli_epi16(high, left) : _mm256_srli_epi16(high, -left);
    return _mm256_or_si256(low, _mm256_and_si256(moved, _mm256_set1_epi8(mask)));
  }

  const uint8_t* at;
};

__m256 LoadF16(const uint8_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
__m256 LoadBF16(const uint8_t* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
__m256 LoadBytes(const uint8_t* p) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
__m256 LoadSigned(const uint8_t* p) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

// 2^(e - 128) as a product of two powers: e may be too small for the bits of one.
__m256 LoadExponents(const uint8_t* p) {
  const __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const __m256i half = _mm256_srli_epi32(e, 1), bias = _mm256_set1_epi32(127 - 64);
  const auto power = [bias](__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, bias), 23));
  };
  return _mm256_mul_ps(power(half), power(_mm256_sub_epi32(e, half)));
}

// Scales of group g for the half's 8 outputs: [0] dw; [1] -min, or: [1], [2] the two scales.
template <W kType>
void LoadScales(const uint8_t* scales, int64_t g, int half, __m256* out) {
  constexpr Scales kScales = FormatOf(kType).scales;
  const uint8_t* halves = scales + half * kHalf * 2;
  if constexpr (kScales == Scales::kExponent) {
    out[0] = LoadExponents(scales + half * kHalf);
    return;
  }
  out[0] = LoadF16(halves);
  if constexpr (kScales == Scales::kHalfMin) out[1] = LoadF16(halves + 32);
  if constexpr (kScales == Scales::kByte) {
    out[0] = _mm256_mul_ps(out[0], LoadSigned(scales + 32 + half * kHalf + g % 8 * 16));
  }
  const uint8_t* bytes = scales + 32 + half * kHalf + g % 8 * 32;
  if constexpr (kScales == Scales::kByteMin) {
    const __m256 min = _mm256_mul_ps(LoadF16(halves + 32), LoadBytes(bytes + 32 + 16));
    out[0] = _mm256_mul_ps(out[0], LoadBytes(bytes + 32));
    out[1] = _mm256_sub_ps(_mm256_setzero_ps(), min);
  }
  if constexpr (kScales == Scales::kTwoBytes) {
    out[1] = LoadSigned(bytes);
    out[2] = LoadSigned(bytes + 16);
  }
}

// Pair sums of a step, 16 bits.
template <W kType>
__m256i Pairs(__m256i w, __m256i magnitude, __m256i x) {
  if constexpr (IsWide(FormatOf(kType))) {
    return _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, w));
  }
  return _mm256_maddubs_epi16(w, x);
}

// acc after one group: its sum s (with two scales: s over elements 0..15, s1 over the rest).
template <W kType>
__m256 AddGroup(__m256 acc, __m256i s, __m256i s1, const __m256* scale,
                const MatMulCall& c, int64_t at) {
  __m256 sum = _mm256_cvtepi32_ps(s);
  if constexpr (FormatOf(kType).two_scales()) {
    // Every step is exact: |result| < 2^24. Adding +0 keeps it from being -0, as float(S) is not.
    sum = _mm256_fmadd_ps(sum, scale[1], _mm256_setzero_ps());
    sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s1), scale[2], sum);
  }
  acc = _mm256_fmadd_ps(sum, _mm256_mul_ps(scale[0], _mm256_set1_ps(c.da[at])), acc);
  if constexpr (FormatOf(kType).has_min()) {
    acc = _mm256_fmadd_ps(scale[1], _mm256_set1_ps(c.dsum[at]), acc);
  }
  return acc;
}

template <W kType>
__m256i StartSum(const MatMulCall& c, int64_t at) {
  constexpr Format kFormat = FormatOf(kType);
  if constexpr (kFormat.has_min() || IsWide(kFormat)) return _mm256_setzero_si256();
  return _mm256_set1_epi32(c.start[0][at]);
}

// y[0..outputs) = v, outputs <= 8 or more.
void StoreOutputs(float* y, int64_t outputs, __m256 v) {
  if (outputs >= kHalf) return _mm256_storeu_ps(y, v);
  alignas(32) float all[kHalf];
  _mm256_store_ps(all, v);
  for (int64_t i = 0; i < outputs; ++i) y[i] = all[i];
}
__m256 LoadOutputs(const float* y, int64_t outputs) {
  if (outputs >= kHalf) return _mm256_loadu_ps(y);
  alignas(32) float all[kHalf] = {};
  for (int64_t i = 0; i < outputs; ++i) all[i] = y[i];
  return _mm256_load_ps(all);
}

// Integer sums of one group for kRows rows and the two halves of a tile, rows q_stride apart. Code
// reads the codes of (half, step).
template <W kType, int kRows, typename Code>
inline __attribute__((always_inline)) void SumGroup(const Code& code, const int8_t* q,
                                                    int64_t q_stride, __m256i (*s)[kRows],
                                                    __m256i (*s1)[kRows]) {
  constexpr Format kFormat = FormatOf(kType);
  constexpr int kSteps = StepsIn16Bits(kFormat);
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
  for (int begin = 0; begin < 8; begin += kSteps) {
    __m256i pairs[2][kRows];
#pragma GCC unroll 8
    for (int step = begin; step < begin + kSteps; ++step) {
      __m256i w[2], magnitude[2];
      for (int h = 0; h < 2; ++h) {
        w[h] = code(h, step);
        magnitude[h] = IsWide(kFormat) ? _mm256_abs_epi8(w[h]) : w[h];
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const __m256i x = Broadcast4(q + r * q_stride + 4 * step);
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
          const __m256i p = Pairs<kType>(w[h], magnitude[h], x);
          pairs[h][r] = step == begin ? p : _mm256_add_epi16(pairs[h][r], p);
        }
      }
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        __m256i& sum = kFormat.two_scales() && begin >= 4 ? s1[h][r] : s[h][r];
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs[h][r], ones));
      }
    }
  }
}

// Rows [row, row + kRows) times one tile.
template <W kType, int kRows>
void FewQuantized(const MatMulCall& c, int64_t row, int64_t tile) {
  const uint8_t* data = c.w.data + tile * c.w.tile_bytes;
  const int64_t q_stride = c.groups * kQuantGroup;
  const int8_t* q = c.q + row * q_stride;
  __m256 total[2][kRows];
  for (int64_t begin = 0; begin < c.groups; begin += kPartGroups) {
    const int64_t end = begin + kPartGroups < c.groups ? begin + kPartGroups : c.groups;
    __m256 acc[2][kRows];
    for (auto& half : acc) {
      for (auto& a : half) a = _mm256_setzero_ps();
    }
    for (int64_t g = begin; g < end; ++g) {
      const GroupPlace place = PlaceOf(TileShapeOf(kType), data, g);
      FetchPiece(data, c.w.tile_bytes, g, c.groups, kFetchAhead);
      __m256i s[2][kRows], s1[2][kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const int64_t at = g * c.rows + row + r;
        s[0][r] = s[1][r] = StartSum<kType>(c, at);
        if constexpr (FormatOf(kType).two_scales()) {
          s1[0][r] = s1[1][r] = _mm256_set1_epi32(c.start[1][at]);
        }
      }
      SumGroup<kType, kRows>(
          [&](int half, int step) { return Group<kType>(place.codes + 32 * half).Step(step); },
          q + g * kQuantGroup, q_stride, s, s1);
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        __m256 scale[3];
        LoadScales<kType>(place.scales, g, h, scale);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          const int64_t at = g * c.rows + row + r;
          acc[h][r] = AddGroup<kType>(acc[h][r], s[h][r], s1[h][r], scale, c, at);
        }
      }
    }
    for (int h = 0; h < 2; ++h) {
      for (int r = 0; r < kRows; ++r) {
        total[h][r] = begin == 0 ? acc[h][r] : _mm256_add_ps(total[h][r], acc[h][r]);
      }
    }
  }
  for (int h = 0; h < 2; ++h) {
    const int64_t o = tile * kTileOutputs + h * kHalf;
    const int64_t outputs = c.w.outputs - o;
    for (int r = 0; r < kRows; ++r) {
      __m256 y = total[h][r];
      if (c.bias != nullptr) y = _mm256_add_ps(y, LoadOutputs(c.bias + o, outputs));
      StoreOutputs(c.y + (row + r) * c.y_stride + o, outputs, y);
    }
  }
}

__m256 LoadWeights(const uint8_t* codes, int64_t i, int half, W type) {
  if (type == W::kF16) return LoadF16(codes + 32 * i + 16 * half);
  if (type == W::kBF16) return LoadBF16(codes + 32 * i + 16 * half);
  return _mm256_loadu_ps(reinterpret_cast<const float*>(codes + 64 * i + 32 * half));
}

template <W kType, int kRows>
void FewFloat(const MatMulCall& c, int64_t row, int64_t tile) {
  const uint8_t* codes = c.w.data + tile * c.w.tile_bytes;
  const int64_t inputs = c.w.inputs;
  const float* x = c.x + row * inputs;
  __m256 total[2][kRows];
  for (int64_t begin = 0; begin < inputs; begin += kPartElements) {
    const int64_t end = begin + kPartElements < inputs ? begin + kPartElements : inputs;
    __m256 acc[2][kRows];
    for (auto& half : acc) {
      for (auto& a : half) a = _mm256_setzero_ps();
    }
    for (int64_t i = begin; i < end; ++i) {
      __builtin_prefetch(codes + kFetchAhead + i * (kType == W::kF32 ? 64 : 32), 0, 2);
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const __m256 w = LoadWeights(codes, i, h, kType);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          acc[h][r] = _mm256_fmadd_ps(w, _mm256_set1_ps(x[r * inputs + i]), acc[h][r]);
        }
      }
    }
    for (int h = 0; h < 2; ++h) {
      for (int r = 0; r < kRows; ++r) {
        total[h][r] = begin == 0 ? acc[h][r] : _mm256_add_ps(total[h][r], acc[h][r]);
      }
    }
  }
  for (int h = 0; h < 2; ++h) {
    const int64_t o = tile * kTileOutputs + h * kHalf;
    const int64_t outputs = c.w.outputs - o;
    for (int r = 0; r < kRows; ++r) {
      __m256 y = total[h][r];
      if (c.bias != nullptr) y = _mm256_add_ps(y, LoadOutputs(c.bias + o, outputs));
      StoreOutputs(c.y + (row + r) * c.y_stride + o, outputs, y);
    }
  }
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
    const GroupPlace place = PlaceOf(TileShapeOf(kType), tile, first + u);
    for (int h = 0; h < 2; ++h) {
      const int column = t * kTileOutputs + h * kHalf;
      if constexpr (NeedsQuantized(kType)) {
        const Group<kType> group(place.codes + 32 * h);
#pragma GCC unroll 8
        for (int s = 0; s < 8; ++s) {
          _mm256_store_si256(reinterpret_cast<__m256i*>(p->codes.q[u][s][t] + 32 * h),
                             group.Step(s));
        }
        __m256 scale[3];
        LoadScales<kType>(place.scales, first + u, h, scale);
        _mm256_store_ps(p->scale[u][0] + column, scale[0]);
        if constexpr (kFormat.has_min() || kFormat.two_scales()) {
          _mm256_store_ps(p->scale[u][1] + column, scale[1]);
        }
        if constexpr (kFormat.two_scales()) _mm256_store_ps(p->scale[u][2] + column, scale[2]);
      } else {
        _mm256_store_ps(p->codes.f[u] + column, LoadWeights(tile, first + u, h, kType));
      }
    }
  }
}

void Unpack(WeightType type, const uint8_t* tile, int64_t first, int t, Panel* p) {
  ForType(type, [&](auto constant) { UnpackTile<constant>(tile, first, t, p); });
}

// Adds a part's chains for one tile of the panel to y, and the bias after the last part.
template <int kRows>
void StorePart(const MatMulCall& c, const Panel& p, int64_t row, int t,
               const __m256 (*acc)[kRows]) {
  for (int h = 0; h < 2; ++h) {
    const int column = t * kTileOutputs + h * kHalf;
    const int64_t outputs = p.outputs - column;
    const int64_t o = p.first_output + column;
    if (outputs <= 0) return;
    for (int r = 0; r < kRows; ++r) {
      float* to = c.y + (row + r) * c.y_stride + o;
      __m256 y = acc[h][r];
      if (p.part > 0) y = _mm256_add_ps(LoadOutputs(to, outputs), y);
      if (p.last && c.bias != nullptr) y = _mm256_add_ps(y, LoadOutputs(c.bias + o, outputs));
      StoreOutputs(to, outputs, y);
    }
  }
}

template <W kType, int kRows>
void PanelQuantized(const MatMulCall& c, const Panel& p, int64_t row, int t) {
  const int64_t q_stride = c.groups * kQuantGroup;
  const int64_t first = p.part * kPartGroups;
  const int8_t* q = c.q + row * q_stride + first * kQuantGroup;
  __m256 acc[2][kRows];
  for (auto& half : acc) {
    for (auto& a : half) a = _mm256_setzero_ps();
  }
  for (int g = 0; g < p.units; ++g, q += kQuantGroup) {
    const int64_t at = (first + g) * c.rows + row;
    __m256i s[2][kRows], s1[2][kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      s[0][r] = s[1][r] = StartSum<kType>(c, at + r);
      if constexpr (FormatOf(kType).two_scales()) {
        s1[0][r] = s1[1][r] = _mm256_set1_epi32(c.start[1][at + r]);
      }
    }
    SumGroup<kType, kRows>(
        [&p, g, t](int half, int step) { return LoadHalfPlane(p.codes.q[g][step][t] + 32 * half); },
        q, q_stride, s, s1);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const int column = t * kTileOutputs + h * kHalf;
      const __m256 scale[3] = {_mm256_load_ps(p.scale[g][0] + column),
                               _mm256_load_ps(p.scale[g][1] + column),
                               _mm256_load_ps(p.scale[g][2] + column)};
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        acc[h][r] = AddGroup<kType>(acc[h][r], s[h][r], s1[h][r], scale, c, at + r);
      }
    }
  }
  StorePart<kRows>(c, p, row, t, acc);
}

template <int kRows>
void PanelFloat(const MatMulCall& c, const Panel& p, int64_t row, int t) {
  const int64_t inputs = c.w.inputs;
  const float* x = c.x + row * inputs + p.part * kPartElements;
  __m256 acc[2][kRows];
  for (auto& half : acc) {
    for (auto& a : half) a = _mm256_setzero_ps();
  }
  for (int i = 0; i < p.units; ++i) {
    const __m256 w0 = _mm256_load_ps(p.codes.f[i] + t * kTileOutputs);
    const __m256 w1 = _mm256_load_ps(p.codes.f[i] + t * kTileOutputs + kHalf);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const __m256 v = _mm256_set1_ps(x[r * inputs + i]);
      acc[0][r] = _mm256_fmadd_ps(w0, v, acc[0][r]);
      acc[1][r] = _mm256_fmadd_ps(w1, v, acc[1][r]);
    }
  }
  StorePart<kRows>(c, p, row, t, acc);
}

template <int kRows>
void PanelOfRows(const MatMulCall& c, const Panel& p, int64_t row) {
  for (int t = 0; t < kPanelTiles; ++t) {
    ForType(c.w.type, [&](auto type) {
      if constexpr (NeedsQuantized(type)) {
        PanelQuantized<PanelType(type), kRows>(c, p, row, t);
      } else {
        PanelFloat<kRows>(c, p, row, t);
      }
    });
  }
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

const MatMulKernels& Avx2MatMulKernels() {
  static constexpr MatMulKernels kKernels{kFewRowsMax, kPanelRows, Few, Unpack, RunPanel};
  return kKernels;
}

}  // namespace holdfast

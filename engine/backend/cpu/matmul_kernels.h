// What matmul.cc (the plan: parts, tiles, rows, threads) asks of an instruction set's kernels.
//
// Two ways through a product:
//   few     weights are unpacked in registers and meet several rows at once: for products where
//           reading the weights takes the time, or unpacking them would;
//   panel   one part (NUMERICS.md: 1024 elements, 512 for float types) of 32 outputs is unpacked
//           to bytes and fp32 scales, then all rows pass over it, panel_rows at a time.
// Both compute the same chains, so the plan may choose freely.
//
// This header is compiled under several instruction sets: constants and plain structs only.
#pragma once

#include <cstdint>

#include "engine/backend/cpu/pack.h"

namespace holdfast {

inline constexpr int kPartGroups = 32;     // groups of a part of a quantised product
inline constexpr int kPartElements = 512;  // elements of a part of a float product
inline constexpr int kPanelTiles = 2;
inline constexpr int kPanelOutputs = kPanelTiles * kTileOutputs;

// A product as kernels see it.
struct MatMulCall {
  PackedView w;
  int64_t groups = 0;
  const int8_t* q = nullptr;  // [rows][groups * 32]
  // Terms of a group of a row, [groups][rows]: neighbouring rows are one pointer for a kernel.
  int64_t rows = 0;
  const float* da = nullptr;  // scale of the activations
  // What the group's integer sum starts from, so that codes may be unsigned: -offset * sum q, with
  // two scales apart for elements 0..15 and 16..31. Null for formats with a minimum.
  const int32_t* start[2] = {};
  const float* dsum = nullptr;  // da * float(sum q), formats with a minimum; else null
  const float* x = nullptr;     // [rows][inputs], float types
  const float* bias = nullptr;
  float* y = nullptr;
  int64_t y_stride = 0;
};

// How far ahead of a row's one pass through the weights their stream is asked for. What Intel's
// prefetchers fetch on their own is a half to two thirds of what memory gives; 4 to 16 KiB are
// alike.
inline constexpr int64_t kFetchAhead = 8 << 10;

// Asks for piece n of `pieces` of the `bytes` that lie `ahead` of `from`.
[[gnu::always_inline, maybe_unused]] static inline void FetchPiece(const uint8_t* from,
                                                                   int64_t bytes, int64_t n,
                                                                   int64_t pieces, int64_t ahead) {
  const int64_t piece = (bytes / 64 + pieces - 1) / pieces * 64, begin = n * piece;
  const int64_t end = begin + piece < bytes ? begin + piece : bytes;
  for (int64_t at = begin; at < end; at += 64) __builtin_prefetch(from + ahead + at, 0, 2);
}

// One part of 32 outputs, unpacked. What a kernel reads of it fits into L1 or little more.
struct alignas(64) Panel {
  int64_t first_output = 0;
  int outputs = 0;     // 1..32, those that exist
  int64_t part = 0;
  int units = 0;       // groups, or elements of a float type
  bool last = false;   // of the product's parts: the bias is added here
  union Codes {
    uint8_t q[kPartGroups][8][kPanelTiles][64];  // [group][step]: planes; AVX2: wide ones signed
    int16_t w[kPartGroups * kQuantGroup][kPanelOutputs];  // portable, without the offset
    float f[kPartElements][kPanelOutputs];                // float types
  };
  alignas(64) Codes codes;
  // [0] dw; [1] -min, or: [1], [2] the two scales as fp32, [3] what the level needs beside.
  alignas(64) float scale[kPartGroups][4][kPanelOutputs];
};

// Codes that fill a byte: their products with activations fill 16 bits.
constexpr bool IsWide(const Format& f) { return f.most > 127; }

// How many products with activations, of |code| <= most, may be added in 16 bits: a power of two.
constexpr int ProductsIn16Bits(int most) {
  int products = 16;
  while (127 * most * products > 32767) products /= 2;
  return products;
}

// The type that stands for all whose panels kernels treat alike: by then bits are joined, tables
// looked up and scales made fp32.
constexpr WeightType PanelType(WeightType type) {
  const Format f = FormatOf(type);
  if (!NeedsQuantized(type)) return WeightType::kF32;
  if (f.two_scales()) return WeightType::kQ6_K;
  if (f.has_min()) return f.most > 15 ? WeightType::kQ5_1 : WeightType::kQ4_1;
  return IsWide(f) ? WeightType::kQ8_0 : f.most > 15 ? WeightType::kQ5_0 : WeightType::kQ4_0;
}

struct MatMulKernels {
  int few_rows;    // products of more rows go by panels
  int panel_rows;  // of one call of panel
  // `rows` <= few_rows from 0 on times tiles [tile, tile + tiles): whole products.
  void (*few)(const MatMulCall& call, int64_t rows, int64_t tile, int64_t tiles);
  // Fills codes and scale of the panel's tile t from a weight's tile, units from `first` on; the
  // panel's units are set.
  void (*unpack)(WeightType type, const uint8_t* tile, int64_t first, int t, Panel* panel);
  // Rows [row, row + rows), rows <= panel_rows: y = part 0, or y + this part.
  void (*panel)(const MatMulCall& call, const Panel& panel, int64_t row, int rows);
};

const MatMulKernels& PortableMatMulKernels();
const MatMulKernels& Avx2MatMulKernels();
const MatMulKernels& Avx512MatMulKernels();
const MatMulKernels& NeonMatMulKernels();

}  // namespace holdfast

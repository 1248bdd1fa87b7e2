// The order in which the CPU's kernels read weights: one packed form per type, shared by every
// instruction set.
//
// Sixteen consecutive outputs make a tile, and a vector lane is an output, so that nothing is ever
// summed across lanes. A tile holds the whole inner dimension: first the codes of all its groups of
// 32 elements, then their scales; tiles follow each other. Outputs beyond the last one are zeros.
//
//   codes of a group, in planes of 64 bytes = [16 outputs][4 elements], the shape of vpdpbusd.
//   Step s is elements 4 s .. 4 s + 3 of the group, s in 0..7:
//     Q8_0              8 planes: byte w + 128 of step s in plane s
//     Q4_1, Q4_K        4 planes: plane p has step p in its low and step p + 4 in its high nibbles
//     Q5_0              the same, then 1 plane with bit 4 of step s in bit s
//     Q6_K              the same, then 2 planes: bits 4, 5 of step 4 h + i at 2 i of plane h
//   scales, f16 and bytes as in the file, [16] each:
//     Q8_0, Q5_0        d                               per group
//     Q4_1              d, m                            per group
//     Q4_K              d, dmin, then 8 x (sc, mn)      per 8 groups
//     Q6_K              d, then 8 x (sc[0], sc[1])      per 8 groups
//   F16, F32            [inputs][16], no scales
//
// So the packed bytes are the file's, but for Q4_K (+2.8 %: its 6-bit scales become bytes).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "engine/backend/backend.h"

namespace holdfast {

inline constexpr int kTileOutputs = 16;

// Bytes of a tile's codes and scales.
struct TileShape {
  int code_bytes = 0;    // per group of 32 elements; for float types per element
  int scale_groups = 1;  // groups that share a record of scales
  int scale_bytes = 0;   // per record
};
constexpr TileShape TileShapeOf(WeightType type) {
  switch (type) {
    case WeightType::kQ8_0: return {512, 1, 32};
    case WeightType::kQ5_0: return {256 + 64, 1, 32};
    case WeightType::kQ4_1: return {256, 1, 64};
    case WeightType::kQ4_K: return {256, 8, 64 + 256};
    case WeightType::kQ6_K: return {256 + 128, 8, 32 + 256};
    case WeightType::kF16: return {32, 1, 0};
    case WeightType::kF32: return {64, 1, 0};
  }
  return {};
}

// A packed weight as kernels see it: a plain struct, since they are compiled for instruction sets
// that not every processor has, where an inline method could become the whole program's copy.
struct PackedView {
  WeightType type = WeightType::kF32;
  int64_t outputs = 0, inputs = 0;
  int64_t tiles = 0;
  int64_t tile_bytes = 0;           // from a tile's codes to the next tile's
  const uint8_t* codes = nullptr;   // of the first tile
  const uint8_t* scales = nullptr;  // of the first tile
};

// Immutable after Pack; any number of threads may read it.
class PackedWeight final : public Weight {
 public:
  // kInvalid as reference::CheckSource says; kExhausted when there is no memory.
  static Result<std::unique_ptr<PackedWeight>> Pack(const WeightSource& source);
  ~PackedWeight() override;
  PackedWeight(const PackedWeight&) = delete;
  PackedWeight& operator=(const PackedWeight&) = delete;

  size_t bytes() const override { return bytes_; }
  PackedView View() const {
    return {type(), outputs(), inputs(), tiles_, static_cast<int64_t>(tile_bytes_), data_,
            data_ + code_bytes_};
  }

 private:
  explicit PackedWeight(const WeightSource& source);

  int64_t tiles_ = 0;
  size_t code_bytes_ = 0;  // of a tile
  size_t tile_bytes_ = 0;  // a multiple of 64
  size_t bytes_ = 0;
  uint8_t* data_ = nullptr;  // 64-byte aligned; mapped where bytes_ >= kMapBytes
};

}  // namespace holdfast

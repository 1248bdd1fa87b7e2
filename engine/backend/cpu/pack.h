// The order in which the CPU's kernels read weights: one packed form per type, shared by every
// instruction set.
//
// Sixteen consecutive outputs make a tile, and a vector lane is an output, so that nothing is ever
// summed across lanes. A tile is a row of records, tiles follow each other, and a kernel reads them
// as they lie, without a gap: one stream, which the processor fetches ahead on its own. A record is
// the scales of some groups of 32 elements, then their codes; both begin at multiples of 64 bytes.
// Outputs beyond the last one are zeros, groups beyond it are unspecified.
//
//   codes of a group, in planes of 64 bytes = [16 outputs][4 elements], the shape of vpdpbusd.
//   Step s is elements 4 s .. 4 s + 3 of the group, s in 0..7:
//     Codes::kBytes     8 planes: byte w + 128 of step s in plane s
//     Codes::kNibbles   4 planes: plane p has step p in its low and step p + 4 in its high nibbles;
//       1 high bit      then 1 plane with bit 4 of step s in bit s
//       2 high bits     then 2 planes: bits 4, 5 of step 4 h + i at 2 i of plane h
//   scales, f16 and bytes as in the file, [16] each; groups of a record in brackets:
//     Scales::kHalf     d per group                     [2]
//     kHalfMin          d, m                            [1]
//     kExponent         e per group                     [4]
//     kByte             d, then 8 x sc                  [8]
//     kByteMin          d, dmin, then 8 x (sc, mn)      [8]
//     kTwoBytes         d, then 8 x (sc[0], sc[1])      [8]
//   float types         [inputs][16], no scales
//
// So the packed bytes are the file's, but where 6-bit scales become bytes (Q4_K: +2.8 %) or scales
// are filled up to 64 bytes (Q6_K: +1.0 %).
// FormatOf says what a type is made of: kernels know parts of formats, and types not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <type_traits>

#include "engine/backend/backend.h"
#include "engine/backend/code_tables.h"

namespace holdfast {

inline constexpr int kTileOutputs = 16;

enum class Codes : uint8_t { kF32, kF16, kBF16, kBytes, kNibbles };
enum class Scales : uint8_t { kNone, kHalf, kHalfMin, kExponent, kByte, kByteMin, kTwoBytes };
enum class Values : uint8_t { kCode, kIq4, kMxfp4 };  // w + offset is the code, or a table's

// What a type is made of. Packed codes are unsigned: w + offset, 0..most.
struct Format {
  Codes codes = Codes::kF32;
  int high_bits = 0;  // beside the nibble
  Values values = Values::kCode;
  int offset = 0;
  int most = 0;
  Scales scales = Scales::kNone;

  constexpr bool has_min() const {
    return scales == Scales::kHalfMin || scales == Scales::kByteMin;
  }
  constexpr bool two_scales() const { return scales == Scales::kTwoBytes; }
};
constexpr Format FormatOf(WeightType type) {
  switch (type) {
    case WeightType::kF32: return {Codes::kF32};
    case WeightType::kF16: return {Codes::kF16};
    case WeightType::kBF16: return {Codes::kBF16};
    case WeightType::kQ8_0: return {Codes::kBytes, 0, Values::kCode, 128, 255, Scales::kHalf};
    case WeightType::kQ4_0: return {Codes::kNibbles, 0, Values::kCode, 8, 15, Scales::kHalf};
    case WeightType::kQ4_1: return {Codes::kNibbles, 0, Values::kCode, 0, 15, Scales::kHalfMin};
    case WeightType::kQ4_K: return {Codes::kNibbles, 0, Values::kCode, 0, 15, Scales::kByteMin};
    case WeightType::kQ5_0: return {Codes::kNibbles, 1, Values::kCode, 16, 31, Scales::kHalf};
    case WeightType::kQ5_1: return {Codes::kNibbles, 1, Values::kCode, 0, 31, Scales::kHalfMin};
    case WeightType::kQ5_K: return {Codes::kNibbles, 1, Values::kCode, 0, 31, Scales::kByteMin};
    case WeightType::kQ6_K: return {Codes::kNibbles, 2, Values::kCode, 32, 63, Scales::kTwoBytes};
    case WeightType::kIQ4_NL: return {Codes::kNibbles, 0, Values::kIq4, 128, 241, Scales::kHalf};
    case WeightType::kIQ4_XS: return {Codes::kNibbles, 0, Values::kIq4, 128, 241, Scales::kByte};
    case WeightType::kMXFP4: return {Codes::kNibbles, 0, Values::kMxfp4, 12, 24, Scales::kExponent};
  }
  return {};
}

// fn(constant), where `type` is the constant's value: for templates over the type. Inlined, since
// kernels of several instruction sets use it.
template <typename F>
[[gnu::always_inline]] static inline void ForType(WeightType type, const F& fn) {
  using W = WeightType;
  switch (type) {
    case W::kF32: return fn(std::integral_constant<W, W::kF32>());
    case W::kF16: return fn(std::integral_constant<W, W::kF16>());
    case W::kBF16: return fn(std::integral_constant<W, W::kBF16>());
    case W::kQ8_0: return fn(std::integral_constant<W, W::kQ8_0>());
    case W::kQ4_0: return fn(std::integral_constant<W, W::kQ4_0>());
    case W::kQ4_1: return fn(std::integral_constant<W, W::kQ4_1>());
    case W::kQ4_K: return fn(std::integral_constant<W, W::kQ4_K>());
    case W::kQ5_0: return fn(std::integral_constant<W, W::kQ5_0>());
    case W::kQ5_1: return fn(std::integral_constant<W, W::kQ5_1>());
    case W::kQ5_K: return fn(std::integral_constant<W, W::kQ5_K>());
    case W::kQ6_K: return fn(std::integral_constant<W, W::kQ6_K>());
    case W::kIQ4_NL: return fn(std::integral_constant<W, W::kIQ4_NL>());
    case W::kIQ4_XS: return fn(std::integral_constant<W, W::kIQ4_XS>());
    case W::kMXFP4: return fn(std::integral_constant<W, W::kMXFP4>());
  }
}

// Bytes of a record and of its parts.
struct TileShape {
  int code_bytes = 0;   // per group; for float types per element
  int groups = 1;       // of a record, for float types elements
  int group_scales = 0; // from a group's scales to the next's; 0: they share them
  int scale_bytes = 0;  // of all scales

  constexpr int record_bytes() const { return scale_bytes + groups * code_bytes; }
  constexpr int64_t tile_bytes(int64_t units) const {
    return (units + groups - 1) / groups * record_bytes();
  }
};
constexpr TileShape TileShapeOf(WeightType type) {
  const Format f = FormatOf(type);
  const int code_bytes = f.codes == Codes::kF32     ? 4 * kTileOutputs
                         : f.codes == Codes::kBytes ? 32 * kTileOutputs
                         : f.codes == Codes::kNibbles
                             ? (16 + 4 * f.high_bits) * kTileOutputs
                             : 2 * kTileOutputs;
  switch (f.scales) {
    case Scales::kNone: return {code_bytes, 1, 0, 0};
    case Scales::kHalf: return {code_bytes, 2, 2 * kTileOutputs, 64};
    case Scales::kHalfMin: return {code_bytes, 1, 4 * kTileOutputs, 64};
    case Scales::kExponent: return {code_bytes, 4, kTileOutputs, 64};
    case Scales::kByte: return {code_bytes, 8, 0, 192};
    case Scales::kByteMin: return {code_bytes, 8, 0, 320};
    case Scales::kTwoBytes: return {code_bytes, 8, 0, 320};
  }
  return {};
}

// Where group g of a tile lies.
struct GroupPlace {
  const uint8_t* scales;  // its own, or those that it shares
  const uint8_t* codes;
};
[[gnu::always_inline, maybe_unused]] static inline GroupPlace PlaceOf(const TileShape& shape,
                                                                      const uint8_t* tile,
                                                                      int64_t g) {
  const uint8_t* record = tile + g / shape.groups * shape.record_bytes();
  const int64_t at = g % shape.groups;
  return {record + at * shape.group_scales, record + shape.scale_bytes + at * shape.code_bytes};
}

// w of element i of a group; `planes` is the first byte of the output's lane.
[[gnu::always_inline, maybe_unused]] static inline int WeightOf(const Format& f,
                                                                const uint8_t* planes, int i) {
  const int step = i / 4;
  const uint8_t* at = planes + i % 4;
  if (f.codes == Codes::kBytes) return at[64 * step] - f.offset;
  int code = at[step % 4 * 64] >> step / 4 * 4 & 15;
  if (f.values == Values::kIq4) return kIq4Values[code];
  if (f.values == Values::kMxfp4) return kMxfp4Values[code];
  if (f.high_bits == 1) code += (at[256] >> step & 1) * 16;
  if (f.high_bits == 2) code += (at[256 + step / 4 * 64] >> step % 4 * 2 & 3) * 16;
  return code - f.offset;
}

// A packed weight as kernels see it: a plain struct, since they are compiled for instruction sets
// that not every processor has, where an inline method could become the whole program's copy.
struct PackedView {
  WeightType type = WeightType::kF32;
  int64_t outputs = 0, inputs = 0;
  int64_t tiles = 0;
  int64_t tile_bytes = 0;
  const uint8_t* data = nullptr;  // the first tile
};

// Where packed weights lie: in huge pages, which small ones share. A decoding step reads every
// weight once; with pages of 4 KiB it would wait for a translation as often. Any thread.
class WeightMemory {
 public:
  // At a multiple of 64 bytes; freed with the last owner of what lies in the same chunk. Null when
  // there is none.
  std::shared_ptr<uint8_t> Take(size_t bytes);

 private:
  static constexpr size_t kChunk = size_t{16} << 20;

  std::mutex mu_;
  std::shared_ptr<uint8_t> chunk_;  // the one that is being filled
  size_t used_ = 0;                 // bytes of it
};

// Immutable after Pack; any number of threads may read it.
class PackedWeight final : public Weight {
 public:
  // kInvalid as reference::CheckSource says; kExhausted when there is no memory.
  static Result<std::unique_ptr<PackedWeight>> Pack(const WeightSource& source,
                                                    WeightMemory& memory);
  ~PackedWeight() override;  // not inline: the vtable must not be of an instruction set's file

  size_t bytes() const override { return tile_bytes_ * static_cast<size_t>(tiles_); }
  PackedView View() const {
    return {type(), outputs(), inputs(), tiles_, static_cast<int64_t>(tile_bytes_), data_.get()};
  }

 private:
  PackedWeight(const WeightSource& source, WeightMemory& memory);

  int64_t tiles_ = 0;
  size_t tile_bytes_ = 0;
  std::shared_ptr<uint8_t> data_;
};

}  // namespace holdfast

#include "engine/backend/cpu/pack.h"

#include <sys/mman.h>

#include <algorithm>
#include <cassert>
#include <cstring>
#include <string>

#include "engine/backend/cpu/matmul.h"
#include "engine/backend/half.h"
#include "engine/backend/reference/reference.h"

namespace holdfast {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

uint32_t Load32(const uint8_t* p) {
  uint32_t v;
  std::memcpy(&v, p, 4);
  return v;
}
void Store32(uint8_t* p, uint32_t v) { std::memcpy(p, &v, 4); }

// `bytes` at a multiple of kHugePage, or null; unmapped with the last owner.
std::shared_ptr<uint8_t> MapAligned(size_t bytes) {
  void* raw = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  auto* begin = static_cast<uint8_t*>(raw);
  const size_t skip = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
  if (skip > 0) munmap(begin, skip);
  uint8_t* data = begin + skip;
  const size_t used = (bytes + 4095) / 4096 * 4096;
  munmap(data + used, bytes + kHugePage - skip - used);
  madvise(data, used, MADV_HUGEPAGE);  // advice: works without
  return {data, [used](uint8_t* p) { munmap(p, used); }};
}

// One lane's part of a block: where its 4-byte words and its scales go.
struct Lane {
  uint8_t* codes;   // of the block's first group, at the lane's first word
  uint8_t* scales;  // of the block
  int lane;
  void Word(int group, int code_bytes, int plane, uint32_t v) const {
    Store32(codes + group * code_bytes + plane * 64, v);
  }
  void Half(int index, const uint8_t* from) const {
    std::memcpy(scales + index * 32 + lane * 2, from, 2);
  }
  void Byte(int halves, int index, uint8_t v) const {
    scales[halves * 32 + index * 16 + lane] = v;
  }
};

void PackQ8_0(const uint8_t* b, const Lane& to) {
  to.Half(0, b);
  for (int s = 0; s < 8; ++s) to.Word(0, 0, s, Load32(b + 2 + 4 * s) ^ 0x80808080u);
}

// 16 bytes, element j in the low nibble of byte j and element j + 16 in the high one: as packed.
void PackNibbles(const uint8_t* b, int group, int code_bytes, const Lane& to) {
  for (int p = 0; p < 4; ++p) to.Word(group, code_bytes, p, Load32(b + 4 * p));
}

// Bits 0, 4, 8 .. 28 of v, side by side.
uint32_t GatherEveryFourth(uint32_t v) {
  v &= 0x11111111u;
  v = (v | v >> 3) & 0x03030303u;
  v = (v | v >> 6) & 0x000f000fu;
  return (v | v >> 12) & 0xffu;
}

// The types whose block is one group: scales, fifth bits where there are any, nibbles.
template <Format kFormat>
void PackGroup(const uint8_t* b, const Lane& to) {
  if constexpr (kFormat.scales == Scales::kExponent) {
    to.Byte(0, 0, *b++);
  } else {
    for (int i = 0; i < (kFormat.has_min() ? 2 : 1); ++i, b += 2) to.Half(i, b);
  }
  if constexpr (kFormat.high_bits == 1) {
    const uint32_t high = Load32(b);
    uint32_t plane = 0;
    for (int k = 0; k < 4; ++k) plane |= GatherEveryFourth(high >> k) << 8 * k;
    to.Word(0, 0, 4, plane);
    b += 4;
  }
  PackNibbles(b, 0, 0, to);
}

void PackIQ4_XS(const uint8_t* b, const Lane& to) {
  constexpr int kCodes = TileShapeOf(WeightType::kIQ4_XS).code_bytes;
  to.Half(0, b);
  for (int j = 0; j < 8; ++j) {
    const int high = (b[2] | b[3] << 8) >> 2 * j & 3, low = b[4 + j / 2] >> j % 2 * 4 & 15;
    to.Byte(1, j, static_cast<uint8_t>((low | high << 4) - 32));
    PackNibbles(b + 8 + 16 * j, j, kCodes, to);
  }
}

// Q4_K; Q5_K, which has 32 bytes of fifth bits before the nibbles.
template <WeightType kType>
void PackWithMins(const uint8_t* b, const Lane& to) {
  constexpr int kCodes = TileShapeOf(kType).code_bytes;
  constexpr uint32_t kLow = 0x0f0f0f0fu;
  to.Half(0, b);
  to.Half(1, b + 2);
  const uint8_t* s = b + 4;
  for (int j = 0; j < 4; ++j) {
    to.Byte(2, 2 * j, s[j] & 63);
    to.Byte(2, 2 * j + 1, s[j + 4] & 63);
    to.Byte(2, 2 * (j + 4), static_cast<uint8_t>((s[j + 8] & 15) | (s[j] >> 6) << 4));
    to.Byte(2, 2 * (j + 4) + 1, static_cast<uint8_t>(s[j + 8] >> 4 | (s[j + 4] >> 6) << 4));
  }
  b += 16;
  if constexpr (FormatOf(kType).high_bits == 1) {
    for (int group = 0; group < 8; ++group) {
      uint32_t plane = 0;
      for (int step = 0; step < 8; ++step) {
        plane |= (Load32(b + 4 * step) >> group & 0x01010101u) << step;
      }
      to.Word(group, kCodes, 4, plane);
    }
    b += 32;
  }
  for (int pair = 0; pair < 4; ++pair) {
    const uint8_t* q = b + 32 * pair;
    for (int p = 0; p < 4; ++p) {
      const uint32_t first = Load32(q + 4 * p), second = Load32(q + 16 + 4 * p);
      to.Word(2 * pair, kCodes, p, (first & kLow) | (second & kLow) << 4);
      to.Word(2 * pair + 1, kCodes, p, (first >> 4 & kLow) | (second & ~kLow));
    }
  }
}

void PackQ6_K(const uint8_t* b, const Lane& to) {
  constexpr int kCodes = TileShapeOf(WeightType::kQ6_K).code_bytes;
  constexpr uint32_t kLow = 0x0f0f0f0fu, kPair = 0x03030303u;
  to.Half(0, b + 208);
  for (int i = 0; i < 16; ++i) to.Byte(1, i, b[192 + i]);
  for (int group = 0; group < 8; ++group) {
    const int j = group % 4, shift = j < 2 ? 0 : 4;
    const uint8_t* low = b + group / 4 * 64 + j % 2 * 32;
    const uint8_t* high = b + 128 + group / 4 * 32;
    for (int p = 0; p < 4; ++p) {
      const uint32_t first = Load32(low + 4 * p) >> shift & kLow;
      const uint32_t second = Load32(low + 16 + 4 * p) >> shift & kLow;
      to.Word(group, kCodes, p, first | second << 4);
    }
    for (int h = 0; h < 2; ++h) {
      uint32_t plane = 0;
      for (int i = 0; i < 4; ++i) {
        plane |= (Load32(high + 16 * h + 4 * i) >> 2 * j & kPair) << 2 * i;
      }
      to.Word(group, kCodes, 4 + h, plane);
    }
  }
}

template <typename T>
void PackFloatTile(const WeightSource& s, int64_t first, int lanes, uint8_t* codes) {
  for (int lane = 0; lane < lanes; ++lane) {
    const auto* row = reinterpret_cast<const uint8_t*>(s.data) +
                      static_cast<size_t>(first + lane) * s.inputs * sizeof(T);
    uint8_t* to = codes + lane * sizeof(T);
    for (int64_t i = 0; i < s.inputs; ++i) {
      std::memcpy(to + i * kTileOutputs * sizeof(T), row + i * sizeof(T), sizeof(T));
    }
  }
}

template <WeightType kType>
void PackBlock(const uint8_t* b, const Lane& to) {
  constexpr Format kFormat = FormatOf(kType);
  switch (kFormat.scales) {
    case Scales::kByte: return PackIQ4_XS(b, to);
    case Scales::kByteMin: return PackWithMins<kType>(b, to);
    case Scales::kTwoBytes: return PackQ6_K(b, to);
    default: return kFormat.codes == Codes::kBytes ? PackQ8_0(b, to) : PackGroup<kFormat>(b, to);
  }
}

// A block at a time, all lanes of it: the reads are 16 streams, the writes one.
template <WeightType kType>
void PackQuantizedTile(const WeightSource& s, int64_t first, int lanes, uint8_t* tile) {
  const BlockShape block = WeightBlock(kType);
  const int64_t blocks = s.inputs / block.elements;
  const size_t row_bytes = static_cast<size_t>(blocks) * block.bytes;
  const auto* rows = reinterpret_cast<const uint8_t*>(s.data) + row_bytes * first;
  for (int64_t i = 0; i < blocks; ++i) {
    const GroupPlace place = PlaceOf(TileShapeOf(kType), tile, i * block.elements / kQuantGroup);
    uint8_t* codes = tile + (place.codes - tile);
    uint8_t* scales = tile + (place.scales - tile);
    for (int lane = 0; lane < lanes; ++lane) {
      PackBlock<kType>(rows + lane * row_bytes + i * block.bytes,
                       Lane{codes + 4 * lane, scales, lane});
    }
  }
}

void PackTile(const WeightSource& s, int64_t first, int lanes, uint8_t* tile) {
  ForType(s.type, [&](auto type) {
    if constexpr (NeedsQuantized(type)) {
      PackQuantizedTile<type>(s, first, lanes, tile);
    } else if constexpr (type == WeightType::kF32) {
      PackFloatTile<uint32_t>(s, first, lanes, tile);
    } else {
      PackFloatTile<uint16_t>(s, first, lanes, tile);
    }
  });
}

// What Embed needs of one output, read back from its tile.
class RowReader {
 public:
  RowReader(const PackedView& w, int64_t output)
      : format_(FormatOf(w.type)), shape_(TileShapeOf(w.type)),
        lane_(static_cast<int>(output % kTileOutputs)),
        tile_(w.data + output / kTileOutputs * w.tile_bytes) {}

  float FloatElement(int64_t i) const {
    const uint8_t* element = tile_ + i * shape_.code_bytes;
    if (format_.codes == Codes::kF16) return HalfToFloat(Bits16(element, 0));
    if (format_.codes == Codes::kBF16) return Bf16ToFloat(Bits16(element, 0));
    float value;
    std::memcpy(&value, element + lane_ * 4, 4);
    return value;
  }

  void Group(int64_t g, float* out) const {
    const uint8_t* scales = PlaceOf(shape_, tile_, g).scales;
    // Bytes of the group, after so many halves.
    const auto byte = [&](int halves, int per_group, int index) {
      const int at = static_cast<int>(g % shape_.groups) * per_group + index;
      return scales[halves * 32 + at * 16 + lane_];
    };
    const auto signed_byte = [&](int per_group, int index) {
      return static_cast<float>(static_cast<int8_t>(byte(1, per_group, index)));
    };
    if (format_.scales == Scales::kExponent) return Scaled(g, HalfOfE8M0(scales[lane_]), out);
    const float d = HalfToFloat(Bits16(scales, 0));
    switch (format_.scales) {
      case Scales::kHalfMin: return Affine(g, d, HalfToFloat(Bits16(scales, 1)), out);
      case Scales::kByteMin: {
        const float min = HalfToFloat(Bits16(scales, 1)) * static_cast<float>(byte(2, 2, 1));
        return Affine(g, d * static_cast<float>(byte(2, 2, 0)), -min, out);
      }
      case Scales::kByte: return Scaled(g, d * signed_byte(1, 0), out);
      case Scales::kTwoBytes:
        for (int i = 0; i < 32; ++i) {
          out[i] = static_cast<float>(Weight(g, i)) * (d * signed_byte(2, i / 16));
        }
        return;
      default: return Scaled(g, d, out);
    }
  }

 private:
  uint16_t Bits16(const uint8_t* halves, int index) const {
    uint16_t bits;
    std::memcpy(&bits, halves + index * 32 + lane_ * 2, 2);
    return bits;
  }

  void Scaled(int64_t g, float d, float* out) const {
    for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(Weight(g, i)) * d;
  }
  void Affine(int64_t g, float d, float m, float* out) const {
    for (int i = 0; i < 32; ++i) out[i] = __builtin_fmaf(static_cast<float>(Weight(g, i)), d, m);
  }

  int Weight(int64_t g, int i) const {
    return WeightOf(format_, PlaceOf(shape_, tile_, g).codes + lane_ * 4, i);
  }

  Format format_;
  TileShape shape_;
  int lane_;
  const uint8_t* tile_;
};

}  // namespace

std::shared_ptr<uint8_t> WeightMemory::Take(size_t bytes) {
  if (bytes > kChunk / 4) return MapAligned(bytes);
  std::lock_guard lock(mu_);
  if (chunk_ == nullptr || used_ + bytes > kChunk) {
    chunk_ = MapAligned(kChunk);
    used_ = 0;
    if (chunk_ == nullptr) return nullptr;
  }
  uint8_t* at = chunk_.get() + used_;
  used_ += (bytes + 63) / 64 * 64;
  return {chunk_, at};
}

PackedWeight::PackedWeight(const WeightSource& source, WeightMemory& memory) : Weight(source) {
  const TileShape shape = TileShapeOf(source.type);
  const int64_t units = NeedsQuantized(source.type) ? source.inputs / kQuantGroup : source.inputs;
  tiles_ = (source.outputs + kTileOutputs - 1) / kTileOutputs;
  tile_bytes_ = static_cast<size_t>(shape.tile_bytes(units) + 63) / 64 * 64;
  data_ = memory.Take(bytes());
}

PackedWeight::~PackedWeight() = default;

Result<std::unique_ptr<PackedWeight>> PackedWeight::Pack(const WeightSource& source,
                                                         WeightMemory& memory) {
  HOLDFAST_RETURN_IF_ERROR(reference::CheckSource(source));
  std::unique_ptr<PackedWeight> weight(new PackedWeight(source, memory));
  if (weight->data_ == nullptr) {
    return Status::Exhausted("no memory for a weight of " + std::to_string(weight->bytes()) +
                             " bytes");
  }
  for (int64_t tile = 0; tile < weight->tiles_; ++tile) {
    const int64_t first = tile * kTileOutputs;
    const int lanes = static_cast<int>(std::min<int64_t>(kTileOutputs, source.outputs - first));
    uint8_t* at = weight->data_.get() + tile * weight->tile_bytes_;
    if (lanes < kTileOutputs) std::memset(at, 0, weight->tile_bytes_);
    PackTile(source, first, lanes, at);
  }
  return weight;
}

Result<std::unique_ptr<Weight>> PackCpuWeight(const WeightSource& source, WeightMemory& memory) {
  HOLDFAST_ASSIGN_OR_RETURN(std::unique_ptr<PackedWeight> weight,
                            PackedWeight::Pack(source, memory));
  return std::unique_ptr<Weight>(std::move(weight));
}

void CpuEmbed(const Weight& table, std::span<const TokenId> ids, float* out) {
  const PackedView packed = static_cast<const PackedWeight&>(table).View();
  for (TokenId id : ids) {
    const RowReader row(packed, id);
    if (NeedsQuantized(packed.type)) {
      const int64_t groups = packed.inputs / kQuantGroup;
      for (int64_t g = 0; g < groups; ++g) row.Group(g, out + g * kQuantGroup);
    } else {
      for (int64_t i = 0; i < packed.inputs; ++i) out[i] = row.FloatElement(i);
    }
    out += packed.inputs;
  }
}

}  // namespace holdfast

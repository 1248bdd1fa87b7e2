// The shape of KV: layer groups, and where each number lies inside a page.
//
// A page is the KV of kPageTokens consecutive tokens for all layers of one *layer group* (layers
// that share heads, dims, dtype and window, in the model's order; they need not be neighbours). Its
// payload is laid out as kernels read it, so that restoring a page is a copy and nothing else:
//
//   payload = for layer in group: for kv head:  K [k_dim][kPageTokens], then V [kPageTokens][v_dim]
//
// and where K is kI8 (k_dim a multiple of 4), codes and then a scale per token:
//
//   K = codes [k_dim / 4][kPageTokens][4], scales fp32 [kPageTokens]
//
// K has tokens innermost (vector lanes are tokens when scoring), V has dims innermost (lanes are
// dims when mixing): nothing ever reduces across lanes (NUMERICS.md, law 2). Little endian.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "engine/base/hash.h"

namespace holdfast {

inline constexpr int kPageTokens = 32;

// How a KV number is stored. The values are part of page records (FORMAT.md). kI8 is for K alone:
// signed codes with one scale per token and head (NUMERICS.md section 7).
enum class KvType : uint8_t { kF32 = 0, kF16 = 1, kI8 = 2 };

constexpr size_t KvTypeBytes(KvType t) {
  return t == KvType::kF32 ? 4 : t == KvType::kF16 ? 2 : 1;
}
constexpr const char* KvTypeName(KvType t) {
  return t == KvType::kF32 ? "f32" : t == KvType::kF16 ? "f16" : "i8";
}
// What V is stored as beside such a K.
constexpr KvType VTypeBeside(KvType k) { return k == KvType::kI8 ? KvType::kF16 : k; }

// What a group of layers keeps per token. The values are part of page records (FORMAT.md).
enum class KvKind : uint8_t { kKv = 0, kLatent = 1, kCross = 2, kState = 3 };

struct LayerGroup {
  KvKind kind = KvKind::kKv;
  int first_layer = 0;  // the model's index of the group's first layer
  int layers = 0;
  int heads = 0;  // KV heads
  int k_dim = 0;  // numbers per head and token
  int v_dim = 0;
  KvType k_type = KvType::kF16;
  KvType v_type = KvType::kF16;
  int window = 0;     // sliding window in tokens; 0 = sees everything before it
  int layout_id = 1;  // 1 = the layout above

  bool operator==(const LayerGroup&) const = default;

  size_t KBytes() const {
    const size_t scales = k_type == KvType::kI8 ? kPageTokens * sizeof(float) : 0;
    return static_cast<size_t>(k_dim) * kPageTokens * KvTypeBytes(k_type) + scales;
  }
  size_t VBytes() const { return static_cast<size_t>(v_dim) * kPageTokens * KvTypeBytes(v_type); }
  size_t HeadBytes() const { return KBytes() + VBytes(); }
  size_t LayerBytes() const { return HeadBytes() * heads; }
  // Inside a head's K: where number `d` of the token in `slot` lies, and (kI8) its scale.
  size_t KOffset(int d, int slot) const {
    if (k_type == KvType::kI8) return (static_cast<size_t>(d / 4) * kPageTokens + slot) * 4 + d % 4;
    return (static_cast<size_t>(d) * kPageTokens + slot) * KvTypeBytes(k_type);
  }
  size_t KScaleOffset(int slot) const {
    return static_cast<size_t>(k_dim) * kPageTokens + slot * sizeof(float);
  }
  size_t PayloadBytes() const { return LayerBytes() * layers; }
  // Byte offset, inside a payload, of K (then V, KBytes() later) of `layer` (0-based in the group).
  size_t HeadOffset(int layer, int head) const { return LayerBytes() * layer + HeadBytes() * head; }
  // Distance between slots of a pool: an odd multiple of 4 KiB, since a power-of-two stride makes
  // all pages compete for the same cache sets.
  size_t SlotStride() const {
    const size_t units = (PayloadBytes() + 4095) / 4096;
    return (units | 1) * 4096;
  }
  void HashInto(Hasher& h) const;  // every field, in declaration order
};

}  // namespace holdfast

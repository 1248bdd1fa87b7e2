// The shape of KV: layer groups, and where each number lies inside a page.
//
// A page is the KV of kPageTokens consecutive tokens for all layers of one *layer group* (layers
// that share heads, dims, dtype and window, in the model's order; they need not be neighbours). Its
// payload is laid out as kernels read it, so that restoring a page is a copy and nothing else:
//
//   payload = for layer in group: for kv head:  K [k_dim][kPageTokens], then V [kPageTokens][v_dim]
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

// How a KV number is stored. The values are part of page records (FORMAT.md).
enum class KvType : uint8_t { kF32 = 0, kF16 = 1 };

constexpr size_t KvTypeBytes(KvType t) { return t == KvType::kF32 ? 4 : 2; }

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

  size_t KBytes() const { return static_cast<size_t>(k_dim) * kPageTokens * KvTypeBytes(k_type); }
  size_t VBytes() const { return static_cast<size_t>(v_dim) * kPageTokens * KvTypeBytes(v_type); }
  size_t HeadBytes() const { return KBytes() + VBytes(); }
  size_t LayerBytes() const { return HeadBytes() * heads; }
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

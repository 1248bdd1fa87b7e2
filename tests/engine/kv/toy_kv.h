// A toy model for tests of pages and timelines: the "KV" of a row is one 32-bit value, a hash of its
// token and of the values of all rows before it as a kernel would read them, through Views. So
// equal contexts give equal values, and any wrong page, slot, length or stale byte changes them.
#pragma once

#include <cstring>
#include <vector>

#include "engine/kv/timeline.h"

namespace holdfast {

inline LayerGroup ToyGroup() {
  LayerGroup g;
  g.layers = g.heads = g.k_dim = g.v_dim = 1;
  g.k_type = g.v_type = KvType::kF32;
  return g;
}
inline std::vector<LayerGroup> ToyGroups() { return {ToyGroup(), ToyGroup()}; }

inline constexpr size_t kToyPageBytes = 3 * 4096;  // one slot of two groups

inline uint32_t Mix(uint32_t h, uint32_t v) {
  h = (h ^ v) * 0x9E3779B1u;
  return h ^ (h >> 15);
}

inline uint32_t ToyRead(const std::byte* page, int slot) {
  uint32_t k, v;
  std::memcpy(&k, page + 4 * slot, 4);
  std::memcpy(&v, page + 4 * kPageTokens + 4 * slot, 4);
  return k == v ? k : 0xBAD;
}

inline void ToyWrite(std::byte* page, int slot, uint32_t value) {
  std::memcpy(page + 4 * slot, &value, 4);
  std::memcpy(page + 4 * kPageTokens + 4 * slot, &value, 4);
}

// The values over indices 0 .. end-1; both groups must agree.
inline std::vector<uint32_t> ToyValues(const Timeline& timeline, int64_t end) {
  std::vector<uint32_t> values[2];
  for (int group = 0; group < 2; ++group) {
    std::vector<KvRun> runs;
    timeline.Views(end, group, &runs);
    for (const KvRun& run : runs) {
      for (int i = 0; i < run.count; ++i) {
        values[group].push_back(ToyRead(run.page, run.first + i));
      }
    }
  }
  return values[0] == values[1] ? values[0] : std::vector<uint32_t>{};
}

inline uint32_t ToyValue(TokenId token, const std::vector<uint32_t>& before) {
  uint32_t h = Mix(17, static_cast<uint32_t>(token));
  for (uint32_t v : before) h = Mix(h, v);
  return h;
}

// What a forward pass does: computes at most `max` pending rows and returns how many; 0 when the
// pool had no page.
inline int64_t ToyPass(Timeline& timeline, int64_t max) {
  auto rows = timeline.NextRows(max);
  if (!rows.ok()) return 0;
  for (const Timeline::Row& row : *rows) {
    const uint32_t value = ToyValue(row.token, ToyValues(timeline, row.index));
    ToyWrite(row.page->payload(0), row.slot, value);
    ToyWrite(row.page->payload(1), row.slot, value);
  }
  return static_cast<int64_t>(rows->size());
}

inline bool ToyCompute(Timeline& timeline, int64_t max) {
  const int64_t rows = ToyPass(timeline, max);
  if (rows == 0) return false;
  timeline.Filled(rows);
  return true;
}

inline void ToyComputeAll(Timeline& timeline) {
  while (timeline.pending() > 0 && ToyCompute(timeline, timeline.pending())) {
  }
}

// What computing `tokens` from nothing gives: the meaning of "exact".
inline std::vector<uint32_t> ToyExact(std::span<const TokenId> tokens) {
  std::vector<uint32_t> values;
  for (TokenId token : tokens) values.push_back(ToyValue(token, values));
  return values;
}

inline std::vector<TokenId> ToyTokens(int64_t count, TokenId first = 100) {
  std::vector<TokenId> tokens(count);
  for (int64_t i = 0; i < count; ++i) tokens[i] = first + static_cast<TokenId>(i);
  return tokens;
}

}  // namespace holdfast

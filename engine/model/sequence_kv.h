// The KV of one sequence in pages of its own, without a pool: for measuring and for tests. Index i
// lies in slot i mod 32 of page i / 32. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "engine/backend/backend.h"
#include "engine/model/model.h"

namespace holdfast {

class SequenceKv {
 public:
  explicit SequenceKv(const Model& model) : groups_(model.groups()) {}

  // Makes room for indices 0 .. tokens-1. Pages that are there stay where they are.
  void Reserve(int64_t tokens) {
    while (static_cast<int64_t>(blocks_.size()) * kPageTokens < tokens) {
      Block block;
      for (const LayerGroup& group : groups_) {
        block.pages.push_back(Page(new (kAlign) std::byte[group.PayloadBytes()]));
        block.payload.push_back(block.pages.back().get());
      }
      blocks_.push_back(std::move(block));
    }
  }

  // Payload per group of the page that holds `index`, [groups]; valid until the next Reserve.
  std::byte* const* PageOf(int64_t index) const {
    return blocks_[static_cast<size_t>(index / kPageTokens)].payload.data();
  }
  static int32_t SlotOf(int64_t index) { return static_cast<int32_t>(index % kPageTokens); }

  // Runs over indices 0 .. length-1, [groups].
  std::vector<std::vector<KvRun>> Runs(int64_t length) const {
    std::vector<std::vector<KvRun>> runs(groups_.size());
    for (size_t g = 0; g < groups_.size(); ++g) {
      for (int64_t at = 0; at < length; at += kPageTokens) {
        const int64_t count = length - at < kPageTokens ? length - at : kPageTokens;
        runs[g].push_back({.page = PageOf(at)[g], .count = static_cast<int32_t>(count)});
      }
    }
    return runs;
  }

 private:
  static constexpr std::align_val_t kAlign{64};
  struct Free {
    void operator()(std::byte* p) const { ::operator delete[](p, kAlign); }
  };
  using Page = std::unique_ptr<std::byte[], Free>;
  struct Block {
    std::vector<Page> pages;           // [groups]
    std::vector<std::byte*> payload;   // the same, as ForwardRow wants it
  };
  std::vector<LayerGroup> groups_;
  std::vector<Block> blocks_;
};

}  // namespace holdfast

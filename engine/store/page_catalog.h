// Inside engine/store: the index of a FilePageStore in memory: places, states, use. Decides what to
// evict: the least recently used page that no other page here continues, so that an ancestor never
// goes before its descendants, in whatever order they were read.
//
//   kWriting --written--> kWritten --synced and indexed--> kIndexed       Erase from any state
//
// Only kIndexed pages are found by readers and can be evicted. Pure data; not thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/kv/key.h"
#include "engine/store/page_index.h"

namespace holdfast {

enum class PageState : uint8_t { kWriting, kWritten, kIndexed };

struct CatalogEntry {
  PageKey parent;
  PagePlace place;  // length alone while kWriting
  RecordTag tag{};
  uint64_t last_use = 0;
  PageState state = PageState::kWriting;
};

class PageCatalog {
 public:
  static constexpr size_t kMaxTouched = 65536;

  // Null when there is no such page. Valid until the page is erased.
  const CatalogEntry* Find(const PageKey& key) const;

  // A new page, kWriting, of `length` bytes. The key must not be there.
  void Begin(const PageKey& key, const PageKey& parent, uint64_t length);
  void Written(const PageKey& key, const PagePlace& place, const RecordTag& tag);
  void Indexed(const PageKey& key);
  // A page that an index knows, as it was; its last use counts as the index says.
  void Restore(const IndexEntry& entry);
  void Move(const PageKey& key, const PagePlace& place);
  void Erase(const PageKey& key);

  // A use: the page goes to the end of the line. Noted for the index, see TakeTouched.
  void Touch(const PageKey& key);
  // To the end of the line, without a use: the index is not told.
  void Renew(const PageKey& key);
  // The pages whose use the index does not know yet, as entries for it.
  std::vector<IndexEntry> TakeTouched();

  std::optional<PageKey> EvictionCandidate() const;
  std::vector<PageKey> KeysIn(uint32_t file) const;  // indexed ones, by offset
  std::vector<PageKey> Keys() const;                 // indexed ones, in no order
  // Calls `visit` with the place of each page that has been written, indexed or not.
  template <typename F>
  void ForEachPlace(const F& visit) const {
    for (const auto& [key, entry] : entries_) {
      if (entry.state != PageState::kWriting) visit(entry.place);
    }
  }

  IndexEntry EntryOf(const PageKey& key) const;
  uint64_t pages() const { return pages_; }              // kIndexed
  uint64_t bytes() const { return bytes_; }              // kIndexed
  uint64_t reserved_bytes() const { return reserved_; }  // all states

 private:
  using Entries = std::unordered_map<PageKey, CatalogEntry, DigestHash>;
  bool IsLeaf(const PageKey& key) const { return !children_.contains(key); }
  void AddChild(const PageKey& parent);
  void RemoveChild(const PageKey& parent);

  Entries entries_;
  std::unordered_map<PageKey, uint32_t, DigestHash> children_;  // by parent, there or not
  std::set<std::pair<uint64_t, PageKey>> leaves_;               // kIndexed, by last use
  std::vector<PageKey> touched_;  // at most kMaxTouched: what is over it keeps its older use
  uint64_t next_use_ = 1;
  uint64_t pages_ = 0, bytes_ = 0, reserved_ = 0;
};

}  // namespace holdfast

#include "engine/store/page_catalog.h"

#include <algorithm>
#include <cassert>

namespace holdfast {

const CatalogEntry* PageCatalog::Find(const PageKey& key) const {
  const auto it = entries_.find(key);
  return it == entries_.end() ? nullptr : &it->second;
}

void PageCatalog::AddChild(const PageKey& parent) {
  if (++children_[parent] != 1) return;
  const auto it = entries_.find(parent);
  if (it != entries_.end() && it->second.state == PageState::kIndexed) {
    leaves_.erase({it->second.last_use, parent});
  }
}

void PageCatalog::RemoveChild(const PageKey& parent) {
  const auto count = children_.find(parent);
  assert(count != children_.end());
  if (--count->second != 0) return;
  children_.erase(count);
  const auto it = entries_.find(parent);
  if (it != entries_.end() && it->second.state == PageState::kIndexed) {
    leaves_.emplace(it->second.last_use, parent);
  }
}

void PageCatalog::Begin(const PageKey& key, const PageKey& parent, uint64_t length) {
  CatalogEntry entry;
  entry.parent = parent;
  entry.place.length = length;
  const bool added = entries_.emplace(key, entry).second;
  assert(added);
  static_cast<void>(added);
  reserved_ += length;
  AddChild(parent);
}

void PageCatalog::Written(const PageKey& key, const PagePlace& place, const RecordTag& tag) {
  CatalogEntry& entry = entries_.at(key);
  assert(entry.state == PageState::kWriting && place.length == entry.place.length);
  entry.place = place;
  entry.tag = tag;
  entry.last_use = next_use_++;
  entry.state = PageState::kWritten;
}

void PageCatalog::Indexed(const PageKey& key) {
  CatalogEntry& entry = entries_.at(key);
  assert(entry.state == PageState::kWritten);
  entry.state = PageState::kIndexed;
  ++pages_;
  bytes_ += entry.place.length;
  if (IsLeaf(key)) leaves_.emplace(entry.last_use, key);
}

void PageCatalog::Restore(const IndexEntry& entry) {
  Begin(entry.key, entry.parent, entry.place.length);
  CatalogEntry& e = entries_.at(entry.key);
  e.place = entry.place;
  e.tag = entry.tag;
  e.state = PageState::kWritten;
  e.last_use = entry.last_use;
  next_use_ = std::max(next_use_, e.last_use + 1);
  Indexed(entry.key);
}

void PageCatalog::Move(const PageKey& key, const PagePlace& place) {
  CatalogEntry& entry = entries_.at(key);
  assert(place.length == entry.place.length);
  entry.place = place;
}

void PageCatalog::Erase(const PageKey& key) {
  const auto it = entries_.find(key);
  assert(it != entries_.end());
  const CatalogEntry entry = it->second;
  if (entry.state == PageState::kIndexed) {
    --pages_;
    bytes_ -= entry.place.length;
    if (IsLeaf(key)) leaves_.erase({entry.last_use, key});
  }
  reserved_ -= entry.place.length;
  entries_.erase(it);
  RemoveChild(entry.parent);
}

void PageCatalog::Touch(const PageKey& key) {
  Renew(key);
  if (touched_.size() < kMaxTouched) touched_.push_back(key);
}

void PageCatalog::Renew(const PageKey& key) {
  CatalogEntry& entry = entries_.at(key);
  assert(entry.state == PageState::kIndexed);
  const bool leaf = IsLeaf(key);
  if (leaf) leaves_.erase({entry.last_use, key});
  entry.last_use = next_use_++;
  if (leaf) leaves_.emplace(entry.last_use, key);
}

std::vector<IndexEntry> PageCatalog::TakeTouched() {
  std::sort(touched_.begin(), touched_.end());
  touched_.erase(std::unique(touched_.begin(), touched_.end()), touched_.end());
  std::vector<IndexEntry> entries;
  for (const PageKey& key : touched_) {
    const CatalogEntry* entry = Find(key);
    if (entry != nullptr && entry->state == PageState::kIndexed) entries.push_back(EntryOf(key));
  }
  touched_.clear();
  return entries;
}

std::optional<PageKey> PageCatalog::EvictionCandidate() const {
  if (leaves_.empty()) return std::nullopt;
  return leaves_.begin()->second;
}

std::vector<PageKey> PageCatalog::KeysIn(uint32_t file) const {
  std::vector<std::pair<uint64_t, PageKey>> found;
  for (const auto& [key, entry] : entries_) {
    if (entry.state == PageState::kIndexed && entry.place.file == file) {
      found.emplace_back(entry.place.offset, key);
    }
  }
  std::sort(found.begin(), found.end());
  std::vector<PageKey> keys;
  for (const auto& [offset, key] : found) keys.push_back(key);
  return keys;
}

std::vector<PageKey> PageCatalog::Keys() const {
  std::vector<PageKey> keys;
  keys.reserve(pages_);
  for (const auto& [key, entry] : entries_) {
    if (entry.state == PageState::kIndexed) keys.push_back(key);
  }
  return keys;
}

IndexEntry PageCatalog::EntryOf(const PageKey& key) const {
  const CatalogEntry& e = entries_.at(key);
  return {key, e.parent, e.place, e.tag, e.last_use};
}

}  // namespace holdfast

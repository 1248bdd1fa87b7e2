#include "engine/kv/memory_page_store.h"

#include <cstring>
#include <mutex>
#include <unordered_map>

namespace holdfast {
namespace {

struct Record {
  PageHeader header;
  std::vector<std::vector<std::byte>> payload;  // by group
  size_t bytes = 0;
};

class MemoryPageStore : public PageStore {
 public:
  explicit MemoryPageStore(size_t bytes_max) : bytes_max_(bytes_max) {}

  Status Put(const PageHeader& header,
             std::span<const std::span<const std::byte>> payload) override {
    Record record{header, {}, 0};
    for (std::span<const std::byte> group : payload) {
      record.payload.emplace_back(group.begin(), group.end());
      record.bytes += group.size();
    }
    std::lock_guard lock(mu_);
    if (records_.contains(header.key)) return {};
    if (bytes_max_ != 0 && stats_.bytes + record.bytes > bytes_max_) {
      return Status::Exhausted("page store: " + std::to_string(bytes_max_) + " bytes are full");
    }
    ++stats_.puts;
    ++stats_.pages;
    stats_.bytes += record.bytes;
    records_.emplace(header.key, std::move(record));
    return {};
  }

  Status Sync() override { return {}; }

  Status Get(const PageHeader& expect, std::span<const std::span<std::byte>> payload) override {
    std::lock_guard lock(mu_);
    ++stats_.gets;
    const auto it = records_.find(expect.key);
    if (it == records_.end()) {
      ++stats_.get_misses;
      return Status::NotFound("page store: no page " + expect.key.Hex());
    }
    if (!Matches(it->second, expect, payload)) {
      ++stats_.corrupt;
      Forget(it);
      return Status::Corrupt("page store: page " + expect.key.Hex() + " is not what it must be");
    }
    for (size_t g = 0; g < payload.size(); ++g) {
      std::memcpy(payload[g].data(), it->second.payload[g].data(), payload[g].size());
    }
    return {};
  }

  bool Contains(const PageKey& key) override {
    std::lock_guard lock(mu_);
    return records_.contains(key);
  }

  Status Delete(const PageKey& key) override {
    std::lock_guard lock(mu_);
    if (const auto it = records_.find(key); it != records_.end()) Forget(it);
    return {};
  }

  Result<DeletedPages> Collect(const std::function<Result<KeepPage>()>& keep) override {
    std::vector<PageKey> keys;
    {
      std::lock_guard lock(mu_);
      for (const auto& [key, record] : records_) keys.push_back(key);
    }
    HOLDFAST_ASSIGN_OR_RETURN(const KeepPage kept, keep());
    DeletedPages deleted;
    for (const PageKey& key : keys) {
      if (kept(key)) continue;
      std::lock_guard lock(mu_);
      const auto it = records_.find(key);
      if (it == records_.end()) continue;
      ++deleted.pages;
      deleted.bytes += it->second.bytes;
      Forget(it);
    }
    return deleted;
  }

  void Renew(std::span<const PageKey>) override {}

  StoreStats stats() override {
    std::lock_guard lock(mu_);
    StoreStats stats = stats_;
    stats.bytes_max = bytes_max_;
    return stats;
  }

 private:
  using Records = std::unordered_map<PageKey, Record, DigestHash>;

  static bool Matches(const Record& record, const PageHeader& expect,
                      std::span<const std::span<std::byte>> payload) {
    const PageHeader& h = record.header;
    if (h.kind != expect.kind || h.fp != expect.fp || h.parent != expect.parent ||
        h.tokens != expect.tokens || record.payload.size() != payload.size()) {
      return false;
    }
    for (size_t g = 0; g < payload.size(); ++g) {
      if (record.payload[g].size() != payload[g].size()) return false;
    }
    return true;
  }

  void Forget(Records::iterator it) {
    --stats_.pages;
    stats_.bytes -= it->second.bytes;
    records_.erase(it);
  }

  const size_t bytes_max_;
  std::mutex mu_;
  Records records_;
  StoreStats stats_;
};

}  // namespace

std::unique_ptr<PageStore> MakeMemoryPageStore(size_t bytes_max) {
  return std::make_unique<MemoryPageStore>(bytes_max);
}

}  // namespace holdfast

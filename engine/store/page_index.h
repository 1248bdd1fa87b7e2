// Inside engine/store: where each page's record lies, kept in RocksDB. page_index.cc is the only
// file that includes RocksDB; any status of it but OK is a failure (a full disk comes as
// "Incomplete" of severity 0).
//
// One thread at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/kv/key.h"
#include "engine/store/page_record.h"

namespace rocksdb {
class Env;
}

namespace holdfast {

// A record's place in the page files; all three are multiples of 4096 but the first.
struct PagePlace {
  uint32_t file = 0;
  uint64_t offset = 0;
  uint64_t length = 0;
  bool operator==(const PagePlace&) const = default;
};

struct IndexEntry {
  PageKey key;
  PageKey parent;
  PagePlace place;
  RecordTag tag{};
  uint64_t last_use = 0;  // a counter, not a time
};

struct IndexBatch {
  std::vector<IndexEntry> puts;  // after the deletes
  std::vector<IndexEntry> deletes;
  bool empty() const { return puts.empty() && deletes.empty(); }
};

class PageIndex {
 public:
  struct Options {
    std::string path;
    rocksdb::Env* env = nullptr;  // tests; null = the default
  };

  // Opens the index or makes an empty one; one that is damaged is replaced by an empty one.
  static Result<std::unique_ptr<PageIndex>> Open(const Options& options);
  ~PageIndex();

  bool made_empty() const { return made_empty_; }

  // An empty place behind the last one of all that was ever put or deleted: what lies from there on
  // in the page files this index has never heard of.
  const PagePlace& end() const { return end_; }

  // kCorrupt: an entry cannot be read.
  Status ForEach(const std::function<void(const IndexEntry&)>& visit);

  enum class Durability { kSynced, kLazy };
  // All of the batch or, after a crash, none. After an error it may be there or not.
  Status Apply(const IndexBatch& batch, Durability durability);

 private:
  struct Impl;
  explicit PageIndex(std::unique_ptr<Impl> impl);
  Status ReadEnd();
  std::unique_ptr<Impl> impl_;
  bool made_empty_ = false;
  PagePlace end_;
};

}  // namespace holdfast

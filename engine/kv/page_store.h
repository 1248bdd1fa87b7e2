// PageStore: where pages are kept below the pool. Two implementations, one contract suite:
// MemoryPageStore (a plain map; tests and `--store memory`) and engine/store's FilePageStore
// (append-only page files with a RocksDB index). Pages are a cache: every call may fail, and then
// the page is computed again.
//
// Records are written and read whole (FORMAT.md): header with fp, key, parent and tokens, then the
// payload of each layer group, guarded by XXH3-128. Get verifies all of it before it says ok.
// Partial pages are stored under a tail key (kTail) with their number of rows.
//
// Thread-safe. Calls block on I/O: never made by the model thread.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/kv/key.h"
#include "engine/kv/layout.h"

namespace holdfast {

enum class PageKind : uint8_t { kPage = 0, kTail = 1, kSegment = 2 };

// What a record says beside the payload. A page's identity must match on reading, field by field.
struct PageHeader {
  PageKind kind = PageKind::kPage;
  Digest fp;
  PageKey key;
  PageKey parent;
  std::vector<TokenId> tokens;  // kPageTokens of them; fewer for kTail
};

// Whether a page is to be kept.
using KeepPage = std::function<bool(const PageKey&)>;

struct DeletedPages {
  uint64_t pages = 0, bytes = 0;
};

struct StoreStats {
  uint64_t pages = 0, bytes = 0;           // live
  uint64_t bytes_max = 0;                  // what `bytes` may grow to; 0 = no limit
  uint64_t dead_bytes = 0;                 // waiting for compaction
  uint64_t puts = 0, gets = 0, get_misses = 0, corrupt = 0, io_errors = 0;
};

class PageStore {
 public:
  virtual ~PageStore() = default;

  // Appends the page; visible to Get after the next Sync at the latest. A key that is there is
  // kept. `payload[g]` is the payload of layer group g. kExhausted: disk full or over the byte
  // limit.
  virtual Status Put(const PageHeader& header,
                     std::span<const std::span<const std::byte>> payload) = 0;
  // Makes all Puts before it durable, then findable (written and synced, then indexed).
  virtual Status Sync() = 0;

  // Reads into `payload` (one span per group, exactly as long as written) and verifies tag, fp, key
  // and `tokens`. kNotFound: no such page. kCorrupt: it is there but not what it must be; the
  // record is forgotten. kIo: the read failed.
  virtual Status Get(const PageHeader& expect, std::span<const std::span<std::byte>> payload) = 0;
  virtual bool Contains(const PageKey& key) = 0;  // by the index alone
  virtual Status Delete(const PageKey& key) = 0;
  // Deletes the pages that are not to be kept. `keep` is asked for once all have been listed, so
  // that a page that is put meanwhile stays. When it returns ok, no file holds a byte of what was
  // deleted, now or before.
  virtual Result<DeletedPages> Collect(const std::function<Result<KeepPage>()>& keep) = 0;
  // Those of the pages that are there go last when space runs out, in this order (so: tail first).
  // Forgotten with the process. A store that drops nothing by itself has nothing to do.
  virtual void Renew(std::span<const PageKey> keys) = 0;
  virtual StoreStats stats() = 0;
};

}  // namespace holdfast

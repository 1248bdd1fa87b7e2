// FilePageStore: pages on disk. Records (engine/kv/FORMAT.md) lie in append-only page files, which
// are read straight into the caller's buffers; a RocksDB index says where.
//
//   Put    writes the record at the end of the newest file
//   Sync   file data and names first, then the index: an entry never names what is not on the disk
//   Get    reads header and payloads in one call and verifies all of it
//   Delete the index first, then a hole in the file; a file without live records is unlinked
//   Collect as that, for all that is not needed; then clears what else files hold of no page
//
// After a crash: entries that name what is not there are dropped, records behind the last one that
// the index names are verified and indexed, a torn tail is left behind, and a lost or damaged index
// is rebuilt by scanning the files (deleted pages whose holes were not punched yet may then come
// back). So a killed process loses no page that was put, a power cut at most those since the last
// Sync. What cannot be read or is not what it must be is forgotten, so
// that a new Put can take its place. Every fault costs a page, which is computed again.
//
// Evicted when over the byte limit: the least recently used (or renewed) page that no stored page
// continues; never an ancestor before its descendants. Their space comes back at the next Sync.
//
// Costs one file descriptor per page file (1 GiB each by default), 400 bytes of memory per page.
//
// Thread-safe; Gets and Puts run in parallel. Nobody else may use the folder (see DataDir).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/base/env.h"
#include "engine/kv/page_store.h"

namespace rocksdb {
class Env;
}

namespace holdfast {

class FilePageStore : public PageStore {
 public:
  struct Options {
    std::string path;      // the folder; made where it is absent
    Env* env = nullptr;    // outlives the store
    uint64_t max_bytes = uint64_t{64} << 30;       // of live records
    uint64_t max_file_bytes = uint64_t{1} << 30;
    // Put refuses when the file system has less than this left: the database needs it more.
    uint64_t min_free_bytes = uint64_t{256} << 20;
    rocksdb::Env* index_env = nullptr;  // tests; null = RocksDB's default
  };

  static Result<std::unique_ptr<FilePageStore>> Open(Options options);
  ~FilePageStore() override;  // without a Sync: see "After a crash"

  // Records of this model say from now on how their payloads are laid out, and Put checks lengths.
  void DescribeModel(const Digest& fp, std::vector<LayerGroup> groups);

  Status Put(const PageHeader& header,
             std::span<const std::span<const std::byte>> payload) override;
  Status Sync() override;
  Status Get(const PageHeader& expect, std::span<const std::span<std::byte>> payload) override;
  bool Contains(const PageKey& key) override;
  void Renew(std::span<const PageKey> keys) override;
  Status Delete(const PageKey& key) override;  // ok when there is none; durable when it returns
  Result<DeletedPages> Collect(const std::function<Result<KeepPage>()>& keep) override;
  StoreStats stats() override;

  // One small step of compaction: moves up to about `max_bytes` of records out of a file of which
  // more than half is dead, so that it can be unlinked. Returns the bytes moved, 0 when there is
  // nothing to do.
  Result<uint64_t> Compact(uint64_t max_bytes);

  // Scans all files and indexes the records that the index does not know. Returns their number.
  Result<uint64_t> RebuildIndex();

  // Reads every page and verifies all of it. With kRepair pages that are not sound are forgotten,
  // and sound records that the index does not know are indexed (what was deleted and whose hole was
  // not punched may come back). Pages may be put, read and deleted meanwhile.
  enum class Repair : uint8_t { kNo, kRepair };
  struct Check {
    uint64_t pages = 0, bytes = 0;   // looked at
    uint64_t damaged = 0;            // of them, not what they must be, or unreadable
    // Of the files: all, and of them those of sound records that no entry names (which is no
    // damage), and those of no record. What is left is the pages'.
    uint64_t file_bytes = 0, unindexed_bytes = 0, dead_bytes = 0;
    uint64_t unindexed = 0;          // records
    uint64_t unaccounted_bytes = 0;  // counted as held and by no page, or by two: that is damage
    std::vector<std::string> what;   // the first of the damaged, by key
  };
  Result<Check> CheckAll(Repair repair);

  // Reads and verifies up to `pages` pages, for plans that are made before anything was loaded: the
  // milliseconds that a byte took. 0: there is no page.
  double TimeReads(size_t pages);

  // Puts every page into `to`, verified; what is not sound is left out. Returns their number.
  Result<uint64_t> CopyTo(FilePageStore* to);

 private:
  struct Impl;
  explicit FilePageStore(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace holdfast

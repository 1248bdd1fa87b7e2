// Upkeep of a whole data folder, of all tenants, while it is used: fsck, gc, backup.
//
// Thread-safe. All calls read much and may take minutes; turns go on meanwhile.
#pragma once

#include <string>

#include "api/runtime.h"
#include "engine/store/file_page_store.h"

namespace holdfast {

struct FsckReport {
  LogReport log;
  FilePageStore::Check pages;
  bool clean() const { return log.damaged() == 0 && pages.damaged == 0; }
};
// Verifies every row and every page. With kRepair, damaged pages are dropped (they are computed
// again) and the index takes up the records that it lacks; rows are never changed.
Result<FsckReport> Fsck(Runtime& runtime, FilePageStore::Repair repair);

struct GcReport {
  int64_t sessions = 0;          // deleted
  FilePageStore::Deleted pages;  // that no session needs
  uint64_t bytes_moved = 0;      // by compaction
};
// Deletes expired sessions. kNow: also the pages of this model that no session of any tenant needs
// (of deleted ones, say), which are else dropped when their space is wanted; and compacts.
enum class Gc : uint8_t { kExpired, kNow };
Result<GcReport> CollectGarbage(Runtime& runtime, Gc what);

struct BackupReport {
  uint64_t pages = 0, bytes = 0;  // bytes: of the whole copy
};
// A data folder in `path`, which must not exist: the database as it is at one moment, and every
// page that is sound. It opens as it is. kConflict: `path` is there. After an error it is removed.
Result<BackupReport> Backup(Runtime& runtime, const std::string& path);

}  // namespace holdfast

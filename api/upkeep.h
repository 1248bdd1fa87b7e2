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
  bool clean() const {
    return log.damaged() == 0 && pages.damaged == 0 && pages.unaccounted_bytes == 0;
  }
};
// Verifies every row and every page. With kRepair, damaged pages are dropped (they are computed
// again) and the index takes up the records that it lacks; rows are never changed.
Result<FsckReport> Fsck(Runtime& runtime, FilePageStore::Repair repair);

struct GcReport {
  Collected deleted;         // shredded: kNow
  uint64_t bytes_moved = 0;  // by compaction
};
// Deletes expired sessions. kNow: also the pages that no session of any tenant needs (of deleted
// ones, say), and what is left of deleted texts in files, which else goes within a day
// (KeeperOptions::gc_every_ms); and compacts.
enum class Gc : uint8_t { kExpired, kNow };
Result<GcReport> CollectGarbage(Runtime& runtime, Gc what);

struct BackupReport {
  uint64_t pages = 0, bytes = 0;  // bytes: of the whole copy
};
// A data folder in `path`, which must not exist: the database as it is at one moment, every page
// that is sound, the models' cards. It opens as it is. kConflict: `path` is there. After an error
// it is removed.
Result<BackupReport> Backup(Runtime& runtime, const std::string& path);

}  // namespace holdfast

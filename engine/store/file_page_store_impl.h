// Inside engine/store: what file_page_store.cc (pages one by one) and page_store_check.cc (all of
// them at once) share.
//
// Two locks. `mu` guards the catalog and what waits for the next Sync; no I/O under it. `sync_mu`,
// taken before `mu`, is held over the I/O of whatever changes the index or gives places back (Sync,
// Delete, Compact, RebuildIndex, ClearDead), one at a time, so that index and catalog change in the
// same order.
//
// A page's way: Begin (kWriting) -> record written (kWritten) -> file synced -> index synced
// (kIndexed). Until the last step no reader sees it; when any step fails it is erased and its place
// is dead.
//
// Rejected: O_DIRECT (the page cache is the best second tier that there is), one file per page (a
// filled tier had 63,000 files elsewhere), payloads in RocksDB (a tenth of plain files' speed).
#pragma once

#include <algorithm>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <unordered_map>
#include <vector>

#include "engine/store/file_page_store.h"
#include "engine/store/page_catalog.h"
#include "engine/store/page_files.h"
#include "engine/store/page_index.h"
#include "engine/store/page_record.h"

namespace holdfast {

struct FilePageStore::Impl {
  static constexpr uint64_t kFreeCheckBytes = 16 << 20;  // free space is asked for so often
  static constexpr size_t kMaxForgotten = 4096;  // pages that wait for the index to let them go

  struct Move {
    IndexEntry copy;  // the entry as it will be
    PagePlace from;
  };
  struct FileAccount {
    PageFiles::Usage usage;
    std::vector<PagePlace> held;  // by offset: of pages, and of those that were forgotten
  };

  Options options;
  std::unique_ptr<PageFiles> files;
  std::unique_ptr<PageIndex> index;

  std::mutex sync_mu;
  // Under sync_mu: the file being compacted and what is still to be moved.
  uint32_t compacting = 0;
  std::vector<PageKey> to_move;  // last first

  std::mutex mu;
  std::condition_variable written;  // a Put has ended
  PageCatalog catalog;
  std::map<uint64_t, PageKey> writing;  // Puts under way, by number
  uint64_t next_put = 1;
  std::vector<PageKey> unsynced;  // kWritten
  std::vector<IndexEntry> forgotten;  // to be deleted from the index, places then released
  std::unordered_map<Digest, std::vector<LayerGroup>, DigestHash> models;
  uint64_t bytes_since_free_check = kFreeCheckBytes;
  StoreStats stats;

  Status Recover();
  Status MakeRoomLocked(uint64_t length);
  Status CheckFreeSpace(uint64_t length);
  Status WriteRecord(const PageHeader& header,
                     std::span<const std::span<const std::byte>> payload, PagePlace* place,
                     RecordTag* tag);
  Status ReadRecord(const PageHeader& expect, const CatalogEntry& entry,
                    std::span<const std::span<std::byte>> payload);
  void ForgetLocked(const PageKey& key);
  Status SyncLocked();
  Status SyncFiles();
  Status ApplyForgotten(IndexBatch* batch, std::vector<IndexEntry>* forgetting);
  bool PickFileToCompact();
  Result<uint64_t> MoveRecord(const PageKey& key, std::vector<Move>* moved);
  Status PublishMoves(const std::vector<Move>& moved);
  enum class Copies { kPublished, kFailed };
  void SettleMoves(const std::vector<Move>& moved, Copies copies);
  Status ReadSound(const IndexEntry& entry, std::vector<std::byte>* bytes, DecodedRecord* record);
  std::optional<IndexEntry> IndexedEntry(const PageKey& key);
  std::vector<PageKey> IndexedKeys();
  Result<uint64_t> IndexFrom(const PagePlace& from);
  Status ScanFile(const PageFiles::Usage& usage, uint64_t offset, std::vector<IndexEntry>* found);
  Status AddFound(std::vector<IndexEntry>* found, uint64_t* added);
  void WaitForPuts(std::unique_lock<std::mutex>* lock);
  std::vector<FileAccount> Accounts();
  Status CheckFiles(Check* check);
  Status ClearDead();
};

}  // namespace holdfast

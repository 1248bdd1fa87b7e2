// All pages of a FilePageStore at once: CheckAll, Collect, CopyTo.
#include <utility>

#include "engine/store/file_page_store_impl.h"

namespace holdfast {

namespace {

constexpr size_t kMaxNamed = 20;        // faults that a check names
constexpr size_t kCollectBatch = 1024;  // pages that wait for the index at once: Puts go on

}  // namespace

std::vector<PageKey> FilePageStore::Impl::IndexedKeys() {
  std::lock_guard lock(mu);
  return catalog.Keys();
}

std::optional<IndexEntry> FilePageStore::Impl::IndexedEntry(const PageKey& key) {
  std::lock_guard lock(mu);
  const CatalogEntry* found = catalog.Find(key);
  if (found == nullptr || found->state != PageState::kIndexed) return std::nullopt;
  return catalog.EntryOf(key);
}

// Who holds which bytes of each file, up to where it ends now; with sync_mu held, so that no place
// is given back meanwhile.
std::vector<FilePageStore::Impl::FileAccount> FilePageStore::Impl::Accounts() {
  std::vector<FileAccount> accounts;
  std::unordered_map<uint32_t, FileAccount*> by_file;
  for (const PageFiles::Usage& usage : files->usage()) accounts.push_back({usage, {}});
  for (FileAccount& a : accounts) by_file[a.usage.file] = &a;
  const auto add = [&](const PagePlace& place) {
    const auto it = by_file.find(place.file);
    if (it != by_file.end() && place.offset < it->second->usage.bytes) {
      it->second->held.push_back(place);
    }
  };
  {
    std::unique_lock lock(mu);
    WaitForPuts(&lock);  // one that begins later writes behind these ends
    catalog.ForEachPlace(add);
    for (const IndexEntry& e : forgotten) add(e.place);
  }
  for (FileAccount& a : accounts) {
    std::sort(a.held.begin(), a.held.end(), [](const PagePlace& x, const PagePlace& y) {
      return std::pair(x.offset, x.length) < std::pair(y.offset, y.length);
    });
  }
  return accounts;
}

// Adds up the bytes of all files.
Status FilePageStore::Impl::CheckFiles(Check* check) {
  std::vector<FileAccount> accounts;
  {
    std::lock_guard sync_lock(sync_mu);
    accounts = Accounts();
  }
  std::vector<IndexEntry> found;
  std::vector<std::byte> bytes;
  DecodedRecord record;
  for (const FileAccount& a : accounts) {
    uint64_t sum = 0, covered = 0, end = 0;
    for (const PagePlace& p : a.held) {
      const uint64_t stop = std::min(p.offset + p.length, a.usage.bytes);
      sum += p.length;
      if (stop > end) covered += stop - std::max(p.offset, end);
      end = std::max(end, stop);
    }
    const uint64_t wrong = std::max(sum, a.usage.live) - std::min(covered, a.usage.live);
    if (wrong > 0 && check->what.size() < kMaxNamed) {
      check->what.push_back("page file " + std::to_string(a.usage.file) + ": pages hold " +
                            std::to_string(sum) + " bytes, " + std::to_string(covered) +
                            " of them once; the file counts " + std::to_string(a.usage.live));
    }
    check->unaccounted_bytes += wrong;
    check->file_bytes += a.usage.bytes;
    check->dead_bytes += a.usage.bytes - covered;
    HOLDFAST_RETURN_IF_ERROR(ScanFile(a.usage, 0, &found));
    for (const IndexEntry& e : found) {
      const auto at = std::lower_bound(
          a.held.begin(), a.held.end(), e.place.offset,
          [](const PagePlace& p, uint64_t offset) { return p.offset < offset; });
      if (at != a.held.end() && at->offset == e.place.offset) continue;
      if (IndexedEntry(e.key) || !ReadSound(e, &bytes, &record).ok()) continue;
      ++check->unindexed;
      check->unindexed_bytes += e.place.length;
      check->dead_bytes -= e.place.length;
    }
    found.clear();
  }
  return Status();
}

Result<FilePageStore::Check> FilePageStore::CheckAll(Repair repair) {
  Impl& s = *impl_;
  Check check;
  std::vector<std::byte> bytes;
  DecodedRecord record;
  for (const PageKey& key : s.IndexedKeys()) {
    const std::optional<IndexEntry> entry = s.IndexedEntry(key);
    if (!entry) continue;
    ++check.pages;
    check.bytes += entry->place.length;
    const Status sound = s.ReadSound(*entry, &bytes, &record);
    if (sound.ok()) continue;
    std::lock_guard lock(s.mu);
    const CatalogEntry* found = s.catalog.Find(key);
    if (found == nullptr || !(found->place == entry->place)) continue;  // moved or deleted
    ++check.damaged;
    if (check.what.size() < kMaxNamed) {
      check.what.push_back("page " + key.Hex().substr(0, 16) + ": " + sound.message());
    }
    if (repair == Repair::kRepair) s.ForgetLocked(key);
  }
  if (repair == Repair::kRepair) {
    HOLDFAST_RETURN_IF_ERROR(Sync());
    HOLDFAST_RETURN_IF_ERROR(RebuildIndex().status());
  }
  HOLDFAST_RETURN_IF_ERROR(s.CheckFiles(&check));
  return check;
}

// Makes zeros of all that no page holds: where a hole could not be punched, what a write or a move
// that failed has left, and records that no entry names.
Status FilePageStore::Impl::ClearDead() {
  std::lock_guard sync_lock(sync_mu);
  for (const FileAccount& a : Accounts()) {
    HOLDFAST_RETURN_IF_ERROR(files->Clear(a.usage, a.held));
  }
  return SyncFiles();
}

Result<DeletedPages> FilePageStore::Collect(const std::function<Result<KeepPage>()>& keep) {
  Impl& s = *impl_;
  const std::vector<PageKey> keys = s.IndexedKeys();
  HOLDFAST_ASSIGN_OR_RETURN(const KeepPage kept, keep());
  DeletedPages deleted;
  for (const PageKey& key : keys) {
    if (kept(key)) continue;
    {
      std::lock_guard lock(s.mu);
      const CatalogEntry* found = s.catalog.Find(key);
      if (found == nullptr || found->state != PageState::kIndexed) continue;
      deleted.bytes += found->place.length;
      s.ForgetLocked(key);
    }
    if (++deleted.pages % kCollectBatch == 0) HOLDFAST_RETURN_IF_ERROR(Sync());
  }
  HOLDFAST_RETURN_IF_ERROR(Sync());
  HOLDFAST_RETURN_IF_ERROR(s.ClearDead());
  return deleted;
}

double FilePageStore::TimeReads(size_t pages) {
  Impl& s = *impl_;
  std::vector<PageKey> keys = s.IndexedKeys();
  keys.resize(std::min(keys.size(), pages));
  const int64_t start = s.options.env->SteadyNanos();
  uint64_t read = 0;
  std::vector<std::byte> bytes;
  DecodedRecord record;
  for (const PageKey& key : keys) {
    const std::optional<IndexEntry> entry = s.IndexedEntry(key);
    if (entry && s.ReadSound(*entry, &bytes, &record).ok()) read += bytes.size();
  }
  const auto nanos = static_cast<double>(s.options.env->SteadyNanos() - start);
  return read > 0 ? nanos / 1e6 / static_cast<double>(read) : 0;
}

Result<uint64_t> FilePageStore::CopyTo(FilePageStore* to) {
  Impl& s = *impl_;
  uint64_t copied = 0;
  std::vector<std::byte> bytes;
  DecodedRecord record;
  for (const PageKey& key : s.IndexedKeys()) {
    const std::optional<IndexEntry> entry = s.IndexedEntry(key);
    if (!entry || !s.ReadSound(*entry, &bytes, &record).ok()) continue;
    std::vector<LayerGroup> shapes;
    for (const RecordGroup& g : record.header.groups) {
      if (g.shape.layout_id != 0) shapes.push_back(g.shape);
    }
    if (!shapes.empty()) to->DescribeModel(record.header.page.fp, std::move(shapes));
    HOLDFAST_RETURN_IF_ERROR(to->Put(record.header.page, record.payloads));
    ++copied;
  }
  HOLDFAST_RETURN_IF_ERROR(to->Sync());
  return copied;
}

}  // namespace holdfast

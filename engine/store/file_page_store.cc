// A FilePageStore's pages one by one: opening, Put, Sync, Get, Delete, compaction, and the index
// made again. file_page_store_impl.h has the design.
#include <array>
#include <cassert>
#include <filesystem>

#include "engine/store/file_page_store_impl.h"

namespace holdfast {

namespace {

constexpr std::array<std::byte, kRecordAlign> kZeros{};
constexpr size_t kRebuildBatch = 1024;          // entries that go to the index at once
constexpr int kMaxMoves = 3;                    // times that a Get follows a record being moved

// Header, payloads and padding of a record, as parts of one read or write.
template <typename Byte>
std::vector<std::span<Byte>> RecordParts(std::span<Byte> header,
                                         std::span<const std::span<Byte>> payloads,
                                         std::span<Byte> padding) {
  std::vector<std::span<Byte>> parts = {header};
  size_t at = 0;
  for (const std::span<Byte>& p : payloads) {
    parts.push_back(p);
    const size_t pad = AlignToRecord(p.size()) - p.size();
    if (pad == 0) continue;
    // Reading, each gap has bytes of its own, which must turn out zero; writing, all share zeros.
    parts.push_back(padding.subspan(std::is_const_v<Byte> ? 0 : at, pad));
    at += pad;
  }
  return parts;
}

template <typename Byte>
uint64_t LengthOf(std::span<const std::span<Byte>> payloads) {
  uint64_t length = kRecordHeaderBytes;
  for (const auto& p : payloads) length += AlignToRecord(p.size());
  return length;
}

bool SamePage(const PageHeader& a, const PageHeader& b) {
  return a.kind == b.kind && a.fp == b.fp && a.key == b.key && a.parent == b.parent &&
         a.tokens == b.tokens;
}

}  // namespace

// ---- opening -----------------------------------------------------------------------------------

FilePageStore::FilePageStore(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
FilePageStore::~FilePageStore() = default;

Result<std::unique_ptr<FilePageStore>> FilePageStore::Open(Options options) {
  assert(options.env != nullptr);
  auto impl = std::make_unique<Impl>();
  impl->options = std::move(options);
  const Options& o = impl->options;
  HOLDFAST_RETURN_IF_ERROR(o.env->MakeDirectory(o.path));
  // The folder's own name: without it a power cut takes pages that were synced.
  const std::string parent = std::filesystem::path(o.path).parent_path().string();
  HOLDFAST_RETURN_IF_ERROR(o.env->SyncDirectory(parent.empty() ? "." : parent));
  HOLDFAST_ASSIGN_OR_RETURN(impl->files, PageFiles::Open({o.env, o.path, o.max_file_bytes}));
  HOLDFAST_ASSIGN_OR_RETURN(impl->index, PageIndex::Open({o.path + "/index", o.index_env}));
  HOLDFAST_RETURN_IF_ERROR(impl->Recover());
  // A process that died had written more than the index heard of.
  const Status found = impl->IndexFrom(impl->index->end()).status();
  if (impl->index->made_empty()) {
    HOLDFAST_RETURN_IF_ERROR(found);
  } else {
    found.IgnoreError();  // it is the last second's pages, which a full disk may do without
  }
  impl->files->RemoveDead();
  return std::unique_ptr<FilePageStore>(new FilePageStore(std::move(impl)));
}

// Takes over what the index says, less what is not there any more.
Status FilePageStore::Impl::Recover() {
  IndexBatch stale;
  uint32_t last_file = 0;
  HOLDFAST_RETURN_IF_ERROR(index->ForEach([&](const IndexEntry& entry) {
    last_file = std::max(last_file, entry.place.file);
    if (files->Holds(entry.place)) {
      files->Retain(entry.place);
      catalog.Restore(entry);
    } else {
      stale.deletes.push_back(entry);
    }
  }));
  files->SkipNumbers(last_file);
  // Not durable: the next opening would only do it again.
  return stale.empty() ? Status() : index->Apply(stale, PageIndex::Durability::kLazy);
}

void FilePageStore::DescribeModel(const Digest& fp, std::vector<LayerGroup> groups) {
  std::lock_guard lock(impl_->mu);
  impl_->models[fp] = std::move(groups);
}

// ---- Put ---------------------------------------------------------------------------------------

// The page is no longer found; its index entry and its place go with the next Sync.
void FilePageStore::Impl::ForgetLocked(const PageKey& key) {
  forgotten.push_back(catalog.EntryOf(key));
  catalog.Erase(key);
}

Status FilePageStore::Impl::MakeRoomLocked(uint64_t length) {
  while (catalog.reserved_bytes() + length > options.max_bytes) {
    const std::optional<PageKey> victim = catalog.EvictionCandidate();
    if (!victim) {
      return Status::Exhausted("page store: no room for " + std::to_string(length) +
                               " bytes under the limit of " + std::to_string(options.max_bytes));
    }
    ForgetLocked(*victim);
  }
  return Status();
}

Status FilePageStore::Impl::CheckFreeSpace(uint64_t length) {
  {
    std::lock_guard lock(mu);
    bytes_since_free_check += length;
    if (bytes_since_free_check < kFreeCheckBytes) return Status();
  }
  HOLDFAST_ASSIGN_OR_RETURN(const uint64_t free, options.env->FreeBytes(options.path));
  if (free < options.min_free_bytes + length) {
    return Status::Exhausted("page store: " + options.path + " has only " + std::to_string(free) +
                             " bytes free");
  }
  std::lock_guard lock(mu);
  bytes_since_free_check = 0;
  return Status();
}

// `place` has a length as soon as bytes may have been written there.
Status FilePageStore::Impl::WriteRecord(const PageHeader& header,
                                        std::span<const std::span<const std::byte>> payload,
                                        PagePlace* place, RecordTag* tag) {
  std::vector<LayerGroup> shapes;
  {
    std::lock_guard lock(mu);
    const auto it = models.find(header.fp);
    if (it != models.end()) shapes = it->second;
  }
  std::array<std::byte, kRecordHeaderBytes> bytes;
  HOLDFAST_RETURN_IF_ERROR(EncodeRecordHeader(header, shapes, payload, bytes));
  *tag = TagInHeader(bytes);
  const uint64_t length = LengthOf(payload);
  HOLDFAST_RETURN_IF_ERROR(CheckFreeSpace(length));
  HOLDFAST_ASSIGN_OR_RETURN(*place, files->Reserve(length));
  return files->Write(*place, RecordParts<const std::byte>(bytes, payload, kZeros));
}

Status FilePageStore::Put(const PageHeader& header,
                          std::span<const std::span<const std::byte>> payload) {
  Impl& s = *impl_;
  const uint64_t length = LengthOf(payload);
  uint64_t number = 0;
  {
    std::lock_guard lock(s.mu);
    if (s.catalog.Find(header.key) != nullptr) return Status();
    if (s.forgotten.size() >= Impl::kMaxForgotten) {
      return Status::Unavailable("page store: its index takes no changes");
    }
    // Counted as a child before room is made, so that its own parent does not have to go for it.
    s.catalog.Begin(header.key, header.parent, 0);
    Status room = s.MakeRoomLocked(length);
    s.catalog.Erase(header.key);
    HOLDFAST_RETURN_IF_ERROR(room);
    s.catalog.Begin(header.key, header.parent, length);
    number = s.next_put++;
    s.writing.emplace(number, header.key);
  }
  RecordTag tag;
  PagePlace place;
  Status status = s.WriteRecord(header, payload, &place, &tag);
  {
    std::lock_guard lock(s.mu);
    s.writing.erase(number);
    if (status.ok() && s.files->Spoiled(place.file)) {
      // A sync has failed since the write, perhaps with what was written.
      status = Status::Io("page store: a sync failed");
    }
    if (place.length > 0) s.catalog.Written(header.key, place, tag);
    if (status.ok()) {
      s.unsynced.push_back(header.key);
      ++s.stats.puts;
    } else if (place.length > 0) {
      s.ForgetLocked(header.key);  // a write that fails may leave all of the record
    } else {
      s.catalog.Erase(header.key);
    }
    if (status.code() == Code::kIo) ++s.stats.io_errors;
  }
  s.written.notify_all();
  return status;
}

// ---- Sync --------------------------------------------------------------------------------------

// Makes what was written durable; forgets what was written to files for which that failed.
Status FilePageStore::Impl::SyncFiles() {
  const Status status = files->Sync();
  if (status.ok()) return status;
  std::lock_guard lock(mu);
  ++stats.io_errors;
  std::erase_if(unsynced, [&](const PageKey& key) {
    if (!files->Spoiled(catalog.Find(key)->place.file)) return false;
    ForgetLocked(key);
    return true;
  });
  return status;
}

// Applies `batch` and the deletion of what was forgotten, then gives the places back. On failure
// the forgotten wait for the next time.
Status FilePageStore::Impl::ApplyForgotten(IndexBatch* batch,
                                           std::vector<IndexEntry>* forgetting) {
  batch->deletes = *forgetting;
  if (batch->empty()) return Status();
  const Status status = index->Apply(*batch, PageIndex::Durability::kSynced);
  if (!status.ok()) {
    std::lock_guard lock(mu);
    ++stats.io_errors;
    forgotten.insert(forgotten.end(), forgetting->begin(), forgetting->end());
    return status;
  }
  for (const IndexEntry& e : *forgetting) files->Release(e.place, PageFiles::Space::kPunch);
  return Status();
}

// Until those that have begun by now have ended.
void FilePageStore::Impl::WaitForPuts(std::unique_lock<std::mutex>* lock) {
  const uint64_t end = next_put;
  written.wait(*lock, [&] { return writing.empty() || writing.begin()->first >= end; });
}

Status FilePageStore::Sync() {
  std::lock_guard lock(impl_->sync_mu);
  return impl_->SyncLocked();
}

// With sync_mu held, which keeps `keys` in the catalog: what readers and Puts erase is kIndexed.
Status FilePageStore::Impl::SyncLocked() {
  std::vector<PageKey> keys;
  {
    // Puts that began before are part of it; one that begins later may be.
    std::unique_lock lock(mu);
    WaitForPuts(&lock);
    if (unsynced.empty() && forgotten.empty()) return Status();
    keys = unsynced;
  }
  const Status sync = SyncFiles();
  IndexBatch batch;
  std::vector<IndexEntry> forgetting;
  {
    std::lock_guard lock(mu);
    const std::set<PageKey> still_there(unsynced.begin(), unsynced.end());
    std::erase_if(keys, [&](const PageKey& key) { return !still_there.contains(key); });
    const std::set<PageKey> taken(keys.begin(), keys.end());
    std::erase_if(unsynced, [&](const PageKey& key) { return taken.contains(key); });
    batch.puts = catalog.TakeTouched();
    for (const PageKey& key : keys) batch.puts.push_back(catalog.EntryOf(key));
    forgetting.swap(forgotten);
  }
  const Status indexed = ApplyForgotten(&batch, &forgetting);
  std::lock_guard lock(mu);
  for (const PageKey& key : keys) {
    if (indexed.ok()) {
      catalog.Indexed(key);
    } else {
      ForgetLocked(key);  // the index may have it after all
    }
  }
  return sync.ok() ? indexed : sync;
}

// ---- Get, Contains, Delete ---------------------------------------------------------------------

Status FilePageStore::Impl::ReadRecord(const PageHeader& expect, const CatalogEntry& entry,
                                       std::span<const std::span<std::byte>> payload) {
  if (LengthOf(payload) != entry.place.length) {
    return Status::Corrupt("page store: page " + expect.key.Hex() + " has another length");
  }
  std::array<std::byte, kRecordHeaderBytes> bytes;
  std::vector<std::byte> padding(payload.size() * kRecordAlign);
  HOLDFAST_RETURN_IF_ERROR(files->Read(
      entry.place, RecordParts<std::byte>(bytes, payload, padding)));
  HOLDFAST_ASSIGN_OR_RETURN(const RecordHeader header, DecodeRecordHeader(bytes));
  if (!SamePage(header.page, expect) || header.tag != entry.tag) {
    return Status::Corrupt("page store: page " + expect.key.Hex() + " is not what it must be");
  }
  if (!IsZeros(padding)) return Status::Corrupt("page store: padding of " + expect.key.Hex());
  const std::vector<std::span<const std::byte>> views(payload.begin(), payload.end());
  return VerifyRecordPayloads(header, bytes, views);
}

Status FilePageStore::Get(const PageHeader& expect,
                          std::span<const std::span<std::byte>> payload) {
  Impl& s = *impl_;
  std::unique_lock lock(s.mu);
  ++s.stats.gets;
  for (int moves = 0; moves <= kMaxMoves; ++moves) {
    const CatalogEntry* found = s.catalog.Find(expect.key);
    if (found == nullptr || found->state != PageState::kIndexed) {
      ++s.stats.get_misses;
      return Status::NotFound("page store: no page " + expect.key.Hex());
    }
    if (moves == 0) s.catalog.Touch(expect.key);
    const CatalogEntry entry = *found;
    lock.unlock();
    Status status = s.ReadRecord(expect, entry, payload);
    if (status.ok()) return status;
    lock.lock();
    found = s.catalog.Find(expect.key);
    if (found == nullptr || !(found->place == entry.place)) continue;  // deleted or moved meanwhile
    ++(status.code() == Code::kIo ? s.stats.io_errors : s.stats.corrupt);
    s.ForgetLocked(expect.key);
    if (status.code() == Code::kIo) return status;
    return Status::Corrupt(status.message());
  }
  return Status::Unavailable("page store: page " + expect.key.Hex() + " is being moved");
}

bool FilePageStore::Contains(const PageKey& key) {
  std::lock_guard lock(impl_->mu);
  const CatalogEntry* entry = impl_->catalog.Find(key);
  return entry != nullptr && entry->state == PageState::kIndexed;
}

void FilePageStore::Renew(std::span<const PageKey> keys) {
  std::lock_guard lock(impl_->mu);
  for (const PageKey& key : keys) {
    const CatalogEntry* entry = impl_->catalog.Find(key);
    if (entry != nullptr && entry->state == PageState::kIndexed) impl_->catalog.Renew(key);
  }
}

Status FilePageStore::Delete(const PageKey& key) {
  Impl& s = *impl_;
  std::lock_guard sync_lock(s.sync_mu);
  IndexBatch batch;
  std::vector<IndexEntry> forgetting;
  {
    std::unique_lock lock(s.mu);
    s.written.wait(lock, [&] {
      const CatalogEntry* entry = s.catalog.Find(key);
      return entry == nullptr || entry->state != PageState::kWriting;
    });
    if (s.catalog.Find(key) != nullptr) {
      std::erase(s.unsynced, key);
      s.ForgetLocked(key);
    }
    // What was forgotten before goes too: a deletion may be the second try of one that failed.
    forgetting.swap(s.forgotten);
  }
  return s.ApplyForgotten(&batch, &forgetting);
}

StoreStats FilePageStore::stats() {
  const std::vector<PageFiles::Usage> usage = impl_->files->usage();
  std::lock_guard lock(impl_->mu);
  StoreStats stats = impl_->stats;
  stats.pages = impl_->catalog.pages();
  stats.bytes = impl_->catalog.bytes();
  stats.bytes_max = impl_->options.max_bytes;
  for (const PageFiles::Usage& u : usage) stats.dead_bytes += u.bytes - u.live;
  return stats;
}

// ---- Compact -----------------------------------------------------------------------------------

bool FilePageStore::Impl::PickFileToCompact() {
  if (!to_move.empty()) return true;
  uint64_t most_dead = 0;
  for (const PageFiles::Usage& u : files->usage()) {
    const uint64_t dead = u.bytes - u.live;
    if (u.active || dead * 2 <= u.bytes || dead <= most_dead) continue;
    most_dead = dead;
    compacting = u.file;
  }
  if (most_dead == 0) return false;
  std::lock_guard lock(mu);
  to_move = catalog.KeysIn(compacting);
  std::reverse(to_move.begin(), to_move.end());
  return !to_move.empty();
}

// Reads the whole record of an entry into `bytes`, which `record` looks into, and verifies it.
Status FilePageStore::Impl::ReadSound(const IndexEntry& entry, std::vector<std::byte>* bytes,
                                      DecodedRecord* record) {
  bytes->resize(entry.place.length);
  const std::span<std::byte> whole(*bytes);
  HOLDFAST_RETURN_IF_ERROR(files->Read(entry.place, {&whole, 1}));
  HOLDFAST_ASSIGN_OR_RETURN(*record, DecodeRecord(*bytes));
  if (record->header.page.key == entry.key && record->header.tag == entry.tag) return Status();
  return Status::Corrupt("page store: another record");
}

// Copies the record of `key`, if it is still there, and adds its new entry to `moved`. Returns its
// length, 0 when there was nothing to copy. A record that is no longer sound is forgotten.
Result<uint64_t> FilePageStore::Impl::MoveRecord(const PageKey& key,
                                                 std::vector<Move>* moved) {
  IndexEntry entry;
  {
    std::lock_guard lock(mu);
    const CatalogEntry* found = catalog.Find(key);
    if (found == nullptr || found->place.file != compacting ||
        found->state != PageState::kIndexed) {
      return uint64_t{0};
    }
    entry = catalog.EntryOf(key);
  }
  std::vector<std::byte> bytes;
  DecodedRecord record;
  const Status sound = ReadSound(entry, &bytes, &record);
  if (!sound.ok()) {
    std::lock_guard lock(mu);
    ++(sound.code() == Code::kIo ? stats.io_errors : stats.corrupt);
    const CatalogEntry* found = catalog.Find(key);
    if (found != nullptr && found->place == entry.place) ForgetLocked(key);
    return uint64_t{0};
  }
  const PagePlace from = entry.place;
  HOLDFAST_ASSIGN_OR_RETURN(entry.place, files->Reserve(bytes.size()));
  const std::span<const std::byte> view(bytes);
  Status status = files->Write(entry.place, {&view, 1});
  if (!status.ok()) {
    files->Release(entry.place, PageFiles::Space::kPunch);
    return status;
  }
  moved->push_back({entry, from});
  return static_cast<uint64_t>(bytes.size());
}

// Makes the copies durable, then known.
Status FilePageStore::Impl::PublishMoves(const std::vector<Move>& moved) {
  HOLDFAST_RETURN_IF_ERROR(SyncFiles());
  IndexBatch batch;
  for (const Move& m : moved) {
    if (files->Spoiled(m.copy.place.file)) return Status::Io("page store: a sync failed");
    batch.puts.push_back(m.copy);
  }
  return index->Apply(batch, PageIndex::Durability::kSynced);
}

Result<uint64_t> FilePageStore::Compact(uint64_t max_bytes) {
  Impl& s = *impl_;
  std::lock_guard sync_lock(s.sync_mu);
  std::vector<Impl::Move> moved;
  uint64_t bytes = 0;
  Status status;
  if (!s.PickFileToCompact()) return bytes;
  while (status.ok() && !s.to_move.empty() && bytes < max_bytes) {
    const Result<uint64_t> step = s.MoveRecord(s.to_move.back(), &moved);
    s.to_move.pop_back();
    status = step.status();
    if (step.ok()) bytes += *step;
  }
  if (!moved.empty()) {
    Status published = s.PublishMoves(moved);
    s.SettleMoves(moved, published.ok() ? Impl::Copies::kPublished : Impl::Copies::kFailed);
    if (status.ok()) status = std::move(published);
  }
  if (!status.ok()) return status;
  return bytes;
}

// Readers go to the copies now, if these are published; one place of each pair is given back.
void FilePageStore::Impl::SettleMoves(const std::vector<Move>& moved, Copies copies) {
  const bool published = copies == Copies::kPublished;
  for (const Move& m : moved) {
    PagePlace dead = m.copy.place;
    {
      std::lock_guard lock(mu);
      const CatalogEntry* found = catalog.Find(m.copy.key);
      // A page that was forgotten meanwhile still waits for its deletion from the index.
      if (published && found != nullptr && found->place == m.from) {
        catalog.Move(m.copy.key, m.copy.place);
        dead = m.from;
      }
    }
    files->Release(dead, published ? PageFiles::Space::kPunch : PageFiles::Space::kLeave);
  }
}

// ---- RebuildIndex ------------------------------------------------------------------------------

// Finds the records of one file, from `offset` on, by their headers; whether they are sound is
// AddFound's to see.
Status FilePageStore::Impl::ScanFile(const PageFiles::Usage& usage, uint64_t offset,
                                     std::vector<IndexEntry>* found) {
  std::array<std::byte, kRecordHeaderBytes> bytes;
  const std::span<std::byte> whole(bytes);
  while (offset + kRecordHeaderBytes <= usage.bytes) {
    const Status read = files->Read({usage.file, offset, kRecordHeaderBytes}, {&whole, 1});
    if (read.code() == Code::kCorrupt) return Status();  // a torn tail
    HOLDFAST_RETURN_IF_ERROR(read);
    Result<RecordHeader> header = DecodeRecordHeader(bytes);
    if (!header.ok() || header->record_bytes > usage.bytes - offset) {
      header.status().IgnoreError();
      offset += kRecordAlign;
      continue;
    }
    const PagePlace place{usage.file, offset, header->record_bytes};
    found->push_back({header->page.key, header->page.parent, place, header->tag, 0});
    offset += header->record_bytes;
  }
  return Status();
}

// Indexes the sound ones of `found` that are not known, and empties it. A record that a crash has
// torn has its header too: an entry for it would name what is not on the disk. So would one for
// what a killed process had not synced: its files are synced first.
Status FilePageStore::Impl::AddFound(std::vector<IndexEntry>* found, uint64_t* added) {
  IndexBatch batch;
  std::set<PageKey> seen;
  {
    std::lock_guard lock(mu);
    std::erase_if(*found, [&](const IndexEntry& e) { return catalog.Find(e.key) != nullptr; });
  }
  std::vector<std::byte> bytes;
  DecodedRecord record;
  for (const IndexEntry& e : *found) {
    if (seen.contains(e.key) || !ReadSound(e, &bytes, &record).ok()) continue;
    seen.insert(e.key);
    batch.puts.push_back(e);
    files->MarkUnsynced(e.place.file);
  }
  found->clear();
  if (batch.empty()) return Status();
  HOLDFAST_RETURN_IF_ERROR(SyncFiles());
  HOLDFAST_RETURN_IF_ERROR(index->Apply(batch, PageIndex::Durability::kSynced));
  std::lock_guard lock(mu);
  for (const IndexEntry& e : batch.puts) {
    if (catalog.Find(e.key) != nullptr) continue;  // put meanwhile: the next Sync says where
    files->Retain(e.place);
    catalog.Restore(e);
    ++*added;
  }
  return Status();
}

// Indexes the sound records at and behind `from` that the index does not know, with sync_mu held.
Result<uint64_t> FilePageStore::Impl::IndexFrom(const PagePlace& from) {
  uint64_t added = 0;
  std::vector<IndexEntry> found;
  for (const PageFiles::Usage& usage : files->usage()) {
    if (usage.file < from.file) continue;
    const uint64_t offset = usage.file == from.file ? from.offset : 0;
    HOLDFAST_RETURN_IF_ERROR(ScanFile(usage, offset, &found));
    if (found.size() >= kRebuildBatch) HOLDFAST_RETURN_IF_ERROR(AddFound(&found, &added));
  }
  HOLDFAST_RETURN_IF_ERROR(AddFound(&found, &added));
  return added;
}

Result<uint64_t> FilePageStore::RebuildIndex() {
  std::lock_guard sync_lock(impl_->sync_mu);
  return impl_->IndexFrom({});
}

}  // namespace holdfast

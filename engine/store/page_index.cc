#include "engine/store/page_index.h"

#include <rocksdb/db.h>
#include <rocksdb/listener.h>
#include <rocksdb/options.h>
#include <rocksdb/write_batch.h>

#include <cstring>
#include <exception>
#include <tuple>

namespace holdfast {

namespace {

// Value of an entry: version u8, file u32, offset u64, length u64, last use u64, tag, parent.
constexpr uint8_t kEntryVersion = 1;
constexpr size_t kValueBytes = 1 + 4 + 8 + 8 + 8 + 16 + 32;

// The key of end(), which no page has. Its value: version u8, file u32, offset u64.
constexpr char kEndKey[] = "end";
constexpr size_t kEndBytes = 1 + 4 + 8;

Status FromRocks(const rocksdb::Status& s, const char* what) {
  if (s.ok()) return Status();
  const std::string text = std::string("page index: ") + what + ": " + s.ToString();
  if (s.IsNoSpace() || text.find("No space left") != std::string::npos) {
    return Status::Exhausted(text);
  }
  if (s.IsCorruption()) return Status::Corrupt(text);
  return Status::Io(text);
}

// Runs `call`, turning what RocksDB or the C++ library throws into a Status.
template <typename Call>
Status Guarded(const char* what, Call call) {
  try {
    return call();
  } catch (const std::exception& e) {
    return Status::Io(std::string("page index: ") + what + ": " + e.what());
  }
}

// RocksDB's own recovery from write errors is not for us: it polls every 5 s, and in Debian's build
// (which has asserts) Resume aborts the process when it touches the log that failed. We reopen.
class NoAutomaticRecovery : public rocksdb::EventListener {
 public:
  void OnErrorRecoveryBegin(rocksdb::BackgroundErrorReason, rocksdb::Status,
                            bool* automatic) override {
    *automatic = false;
  }
};

rocksdb::Options RocksOptions(rocksdb::Env* env) {
  rocksdb::Options o;
  if (env != nullptr) o.env = env;
  o.create_if_missing = true;
  o.compression = rocksdb::kNoCompression;  // hashes do not compress
  o.write_buffer_size = 4 << 20;
  o.max_background_jobs = 2;
  o.max_open_files = 64;
  o.info_log_level = rocksdb::ERROR_LEVEL;
  o.keep_log_file_num = 2;
  o.max_log_file_size = 1 << 20;
  o.max_bgerror_resume_count = 0;
  o.avoid_flush_during_shutdown = true;  // what was synced is in its log
  o.listeners.push_back(std::make_shared<NoAutomaticRecovery>());
  o.wal_recovery_mode = rocksdb::WALRecoveryMode::kPointInTimeRecovery;
  return o;
}

template <typename T>
void Append(std::string* out, T value) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

rocksdb::Slice KeySlice(const PageKey& key) {
  return {reinterpret_cast<const char*>(key.bytes.data()), key.bytes.size()};
}

std::string EncodeValue(const IndexEntry& e) {
  std::string value;
  value.reserve(kValueBytes);
  Append<uint8_t>(&value, kEntryVersion);
  Append<uint32_t>(&value, e.place.file);
  Append<uint64_t>(&value, e.place.offset);
  Append<uint64_t>(&value, e.place.length);
  Append<uint64_t>(&value, e.last_use);
  value.append(reinterpret_cast<const char*>(e.tag.data()), e.tag.size());
  value.append(reinterpret_cast<const char*>(e.parent.bytes.data()), e.parent.bytes.size());
  return value;
}

bool DecodeEntry(const rocksdb::Slice& key, const rocksdb::Slice& value, IndexEntry* e) {
  if (key.size() != 32 || value.size() != kValueBytes) return false;
  const char* at = value.data();
  if (static_cast<uint8_t>(*at) != kEntryVersion) return false;
  ++at;
  auto take = [&](void* out, size_t size) {
    std::memcpy(out, at, size);
    at += size;
  };
  take(&e->place.file, 4);
  take(&e->place.offset, 8);
  take(&e->place.length, 8);
  take(&e->last_use, 8);
  take(e->tag.data(), e->tag.size());
  take(e->parent.bytes.data(), e->parent.bytes.size());
  std::memcpy(e->key.bytes.data(), key.data(), key.size());
  return true;
}

std::string EncodeEnd(const PagePlace& end) {
  std::string value;
  Append<uint8_t>(&value, kEntryVersion);
  Append<uint32_t>(&value, end.file);
  Append<uint64_t>(&value, end.offset);
  return value;
}

bool DecodeEnd(const std::string& value, PagePlace* end) {
  if (value.size() != kEndBytes || static_cast<uint8_t>(value[0]) != kEntryVersion) return false;
  std::memcpy(&end->file, value.data() + 1, 4);
  std::memcpy(&end->offset, value.data() + 5, 8);
  return true;
}

// Moves `end` behind `place` where it is not.
void Extend(const PagePlace& place, PagePlace* end) {
  const PagePlace behind{place.file, place.offset + place.length, 0};
  if (std::tie(behind.file, behind.offset) > std::tie(end->file, end->offset)) *end = behind;
}

}  // namespace

struct PageIndex::Impl {
  std::string path;
  rocksdb::Options rocks;
  std::unique_ptr<rocksdb::DB> db;  // null after a write that failed, until it is opened again

  Status Open() {
    return Guarded("open", [&] {
      rocksdb::DB* opened = nullptr;
      const rocksdb::Status s = rocksdb::DB::Open(rocks, path, &opened);
      db.reset(opened);
      return FromRocks(s, "open");
    });
  }
};

PageIndex::PageIndex(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

PageIndex::~PageIndex() = default;

Result<std::unique_ptr<PageIndex>> PageIndex::Open(const Options& options) {
  auto impl = std::make_unique<Impl>();
  impl->path = options.path;
  impl->rocks = RocksOptions(options.env);
  const bool existed = impl->rocks.env->FileExists(options.path + "/CURRENT").ok();
  Status status = impl->Open();
  bool replaced = false;
  if (status.code() == Code::kCorrupt) {
    HOLDFAST_RETURN_IF_ERROR(Guarded("replace", [&] {
      return FromRocks(rocksdb::DestroyDB(options.path, impl->rocks), "replacing a damaged index");
    }));
    replaced = true;
    status = impl->Open();
  }
  HOLDFAST_RETURN_IF_ERROR(status);
  std::unique_ptr<PageIndex> index(new PageIndex(std::move(impl)));
  index->made_empty_ = !existed || replaced;
  HOLDFAST_RETURN_IF_ERROR(index->ReadEnd());
  return index;
}

Status PageIndex::ReadEnd() {
  return Guarded("end", [&]() -> Status {
    std::string value;
    const rocksdb::Status s = impl_->db->Get(rocksdb::ReadOptions(), kEndKey, &value);
    if (s.IsNotFound()) return Status();  // new, or of before there was one: all is searched
    if (s.ok() && !DecodeEnd(value, &end_)) return Status::Corrupt("page index: its end");
    return FromRocks(s, "end");
  });
}

Status PageIndex::ForEach(const std::function<void(const IndexEntry&)>& visit) {
  return Guarded("scan", [&]() -> Status {
    const std::unique_ptr<rocksdb::Iterator> it(impl_->db->NewIterator(rocksdb::ReadOptions()));
    for (it->SeekToFirst(); it->Valid(); it->Next()) {
      if (it->key() == kEndKey) continue;
      IndexEntry entry;
      if (!DecodeEntry(it->key(), it->value(), &entry)) {
        return Status::Corrupt("page index: an entry that is not one");
      }
      visit(entry);
    }
    return FromRocks(it->status(), "scan");
  });
}

Status PageIndex::Apply(const IndexBatch& batch, Durability durability) {
  return Guarded("write", [&]() -> Status {
    if (impl_->db == nullptr) HOLDFAST_RETURN_IF_ERROR(impl_->Open());
    rocksdb::WriteBatch writes;
    for (const IndexEntry& e : batch.deletes) {
      writes.Delete(KeySlice(e.key));
      Extend(e.place, &end_);
    }
    for (const IndexEntry& e : batch.puts) {
      writes.Put(KeySlice(e.key), EncodeValue(e));
      Extend(e.place, &end_);
    }
    writes.Put(kEndKey, EncodeEnd(end_));
    rocksdb::WriteOptions options;
    options.sync = durability == Durability::kSynced;
    const rocksdb::Status s = impl_->db->Write(options, &writes);
    if (!s.ok()) impl_->db.reset();
    return FromRocks(s, "write");
  });
}

}  // namespace holdfast

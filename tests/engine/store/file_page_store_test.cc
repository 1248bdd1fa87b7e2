#include "engine/store/file_page_store.h"

#include <doctest/doctest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <future>
#include <random>
#include <set>
#include <thread>

#include "engine/store/page_index.h"
#include "engine/store/page_record.h"
#include "tests/engine/base/fault_env.h"
#include "tests/engine/base/hook_env.h"
#include "tests/engine/base/power_disk.h"
#include "tests/engine/base/stall_disk.h"
#include "tests/engine/base/temp_dir.h"
#include "tests/engine/kv/page_store_contract.h"
#include "tests/engine/store/fault_index_env.h"

namespace holdfast {
namespace {

using testing::DiskOp;
using testing::FaultEnv;
using testing::FaultIndexEnv;
using testing::HookEnv;
using testing::StallDisk;
using testing::TempDir;

// A store whose page files are in memory and whose index is in a folder of its own.
struct Fixture {
  explicit Fixture(uint64_t seed = 1) : env(seed) {
    options.path = dir.path();
    options.env = &env;
    options.index_env = index_env.env();
    options.max_file_bytes = 4 * 12288;  // four of the sample's records
  }
  void Open() {
    store.reset();
    Result<std::unique_ptr<FilePageStore>> opened = FilePageStore::Open(options);
    REQUIRE_MESSAGE(opened.ok(), opened.status().ToString());
    store = std::move(opened).value();
  }
  void LoseIndex() {
    store.reset();
    std::filesystem::remove_all(dir.File("index"));
  }
  std::string FileName(int n) const {
    return dir.path() + "/pages-00000" + std::to_string(n) + ".hf";
  }

  TempDir dir;
  FaultEnv env;
  FaultIndexEnv index_env;
  FilePageStore::Options options;
  std::unique_ptr<FilePageStore> store;
};

// A page of a chain: page n continues page n-1. 12288 bytes on disk.
PageRecordSample Page(uint8_t n) {
  PageRecordSample sample(n, {4000, 100});
  sample.header.parent.bytes.fill(static_cast<uint8_t>(n - 1));
  return sample;
}

// A page that nothing continues.
PageRecordSample Lone(uint8_t n) {
  PageRecordSample sample(n, {4000, 100});
  sample.header.parent.bytes.fill(0);
  return sample;
}

Status Put(FilePageStore* store, const PageRecordSample& sample) {
  return store->Put(sample.header, sample.views());
}

// kOk only with the sample's bytes.
Code GetAndCompare(FilePageStore* store, const PageRecordSample& sample) {
  std::vector<std::vector<std::byte>> got;
  for (const auto& group : sample.payload) got.emplace_back(group.size());
  const std::vector<std::span<std::byte>> spans(got.begin(), got.end());
  const Status s = store->Get(sample.header, spans);
  if (s.ok() && got != sample.payload) FAIL("other bytes than were put");
  return s.code();
}

TEST_CASE("page files keep the contract of page stores") {
  std::vector<std::unique_ptr<TempDir>> dirs;
  RealEnv env;
  PageStoreContract([&]() -> std::unique_ptr<PageStore> {
    dirs.push_back(std::make_unique<TempDir>());
    FilePageStore::Options options;
    options.path = dirs.back()->path();
    options.env = &env;
    Result<std::unique_ptr<FilePageStore>> store = FilePageStore::Open(options);
    REQUIRE_MESSAGE(store.ok(), store.status().ToString());
    return std::move(store).value();
  }).RunAll();
}

TEST_CASE("pages outlive a power cut once they are synced") {
  Fixture f;
  f.Open();
  for (uint8_t n = 1; n <= 10; ++n) REQUIRE(Put(f.store.get(), Page(n)).ok());
  CHECK_FALSE(f.store->Contains(Page(1).header.key));
  REQUIRE(f.store->Sync().ok());
  f.store.reset();
  f.env.Crash();
  f.Open();
  for (uint8_t n = 1; n <= 10; ++n) CHECK(GetAndCompare(f.store.get(), Page(n)) == Code::kOk);
  CHECK(f.store->stats().pages == 10);
  CHECK(f.store->stats().bytes == 10 * 12288);
  CHECK(f.store->stats().dead_bytes == 0);
}

TEST_CASE("pages outlive the process once they are put, and from its next start on a power cut") {
  Fixture f;
  f.Open();
  for (uint8_t n = 1; n <= 2; ++n) REQUIRE(Put(f.store.get(), Page(n)).ok());
  REQUIRE(f.store->Sync().ok());
  for (uint8_t n = 3; n <= 10; ++n) REQUIRE(Put(f.store.get(), Page(n)).ok());
  f.Open();
  for (uint8_t n = 1; n <= 10; ++n) CHECK(GetAndCompare(f.store.get(), Page(n)) == Code::kOk);
  f.store.reset();
  f.env.Crash();
  f.Open();
  for (uint8_t n = 1; n <= 10; ++n) CHECK(GetAndCompare(f.store.get(), Page(n)) == Code::kOk);
  CHECK(f.store->stats().dead_bytes == 0);
}

TEST_CASE("a page that was deleted before it was synced does not come back") {
  Fixture f;
  f.Open();
  for (uint8_t n = 1; n <= 3; ++n) REQUIRE(Put(f.store.get(), Lone(n)).ok());
  f.env.FailAt(1, FaultEnv::Fault::kIoError, FaultEnv::Repeat::kOnce);  // its hole is not punched
  REQUIRE(f.store->Delete(Lone(3).header.key).ok());
  REQUIRE(f.env.faults() == 1);
  REQUIRE(Put(f.store.get(), Lone(4)).ok());
  f.Open();
  CHECK(GetAndCompare(f.store.get(), Lone(3)) == Code::kNotFound);
  CHECK(GetAndCompare(f.store.get(), Lone(4)) == Code::kOk);
}

TEST_CASE("a described model's payloads must have its lengths, and its records say its shape") {
  Fixture f;
  f.Open();
  const LayerGroup group{KvKind::kKv, 0, 2, 3, 8, 8, KvType::kF16, KvType::kF16, 0, 1};
  PageRecordSample good(1, {group.PayloadBytes()}), bad(2, {group.PayloadBytes() - 1});
  f.store->DescribeModel(good.header.fp, {group});
  CHECK(Put(f.store.get(), good).ok());
  CHECK(Put(f.store.get(), bad).code() == Code::kInvalid);
  REQUIRE(f.store->Sync().ok());
  CHECK(GetAndCompare(f.store.get(), good) == Code::kOk);
  auto file = f.env.Open(f.FileName(1), FileMode::kRead);
  REQUIRE(file.ok());
  std::vector<std::byte> header(kRecordHeaderBytes);
  const std::span<std::byte> part(header);
  REQUIRE((*file)->ReadAt(0, {&part, 1}).ok());
  Result<RecordHeader> decoded = DecodeRecordHeader(header);
  REQUIRE(decoded.ok());
  CHECK(decoded->groups[0].shape == group);
}

TEST_CASE("over the byte limit the least recently used leaf goes; its place is reused after Sync") {
  Fixture f;
  f.options.max_bytes = 4 * 12288;
  f.Open();
  for (uint8_t n : {1, 2}) REQUIRE(Put(f.store.get(), Page(n)).ok());  // a chain of two
  for (uint8_t n : {11, 12}) REQUIRE(Put(f.store.get(), Lone(n)).ok());
  CHECK(Put(f.store.get(), Lone(13)).code() == Code::kExhausted);  // nothing is indexed yet
  REQUIRE(f.store->Sync().ok());
  CHECK(GetAndCompare(f.store.get(), Lone(11)) == Code::kOk);
  CHECK(GetAndCompare(f.store.get(), Page(1)) == Code::kOk);
  REQUIRE(Put(f.store.get(), Lone(13)).ok());  // 2 goes: page 1 is newer, 11 was used
  REQUIRE(Put(f.store.get(), Lone(14)).ok());  // 12 goes
  REQUIRE(f.store->Sync().ok());
  f.Open();
  std::set<int> there;
  for (uint8_t n : {1, 2}) if (f.store->Contains(Page(n).header.key)) there.insert(n);
  for (uint8_t n : {11, 12, 13, 14}) if (f.store->Contains(Lone(n).header.key)) there.insert(n);
  CHECK(there == std::set<int>{1, 11, 13, 14});
  CHECK(f.store->stats().bytes == 4 * 12288);
  CHECK(Put(f.store.get(), PageRecordSample(20, {5 * 12288})).code() == Code::kExhausted);
}

TEST_CASE("renewed pages go last when over the byte limit") {
  Fixture f;
  f.options.max_bytes = 3 * 12288;
  f.Open();
  CHECK(f.store->stats().bytes_max == 3 * 12288);
  for (uint8_t n : {1, 2, 3}) REQUIRE(Put(f.store.get(), Lone(n)).ok());
  f.store->Renew(std::vector<PageKey>{Lone(1).header.key});  // not indexed yet: nothing to do
  REQUIRE(f.store->Sync().ok());
  f.store->Renew(std::vector<PageKey>{Lone(2).header.key, Lone(9).header.key, Lone(1).header.key});
  REQUIRE(Put(f.store.get(), Lone(4)).ok());
  CHECK_FALSE(f.store->Contains(Lone(3).header.key));
  REQUIRE(Put(f.store.get(), Lone(5)).ok());
  CHECK_FALSE(f.store->Contains(Lone(2).header.key));
  CHECK(f.store->Contains(Lone(1).header.key));
}

TEST_CASE("a page does not push out its own parent") {
  Fixture f;
  f.options.max_bytes = 2 * 12288;
  f.Open();
  for (uint8_t n : {1, 2}) REQUIRE(Put(f.store.get(), Page(n)).ok());
  REQUIRE(f.store->Sync().ok());
  CHECK(Put(f.store.get(), Page(3)).code() == Code::kExhausted);
  CHECK(GetAndCompare(f.store.get(), Page(2)) == Code::kOk);
}

TEST_CASE("little free space makes Put refuse, not fail") {
  Fixture f;
  f.Open();
  f.env.SetFreeBytes(f.options.min_free_bytes);
  const int before = f.env.operations();
  CHECK(Put(f.store.get(), Page(1)).code() == Code::kExhausted);
  CHECK(f.env.operations() == before);
  f.env.SetFreeBytes(uint64_t{1} << 40);
  CHECK(Put(f.store.get(), Page(1)).ok());
}

TEST_CASE("deleting punches a hole, and unlinks a file that holds nothing") {
  Fixture f;
  f.Open();
  for (uint8_t n = 1; n <= 8; ++n) REQUIRE(Put(f.store.get(), Page(n)).ok());
  REQUIRE(f.store->Sync().ok());
  REQUIRE(Put(f.store.get(), Page(9)).ok());
  REQUIRE(f.store->Sync().ok());
  const uint64_t before = f.env.BytesThatAreNotZero(f.FileName(1));
  CHECK(f.store->Delete(Page(1).header.key).ok());
  CHECK(f.env.BytesThatAreNotZero(f.FileName(1)) < before);
  for (uint8_t n = 2; n <= 4; ++n) CHECK(f.store->Delete(Page(n).header.key).ok());
  CHECK_FALSE(f.env.Exists(f.FileName(1)));
  CHECK(f.env.Exists(f.FileName(2)));
  f.Open();
  for (uint8_t n = 1; n <= 4; ++n) {
    CHECK(GetAndCompare(f.store.get(), Page(n)) == Code::kNotFound);
  }
  for (uint8_t n = 5; n <= 9; ++n) CHECK(GetAndCompare(f.store.get(), Page(n)) == Code::kOk);
}

TEST_CASE("a page that was put and not synced can be deleted") {
  Fixture f;
  f.Open();
  REQUIRE(Put(f.store.get(), Page(1)).ok());
  CHECK(f.store->Delete(Page(1).header.key).ok());
  REQUIRE(f.store->Sync().ok());
  CHECK(GetAndCompare(f.store.get(), Page(1)) == Code::kNotFound);
  CHECK(f.env.BytesThatAreNotZero(f.FileName(1)) == 0);
}

TEST_CASE("compaction empties the files that are mostly dead, in small steps") {
  Fixture f;
  f.Open();
  for (uint8_t n = 1; n <= 40; ++n) REQUIRE(Put(f.store.get(), Lone(n)).ok());
  REQUIRE(f.store->Sync().ok());
  for (uint8_t n = 1; n <= 40; ++n) {
    if (n % 4 != 0) REQUIRE(f.store->Delete(Lone(n).header.key).ok());
  }
  CHECK(f.store->stats().dead_bytes == 30 * 12288);
  int steps = 0;
  for (;; ++steps) {
    Result<uint64_t> moved = f.store->Compact(1);
    REQUIRE_MESSAGE(moved.ok(), moved.status().ToString());
    if (*moved == 0) break;
    CHECK(*moved == 12288);
  }
  CHECK(steps >= 9);
  CHECK(f.store->stats().dead_bytes * 2 <= f.store->stats().bytes + f.store->stats().dead_bytes);
  for (int open = 0; open < 2; ++open) {
    for (uint8_t n = 4; n <= 40; n += 4) CHECK(GetAndCompare(f.store.get(), Lone(n)) == Code::kOk);
    f.Open();
  }
  CHECK_FALSE(f.env.Exists(f.FileName(1)));
}

TEST_CASE("a rebuilt index leaves out the records that a crash has torn") {
  Fixture f;
  f.Open();
  for (uint8_t n = 1; n <= 4; ++n) REQUIRE(Put(f.store.get(), Lone(n)).ok());
  REQUIRE(f.store->Sync().ok());
  f.LoseIndex();
  f.env.Damage(f.FileName(1), 12288 + 5000, std::byte{1});  // payload; the header is whole
  f.Open();
  CHECK(f.store->stats().pages == 3);
  CHECK(f.store->CheckAll(FilePageStore::Repair::kNo)->damaged == 0);
  CHECK(GetAndCompare(f.store.get(), Lone(2)) == Code::kNotFound);
}

TEST_CASE("a collection clears what a crash has left, and where no hole can be punched") {
  for (const bool punches : {true, false}) {
    CAPTURE(punches);
    Fixture f;
    f.Open();
    for (uint8_t n = 1; n <= 3; ++n) REQUIRE(Put(f.store.get(), Lone(n)).ok());
    REQUIRE(f.store->Sync().ok());
    f.LoseIndex();
    f.env.Damage(f.FileName(1), 12288 + 5000, std::byte{1});  // of a record that is then no page's
    f.Open();
    REQUIRE(f.store->stats().pages == 2);
    const uint64_t before = f.env.BytesThatAreNotZero(f.FileName(1));
    if (!punches) f.env.FailAt(1, FaultEnv::Fault::kIoError, FaultEnv::Repeat::kOnce);
    const auto deleted =
        f.store->Collect([] { return KeepPage([](const PageKey&) { return true; }); });
    REQUIRE_MESSAGE(deleted.ok(), deleted.status().ToString());
    CHECK(deleted->pages == 0);
    CHECK(f.env.faults() == (punches ? 0 : 1));
    const uint64_t after = f.env.BytesThatAreNotZero(f.FileName(1));
    CHECK(after < before * 3 / 4);
    CHECK(after > before / 2);
    for (const uint8_t n : {1, 3}) CHECK(GetAndCompare(f.store.get(), Lone(n)) == Code::kOk);
    const auto check = f.store->CheckAll(FilePageStore::Repair::kNo);
    CHECK(check->damaged == 0);
    CHECK(check->unaccounted_bytes == 0);
    CHECK(check->dead_bytes == 12288);
  }
}

TEST_CASE("a collection deletes many pages at once, durably") {
  Fixture f;
  f.options.max_file_bytes = uint64_t{1} << 30;
  f.Open();
  for (uint8_t n = 1; n <= 200; ++n) REQUIRE(Put(f.store.get(), Lone(n)).ok());
  REQUIRE(f.store->Sync().ok());
  const auto deleted = f.store->Collect(
      [] { return KeepPage([](const PageKey& key) { return key.bytes[0] % 50 == 0; }); });
  REQUIRE(deleted.ok());
  CHECK(deleted->pages == 196);
  CHECK(deleted->bytes == 196 * 12288);
  for (int open = 0; open < 2; ++open) {
    CHECK(f.store->stats().pages == 4);
    const auto check = f.store->CheckAll(FilePageStore::Repair::kRepair);
    CHECK(check->pages == 4);
    CHECK(check->unindexed == 0);
    f.store.reset();
    f.env.Crash();
    f.Open();
  }
}

TEST_CASE("a check accounts for every byte of the page files") {
  Fixture f;
  f.Open();
  for (uint8_t n = 1; n <= 10; ++n) REQUIRE(Put(f.store.get(), Lone(n)).ok());
  REQUIRE(f.store->Sync().ok());
  REQUIRE(f.store->Delete(Lone(2).header.key).ok());
  REQUIRE(f.store->Delete(Lone(7).header.key).ok());
  auto check = f.store->CheckAll(FilePageStore::Repair::kNo);
  CHECK(check->file_bytes == 10 * 12288);
  CHECK(check->bytes == 8 * 12288);
  CHECK(check->dead_bytes == 2 * 12288);
  CHECK(check->unindexed_bytes == 0);
  CHECK(check->unaccounted_bytes == 0);
  // Two entries for one place; and one that the index has lost.
  f.store.reset();
  {
    auto index = PageIndex::Open({f.options.path + "/index", f.options.index_env});
    REQUIRE(index.ok());
    IndexBatch batch;
    REQUIRE((*index)->ForEach([&](const IndexEntry& e) {
      if (e.key == Lone(4).header.key) {
        batch.puts.push_back(e);
        batch.puts[0].key.bytes.fill(99);
      }
      if (e.key == Lone(5).header.key) batch.deletes.push_back(e);
    }).ok());
    REQUIRE((*index)->Apply(batch, PageIndex::Durability::kSynced).ok());
  }
  f.Open();
  check = f.store->CheckAll(FilePageStore::Repair::kNo);
  CHECK(check->unaccounted_bytes == 12288);
  CHECK(check->damaged == 1);
  CHECK(check->unindexed == 1);
  CHECK(check->unindexed_bytes == 12288);
  CHECK(check->file_bytes == 7 * 12288 + check->unindexed_bytes + check->dead_bytes);
  // A repair drops the one, by which the other page of that place may go, and takes up the other.
  for (int i = 0; i < 2; ++i) REQUIRE(f.store->CheckAll(FilePageStore::Repair::kRepair).ok());
  check = f.store->CheckAll(FilePageStore::Repair::kNo);
  CHECK(check->unaccounted_bytes == 0);
  CHECK(check->damaged == 0);
  CHECK(check->unindexed == 0);
  CHECK(GetAndCompare(f.store.get(), Lone(5)) == Code::kOk);
}

// The data folder is new: its own names are not durable yet.
TEST_CASE("pages that were synced outlive a power cut that drops all else") {
  TempDir dir;
  testing::PowerDisk disk(dir.path());
  testing::HookEnv env(&disk);
  FaultIndexEnv index_env(&disk);
  FilePageStore::Options options;
  options.path = dir.File("pages");
  options.env = &env;
  options.index_env = index_env.env();
  std::string after = dir.File("after");
  {
    auto store = FilePageStore::Open(options);
    REQUIRE_MESSAGE(store.ok(), store.status().ToString());
    for (uint8_t n = 1; n <= 8; ++n) REQUIRE(Put(store->get(), Page(n)).ok());
    REQUIRE((*store)->Sync().ok());
    REQUIRE(Put(store->get(), Page(9)).ok());
    disk.WriteAfterCut(1, {.keep_data = 0, .keep_names = 0}, after);
  }
  RealEnv real;
  options = {};
  options.path = after + "/pages";
  options.env = &real;
  auto store = FilePageStore::Open(options);
  REQUIRE_MESSAGE(store.ok(), store.status().ToString());
  for (uint8_t n = 1; n <= 8; ++n) CHECK(GetAndCompare(store->get(), Page(n)) == Code::kOk);
  CHECK((*store)->stats().pages == 8);
}

TEST_CASE("a lost index is made again from the files") {
  Fixture f;
  f.Open();
  for (uint8_t n = 1; n <= 10; ++n) REQUIRE(Put(f.store.get(), Page(n)).ok());
  REQUIRE(f.store->Sync().ok());
  REQUIRE(f.store->Delete(Page(10).header.key).ok());
  f.LoseIndex();
  f.Open();
  for (uint8_t n = 1; n <= 9; ++n) CHECK(GetAndCompare(f.store.get(), Page(n)) == Code::kOk);
  CHECK(GetAndCompare(f.store.get(), Page(10)) == Code::kNotFound);
  Result<uint64_t> again = f.store->RebuildIndex();
  REQUIRE(again.ok());
  CHECK(*again == 0);
}

TEST_CASE("a damaged index is made again from the files") {
  Fixture f;
  f.Open();
  for (uint8_t n = 1; n <= 10; ++n) REQUIRE(Put(f.store.get(), Page(n)).ok());
  REQUIRE(f.store->Sync().ok());
  f.store.reset();
  for (const auto& entry : std::filesystem::directory_iterator(f.dir.File("index"))) {
    if (entry.path().filename().string().rfind("MANIFEST", 0) != 0) continue;
    std::ofstream(entry.path()) << "this is no manifest";
  }
  f.Open();
  for (uint8_t n = 1; n <= 10; ++n) CHECK(GetAndCompare(f.store.get(), Page(n)) == Code::kOk);
}

TEST_CASE("files that were cut short lose what was cut off and nothing else") {
  for (const uint64_t size : {0, 1, 4096, 12287, 12288, 12289, 20000, 24576, 36863, 36864}) {
    for (const bool lose_index : {false, true}) {
      CAPTURE(size);
      Fixture f;
      f.Open();
      for (uint8_t n = 1; n <= 3; ++n) REQUIRE(Put(f.store.get(), Page(n)).ok());
      REQUIRE(f.store->Sync().ok());
      f.store.reset();
      f.env.Truncate(f.FileName(1), size);
      if (lose_index) f.LoseIndex();
      f.Open();
      for (uint8_t n = 1; n <= 3; ++n) {
        const Code code = GetAndCompare(f.store.get(), Page(n));
        if (size >= n * 12288u) CHECK(code == Code::kOk);
        else CHECK((code == Code::kNotFound || (lose_index && code == Code::kCorrupt)));
      }
      for (uint8_t n = 1; n <= 3; ++n) REQUIRE(Put(f.store.get(), Page(n)).ok());
      REQUIRE(f.store->Sync().ok());
      for (uint8_t n = 1; n <= 3; ++n) CHECK(GetAndCompare(f.store.get(), Page(n)) == Code::kOk);
    }
  }
}

TEST_CASE("a damaged record is corrupt once, then forgotten, and can be put again") {
  for (const uint64_t at : {0, 9, 100, 145, 300, 4095, 4096, 8095, 8096, 8191, 8192, 8291, 8292,
                            12287}) {
    CAPTURE(at);
    Fixture f;
    f.Open();
    for (uint8_t n : {1, 2}) REQUIRE(Put(f.store.get(), Page(n)).ok());
    REQUIRE(f.store->Sync().ok());
    f.env.Damage(f.FileName(1), at, std::byte{0x20});
    CHECK(GetAndCompare(f.store.get(), Page(1)) == Code::kCorrupt);
    CHECK(GetAndCompare(f.store.get(), Page(1)) == Code::kNotFound);
    CHECK(f.store->stats().corrupt == 1);
    CHECK(GetAndCompare(f.store.get(), Page(2)) == Code::kOk);
    REQUIRE(Put(f.store.get(), Page(1)).ok());
    REQUIRE(f.store->Sync().ok());
    CHECK(GetAndCompare(f.store.get(), Page(1)) == Code::kOk);
    f.Open();
    CHECK(GetAndCompare(f.store.get(), Page(1)) == Code::kOk);
  }
}

TEST_CASE("a record that cannot be read is an I/O error once, then forgotten") {
  Fixture f;
  f.Open();
  REQUIRE(Put(f.store.get(), Page(1)).ok());
  REQUIRE(f.store->Sync().ok());
  f.env.FailReadAt(1);
  CHECK(GetAndCompare(f.store.get(), Page(1)) == Code::kIo);
  CHECK(GetAndCompare(f.store.get(), Page(1)) == Code::kNotFound);
  CHECK(f.store->stats().io_errors == 1);
  REQUIRE(Put(f.store.get(), Page(1)).ok());
  REQUIRE(f.store->Sync().ok());
  CHECK(GetAndCompare(f.store.get(), Page(1)) == Code::kOk);
}

TEST_CASE("compaction forgets what is damaged and keeps the rest") {
  Fixture f;
  f.Open();
  for (uint8_t n = 1; n <= 8; ++n) REQUIRE(Put(f.store.get(), Lone(n)).ok());
  REQUIRE(f.store->Sync().ok());
  for (uint8_t n : {1, 2, 3}) REQUIRE(f.store->Delete(Lone(n).header.key).ok());
  f.env.Damage(f.FileName(1), 3 * 12288 + 5000, std::byte{1});
  REQUIRE(f.store->Compact(1 << 20).ok());
  REQUIRE(f.store->Sync().ok());
  CHECK_FALSE(f.store->Contains(Lone(4).header.key));
  CHECK_FALSE(f.env.Exists(f.FileName(1)));
  for (uint8_t n = 5; n <= 8; ++n) CHECK(GetAndCompare(f.store.get(), Lone(n)) == Code::kOk);
}

// What the store promised so far: acknowledged by a good Sync, deleted by a good Delete.
struct Promises {
  std::set<uint8_t> durable, deleted, pending;

  void Synced() {
    durable.insert(pending.begin(), pending.end());
    pending.clear();
  }
};

// Puts, deletes and compacts; goes on after errors, as a cache's user does.
Promises RunWorkload(FilePageStore* store) {
  Promises p;
  auto put = [&](uint8_t n) {
    if (Put(store, Lone(n)).ok()) {
      p.pending.insert(n);
      p.deleted.erase(n);
    }
  };
  auto sync = [&] {
    if (store->Sync().ok()) p.Synced();
    // A failed one may drop what was put before it.
    p.pending.clear();
  };
  auto remove = [&](uint8_t n) {
    p.durable.erase(n);
    p.pending.erase(n);
    if (store->Delete(Lone(n).header.key).ok()) p.deleted.insert(n);
  };
  for (uint8_t n = 1; n <= 4; ++n) put(n);
  sync();
  for (uint8_t n = 5; n <= 9; ++n) put(n);
  sync();
  for (uint8_t n : {1, 2, 3}) remove(n);
  store->Compact(1 << 20).status().IgnoreError();
  put(10);
  put(1);
  sync();
  remove(5);
  return p;
}

// What was promised holds; everything else is there in whole or not at all.
void CheckPromises(FilePageStore* store, const Promises& p) {
  for (uint8_t n = 1; n <= 10; ++n) {
    const Code code = GetAndCompare(store, Lone(n));
    CHECK((code == Code::kOk || code == Code::kNotFound));
    if (p.durable.contains(n)) CHECK_MESSAGE(code == Code::kOk, "page ", int{n}, " is lost");
    if (p.deleted.contains(n)) CHECK_MESSAGE(code == Code::kNotFound, "page ", int{n}, " is back");
  }
  CHECK(Put(store, Lone(200)).ok());
  CHECK(store->Sync().ok());
  CHECK(GetAndCompare(store, Lone(200)) == Code::kOk);
}

TEST_CASE("a disk that stalls in making a file holds up those who write, not those who read or ask") {
  StallDisk disk;
  HookEnv env(&disk);
  Fixture f;
  f.options.env = &env;
  f.Open();
  for (uint8_t n = 1; n <= 4; ++n) REQUIRE(Put(f.store.get(), Page(n)).ok());
  REQUIRE(f.store->Sync().ok());
  disk.Begin({DiskOp::kCreate}, "/pages-000002.hf");
  std::future<Status> put =
      std::async(std::launch::async, [&] { return Put(f.store.get(), Page(5)); });
  REQUIRE(disk.Stalls());
  CHECK(GetAndCompare(f.store.get(), Page(1)) == Code::kOk);
  CHECK(f.store->stats().pages == 4);
  CHECK_FALSE(disk.gave_up());
  disk.End();
  CHECK(put.get().ok());
  REQUIRE(f.store->Sync().ok());
  CHECK(GetAndCompare(f.store.get(), Page(5)) == Code::kOk);
}

TEST_CASE("reads are timed where there is something to read") {
  RealEnv env;
  Fixture f;
  f.options.env = &env;
  f.Open();
  CHECK(f.store->TimeReads(8) == 0);
  REQUIRE(Put(f.store.get(), Page(1)).ok());
  REQUIRE(f.store->Sync().ok());
  CHECK(f.store->TimeReads(8) > 0);
  CHECK(f.store->TimeReads(8) < 10);
}

TEST_CASE("every n-th file operation fails: old state or new state, and the store goes on") {
  for (const auto fault : {FaultEnv::Fault::kIoError, FaultEnv::Fault::kNoSpace,
                           FaultEnv::Fault::kTornWrite}) {
    for (const auto repeat : {FaultEnv::Repeat::kOnce, FaultEnv::Repeat::kFromThenOn}) {
      for (int n = 1;; ++n) {
        CAPTURE(n);
        Fixture f(n);
        f.Open();
        f.env.FailAt(n, fault, repeat);
        const Promises p = RunWorkload(f.store.get());
        const bool injected = f.env.faults() > 0;
        f.env.Heal();
        CheckPromises(f.store.get(), p);
        f.store.reset();
        f.env.Crash();  // after a sync that failed, the next good one must not count for it
        f.Open();
        CheckPromises(f.store.get(), p);
        if (!injected) break;
      }
    }
  }
}

TEST_CASE("power is lost at every n-th file operation: old state or new state, nothing else") {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    for (int n = 1;; ++n) {
      CAPTURE(seed);
      CAPTURE(n);
      Fixture f(seed * 1000 + static_cast<uint64_t>(n));
      f.Open();
      f.env.FailAt(n, FaultEnv::Fault::kTornWrite, FaultEnv::Repeat::kFromThenOn);
      const Promises p = RunWorkload(f.store.get());
      const bool injected = f.env.faults() > 0;
      f.store.reset();
      f.env.Crash();
      f.Open();
      CheckPromises(f.store.get(), p);
      if (!injected) break;
    }
  }
}

TEST_CASE("every n-th write of the index fails: old state or new state, and the store heals") {
  for (const auto fault : {FaultIndexEnv::Fault::kIoError, FaultIndexEnv::Fault::kNoSpace}) {
    for (int n = 1;; ++n) {
      CAPTURE(n);
      Fixture f;
      f.Open();
      f.index_env.FailFrom(n, fault);
      const Promises p = RunWorkload(f.store.get());
      const bool injected = f.index_env.faults() > 0;
      f.store.reset();
      f.index_env.Heal();
      f.Open();
      CheckPromises(f.store.get(), p);
      if (!injected) break;
    }
  }
}

TEST_CASE("an index that fails for a while heals without reopening") {
  Fixture f;
  f.Open();
  REQUIRE(Put(f.store.get(), Lone(1)).ok());
  REQUIRE(f.store->Sync().ok());
  f.index_env.FailFrom(1, FaultIndexEnv::Fault::kNoSpace);
  REQUIRE(Put(f.store.get(), Lone(2)).ok());
  CHECK(f.store->Sync().code() == Code::kExhausted);
  CHECK(GetAndCompare(f.store.get(), Lone(1)) == Code::kOk);
  CHECK(GetAndCompare(f.store.get(), Lone(2)) == Code::kNotFound);
  f.index_env.Heal();
  REQUIRE(Put(f.store.get(), Lone(2)).ok());
  Status s = f.store->Sync();
  CHECK_MESSAGE(s.ok(), s.ToString());
  CHECK(GetAndCompare(f.store.get(), Lone(2)) == Code::kOk);
}

TEST_CASE("threads put, get, delete, sync and compact at once; no byte is ever wrong") {
  Fixture f;
  f.Open();
  std::atomic<int> wrong{0}, hits{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int i = 0; i < 400; ++i) {
        const PageRecordSample page = Lone(static_cast<uint8_t>(1 + random() % 30));
        Code code = Code::kOk;
        switch (random() % 8) {
          case 0: case 1: case 2: code = Put(f.store.get(), page).code(); break;
          case 3: code = f.store->Sync().code(); break;
          case 4: code = f.store->Delete(page.header.key).code(); break;
          case 5: code = f.store->Compact(20000).status().code(); break;
          default:
            code = GetAndCompare(f.store.get(), page);
            hits += code == Code::kOk;
            if (code == Code::kNotFound || code == Code::kUnavailable) code = Code::kOk;
        }
        wrong += code != Code::kOk;
      }
    });
  }
  for (auto& t : threads) t.join();
  CHECK(wrong == 0);
  CHECK(hits > 0);
  CHECK(f.store->stats().corrupt == 0);
}

}  // namespace
}  // namespace holdfast

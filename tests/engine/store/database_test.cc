#include "engine/store/database.h"

#include <doctest/doctest.h>

#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <future>
#include <random>
#include <set>
#include <thread>

#include "engine/store/migrations.h"
#include "engine/store/sql_connection.h"
#include "tests/engine/base/power_disk.h"
#include "tests/engine/base/temp_dir.h"
#include "tests/engine/store/fault_vfs.h"

namespace holdfast {
namespace {

using std::chrono::milliseconds;
using testing::FaultVfs;
using testing::TempDir;

const std::vector<Migration> kNotes = {
    {"notes", 1, "CREATE TABLE note(id INTEGER PRIMARY KEY, text TEXT UNIQUE, data BLOB);"}};

Database::Options OptionsFor(const TempDir& dir) {
  Database::Options options;
  options.path = dir.File("test.db");
  options.migrations = kNotes;
  return options;
}

std::unique_ptr<Database> OpenOrDie(Database::Options options) {
  Result<std::unique_ptr<Database>> db = Database::Open(std::move(options));
  REQUIRE_MESSAGE(db.ok(), db.status().ToString());
  return std::move(db).value();
}

Status AddNote(Database* db, int64_t id, const std::string& text,
               WriteClass write_class = WriteClass::kTurn) {
  return db->Write(
      [&](Txn& txn) { return txn.Run("INSERT INTO note(id, text) VALUES(?, ?)", id, text); },
      write_class);
}

void CheckSound(Database* db) {
  const Status s = db->Read([](Reader& reader) -> Status {
    Rows rows = reader.Query("PRAGMA integrity_check");
    while (rows.Next()) CHECK(rows.Text(0) == "ok");
    return rows.status();
  });
  CHECK_MESSAGE(s.ok(), s.ToString());
}

std::set<int64_t> NoteIds(Database* db) {
  std::set<int64_t> ids;
  const Status s = db->Read([&](Reader& reader) -> Status {
    Rows rows = reader.Query("SELECT id FROM note");
    while (rows.Next()) ids.insert(rows.Int(0));
    return rows.status();
  });
  REQUIRE_MESSAGE(s.ok(), s.ToString());
  return ids;
}

TEST_CASE("values of every type come back as they were bound") {
  TempDir dir;
  auto db = OpenOrDie(OptionsFor(dir));
  const std::vector<uint32_t> tokens = {1, 2, 0xffffffff};
  const Digest digest = Sha256("x", 1);
  const std::string text = std::string("a\0b", 3);
  Status s = db->Write(
      [&](Txn& txn) -> Status {
        HOLDFAST_RETURN_IF_ERROR(txn.Run("CREATE TABLE v(a,b,c,d,e,f,g,h)"));
        return txn.Run("INSERT INTO v VALUES(?,?,?,?,?,?,?,?)", 0xfedcba9876543210ull, -1.5, text,
                       std::as_bytes(std::span(tokens)), digest, nullptr, "",
                       std::optional<int>());
      },
      WriteClass::kTurn);
  REQUIRE_MESSAGE(s.ok(), s.ToString());
  s = db->Read([&](Reader& reader) -> Status {
    Rows rows = reader.Query("SELECT * FROM v WHERE c = ?", text);
    REQUIRE(rows.Next());
    CHECK(static_cast<uint64_t>(rows.Int(0)) == 0xfedcba9876543210ull);
    CHECK(rows.Real(1) == -1.5);
    CHECK(rows.Text(2) == text);
    CHECK(rows.Array<uint32_t>(3) == tokens);
    CHECK(rows.DigestAt(4) == digest);
    CHECK(rows.IsNull(5));
    CHECK_FALSE(rows.IsNull(6));
    CHECK(rows.Text(6).empty());
    CHECK(rows.IsNull(7));
    CHECK_FALSE(rows.Next());
    return rows.status();
  });
  CHECK_MESSAGE(s.ok(), s.ToString());
}

TEST_CASE("a column of the wrong length is corrupt, not a crash") {
  TempDir dir;
  auto db = OpenOrDie(OptionsFor(dir));
  const std::string five = "12345";
  Status s = db->Write(
      [&](Txn& txn) {
        return txn.Run("INSERT INTO note(id, data) VALUES(1, ?)", std::as_bytes(std::span(five)));
      },
      WriteClass::kTurn);
  REQUIRE(s.ok());
  for (int kind = 0; kind < 2; ++kind) {
    s = db->Read([&](Reader& reader) -> Status {
      Rows rows = reader.Query("SELECT data FROM note");
      REQUIRE(rows.Next());
      if (kind == 0) CHECK(rows.Array<uint32_t>(0).empty());
      if (kind == 1) CHECK(rows.DigestAt(0).IsZero());
      CHECK_FALSE(rows.Next());
      return rows.status();
    });
    CHECK(s.code() == Code::kCorrupt);
  }
}

TEST_CASE("errors of SQL are typed and harm nothing") {
  TempDir dir;
  auto db = OpenOrDie(OptionsFor(dir));
  REQUIRE(AddNote(db.get(), 1, "one").ok());
  CHECK(AddNote(db.get(), 1, "again").code() == Code::kConflict);
  auto run = [&](const char* sql) {
    return db->Write([&](Txn& txn) { return txn.Run(sql); }, WriteClass::kTurn);
  };
  CHECK(run("SELEC 1").code() == Code::kInvalid);
  CHECK(run("SELECT ?").code() == Code::kInvalid);
  CHECK(run("").code() == Code::kInvalid);
  const Status s = db->Read([](Reader& reader) {
    Rows rows = reader.Query("DELETE FROM note");
    while (rows.Next()) {}
    return rows.status();
  });
  CHECK_FALSE(s.ok());
  CHECK_FALSE(db->degraded());
  CHECK(NoteIds(db.get()) == std::set<int64_t>{1});
}

TEST_CASE("work that fails is undone alone, whatever shares its transaction") {
  TempDir dir;
  auto db = OpenOrDie(OptionsFor(dir));
  std::promise<void> go;
  std::shared_future<void> gate = go.get_future().share();
  std::atomic<int> good{0}, bad{0};
  // The first piece holds the writer until all others are queued, so that they share a transaction.
  REQUIRE(db->Submit([gate](Txn&) { gate.wait(); return Status(); }, WriteClass::kTurn,
                     [](const Status&) {}).ok());
  for (int i = 0; i < 40; ++i) {
    Status s = db->Submit(
        [i](Txn& txn) -> Status {
          HOLDFAST_RETURN_IF_ERROR(txn.Run("INSERT INTO note(id) VALUES(?)", i));
          return i % 4 == 0 ? Status::Invalid("changed my mind") : Status();
        },
        WriteClass::kTurn, [&](const Status& r) { ++(r.ok() ? good : bad); });
    REQUIRE(s.ok());
  }
  go.set_value();
  REQUIRE(AddNote(db.get(), 1000, "last").ok());
  CHECK(good == 30);
  CHECK(bad == 10);
  std::set<int64_t> expected = {1000};
  for (int i = 0; i < 40; ++i) if (i % 4 != 0) expected.insert(i);
  CHECK(NoteIds(db.get()) == expected);
  CHECK(db->stats().commits <= 3);
  CHECK(db->stats().writes == 32);
}

TEST_CASE("turns go before background work that was queued earlier") {
  TempDir dir;
  auto db = OpenOrDie(OptionsFor(dir));
  std::promise<void> go;
  std::shared_future<void> gate = go.get_future().share();
  std::string order;  // the writer's thread alone
  auto mark = [&](char c) { return [&order, c](Txn&) { order += c; return Status(); }; };
  auto ignore = [](const Status&) {};
  auto hold = [gate](Txn&) { gate.wait(); return Status(); };
  REQUIRE(db->Submit(hold, WriteClass::kTurn, ignore).ok());
  for (int i = 0; i < 3; ++i) REQUIRE(db->Submit(mark('b'), WriteClass::kBackground, ignore).ok());
  for (int i = 0; i < 3; ++i) REQUIRE(db->Submit(mark('t'), WriteClass::kTurn, ignore).ok());
  go.set_value();
  REQUIRE(db->Write(mark('.'), WriteClass::kBackground).ok());
  CHECK(order == "tttbbb.");
}

TEST_CASE("a full queue refuses, and closing finishes what is queued") {
  TempDir dir;
  Database::Options options = OptionsFor(dir);
  options.queue_capacity = 4;
  auto db = OpenOrDie(options);
  std::promise<void> go, started;
  std::shared_future<void> gate = go.get_future().share();
  std::atomic<int> done{0};
  auto count = [&](const Status& s) { done += s.ok(); };
  REQUIRE(db->Submit([&, gate](Txn&) { started.set_value(); gate.wait(); return Status(); },
                     WriteClass::kTurn, count).ok());
  started.get_future().wait();
  auto add = [](Txn& txn) { return txn.Run("INSERT INTO note(text) VALUES(NULL)"); };
  for (int i = 0; i < 4; ++i) REQUIRE(db->Submit(add, WriteClass::kBackground, count).ok());
  CHECK(db->Submit(add, WriteClass::kTurn, count).code() == Code::kExhausted);
  go.set_value();
  db.reset();
  CHECK(done == 5);
  db = OpenOrDie(OptionsFor(dir));
  CHECK(NoteIds(db.get()).size() == 4);
}

TEST_CASE("a read sees one state, while writes go on") {
  TempDir dir;
  auto db = OpenOrDie(OptionsFor(dir));
  REQUIRE(AddNote(db.get(), 1, "one").ok());
  const Status s = db->Read([&](Reader& reader) -> Status {
    auto count = [&] {
      Rows rows = reader.Query("SELECT count(*) FROM note");
      REQUIRE(rows.Next());
      return rows.Int(0);
    };
    CHECK(count() == 1);
    REQUIRE(AddNote(db.get(), 2, "two").ok());
    CHECK(count() == 1);
    return Status();
  });
  CHECK(s.ok());
  CHECK(NoteIds(db.get()).size() == 2);
}

TEST_CASE("many threads read and write at once") {
  TempDir dir;
  auto db = OpenOrDie(OptionsFor(dir));
  std::vector<std::thread> threads;
  std::atomic<int> failures{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        const int64_t id = t * 1000 + i;
        if (!AddNote(db.get(), id, std::to_string(id)).ok()) ++failures;
        const Status s = db->Read([&](Reader& reader) -> Status {
          Rows rows = reader.Query("SELECT text FROM note WHERE id = ?", id);
          if (!rows.Next() || rows.Text(0) != std::to_string(id)) ++failures;
          return rows.status();
        });
        if (!s.ok()) ++failures;
      }
    });
  }
  for (auto& t : threads) t.join();
  CHECK(failures == 0);
  CHECK(NoteIds(db.get()).size() == 200);
}

TEST_CASE("who waits for a commit is woken by it, and what it sees is there") {
  TempDir dir;
  auto db = OpenOrDie(OptionsFor(dir));
  const uint64_t seen = db->WaitForCommit(0, std::chrono::milliseconds(0));
  CHECK(db->WaitForCommit(seen, std::chrono::milliseconds(1)) == seen);  // nothing came
  auto woken = std::async(std::launch::async, [&] {
    const uint64_t now = db->WaitForCommit(seen, std::chrono::minutes(5));
    CHECK(NoteIds(db.get()) == std::set<int64_t>{1});
    return now;
  });
  REQUIRE(AddNote(db.get(), 1, "one").ok());
  CHECK(woken.get() > seen);
  CHECK(db->WaitForCommit(seen, std::chrono::minutes(5)) > seen);  // at once
}

TEST_CASE("migrations: what is pending is pure") {
  const std::vector<Migration> all = {{"a", 1, "x"}, {"b", 1, "y"}, {"a", 2, "z"}};
  struct Case {
    std::vector<OwnerVersion> have;
    std::string pending;  // sql joined
    Code code;
  };
  const std::vector<Case> cases = {
      {{}, "xyz", Code::kOk},
      {{{"a", 1}}, "yz", Code::kOk},
      {{{"a", 2}, {"b", 1}}, "", Code::kOk},
      {{{"a", 3}}, "", Code::kConflict},
      {{{"other", 9}}, "xyz", Code::kOk},
  };
  for (const Case& c : cases) {
    Result<std::vector<Migration>> pending = PendingMigrations(all, c.have);
    CHECK(pending.status().code() == c.code);
    if (!pending.ok()) continue;
    std::string joined;
    for (const Migration& m : *pending) joined += m.sql;
    CHECK(joined == c.pending);
  }
  const std::vector<Migration> gap = {{"a", 1, ""}, {"a", 3, ""}};
  CHECK(PendingMigrations(gap, {}).status().code() == Code::kInvalid);
}

TEST_CASE("migrations run once, all or none, and never backwards") {
  TempDir dir;
  Database::Options options = OptionsFor(dir);
  { auto db = OpenOrDie(options); REQUIRE(AddNote(db.get(), 1, "one").ok()); }
  options.migrations.push_back({"notes", 2, "ALTER TABLE note ADD COLUMN tag TEXT;"});
  options.migrations.push_back({"notes", 3, "THIS IS NOT SQL;"});
  CHECK(Database::Open(options).status().code() == Code::kInvalid);
  options.migrations.pop_back();
  {
    auto db = OpenOrDie(options);  // version 2 had not stayed behind
    CHECK(NoteIds(db.get()).size() == 1);
  }
  const Status older = Database::Open(OptionsFor(dir)).status();
  CHECK(older.code() == Code::kConflict);
  CHECK(older.message().find("newer version") != std::string::npos);
}

TEST_CASE("a file that is not a database is corrupt") {
  TempDir dir;
  std::FILE* f = std::fopen(dir.File("test.db").c_str(), "w");
  for (int i = 0; i < 1000; ++i) std::fputs("not a database ", f);
  std::fclose(f);
  CHECK(Database::Open(OptionsFor(dir)).status().code() == Code::kCorrupt);
}

TEST_CASE("the log is extended ahead, kept at its size, and used again after a checkpoint") {
  TempDir dir;
  FaultVfs vfs;
  Database::Options options = OptionsFor(dir);
  options.vfs = vfs.name();
  const std::string wal = options.path + "-wal";
  auto db = OpenOrDie(options);
  CHECK(std::filesystem::file_size(wal) >= (4u << 20));
  const std::string big(100000, 'x');
  for (int i = 0; i < 400; ++i) REQUIRE(AddNote(db.get(), i, big + std::to_string(i)).ok());
  // 40 MB went through; checkpoints in the pauses are not certain here, the end of the log is.
  const DatabaseStats stats = db->stats();
  CHECK(stats.wal_bytes == std::filesystem::file_size(wal));
  db.reset();
  CHECK(std::filesystem::file_size(wal) == stats.wal_bytes);
  db = OpenOrDie(options);
  CHECK(NoteIds(db.get()).size() == 400);
  for (int i = 400; i < 405; ++i) REQUIRE(AddNote(db.get(), i, big + std::to_string(i)).ok());
  CHECK(std::filesystem::file_size(wal) == stats.wal_bytes);  // the log began again at its start
}

TEST_CASE("an idle writer copies the log into the database") {
  TempDir dir;
  Database::Options options = OptionsFor(dir);
  options.probe_interval = std::chrono::milliseconds(1);
  auto db = OpenOrDie(options);
  const auto before = std::filesystem::file_size(options.path);
  const std::string big(2 << 20, 'x');
  REQUIRE(AddNote(db.get(), 1, big).ok());  // over 256 frames: worth a checkpoint after 50 ms
  while (db->stats().checkpoints == 0) std::this_thread::yield();
  CHECK(std::filesystem::file_size(options.path) > before + big.size());
  CHECK(AddNote(db.get(), 2, "small").ok());
  CHECK(NoteIds(db.get()) == std::set<int64_t>{1, 2});
}

TEST_CASE("a burst of commits finds room in the log, from the first one on and after a shred") {
  TempDir dir;
  const Database::Options options = OptionsFor(dir);
  auto db = OpenOrDie(options);
  const std::string text(10000, 'x');
  for (const int64_t first : {0, 1000}) {
    const uint64_t room = db->stats().wal_bytes;
    CHECK(room == std::filesystem::file_size(options.path + "-wal"));
    for (int64_t i = 0; i < 300; ++i) {  // some 10 MB
      REQUIRE(AddNote(db.get(), first + i, text + std::to_string(first + i)).ok());
    }
    CHECK(db->stats().wal_bytes == room);
    REQUIRE(db->Shred(milliseconds(1000)).ok());
  }
}

TEST_CASE("a turn's commit costs one sync and no growth of the log") {
  TempDir dir;
  FaultVfs vfs;
  Database::Options options = OptionsFor(dir);
  options.vfs = vfs.name();
  auto db = OpenOrDie(options);
  REQUIRE(AddNote(db.get(), 0, "first").ok());  // writes the log's header, which is synced too
  const int before = vfs.syncs();
  for (int i = 1; i <= 10; ++i) REQUIRE(AddNote(db.get(), i, std::to_string(i)).ok());
  CHECK(vfs.syncs() - before == 10);
}

TEST_CASE("a failed commit degrades the store; a probe heals it") {
  TempDir dir;
  FaultVfs vfs;
  Database::Options options = OptionsFor(dir);
  options.vfs = vfs.name();
  options.probe_interval = std::chrono::milliseconds(1);
  auto db = OpenOrDie(options);
  REQUIRE(AddNote(db.get(), 1, "one").ok());
  for (auto fault : {FaultVfs::Fault::kDiskFull, FaultVfs::Fault::kIoError}) {
    vfs.FailAt(1, fault, FaultVfs::Repeat::kFromThenOn);
    const Status s = AddNote(db.get(), 2, "two");
    CHECK(s.code() == (fault == FaultVfs::Fault::kDiskFull ? Code::kExhausted : Code::kIo));
    CHECK(db->degraded());
    CHECK_FALSE(db->degraded_reason().empty());
    CHECK(AddNote(db.get(), 3, "three").code() == Code::kExhausted);
    CHECK(db->Submit([](Txn&) { return Status(); }, WriteClass::kBackground,
                     [](const Status&) {}).code() == Code::kExhausted);
    CHECK(NoteIds(db.get()) == std::set<int64_t>{1});
    vfs.Heal();
    while (db->degraded()) std::this_thread::yield();
    CHECK(db->degraded_reason().empty());
  }
  CHECK(AddNote(db.get(), 4, "four").ok());
  CHECK(NoteIds(db.get()) == std::set<int64_t>{1, 4});
}

// Writes six rows while the n-th operation fails; returns how many operations there were.
int SweepOnce(int n, FaultVfs::Fault fault, FaultVfs::Repeat repeat) {
  TempDir dir;
  FaultVfs vfs;
  Database::Options options = OptionsFor(dir);
  options.vfs = vfs.name();
  options.probe_interval = std::chrono::milliseconds(1);
  std::set<int64_t> acked;
  auto db = OpenOrDie(options);
  const int start = vfs.operations();
  vfs.FailAt(n, fault, repeat);
  const std::string text(9000, 'x');
  for (int64_t id = 0; id < 6; ++id) {
    if (AddNote(db.get(), id, text + std::to_string(id)).ok()) acked.insert(id);
  }
  CHECK(NoteIds(db.get()) == acked);
  db.reset();
  const int operations = vfs.operations() - start;
  vfs.Heal();
  db = OpenOrDie(options);
  std::set<int64_t> there = NoteIds(db.get());
  for (int64_t id : acked) CHECK_MESSAGE(there.erase(id) == 1, "acknowledged row ", id, " is lost");
  // A commit that failed may turn out whole after a crash, but there is at most one at the end.
  CHECK(there.size() <= 1);
  const Status s = AddNote(db.get(), 100, "after");
  CHECK_MESSAGE(s.ok(), s.ToString());
  return operations;
}

TEST_CASE("every n-th write or sync fails: acknowledged rows stay, others are whole or absent") {
  const int operations = SweepOnce(1 << 30, FaultVfs::Fault::kIoError, FaultVfs::Repeat::kOnce);
  CHECK(operations > 40);
  for (auto fault : {FaultVfs::Fault::kIoError, FaultVfs::Fault::kDiskFull}) {
    for (auto repeat : {FaultVfs::Repeat::kOnce, FaultVfs::Repeat::kFromThenOn}) {
      for (int n = 1; n <= operations; ++n) {
        CAPTURE(n);
        SweepOnce(n, fault, repeat);
      }
    }
  }
}

// ---- lazy work ---------------------------------------------------------------------------------

Status AddLazyNote(Database* db, int64_t id) {
  return AddNote(db, id, std::to_string(id), WriteClass::kLazy);
}

TEST_CASE("lazy work is seen at once, and synced together later") {
  TempDir dir;
  FaultVfs vfs;
  Database::Options options = OptionsFor(dir);
  options.vfs = vfs.name();
  options.lazy_delay = std::chrono::milliseconds(500);
  auto db = OpenOrDie(options);
  REQUIRE(AddNote(db.get(), 0, "first").ok());
  const int before = vfs.syncs();
  const auto start = std::chrono::steady_clock::now();
  std::set<int64_t> all = {0};
  for (int64_t id = 1; id <= 10; ++id) {
    REQUIRE(AddLazyNote(db.get(), id).ok());
    all.insert(id);
  }
  CHECK(NoteIds(db.get()) == all);
  if (std::chrono::steady_clock::now() - start < options.lazy_delay) {
    CHECK(vfs.syncs() == before);
    CHECK(db->stats().unsynced == 10);
  }
  while (db->stats().unsynced > 0) std::this_thread::yield();
  CHECK(std::chrono::steady_clock::now() - start >= options.lazy_delay);
  CHECK(vfs.syncs() - before <= 2);  // one, unless the ten took longer than the delay
  CHECK(db->Flush().ok());
  CHECK(vfs.syncs() - before <= 2);
}

TEST_CASE("a turn, a flush, or much lazy work syncs what lies before") {
  TempDir dir;
  FaultVfs vfs;
  Database::Options options = OptionsFor(dir);
  options.vfs = vfs.name();
  options.lazy_delay = std::chrono::hours(1);
  auto db = OpenOrDie(options);
  REQUIRE(AddNote(db.get(), 0, "first").ok());
  int before = vfs.syncs();
  const auto syncs = [&] { return vfs.syncs() - std::exchange(before, vfs.syncs()); };
  REQUIRE(AddLazyNote(db.get(), 1).ok());
  CHECK(syncs() == 0);
  SUBCASE("a turn") {
    REQUIRE(AddNote(db.get(), 2, "two").ok());
    CHECK(syncs() == 1);
  }
  SUBCASE("other work") {
    REQUIRE(AddNote(db.get(), 2, "two", WriteClass::kBackground).ok());
    CHECK(syncs() == 1);
  }
  SUBCASE("a flush") {
    REQUIRE(db->Flush().ok());
    CHECK(syncs() == 1);
    REQUIRE(db->Flush().ok());  // nothing is left to do
    CHECK(syncs() == 0);
  }
  SUBCASE("many pieces") {
    for (int64_t id = 2; id <= static_cast<int64_t>(Database::kMaxUnsynced); ++id) {
      REQUIRE(AddLazyNote(db.get(), id).ok());
    }
    while (db->stats().unsynced > 0) std::this_thread::yield();
    CHECK(syncs() == 1);
  }
  SUBCASE("many bytes") {
    const std::string big(Database::kMaxUnsyncedBytes, 'x');
    REQUIRE(AddNote(db.get(), 2, big, WriteClass::kLazy).ok());
    while (db->stats().unsynced > 0) std::this_thread::yield();
    CHECK(syncs() >= 1);  // the log may also be extended
  }
  CHECK(db->stats().unsynced == 0);
}

// Cuts the power, which keeps each unsynced sector by chance; what is left goes into `folder`.
void CutTo(const testing::PowerDisk& disk, uint64_t seed, double keep, const std::string& folder) {
  disk.WriteAfterCut(seed, {.sector = 512, .keep_data = keep, .keep_names = keep}, folder);
}

// The notes in the database in `folder`, which must be sound.
std::set<int64_t> NotesIn(const std::string& folder) {
  Database::Options options;
  options.path = folder + "/test.db";
  options.migrations = kNotes;
  auto db = OpenOrDie(options);
  CheckSound(db.get());
  return NoteIds(db.get());
}

std::set<int64_t> NotesAfterCut(const testing::PowerDisk& disk, uint64_t seed, double keep) {
  TempDir dir;
  CutTo(disk, seed, keep, dir.File("after"));
  return NotesIn(dir.File("after"));
}

std::set<int64_t> UpTo(int64_t count) {
  std::set<int64_t> ids;
  for (int64_t id = 0; id < count; ++id) ids.insert(id);
  return ids;
}

struct PoweredDatabase {
  explicit PoweredDatabase(testing::PowerDisk* disk, const TempDir& dir) : vfs(disk) {
    Database::Options options = OptionsFor(dir);
    options.vfs = vfs.name();
    options.lazy_delay = std::chrono::hours(1);
    options.probe_interval = std::chrono::milliseconds(1);
    db = OpenOrDie(options);
  }
  FaultVfs vfs;
  std::unique_ptr<Database> db;
};

TEST_CASE("a power cut takes the newest lazy work, whole, and nothing before a turn") {
  TempDir dir;
  testing::PowerDisk disk(dir.path());
  PoweredDatabase p(&disk, dir);
  const std::string big(9000, 'x');  // several frames each
  int64_t next = 0;
  const auto add = [&](WriteClass write_class) {
    REQUIRE(AddNote(p.db.get(), next, big + std::to_string(next), write_class).ok());
    ++next;
  };
  add(WriteClass::kTurn);
  for (int i = 0; i < 5; ++i) add(WriteClass::kLazy);
  add(WriteClass::kTurn);
  const int64_t durable = next;
  for (int i = 0; i < 6; ++i) add(WriteClass::kLazy);
  std::set<size_t> left;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    static constexpr double kKeep[] = {0, 0.5, 0.9, 0.99, 1};
    const auto ids = NotesAfterCut(disk, seed, kKeep[seed % std::size(kKeep)]);
    CHECK(static_cast<int64_t>(ids.size()) >= durable);
    CHECK(ids == UpTo(static_cast<int64_t>(ids.size())));
    left.insert(ids.size());
  }
  CHECK(left.size() > 2);  // none, all, and some of it
  CHECK(*left.rbegin() == static_cast<size_t>(next));
}

TEST_CASE("a power cut takes no lazy work that is two seconds old") {
  using Clock = std::chrono::steady_clock;
  using std::chrono::milliseconds;
  constexpr milliseconds kPromise{2000};
  TempDir dir;
  testing::PowerDisk disk(dir.path());
  FaultVfs vfs(&disk);
  Database::Options options = OptionsFor(dir);  // with the delay that it has by itself
  options.vfs = vfs.name();
  auto db = OpenOrDie(options);
  std::vector<Clock::time_point> seen;  // when each piece was acknowledged
  size_t lost = 0;
  const auto cut = [&] {
    const Clock::time_point at = Clock::now();
    const std::set<int64_t> there = NotesAfterCut(disk, 1, 0);
    for (size_t id = 0; id < seen.size(); ++id) {
      CAPTURE(id);
      if (at - seen[id] >= kPromise) CHECK(there.contains(static_cast<int64_t>(id)));
    }
    lost += seen.size() - there.size();
  };
  // Too few of them for their number or their bytes to sync them within the promise.
  const milliseconds pace = 2 * kPromise / Database::kMaxUnsynced;
  for (const Clock::time_point start = Clock::now(); Clock::now() - start < 3 * kPromise / 2;) {
    for (int i = 0; i < 5; ++i) {
      REQUIRE(AddLazyNote(db.get(), static_cast<int64_t>(seen.size())).ok());
      seen.push_back(Clock::now());
      std::this_thread::sleep_for(pace);
    }
    cut();
  }
  CHECK(lost > 0);  // younger work, at every cut but those after a sync
  std::this_thread::sleep_for(kPromise);  // nobody writes any more
  cut();
}

TEST_CASE("closing makes lazy work durable, also while others have the database open") {
  TempDir dir;
  testing::PowerDisk disk(dir.path());
  PoweredDatabase p(&disk, dir);
  REQUIRE(AddNote(p.db.get(), 0, "first").ok());
  // So that closing does not checkpoint.
  const auto other =
      SqlConnection::Open(dir.File("test.db"), SqlConnection::Role::kReader, p.vfs.name());
  REQUIRE(other.ok());
  for (int64_t id = 1; id < 5; ++id) REQUIRE(AddLazyNote(p.db.get(), id).ok());
  CHECK(NotesAfterCut(disk, 1, 0) == UpTo(1));
  p.db.reset();
  CHECK(NotesAfterCut(disk, 1, 0) == UpTo(5));
}

// Fails the next sync of the log, and drops by chance what it should have written.
class ForgetfulDisk : public testing::PowerDisk {
 public:
  using PowerDisk::PowerDisk;
  testing::DiskFault Before(const testing::DiskEvent& event) override {
    if (event.op != testing::DiskOp::kSync || !event.path.ends_with("-wal") || !armed) {
      return testing::DiskFault::kNone;
    }
    armed = false;
    FailSync(event.path, seed);
    return testing::DiskFault::kIo;
  }
  uint64_t seed = 0;
  std::atomic<bool> armed{false};
};

TEST_CASE("lazy work in a log whose sync failed is written again before the store is well") {
  for (const bool turn : {true, false}) {
    for (uint64_t seed = 0; seed < 8; ++seed) {
      CAPTURE(turn);
      CAPTURE(seed);
      TempDir dir;
      ForgetfulDisk disk(dir.path());
      disk.seed = seed;
      PoweredDatabase p(&disk, dir);
      REQUIRE(AddNote(p.db.get(), 0, "first").ok());
      for (int64_t id = 1; id < 5; ++id) REQUIRE(AddLazyNote(p.db.get(), id).ok());
      disk.armed = true;
      if (turn) {
        CHECK(AddNote(p.db.get(), 100, "gone").code() == Code::kIo);
      } else {  // so much that it is synced at once
        const std::string big(Database::kMaxUnsyncedBytes, 'x');
        REQUIRE(AddNote(p.db.get(), 5, big, WriteClass::kLazy).ok());
      }
      while (p.db->degraded() || p.db->stats().unsynced > 0) std::this_thread::yield();
      const int64_t count = turn ? 5 : 6;
      CHECK_FALSE(disk.armed);
      CHECK(NotesAfterCut(disk, seed, 0) == UpTo(count));
      REQUIRE(AddNote(p.db.get(), count, "after").ok());
      CHECK(NotesAfterCut(disk, seed, 0) == UpTo(count + 1));
    }
  }
}

TEST_CASE("a backup is a whole database of one moment") {
  TempDir dir;
  auto db = OpenOrDie(OptionsFor(dir));
  for (int i = 0; i < 20; ++i) REQUIRE(AddNote(db.get(), i, std::to_string(i)).ok());
  const Status s = db->BackupTo(dir.File("backup.db"));
  CHECK_MESSAGE(s.ok(), s.ToString());
  CHECK(db->BackupTo(dir.File("backup.db")).code() == Code::kConflict);
  Database::Options options = OptionsFor(dir);
  options.path = dir.File("backup.db");
  auto copy = OpenOrDie(options);
  CHECK(NoteIds(copy.get()).size() == 20);
}

// "note NUMBER.", 13 bytes, many times over, so that each row of any length has its number in it.
std::string Marked(int64_t id, size_t length) {
  char mark[32];
  const int size = std::snprintf(mark, sizeof(mark), "note %07lld.", static_cast<long long>(id));
  std::string text;
  while (text.size() < length) text.append(mark, static_cast<size_t>(size));
  return text;
}

// The numbers of all marks in the files of the database.
std::set<int64_t> MarksIn(const TempDir& dir) {
  std::set<int64_t> marks;
  for (const auto& file : std::filesystem::directory_iterator(dir.path())) {
    std::ifstream in(file.path(), std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(in)), {});
    for (size_t at = 0; (at = bytes.find("note ", at)) != std::string::npos; ++at) {
      const std::string number = bytes.substr(at + 5, 7);  // else the mark was cut
      const bool whole = number.find_first_not_of("0123456789") == std::string::npos;
      if (whole && at + 12 < bytes.size() && bytes[at + 12] == '.') marks.insert(std::stoll(number));
    }
  }
  return marks;
}

TEST_CASE("a shred leaves no byte of what was deleted, wherever SQLite has moved it") {
  TempDir dir;
  auto db = OpenOrDie(OptionsFor(dir));
  REQUIRE(db->Write([](Txn& txn) { return txn.Run("CREATE INDEX note_data ON note(data)"); },
                    WriteClass::kTurn)
              .ok());
  std::mt19937 random(7);
  std::set<int64_t> live;
  int64_t last = 0;
  for (int round = 0; round < 4; ++round) {
    CAPTURE(round);
    const Status written = db->Write(
        [&](Txn& txn) -> Status {
          for (int i = 0; i < 1500; ++i) {
            if (random() % 3 != 0 || live.empty()) {
              live.insert(++last);
              const std::string text = Marked(last, size_t{14} << random() % 10);
              HOLDFAST_RETURN_IF_ERROR(
                  txn.Run("INSERT INTO note VALUES(?, ?, ?)", last, text,
                          std::as_bytes(std::span(text)).first(text.size() / 13 / 2 * 13)));
            } else {
              const auto it = live.lower_bound(static_cast<int64_t>(random() % last));
              const int64_t id = it == live.end() ? *live.begin() : *it;
              live.erase(id);
              HOLDFAST_RETURN_IF_ERROR(txn.Run("DELETE FROM note WHERE id = ?", id));
            }
          }
          return Status();
        },
        WriteClass::kTurn);
    REQUIRE_MESSAGE(written.ok(), written.ToString());
    CHECK(MarksIn(dir).size() > live.size());  // the log, at least, has all of them
    const Status shredded = db->Shred(milliseconds(1000));
    REQUIRE_MESSAGE(shredded.ok(), shredded.ToString());
    CHECK(MarksIn(dir) == live);
    CHECK(NoteIds(db.get()) == live);
    CHECK(db->stats().wal_bytes >= 1 << 20);  // extended again, for the commits to come
  }
  db.reset();
  db = OpenOrDie(OptionsFor(dir));
  CheckSound(db.get());
}

TEST_CASE("a shred waits for a reader that holds the log, and says so when that takes too long") {
  TempDir dir;
  auto db = OpenOrDie(OptionsFor(dir));
  REQUIRE(AddNote(db.get(), 1, Marked(1, 14)).ok());
  std::promise<void> reading, end;
  std::thread reader([&] {
    const Status s = db->Read([&](Reader& r) -> Status {
      Rows rows = r.Query("SELECT id FROM note");
      CHECK(rows.Next());
      reading.set_value();
      end.get_future().wait();
      return rows.status();
    });
    CHECK(s.ok());
  });
  reading.get_future().wait();
  REQUIRE(db->Write([](Txn& txn) { return txn.Run("DELETE FROM note"); }, WriteClass::kTurn).ok());
  CHECK(db->Shred(milliseconds(30)).code() == Code::kUnavailable);
  CHECK(MarksIn(dir) == std::set<int64_t>{1});
  auto shredded = std::async(std::launch::async, [&] { return db->Shred(milliseconds(60'000)); });
  REQUIRE(AddNote(db.get(), 2, Marked(2, 14)).ok());  // turns go on meanwhile
  end.set_value();
  CHECK(shredded.get().ok());
  CHECK(MarksIn(dir) == std::set<int64_t>{2});
  reader.join();
}

// Cuts the power after each operation, while armed; of the many that make the log longer after some.
class OftenCutDisk : public testing::PowerDisk {
 public:
  OftenCutDisk(const TempDir& dir, const TempDir& to) : PowerDisk(dir.path()), cuts(to) {}
  void After(const testing::DiskEvent& event) override {
    PowerDisk::After(event);
    const bool extends = event.op == testing::DiskOp::kWrite && event.path.ends_with("-wal");
    if (!armed || event.op == testing::DiskOp::kRead || (extends && ++log_writes % 16 != 1)) return;
    static constexpr double kKeep[] = {0, 0.5, 0.9, 1};
    for (const double keep : kKeep) {
      CutTo(*this, count, keep, cuts.File(std::to_string(count)));
      ++count;
    }
  }
  const TempDir& cuts;
  std::atomic<bool> armed{false};
  uint64_t count = 0, log_writes = 0;
};

TEST_CASE("a power cut in a shred, or in the first write after it, loses no row") {
  TempDir dir, cuts;
  OftenCutDisk disk(dir, cuts);
  PoweredDatabase p(&disk, dir);
  std::set<int64_t> live;
  for (int64_t id = 1; id <= 40; ++id) {  // each commit is a state that a part of the log makes
    REQUIRE(AddNote(p.db.get(), id, Marked(id, 500)).ok());
    live.insert(id);
    if (id % 4 == 0) {
      const Status deleted = p.db->Write(
          [&](Txn& txn) { return txn.Run("DELETE FROM note WHERE id = ?", id / 2); },
          WriteClass::kTurn);
      REQUIRE(deleted.ok());
      live.erase(id / 2);
    }
  }
  disk.armed = true;
  REQUIRE(p.db->Shred(milliseconds(1000)).ok());
  const uint64_t in_shred = disk.count;
  REQUIRE(AddNote(p.db.get(), 41, Marked(41, 500)).ok());
  disk.armed = false;
  CHECK(in_shred > 40);
  for (uint64_t cut = 0; cut < disk.count; ++cut) {
    CAPTURE(cut);
    std::set<int64_t> there = NotesIn(cuts.File(std::to_string(cut)));
    if (cut >= in_shred) there.erase(41);
    CHECK(there == live);
  }
}

TEST_CASE("every n-th write or sync of a shred fails: no row is lost, and it can be run again") {
  for (int n = 1, failed = 1; failed > 0; ++n) {
    CAPTURE(n);
    TempDir dir;
    FaultVfs vfs;
    Database::Options options = OptionsFor(dir);
    options.vfs = vfs.name();
    options.probe_interval = milliseconds(1);
    auto db = OpenOrDie(options);
    std::set<int64_t> live;
    for (int64_t id = 1; id <= 60; ++id) {
      REQUIRE(AddNote(db.get(), id, Marked(id, 500)).ok());
      if (id % 3 == 0) live.insert(id);
    }
    REQUIRE(db->Write([](Txn& txn) { return txn.Run("DELETE FROM note WHERE id % 3 > 0"); },
                      WriteClass::kTurn)
                .ok());
    vfs.FailAt(n, FaultVfs::Fault::kIoError, FaultVfs::Repeat::kOnce);
    const Status first = db->Shred(milliseconds(1000));
    failed = vfs.faults();
    vfs.Heal();
    if (failed == 0) CHECK(first.ok());  // the one that failed may be the writer's own checkpoint
    CHECK(NoteIds(db.get()) == live);
    Status again = Status::Unavailable("");
    for (int i = 0; i < 1000 && !again.ok(); ++i) again = db->Shred(milliseconds(1000));
    CHECK_MESSAGE(again.ok(), again.ToString());
    CHECK(MarksIn(dir) == live);
    CHECK(NoteIds(db.get()) == live);
    REQUIRE(n < 300);
  }
}

}  // namespace
}  // namespace holdfast

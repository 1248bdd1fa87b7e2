// A process that writes is killed with SIGKILL; what it had acknowledged is there.
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <set>

#include "engine/store/database.h"
#include "engine/store/file_page_store.h"
#include "tests/engine/base/temp_dir.h"

namespace holdfast {
namespace {

using testing::TempDir;

// Runs `work` in a child that is killed after `acks` acknowledgements; returns all that it sent.
std::vector<uint32_t> KillAfter(size_t acks, const std::function<void(int pipe)>& work) {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::close(ends[0]);
    work(ends[1]);
    ::_exit(1);
  }
  ::close(ends[1]);
  std::vector<uint32_t> sent;
  uint32_t id = 0;
  while (::read(ends[0], &id, sizeof(id)) == sizeof(id)) {
    sent.push_back(id);
    if (sent.size() == acks) ::kill(child, SIGKILL);
  }
  ::close(ends[0]);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFSIGNALED(status));
  return sent;
}

void Acknowledge(int pipe, uint32_t id) {
  if (::write(pipe, &id, sizeof(id)) != sizeof(id)) ::_exit(2);
}

Result<std::unique_ptr<Database>> OpenDatabase(const TempDir& dir) {
  Database::Options options;
  options.path = dir.File("test.db");
  options.migrations = {{"rows", 1, "CREATE TABLE row(id INTEGER PRIMARY KEY, data BLOB);"}};
  return Database::Open(options);
}

TEST_CASE("a killed process loses no acknowledged row, lazy or not") {
  TempDir dir;
  std::set<uint32_t> acked;
  for (uint32_t round = 1; round <= 5; ++round) {
    const auto sent = KillAfter(round * 17, [&](int pipe) {
      auto db = OpenDatabase(dir);
      if (!db.ok()) return;
      const std::vector<std::byte> data(3000 * round);
      for (uint32_t id = round * 100000;; ++id) {
        const Status s = (*db)->Write(
            [&](Txn& txn) {
              return txn.Run("INSERT INTO row VALUES(?, ?)", id, std::span<const std::byte>(data));
            },
            id % 3 == 0 ? WriteClass::kTurn : WriteClass::kLazy);
        if (!s.ok()) return;
        Acknowledge(pipe, id);
      }
    });
    CHECK(sent.size() >= round * 17);
    acked.insert(sent.begin(), sent.end());
  }
  auto db = OpenDatabase(dir);
  REQUIRE_MESSAGE(db.ok(), db.status().ToString());
  const Status s = (*db)->Read([&](Reader& reader) -> Status {
    Rows rows = reader.Query("SELECT id FROM row");
    while (rows.Next()) acked.erase(static_cast<uint32_t>(rows.Int(0)));
    HOLDFAST_RETURN_IF_ERROR(rows.status());
    Rows check = reader.Query("PRAGMA integrity_check");
    CHECK(check.Next());
    CHECK(check.Text(0) == "ok");
    return check.status();
  });
  CHECK(s.ok());
  CHECK(acked.empty());
}

PageHeader HeaderOf(uint32_t id) {
  PageHeader header;
  header.key = Sha256(&id, sizeof(id));
  header.tokens.assign(kPageTokens, static_cast<TokenId>(id));
  return header;
}

// The last test here: RocksDB's threads stay, and a fork should not happen beside them.
TEST_CASE("a killed process loses no page that was put") {
  TempDir dir;
  RealEnv env;
  FilePageStore::Options options;
  options.path = dir.File("pages");
  options.env = &env;
  options.max_file_bytes = 1 << 20;
  const auto sent = KillAfter(95, [&](int pipe) {
    auto store = FilePageStore::Open(options);
    if (!store.ok()) return;
    for (uint32_t id = 0;; ++id) {
      const std::vector<std::byte> bytes(50000, static_cast<std::byte>(id));
      const std::vector<std::span<const std::byte>> payload = {bytes};
      if (!(*store)->Put(HeaderOf(id), payload).ok()) return;
      if (id % 8 == 3 && !(*store)->Sync().ok()) return;
      Acknowledge(pipe, id);
    }
  });
  REQUIRE(sent.size() >= 95);
  auto store = FilePageStore::Open(options);
  REQUIRE_MESSAGE(store.ok(), store.status().ToString());
  std::vector<std::byte> bytes(50000);
  const std::vector<std::span<std::byte>> payload = {bytes};
  for (uint32_t id = 0; id <= sent.back(); ++id) {
    const Status s = (*store)->Get(HeaderOf(id), payload);
    CHECK_MESSAGE(s.ok(), "page ", id, ": ", s.ToString());
    CHECK(bytes == std::vector<std::byte>(50000, static_cast<std::byte>(id)));
  }
  CHECK((*store)->stats().corrupt == 0);
}

}  // namespace
}  // namespace holdfast

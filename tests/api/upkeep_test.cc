#include "api/upkeep.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>

#include "tests/api/runtime_bench.h"

namespace holdfast {
namespace {

const std::string kLong = "What is in the folder? List all of it, one name to a line, please.";

Answer Ask(RuntimeBench& b, const std::string& session, const std::string& text) {
  return b.Say(Talk(session).User(text).Request());
}

void Run(RuntimeBench& b, const std::string& sql) {
  const Status s = b.runtime().database().Write([&](Txn& txn) { return txn.Run(sql); },
                                                WriteClass::kTurn);
  REQUIRE_MESSAGE(s.ok(), s.ToString());
}

TEST_CASE("fsck: a folder in use is clean") {
  RuntimeBench b;
  Ask(b, "one", kLong + kLong);
  MakeBranch make;
  make.at_token = 7;
  REQUIRE(b.runtime().keeper().Branch("ann", "one", make).ok());
  REQUIRE(b.runtime().keeper().Snapshot("ann", "one", "", "x").ok());
  b.Restart();
  const auto report = Fsck(b.runtime(), FilePageStore::Repair::kNo);
  REQUIRE_MESSAGE(report.ok(), report.status().ToString());
  CHECK(report->clean());
  CHECK(report->log.sessions.rows == 1);
  CHECK(report->log.nodes.rows == 2);
  CHECK(report->log.items.rows == 2);
  CHECK(report->log.branches.rows == 2);
  CHECK(report->log.turns.rows == 1);
  CHECK(report->log.snapshots.rows == 1);
  CHECK(report->log.events.rows > 3);
  CHECK(report->pages.pages > 3);
}

TEST_CASE("fsck: damage to a row of any kind is found and named") {
  struct Case {
    const char* sql;
    LogReport::Kind LogReport::* kind;
  };
  for (const Case& c : {
           Case{.sql = "UPDATE node SET tokens = substr(tokens, 1, 8) WHERE kind = 0",
                .kind = &LogReport::nodes},
           Case{.sql = "UPDATE node SET tokens = zeroblob(5) WHERE kind = 1",
                .kind = &LogReport::nodes},
           Case{.sql = "UPDATE node SET parent_count = 9999 WHERE kind = 1",
                .kind = &LogReport::nodes},
           Case{.sql = "UPDATE node SET status = 1 WHERE kind = 0", .kind = &LogReport::nodes},
           Case{.sql = "UPDATE item SET count = count + 1", .kind = &LogReport::items},
           Case{.sql = "UPDATE item SET header = count + 1", .kind = &LogReport::items},
           Case{.sql = "UPDATE branch SET tokens = tokens - 1", .kind = &LogReport::branches},
           Case{.sql = "UPDATE branch SET count = count + 1", .kind = &LogReport::branches},
           Case{.sql = "UPDATE turn SET status = 7", .kind = &LogReport::turns},
           Case{.sql = "UPDATE snapshot SET items = 9", .kind = &LogReport::snapshots},
           Case{.sql = "UPDATE event SET detail = hex(zeroblob(4000))", .kind = &LogReport::events},
           Case{.sql = "UPDATE session SET default_branch = 999", .kind = &LogReport::sessions},
       }) {
    CAPTURE(c.sql);
    RuntimeBench b;
    Ask(b, "one", kLong);
    REQUIRE(b.runtime().keeper().Snapshot("ann", "one", "", "x").ok());
    Run(b, c.sql);
    const auto report = Fsck(b.runtime(), FilePageStore::Repair::kNo);
    REQUIRE_MESSAGE(report.ok(), report.status().ToString());
    CHECK_FALSE(report->clean());
    CHECK((report->log.*c.kind).damaged > 0);
    REQUIRE_FALSE(report->log.what.empty());
  }
}

// Flips a bit of the payload of the first page.
void DamagePage(const std::string& data) {
  std::fstream f(data + "/pages/pages-000001.hf", std::ios::in | std::ios::out | std::ios::binary);
  REQUIRE(f.good());
  f.seekg(5000);
  const char old = static_cast<char>(f.get());
  f.seekp(5000);
  f.put(static_cast<char>(old ^ 1));
}

TEST_CASE("fsck: a damaged page is found, dropped by a repair, and computed again") {
  RuntimeBench b;
  Talk talk("one");
  talk.User(kLong + kLong);
  const Answer first = b.Say(talk.Request());
  talk.Keep(first).User("more");
  RuntimeBench other;
  Talk same("one");
  same.User(kLong + kLong).Keep(other.Say(same.Request())).User("more");
  const Answer want = other.Say(same.Request());
  b.Close();
  DamagePage(b.File("data"));
  b.Restart();
  auto report = Fsck(b.runtime(), FilePageStore::Repair::kNo);
  REQUIRE(report.ok());
  CHECK(report->pages.damaged == 1);
  CHECK(report->pages.what.size() == 1);
  CHECK(Fsck(b.runtime(), FilePageStore::Repair::kRepair)->pages.damaged == 1);
  report = Fsck(b.runtime(), FilePageStore::Repair::kNo);
  CHECK(report->clean());
  CHECK(b.Say(talk.Request()) == want);
}

TEST_CASE("fsck: a repair indexes records that the index has lost") {
  RuntimeBench b;
  Ask(b, "one", kLong + kLong);
  b.Restart();
  const uint64_t pages = b.runtime().stats().store.pages;
  REQUIRE(pages > 0);
  b.Close();
  std::filesystem::remove_all(b.File("data") + "/pages/index");
  b.Restart();  // rebuilds an index that is gone by itself
  const auto report = Fsck(b.runtime(), FilePageStore::Repair::kRepair);
  CHECK(report->clean());
  CHECK(report->pages.pages == pages);
  CHECK(report->pages.unindexed == 0);
}

TEST_CASE("gc deletes what is expired, and with now the pages that nobody needs") {
  RuntimeBench b;
  CreateSession brief;
  brief.external_id = "brief";
  brief.ttl_s = 3600;  // until the table says otherwise
  REQUIRE(b.runtime().keeper().Create("ann", brief).ok());
  Ask(b, "kept", kLong + kLong);
  Ask(b, "gone", "Something else altogether, of at least two pages: " + kLong);
  b.Restart();
  const uint64_t before = b.runtime().stats().store.pages;
  REQUIRE(b.runtime().keeper().Delete("ann", "gone").ok());
  Run(b, "UPDATE session SET expires_ms = 1 WHERE external_id = 'brief'");
  auto report = CollectGarbage(b.runtime(), Gc::kExpired);
  REQUIRE_MESSAGE(report.ok(), report.status().ToString());
  CHECK(report->sessions == 1);
  CHECK(report->pages.pages == 0);
  report = CollectGarbage(b.runtime(), Gc::kNow);
  REQUIRE(report.ok());
  CHECK(report->sessions == 0);
  CHECK(report->pages.pages > 1);
  CHECK(report->pages.bytes > 0);
  CHECK(b.runtime().stats().store.pages < before);
  CHECK(Fsck(b.runtime(), FilePageStore::Repair::kNo)->clean());
  // What is needed is still there.
  b.Restart();
  const Answer again = Ask(b, "other", kLong + kLong);
  CHECK(again.done.report.start.stitch.from_store > 32);
  CHECK(CollectGarbage(b.runtime(), Gc::kNow)->pages.pages == 0);
}

TEST_CASE("a backup opens and goes on to the bit") {
  RuntimeBench b, restored;
  Talk talk("one");
  talk.User(kLong + kLong).Keep(b.Say(talk.Request())).User("more");
  const std::string path = b.File("backup");
  const auto report = Backup(b.runtime(), path);
  REQUIRE_MESSAGE(report.ok(), report.status().ToString());
  CHECK(report->pages > 0);
  CHECK(report->bytes > 10'000);
  CHECK(Backup(b.runtime(), path).status().code() == Code::kConflict);
  CHECK(Backup(b.runtime(), "relative").status().code() == Code::kInvalid);
  const Answer want = b.Say(talk.Request());
  restored.Close();
  std::filesystem::remove_all(restored.File("data"));
  std::filesystem::copy(path, restored.File("data"), std::filesystem::copy_options::recursive);
  restored.Restart();
  const Answer got = restored.Say(talk.Request());
  CHECK(got == want);
  CHECK(got.done.report.start.stitch.from_store > 0);
  CHECK(Fsck(restored.runtime(), FilePageStore::Repair::kNo)->clean());
}

}  // namespace
}  // namespace holdfast

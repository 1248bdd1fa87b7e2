#include "api/upkeep.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>

#include "tests/api/runtime_bench.h"

namespace holdfast {
namespace {

const std::string kLong = "What is in the folder? List all of it, one name to a line, please.";

Answer Ask(RuntimeBench& b, const std::string& session, const std::string& text) {
  return b.Say(Talk(session).User(text).Request());
}

// Behind what is queued already.
void Run(RuntimeBench& b, const std::string& sql) {
  int64_t changes = 0;
  const Status s = b.runtime().database().Write(
      [&](Txn& txn) {
        Status ran = txn.Run(sql);
        changes = txn.changes();
        return ran;
      },
      WriteClass::kBackground);
  REQUIRE_MESSAGE(s.ok(), s.ToString());
  REQUIRE(changes > 0);
}

constexpr char kPageFile[] = "pages-000001.hf";

// Names of the data folder's files that hold these bytes.
std::set<std::string> FilesWith(const RuntimeBench& b, std::string_view bytes) {
  std::set<std::string> names;
  for (const auto& file : std::filesystem::recursive_directory_iterator(b.File("data"))) {
    if (!file.is_regular_file()) continue;
    std::ifstream in(file.path(), std::ios::binary);
    const std::string all((std::istreambuf_iterator<char>(in)), {});
    if (all.find(bytes) != std::string::npos) names.insert(file.path().filename().string());
  }
  return names;
}

// A session with a text of its own, on the disk with all that comes of it; and its text's tokens as
// files hold them.
struct Secret {
  const std::string text = "the plover egg lies under the third of the twisty stairs, "
                           "on the left, behind a jar of nails and some string";
  std::string tokens;

  explicit Secret(RuntimeBench& b) {
    Ask(b, "gone", kLong + text + kLong);
    REQUIRE(b.runtime().keeper().Snapshot("ann", "gone", "", "x").ok());
    const auto all = b.runtime().keeper().Tokens("ann", "gone", "");
    const auto ids = b.runtime().engine().tokenizer().EncodePlain(text);
    REQUIRE(ids->size() > 56);  // so that the first of some page are among them
    const auto at = std::search(all->begin(), all->end(), ids->begin() + 8, ids->end() - 8);
    REQUIRE(at != all->end());  // letters merge at the seams
    const size_t page = (static_cast<size_t>(at - all->begin()) + kPageTokens - 1) / kPageTokens;
    const auto bytes = std::as_bytes(std::span(*all).subspan(page * kPageTokens, 8));
    tokens.assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    b.Restart();
    CHECK(FilesWith(b, text).contains("holdfast.db"));
    CHECK(FilesWith(b, tokens).contains("holdfast.db"));
    CHECK(FilesWith(b, tokens).contains(kPageFile));
  }
};

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
  CHECK(report->log.tails.rows > 0);
  CHECK(report->log.segments.rows == 1);
  CHECK(report->log.variants.rows == 1);
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
           Case{.sql = "INSERT INTO recipe(node, body) SELECT id, x'01' FROM node WHERE kind = 1",
                .kind = &LogReport::recipes},
           Case{.sql = "UPDATE tail SET branch = 999", .kind = &LogReport::tails},
           Case{.sql = "UPDATE tail SET key = x'01'", .kind = &LogReport::tails},
           Case{.sql = "UPDATE segment SET role = 'tool'", .kind = &LogReport::segments},
           Case{.sql = "UPDATE segment SET fp = x'01'", .kind = &LogReport::segments},
           Case{.sql = "UPDATE segment_variant SET count = 3", .kind = &LogReport::variants},
       }) {
    CAPTURE(c.sql);
    RuntimeBench b;
    Ask(b, "one", kLong + kLong);
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
  Ask(b, "gone", "Something else altogether, of at least two pages: " + kLong);
  b.Restart();
  const uint64_t pages = b.runtime().stats().store.pages;
  // The page file as it was before what the index says was deleted.
  const std::string file = b.File("data") + "/pages/" + kPageFile;
  std::filesystem::copy_file(file, b.File("before"));
  REQUIRE(b.runtime().keeper().Delete("ann", "gone").ok());
  const auto deleted = CollectGarbage(b.runtime(), Gc::kNow);
  REQUIRE(deleted.ok());
  REQUIRE(deleted->deleted.pages.pages > 1);
  b.Close();
  std::filesystem::copy_file(b.File("before"), file,
                             std::filesystem::copy_options::overwrite_existing);
  b.Restart();
  auto report = Fsck(b.runtime(), FilePageStore::Repair::kNo);
  CHECK(report->clean());
  CHECK(report->pages.unindexed > 1);
  const auto& p = report->pages;
  CHECK(p.file_bytes == p.bytes + p.unindexed_bytes + p.dead_bytes);
  const uint64_t whole = p.bytes + p.unindexed_bytes, found = p.pages + p.unindexed;
  report = Fsck(b.runtime(), FilePageStore::Repair::kRepair);
  CHECK(report->clean());
  CHECK(report->pages.unindexed == 0);
  report = Fsck(b.runtime(), FilePageStore::Repair::kNo);
  CHECK(report->pages.pages == found);
  CHECK(report->pages.pages > pages - deleted->deleted.pages.pages);
  CHECK(report->pages.bytes == whole);
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
  CHECK(report->deleted.sessions == 1);
  CHECK(report->deleted.pages.pages == 0);
  report = CollectGarbage(b.runtime(), Gc::kNow);
  REQUIRE(report.ok());
  CHECK(report->deleted.sessions == 0);
  CHECK(report->deleted.pages.pages > 1);
  CHECK(report->deleted.pages.bytes > 0);
  CHECK(b.runtime().stats().store.pages < before);
  CHECK(Fsck(b.runtime(), FilePageStore::Repair::kNo)->clean());
  // What is needed is still there.
  b.Restart();
  const Answer again = Ask(b, "other", kLong + kLong);
  CHECK(again.done.report.start.stitch.from_store > 32);
  CHECK(CollectGarbage(b.runtime(), Gc::kNow)->deleted.pages.pages == 0);
}

TEST_CASE("gc now leaves no byte of a deleted session in the data folder") {
  RuntimeBench b;
  Ask(b, "kept", kLong + kLong);
  const Secret secret(b);
  REQUIRE(b.runtime().keeper().Delete("ann", "gone").ok());
  const auto report = CollectGarbage(b.runtime(), Gc::kNow);
  REQUIRE_MESSAGE(report.ok(), report.status().ToString());
  CHECK(report->deleted.shredded);
  CHECK(FilesWith(b, secret.text) == std::set<std::string>{});
  CHECK(FilesWith(b, secret.tokens) == std::set<std::string>{});
  CHECK_FALSE(FilesWith(b, kLong).empty());
  CHECK(Fsck(b.runtime(), FilePageStore::Repair::kNo)->clean());
  b.Restart();
  CHECK(Ask(b, "other", kLong + kLong).done.report.start.stitch.from_store > 32);
}

TEST_CASE("gc says that a long read keeps texts of deleted rows, and clears them after it") {
  RuntimeBench b;
  const Secret secret(b);
  b.runtime().database().Read([&](Reader& reader) -> Status {
    Rows rows = reader.Query("SELECT id FROM session");
    REQUIRE(rows.Next());
    REQUIRE(b.runtime().keeper().Delete("ann", "gone").ok());
    const auto report = CollectGarbage(b.runtime(), Gc::kNow);
    CHECK_FALSE(report->deleted.shredded);
    return rows.status();
  }).IgnoreError();
  CHECK_FALSE(FilesWith(b, secret.text).empty());
  CHECK(CollectGarbage(b.runtime(), Gc::kNow)->deleted.shredded);
  CHECK(FilesWith(b, secret.text).empty());
}

TEST_CASE("what was deleted is gone in the background, where something was") {
  RuntimeBench b({.tend_every_ms = 0, .gc_every_ms = 1});
  Keeper& k = b.runtime().keeper();
  Ask(b, "kept", kLong + kLong);
  k.Tend();
  CHECK(k.stats().collections == 0);
  const Secret secret(b);
  Keeper& again = b.runtime().keeper();
  REQUIRE(again.Delete("ann", "gone").ok());
  again.Tend();
  CHECK(again.stats().collections == 1);
  CHECK(FilesWith(b, secret.text).empty());
  CHECK(FilesWith(b, secret.tokens).empty());
  again.Tend();
  CHECK(again.stats().collections == 1);
}

TEST_CASE("gc deletes pages of other models' sessions once these are deleted, and only then") {
  RuntimeBench b;
  Ask(b, "kept", kLong + kLong);
  Ask(b, "gone", "Something else altogether, of at least two pages: " + kLong);
  b.Restart();
  const uint64_t pages = b.runtime().stats().store.pages;
  b.ChangeModel(2, 400);
  CHECK(CollectGarbage(b.runtime(), Gc::kNow)->deleted.pages.pages == 0);
  REQUIRE(b.runtime().keeper().Delete("ann", "gone").ok());
  const uint64_t deleted = CollectGarbage(b.runtime(), Gc::kNow)->deleted.pages.pages;
  CHECK(deleted > 1);
  CHECK(b.runtime().stats().store.pages == pages - deleted);
  b.ChangeModel(1, 320);
  CHECK(Ask(b, "other", kLong + kLong).done.report.start.stitch.from_store > 32);
  CHECK(Ask(b, "another", "Something else altogether, of at least two pages: " + kLong)
            .done.report.start.stitch.from_store == 0);
}

TEST_CASE("a backup opens and goes on to the bit") {
  RuntimeBench b, restored;
  b.GiveCard();
  Talk talk("one");
  talk.User(kLong + kLong).Keep(b.Say(talk.Request())).User("more");
  const std::string path = b.File("backup");
  const auto report = Backup(b.runtime(), path);
  REQUIRE_MESSAGE(report.ok(), report.status().ToString());
  CHECK(report->pages > 0);
  CHECK(report->bytes > 10'000);
  CHECK(Backup(b.runtime(), path).status().code() == Code::kConflict);
  CHECK(Backup(b.runtime(), "relative").status().code() == Code::kInvalid);
  const std::string model = b.runtime().engine().model().fingerprint().Hex();
  CHECK(std::filesystem::file_size(path + "/cards/" + model + ".json") ==
        std::filesystem::file_size(b.File("data") + "/cards/" + model + ".json"));
  const Answer want = b.Say(talk.Request());
  restored.Close();
  std::filesystem::remove_all(restored.File("data"));
  std::filesystem::copy(path, restored.File("data"), std::filesystem::copy_options::recursive);
  restored.Restart();
  const Answer got = restored.Say(talk.Request());
  CHECK(got == want);
  CHECK(got.done.report.start.stitch.from_store > 0);
  CHECK(restored.runtime().stitcher().card() != nullptr);
  CHECK(Fsck(restored.runtime(), FilePageStore::Repair::kNo)->clean());
}

}  // namespace
}  // namespace holdfast

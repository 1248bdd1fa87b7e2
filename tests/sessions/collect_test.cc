// What the keeper's own thread does for what was deleted, and what it keeps of tools.
#include <doctest/doctest.h>

#include "tests/fixtures/tiny_model.h"
#include "tests/sessions/bench.h"

namespace holdfast {
namespace {

using Messages = std::vector<ChatMessage>;

int64_t SessionRows(SessionBench& b) {
  int64_t rows_there = -1;
  const Status read = b.db().Read([&](Reader& reader) {
    Rows rows = reader.Query("SELECT count(*) FROM session");
    if (rows.Next()) rows_there = rows.Int(0);
    return rows.status();
  });
  REQUIRE(read.ok());
  return rows_there;
}

TEST_CASE("sessions that have expired go on an idle server") {
  SessionBench b;
  const auto create = [&](const std::string& name) {
    REQUIRE(b.keeper().Create("ann", {.external_id = name, .meta_json = "{}", .ttl_s = 10}).ok());
  };
  for (int i = 0; i < 40; ++i) create(std::string("s").append(std::to_string(i)));
  b.keeper().Tend();
  CHECK(SessionRows(b) == 40);
  b.now_ms += 61'000;
  for (const int64_t left : {24, 8, 0}) {  // a few in a round, until there are none
    b.keeper().Tend();
    CHECK(SessionRows(b) == left);
  }
  create("later");
  b.now_ms += 11'000;
  b.keeper().Tend();
  CHECK(SessionRows(b) == 1);  // it looks once a minute
  b.now_ms += 60'000;
  b.keeper().Tend();
  CHECK(SessionRows(b) == 0);
}

TEST_CASE("a gc waits until no turn runs, and not for ever") {
  constexpr int64_t kHour = 3'600'000;
  SessionBench b({.gc_every_ms = kHour});
  const Messages m = {User("one")};
  const auto gcs = [&] {
    b.keeper().Tend();
    return b.keeper().stats().collections;
  };
  b.Say(Ask("kept", m), "uno");
  b.Say(Ask("gone", m), "uno");
  b.now_ms += 3 * kHour;
  CHECK(gcs() == 0);  // nothing was deleted
  SUBCASE("it does not come at once") {
    b.Restart();
    REQUIRE(b.keeper().Delete("ann", "gone").ok());
    CHECK(gcs() == 1);  // the last one is long ago
    REQUIRE(b.keeper().Delete("ann", "kept").ok());
    b.now_ms += kHour - 1;
    CHECK(gcs() == 1);
    b.now_ms += 60'000;
    CHECK(gcs() == 2);
  }
  SUBCASE("a turn runs") {
    REQUIRE(b.keeper().Delete("ann", "gone").ok());
    b.now_ms += 60'000;
    REQUIRE(gcs() == 1);
    REQUIRE(b.keeper().Delete("ann", "kept").ok());
    auto turn = b.Begin(Ask("busy", m));
    b.now_ms += kHour + 1;
    CHECK(gcs() == 1);
    b.now_ms += kHour;
    CHECK(gcs() == 2);
    b.Answer(std::move(turn), "dos");
  }
  SUBCASE("the turn has ended, and another process goes on") {
    auto turn = b.Begin(Ask("busy", m));
    REQUIRE(b.keeper().Delete("ann", "gone").ok());
    b.Answer(std::move(turn), "dos");
    b.Restart();
    CHECK(gcs() == 1);
  }
}

TEST_CASE("how long tools take is known to the next process") {
  SessionBench b;
  const auto call = [&](const std::string& session, int64_t pause_ms) {
    const Messages m = {User("one")};
    auto turn = b.Begin(Ask(session, m));
    TurnOutcome o;
    o.message = Assistant("", {{"c1", "slow", "{}"}});
    o.generated.push_back({kTinyTurnEnd, 8, false});
    const ChatMessage answer = o.message;
    REQUIRE(b.keeper().Commit(std::move(turn), std::move(o)).committed);
    b.now_ms += pause_ms;
    b.Begin(Ask(session, Messages{User("one"), answer, ToolResult("c1", "done")})).reset();
  };
  const auto saved = [&] {
    std::vector<double> pauses;
    const Status read = b.db().Read([&](Reader& reader) {
      Rows rows = reader.Query("SELECT pauses FROM tool_pause");
      if (rows.Next()) pauses = rows.Array<double>(0);
      return rows.status();
    });
    REQUIRE(read.ok());
    return pauses;
  };
  call("first", 42'000);
  b.keeper().Tend();
  CHECK(saved() == std::vector<double>{42'000});
  b.Restart();
  call("second", 40'000);
  b.keeper().Shutdown();
  CHECK(saved() == std::vector<double>{42'000, 40'000});
}

}  // namespace
}  // namespace holdfast

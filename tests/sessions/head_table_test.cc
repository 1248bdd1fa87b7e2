#include "sessions/head_table.h"

#include <doctest/doctest.h>

#include <functional>

namespace holdfast {
namespace {

const HeadId kHead{7, 70, "ann", "sess_7"};

std::vector<PageKey> Keys(int count) {
  std::vector<PageKey> keys(count);
  for (int i = 0; i < count; ++i) keys[i].bytes.fill(static_cast<uint8_t>(i + 1));
  return keys;
}
const std::vector<ToolCall> kCalls = {{"c1", "read", "{}"}};

void Commit(HeadTable& t, int64_t now, std::span<const ToolCall> calls = {},
            HeadMemory memory = {}) {
  t.TurnBegun(kHead, {}, now);
  t.TurnRestored(70);
  t.TurnCommitted(70, {calls, memory, now});
}

using Step = std::function<void(HeadTable&)>;

TEST_CASE("each transition, from each state") {
  const Step begun = [](HeadTable& t) { t.TurnBegun(kHead, {}, 5); };
  const Step restored = [](HeadTable& t) { t.TurnRestored(70); };
  const Step committed = [](HeadTable& t) { t.TurnCommitted(70, {{}, {}, 6}); };
  const Step called = [](HeadTable& t) { t.TurnCommitted(70, {kCalls, {}, 6}); };
  const Step aborted = [](HeadTable& t) { t.TurnAborted(70, HeadTable::Kept::kTimeline); };
  const Step lost = [](HeadTable& t) { t.TurnAborted(70, HeadTable::Kept::kNothing); };
  const Step let_go = [](HeadTable& t) { t.LetGo(70, Keys(3)); };
  const Step superseded = [](HeadTable& t) { t.Supersede(70); };
  const Step prefetch = [](HeadTable& t) { t.PrefetchBegun(kHead, {}); };
  const Step prefetched = [](HeadTable& t) { t.Prefetched(70, Keys(3), {3, 3}); };
  const Step all_seen = [](HeadTable& t) { t.PagesSeen(70, {3, 3}); };
  const Step some_seen = [](HeadTable& t) { t.PagesSeen(70, {2, 3}); };
  const Step closed = [](HeadTable& t) { t.Close(7); };
  const std::vector<Step> all = {begun, restored, committed, called, aborted, lost, let_go,
                                 superseded, prefetch, prefetched, all_seen, some_seen, closed};
  struct Case {
    const char* from;
    std::vector<Step> way;  // to it
    // One letter per transition, in the order of `all`: r(esident) w(arm) c(old) R(estoring)
    // X (running) t(ool-wait) s(uperseded) - (not known)
    const char* to;
  };
  const Case cases[] = {
      {"unknown", {}, "R-------R----"},
      {"resident", {begun, restored, committed}, "Rrrrrrwsrrrr-"},
      {"tool-wait", {begun, restored, called}, "Rtttttwstttt-"},
      {"warm", {begun, restored, committed, let_go}, "RwwwwwwsRwwc-"},
      {"cold", {begun, restored, committed, let_go, some_seen}, "RcccccwsRcwc-"},
      {"restoring, a turn", {begun}, "RXrtrcRRRRRR-"},
      {"restoring, a prefetch", {prefetch}, "RRRRRRRRRwRR-"},
      {"running", {begun, restored}, "RXrtrcXXXXXX-"},
      {"superseded, held", {begun, restored, committed, superseded}, "Rsssssssssss-"},
      {"superseded, let go", {begun, restored, committed, superseded, let_go}, "RsssssssRsss-"},
  };
  for (const Case& c : cases) {
    std::string got;
    for (const Step& step : all) {
      HeadTable table;
      for (const Step& s : c.way) s(table);
      step(table);
      const auto state = table.StateOf(70);
      got += state ? "rwcRXtsK"[static_cast<int>(*state)] : '-';
    }
    CAPTURE(c.from);
    CHECK(got == c.to);
  }
}

TEST_CASE("a tool's end is expected when it used to end") {
  HeadTable t;
  Commit(t, 1000, kCalls);
  CHECK(t.FactsOf(70).state == HeadState::kToolWait);
  CHECK(t.FactsOf(70).expected_ms == 1000 + HeadTable::kUnknownPauseMs);
  for (int64_t pause : {300, 500, 400}) {
    const int64_t at = t.FactsOf(70).last_use_ms + pause;
    Commit(t, at, kCalls);
  }
  const std::vector<std::string> read = {"read"}, both = {"read", "write"};
  CHECK(t.PauseOf("ann", read) == 400);
  CHECK(t.PauseOf("ann", both) == HeadTable::kUnknownPauseMs);  // the slowest
  CHECK(t.PauseOf("bob", read) == HeadTable::kUnknownPauseMs);  // tenants learn nothing of others
  CHECK(t.FactsOf(70).expected_ms == t.FactsOf(70).last_use_ms + 400);
  // A user who goes to lunch says nothing of the tool.
  Commit(t, t.FactsOf(70).last_use_ms + HeadTable::kLongestPauseMs + 1, kCalls);
  CHECK(t.PauseOf("ann", read) == 400);
  // Another table learns of it, once.
  HeadTable next;
  next.KnowPauses(t.TakeNewPauses());
  CHECK(next.PauseOf("ann", read) == 400);
  CHECK(next.PauseOf("bob", read) == HeadTable::kUnknownPauseMs);
  CHECK(t.TakeNewPauses().empty());
  CHECK(next.TakeNewPauses().empty());
  // What the client says goes before what was seen.
  Commit(t, 10'000'000, kCalls, {.expected_ms = 10'060'000});
  CHECK(t.FactsOf(70).expected_ms == 10'060'000);
}

TEST_CASE("a head is due once, shortly before it is expected, when it is not there") {
  HeadTable t;
  Commit(t, 1000, kCalls, {.expected_ms = 60'000});
  CHECK(t.TakeDue(59'000).empty());  // its timeline is there
  t.LetGo(70, Keys(2));
  CHECK(t.TakeDue(60'000 - HeadTable::kPrefetchLeadMs - 1).empty());
  const std::vector<HeadId> due = t.TakeDue(60'000 - HeadTable::kPrefetchLeadMs);
  REQUIRE(due.size() == 1);
  CHECK(due[0].session == "sess_7");
  CHECK(t.TakeDue(60'000).empty());
  t.SetMemory(kHead, {.expected_ms = 90'000});
  CHECK(t.TakeDue(90'000).size() == 1);
}

TEST_CASE("a line has the pages that may be in the pool, and shrinks as they go") {
  HeadTable t;
  Commit(t, 1000);
  CHECK(t.Lines().empty());
  t.LetGo(70, Keys(3));
  REQUIRE(t.Lines().size() == 1);
  CHECK(t.Lines()[0].keys == Keys(3));
  t.PagesSeen(70, {2, 3});
  CHECK(t.StateOf(70) == HeadState::kCold);
  CHECK(t.Lines()[0].keys == Keys(2));
  CHECK(t.Lines()[0].total == 3);
  t.PagesSeen(70, {0, 3});
  CHECK(t.Lines().empty());
  CHECK(t.counts().by_state[static_cast<int>(HeadState::kCold)] == 1);
}

TEST_CASE("pages on their way to a turn stand in the line, in front of all that nobody uses") {
  HeadTable t;
  t.TurnBegun(kHead, {}, 1000);
  CHECK(t.Lines().empty());
  t.TurnRestored(70, Keys(3));
  REQUIRE(t.Lines().size() == 1);
  CHECK(t.Lines()[0].keys == Keys(3));
  CHECK(ResumeChance(t.Lines()[0].facts, 10'000'000) == 1);
  t.PagesSeen(70, {1, 3});  // they are still to come
  CHECK(t.Lines()[0].keys == Keys(3));
  t.TurnCommitted(70, {{}, {}, 2000});
  CHECK(t.Lines().empty());
}

TEST_CASE("a turn takes over from a prefetch") {
  HeadTable t;
  CHECK(t.PrefetchBegun(kHead, {}));
  CHECK_FALSE(t.PrefetchBegun(kHead, {}));
  t.TurnBegun(kHead, {}, 5);
  t.Prefetched(70, Keys(2), {2, 2});
  CHECK(t.StateOf(70) == HeadState::kRestoring);
  t.TurnRestored(70);
  CHECK(t.StateOf(70) == HeadState::kRunning);
}

TEST_CASE("more heads than are known: those used longest ago are forgotten") {
  HeadTable t;
  for (int64_t i = 0; i <= static_cast<int64_t>(HeadTable::kMaxHeads); ++i) {
    t.TurnBegun({i, i, "ann", "s"}, {}, 1000 + i);
    t.TurnCommitted(i, {{}, {}, 1000 + i});
    if (i != 0) t.LetGo(i, {});
  }
  CHECK(t.StateOf(0) == HeadState::kResident);  // has its timeline
  CHECK_FALSE(t.StateOf(1));
  CHECK(t.StateOf(2));
}

}  // namespace
}  // namespace holdfast

// Snapshots, the tree, pages of lists and turns that others end: what endpoints ask of the keeper.
#include <doctest/doctest.h>

#include <algorithm>
#include <future>

#include "sessions/running.h"
#include "tests/sessions/bench.h"

namespace holdfast {
namespace {

using Messages = std::vector<ChatMessage>;

// Two turns, and a snapshot after the first.
struct Told {
  SessionBench b;
  std::string snapshot;

  Told() {
    Messages m = {User("one")};
    b.Say(Ask("chat", m), "uno");
    snapshot = b.keeper().Snapshot("ann", "chat", "", "after one")->id;
    m.push_back(Assistant("uno"));
    m.push_back(User("two"));
    b.Say(Ask("chat", m), "dos");
  }
  Keeper& k() { return b.keeper(); }
};

TEST_CASE("a snapshot is read, pinned, unpinned and deleted, also after a restart") {
  Told t;
  CHECK(t.k().GetSnapshot("ann", "chat", t.snapshot)->label == "after one");
  CHECK(t.k().PinSnapshot("ann", "chat", t.snapshot, SnapshotPin::kOn)->pinned);
  t.b.Restart();
  CHECK(t.k().GetSnapshot("ann", "chat", t.snapshot)->pinned);
  CHECK_FALSE(t.k().PinSnapshot("ann", "chat", t.snapshot, SnapshotPin::kOff)->pinned);
  CHECK_FALSE(t.k().Snapshots("ann", "chat")->front().pinned);
  for (const auto& [tenant, session] : {std::pair("bob", "chat"), std::pair("ann", "other")}) {
    t.k().Create("ann", {.external_id = "other", .meta_json = ""}).status().IgnoreError();
    CHECK(t.k().GetSnapshot(tenant, session, t.snapshot).status().code() == Code::kNotFound);
    CHECK(t.k().DeleteSnapshot(tenant, session, t.snapshot).code() == Code::kNotFound);
  }
  CHECK(t.k().DeleteSnapshot("ann", "chat", t.snapshot).ok());
  CHECK(t.k().DeleteSnapshot("ann", "chat", t.snapshot).code() == Code::kNotFound);
  CHECK(t.k().PinSnapshot("ann", "chat", t.snapshot, SnapshotPin::kOn).status().code() ==
        Code::kNotFound);
  CHECK(t.k().Snapshots("ann", "chat")->empty());
  CHECK(t.k().CheckLog()->damaged() == 0);
}

// The partial pages that the session's snapshots have.
int64_t TailsOfSnapshots(SessionBench& b) {
  int64_t n = 0;
  REQUIRE(b.db()
              .Read([&](Reader& reader) {
                Rows rows = reader.Query("SELECT COUNT(*) FROM tail WHERE branch IS NULL");
                if (rows.Next()) n = rows.Int(0);
                return rows.status();
              })
              .ok());
  return n;
}

TEST_CASE("a deleted snapshot's partial page goes, unless something else ends there") {
  SessionBench b;
  Keeper& k = b.keeper();
  const Messages m = {User("one")};
  auto turn = b.Begin(Ask("chat", m));
  TurnOutcome outcome;  // with KV of its prompt
  auto computed = b.Compute(turn->TakeTimeline(), ComputeOptions());
  REQUIRE(computed.ok());
  outcome.timeline = std::move(*computed);
  outcome.message = Assistant("");
  outcome.finish = "stop";
  REQUIRE(k.Commit(std::move(turn), std::move(outcome)).committed);
  const std::string first = k.Snapshot("ann", "chat", "", "first")->id;
  const std::string second = k.Snapshot("ann", "chat", "", "second")->id;
  REQUIRE(TailsOfSnapshots(b) == 1);
  REQUIRE(k.DeleteSnapshot("ann", "chat", second).ok());
  CHECK(TailsOfSnapshots(b) == 1);
  b.Say(Ask("chat", Messages{User("one"), Assistant(""), User("more")}), "yes");
  REQUIRE(k.DeleteSnapshot("ann", "chat", first).ok());
  CHECK(TailsOfSnapshots(b) == 0);
}

TEST_CASE("a recording up to a snapshot is the branch as it was then") {
  Told t;
  const auto at = t.k().RecordedAt("ann", "chat", t.snapshot);
  const auto all = t.k().Recorded("ann", "chat", "");
  REQUIRE(at.ok());
  CHECK(at->branch == "main");
  CHECK(at->turns.size() == 1);
  CHECK(all->turns.size() == 2);
  CHECK(std::equal(at->tokens.begin(), at->tokens.end(), all->tokens.begin()));
  CHECK(static_cast<int64_t>(at->tokens.size()) ==
        t.k().GetSnapshot("ann", "chat", t.snapshot)->tokens);
  CHECK(t.k().RecordedAt("ann", "chat", "snap_none").status().code() == Code::kNotFound);
}

TEST_CASE("a tree shows each item once, under the branch that has it alone") {
  Told t;
  MakeBranch make;
  make.name = "side";
  make.at_item = 2;
  REQUIRE(t.k().Branch("ann", "chat", make).ok());
  const Messages more = {User("three")};
  TurnRequest r = Ask("chat", more);
  r.append = true;
  r.session.branch = "side";
  t.b.Say(r, "tres");
  const auto tree = t.k().Tree("ann", "chat");
  REQUIRE(tree.ok());
  REQUIRE(tree->branches.size() == 2);
  CHECK(tree->default_branch == "main");
  CHECK(tree->snapshots.front().id == t.snapshot);
  const TreeInfo::Branch &main = tree->branches[0], &side = tree->branches[1];
  CHECK(main.parent_items == 0);
  CHECK(main.items.size() == 4);
  CHECK(side.info.parent == "main");
  CHECK(side.parent_items == 2);
  REQUIRE(side.items.size() == 2);
  CHECK(side.items[0].index == 2);
  CHECK(side.items[0].first == side.info.parent_tokens);
  CHECK(t.k().Tree("bob", "chat").status().code() == Code::kNotFound);
}

TEST_CASE("pages of a list, forwards and backwards") {
  struct Case {
    std::string after;
    ListOrder order;
    int limit;
    std::string want, next;
  };
  constexpr auto kUp = ListOrder::kAscending, kDown = ListOrder::kDescending;
  for (const Case& c : {Case{"", kUp, 2, "01", "1"}, Case{"1", kUp, 2, "23", "3"},
                        Case{"3", kUp, 2, "4", ""}, Case{"4", kUp, 2, "", ""},
                        Case{"99", kUp, 2, "", ""}, Case{"", kUp, 5, "01234", ""},
                        Case{"", kDown, 2, "43", "3"}, Case{"3", kDown, 2, "21", "1"},
                        Case{"1", kDown, 2, "0", ""}, Case{"0", kDown, 2, "", ""},
                        Case{"99", kDown, 5, "43210", ""}}) {
    CAPTURE(c.after);
    CAPTURE(c.want);
    const auto page = PageOf({.after = c.after, .limit = c.limit, .order = c.order}, 5);
    REQUIRE(page.ok());
    std::string got;
    for (const int64_t i : page->positions) got += std::to_string(i);
    CHECK(got == c.want);
    CHECK(page->next == c.next);
  }
  CHECK_FALSE(PageOf({.after = "x"}, 5).ok());
  CHECK_FALSE(PageOf({.after = "", .limit = 0}, 5).ok());
}

TEST_CASE("names that a header can't carry are refused") {
  Told t;
  for (const std::string bad : {"a\"b", "a\\b", "a\nb", "a\rb", "\x7f", "a\x1f"}) {
    CAPTURE(bad);
    MakeBranch make;
    make.name = bad;
    const Status s = t.k().Branch("ann", "chat", make).status();
    CHECK(s.code() == Code::kInvalid);
    CHECK(s.message().starts_with("name: "));
  }
}

TEST_CASE("who ends a running turn is heard whether its decoder is there yet or not") {
  RunningTurns running;
  HeadLeases leases(1);
  int stopped = 0;
  running.Enter("a", {1, 10});
  running.Enter("b", {1, 11});
  running.Enter("c", {2, 20});
  running.OnCancel("a", [&] { ++stopped; });
  CHECK(running.On(10) == "a");
  CHECK(running.On(12).empty());
  CHECK_FALSE(running.Cancel(2, "c", 1));  // it does not end: nobody can stop it yet
  running.OnCancel("c", [&] { stopped += 100; });
  CHECK(stopped == 100);
  CHECK(running.Cancel(1, "c", 1));  // no such turn of that session
  running.CancelAll(1);
  running.CancelAll(1);
  CHECK(stopped == 101);
  running.OnCancel("b", [&] { stopped += 10; });
  CHECK(stopped == 111);
  auto lease = leases.TryTake(1, 10);
  auto ended = std::async(std::launch::async, [&] { return running.Cancel(1, "a", 60'000); });
  running.Leave("a", &*lease);
  CHECK(ended.get());
  CHECK_FALSE(leases.IsBusy(10));
  CHECK_FALSE(running.IsOf(1, "a"));
}

TEST_CASE("a turn is cancelled by its id, and its session deleted with what runs on it") {
  SessionBench b;
  Keeper& k = b.keeper();
  const Messages m = {User("one")};
  auto turn = b.Begin(Ask("chat", m));
  const std::string id = turn->start().turn_id;
  CHECK(k.Branches("ann", "chat")->front().turn == id);
  // Whoever decodes it ends it when it is told to.
  std::promise<void> told;
  turn->OnCancel([&] { told.set_value(); });
  auto client = std::async(std::launch::async, [&] {
    told.get_future().wait();
    TurnOutcome outcome;
    outcome.finish = "cancelled";
    k.Abort(std::move(turn), std::move(outcome));
  });
  CHECK(k.CancelTurn("bob", "chat", id).status().code() == Code::kNotFound);
  CHECK(k.CancelTurn("ann", "chat", "turn_none").status().code() == Code::kNotFound);
  CHECK(k.CancelTurn("ann", "chat", id).value());
  client.get();
  CHECK(k.Branches("ann", "chat")->front().turn.empty());
  CHECK(k.CancelTurn("ann", "chat", id).value());  // it stays aborted
  const TurnStart done = b.Say(Ask("chat", m), "uno");
  CHECK(done.turn_id == id);  // the same again is a retry
  CHECK_FALSE(k.CancelTurn("ann", "chat", id).value());

  auto again = b.Begin(Ask("chat", Messages{User("one"), Assistant("uno"), User("two")}));
  std::promise<void> stop;
  again->OnCancel([&] { stop.set_value(); });
  client = std::async(std::launch::async, [&] {
    stop.get_future().wait();
    again.reset();
  });
  CHECK(k.Delete("ann", "chat").code() == Code::kConflict);
  CHECK(k.Delete("ann", "chat", Keeper::Running::kCancel).ok());
  client.get();
  CHECK(k.Get("ann", "chat").status().code() == Code::kNotFound);
  CHECK(b.Say(Ask("chat", m), "uno").new_session);
}

}  // namespace
}  // namespace holdfast

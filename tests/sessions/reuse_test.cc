// Sessions whose KV is approximate: turns go on with it, exact ones never see it, a restart gives
// the same bits, hardening makes all of it exact, edits and compaction find what stays.
#include <doctest/doctest.h>

#include <random>

#include "sessions/caretaker.h"
#include "tests/fixtures/tiny_model.h"
#include "tests/sessions/bench.h"

namespace holdfast {
namespace {

using Messages = std::vector<ChatMessage>;
using Digests = std::map<int64_t, uint64_t>;

std::string Words(int n, uint32_t seed) {
  std::mt19937 random(seed);
  std::string out;
  for (int i = 0; i < n; ++i) out += std::string(1, static_cast<char>('a' + random() % 26)) + " ";
  return out;
}

// A session that had a long message in it, and then not any more.
struct Scene {
  std::vector<TokenId> chain;  // of the first turn
  SessionBench b;
  const int words;
  Messages first = {System("s"), User(Words(60, 1)), User(Words(words, 2)), User("end?")};
  Messages edited = {System("s"), User(Words(words, 2)), User("end?")};
  Digests digests;  // of the turn last run
  TurnStart start;  // its

  explicit Scene(int n = 150) : words(n) { SetCard(); }
  void SetCard() {
    b.stitcher().SetCard(std::make_shared<const ModelCard>(
        OpenCard(b.engine().model().fingerprint(), {.mean = 0.01, .bound = 0.02, .contexts = 8})));
  }

  // A turn, computed, and answered with a fixed text.
  void Run(Messages& messages, ReusePolicy policy, const std::string& session = "chat") {
    TurnRequest request = Ask(session, messages);
    request.reuse.policy = policy;
    auto turn = b.Begin(request);
    start = turn->start();
    digests.clear();
    std::vector<TokenId> prompt(turn->prompt().begin(), turn->prompt().end());
    auto timeline = b.Compute(turn->TakeTimeline(), &digests);
    REQUIRE(timeline.ok());
    TurnOutcome outcome;
    outcome.message = Assistant("yes");
    outcome.finish = "stop";
    for (TokenId t : b.Encode("yes")) outcome.generated.push_back({t, 7, false});
    outcome.generated.push_back({kTinyTurnEnd, 8, false});
    for (const GeneratedToken& g : outcome.generated) timeline->Extend({&g.token, 1});
    timeline = b.Compute(std::move(timeline).value(), &digests);
    REQUIRE(timeline.ok());
    outcome.timeline = std::move(timeline).value();
    REQUIRE(b.keeper().Commit(std::move(turn), std::move(outcome)).durable);
    if (chain.empty()) chain = prompt;
    messages.push_back(Assistant("yes"));
  }
  ProvenanceInfo Map(const std::string& branch) {
    auto map = b.keeper().Provenance("ann", "chat", branch);
    REQUIRE(map.ok());
    int64_t at = 0;
    for (const ProvenanceSpan& span : map->spans) {
      CHECK(span.begin == at);
      at = span.end;
    }
    CHECK(at == map->tokens);  // the sums add up to the context
    CHECK(at == static_cast<int64_t>(b.keeper().Tokens("ann", "chat", branch)->size()));
    return std::move(map).value();
  }
  // What full prefill gives for the same history: another tenant's session, that shares nothing.
  Digests Full(Messages messages) {
    SessionBench other;
    TurnRequest request = Ask("other", messages);
    request.reuse.policy = ReusePolicy::kOff;
    auto turn = other.Begin(request);
    Digests full;
    REQUIRE(other.Compute(turn->TakeTimeline(), &full).ok());
    return full;
  }
  bool SameAs(const Digests& full) const {
    bool any = false;
    for (const auto& [index, digest] : digests) {
      if (!full.contains(index)) continue;
      any = true;
      if (full.at(index) != digest) return false;
    }
    return any;
  }
};

TEST_CASE("an edited history: what follows the edit is used, and every token accounted for") {
  Scene s;
  s.Run(s.first, ReusePolicy::kExact);
  CHECK(s.Map("").policy == ReusePolicy::kExact);
  s.Run(s.edited, ReusePolicy::kFast);
  CHECK(s.start.branch != "main");
  CHECK(s.start.stitch.shifted > 120);
  CHECK(s.start.stitch.totals.sum() == s.start.prompt_tokens);
  const ProvenanceInfo map = s.Map(s.start.branch);
  const ProvenanceTotals totals = TotalsOf(map.spans);
  CHECK(totals.shifted == s.start.stitch.shifted);
  CHECK(totals.link >= 32);
  CHECK(totals.approximate > totals.shifted);
  REQUIRE(map.sources.size() == 1);
  CHECK(static_cast<int64_t>(map.sources[0].left.size()) == map.sources[0].home);
  CHECK(map.expected_kl == 0.01);
  CHECK(TotalsOf(s.Map("main").spans).approximate == 0);
}

TEST_CASE("a tainted head: its policy goes on with it, exact turns never see it") {
  Scene s;
  s.Run(s.first, ReusePolicy::kExact);
  s.Run(s.edited, ReusePolicy::kFast);
  s.edited.push_back(User("and then?"));
  const Digests full = s.Full(s.edited);
  SUBCASE("fast") {
    s.Run(s.edited, ReusePolicy::kFast);
    CHECK(s.start.stitch.from_warm > 200);
    CHECK(s.start.stitch.totals.shifted > 120);
    CHECK_FALSE(s.SameAs(full));  // it is an approximation
  }
  SUBCASE("exact") {
    s.Run(s.edited, ReusePolicy::kExact);
    CHECK(s.start.stitch.totals.approximate == 0);
    CHECK(s.SameAs(full));
    CHECK(TotalsOf(s.Map(s.start.branch).spans).approximate == 0);
  }
  SUBCASE("exact, in another session, after a restart") {
    s.b.Restart();
    s.SetCard();
    s.Run(s.edited, ReusePolicy::kExact, "elsewhere");
    CHECK(s.SameAs(full));
  }
}

TEST_CASE("after a restart, and with all pages gone, a tainted head has the same bits") {
  Digests want;
  for (int how = 0; how < 3; ++how) {
    Scene s;
    s.Run(s.first, ReusePolicy::kExact);
    s.Run(s.edited, ReusePolicy::kFast);
    s.edited.push_back(User("and then?"));
    if (how > 0) {
      s.b.Restart();
      s.SetCard();
    }
    if (how == 2) {  // what the heads left in the store goes
      PageKey key = RootKey(s.b.engine().model().fingerprint(), TenantScope("ann"), Digest{});
      for (size_t at = 0; at + kPageTokens <= s.chain.size(); at += kPageTokens) {
        key = NextKey(key, std::span(s.chain).subspan(at, kPageTokens), Digest{});
        s.b.store().Delete(key).IgnoreError();
      }
    }
    s.Run(s.edited, ReusePolicy::kFast);
    CHECK(s.start.stitch.remade == (how > 0));
    CHECK(s.start.stitch.totals.shifted > 120);
    if (how == 0) want = s.digests;
    CHECK(want.size() >= 15);
    for (const auto& [index, digest] : want) CHECK_MESSAGE(s.digests[index] == digest, index);
  }
}

TEST_CASE("harden computes a branch in full") {
  Scene s;
  s.Run(s.first, ReusePolicy::kExact);
  s.Run(s.edited, ReusePolicy::kFast);
  const std::string branch = s.start.branch;
  CHECK_FALSE(s.b.keeper().Harden("ann", "chat", "main").value());
  CHECK(s.b.keeper().Harden("ann", "chat", "nowhere").status().code() == Code::kNotFound);
  CHECK(s.b.keeper().Harden("ann", "chat", branch).value());
  {
    auto running = s.b.Begin(Ask("busy", s.first));  // while a turn runs, nothing happens
    s.b.keeper().Tend();
    CHECK(s.b.keeper().stats().hardened == 0);
  }
  s.b.keeper().Tend();
  CHECK(s.b.keeper().stats().hardened == 1);
  const ProvenanceInfo map = s.Map(branch);
  CHECK(map.hardened);
  CHECK(TotalsOf(map.spans).approximate == 0);
  CHECK_FALSE(s.b.keeper().Harden("ann", "chat", branch).value());
  s.edited.push_back(User("and then?"));
  const Digests full = s.Full(s.edited);
  s.Run(s.edited, ReusePolicy::kFast);
  CHECK(s.start.stitch.from_warm > 200);
  CHECK(s.start.stitch.totals.approximate == 0);
  CHECK(s.SameAs(full));
}

TEST_CASE("harden leaves the head to turns: one that comes is not turned away") {
  Scene s;
  s.Run(s.first, ReusePolicy::kExact);
  s.Run(s.edited, ReusePolicy::kFast);
  const std::string branch = s.start.branch;
  REQUIRE(s.b.keeper().Harden("ann", "chat", branch).value());
  s.edited.push_back(User("and then?"));
  std::unique_ptr<Turn> turn;
  s.b.while_computing = [&] {
    if (turn != nullptr) return;
    TurnRequest request = Ask("chat", s.edited);
    turn = s.b.Begin(request);
  };
  s.b.keeper().Tend();
  REQUIRE(turn != nullptr);
  CHECK(turn->start().branch == branch);  // no fork of a busy head
  CHECK(s.b.keeper().stats().hardened == 0);
  s.b.while_computing = {};
  turn.reset();
  s.b.keeper().Tend();
  CHECK(s.b.keeper().stats().hardened == 1);
}

TEST_CASE("harden begins anew where the head has moved meanwhile") {
  Scene s;
  s.Run(s.first, ReusePolicy::kExact);
  s.Run(s.edited, ReusePolicy::kFast);
  const std::string branch = s.start.branch;
  REQUIRE(s.b.keeper().Harden("ann", "chat", branch).value());
  s.edited.push_back(User("and then?"));
  bool moved = false;
  s.b.when_computed = [&] {
    if (std::exchange(moved, true)) return;
    s.Run(s.edited, ReusePolicy::kFast);
  };
  s.b.keeper().Tend();
  REQUIRE(moved);
  CHECK(s.b.keeper().stats().hardened == 0);
  CHECK_FALSE(s.Map(branch).hardened);
  CHECK(TotalsOf(s.Map(branch).spans).approximate > 0);
  s.b.when_computed = {};
  s.b.keeper().Tend();
  CHECK(s.b.keeper().stats().hardened == 1);
  CHECK(s.Map(branch).hardened);
}

TEST_CASE("verify: the answer is measured when no turn runs, and all are told") {
  Scene s(300);
  s.Run(s.first, ReusePolicy::kExact);
  s.Run(s.edited, ReusePolicy::kVerify);
  const std::string branch = s.start.branch;
  CHECK(s.start.stitch.shifted > 120);
  Keeper& keeper = s.b.keeper();
  {
    auto running = s.b.Begin(Ask("busy", s.first));
    keeper.Tend();
    CHECK(keeper.stats().verified == 0);
    CHECK_FALSE(s.Map(branch).measured);
  }
  keeper.Tend();
  CHECK(keeper.stats().verified == 1);
  CHECK(keeper.stats().verify_skipped == 0);
  const ProvenanceInfo map = s.Map(branch);
  REQUIRE(map.measured);
  CHECK(map.measured->tokens == static_cast<int64_t>(s.b.Encode("yes").size()) + 1);
  CHECK(map.measured->mean > 0);
  CHECK(map.measured->largest >= map.measured->mean);
  CHECK(keeper.stats().verified_tokens == static_cast<uint64_t>(map.measured->tokens));
  CHECK(keeper.stats().verified_kl_max == map.measured->largest);
  const EventInfo event = keeper.Events("ann", "chat", {"", 1000})->rows.back();
  CHECK(event.kind == "verified");
  CHECK(event.turn_id == s.start.turn_id);
  CHECK(event.detail.starts_with("KL "));
  keeper.Tend();
  CHECK(keeper.stats().verified == 1);  // once
  // It stays, and the head goes on as it was.
  s.b.Restart();
  s.SetCard();
  CHECK(s.Map(branch).measured == map.measured);
  CHECK(TotalsOf(s.Map(branch).spans).shifted > 120);
}

TEST_CASE("verify measures what was served, whatever became of the head") {
  std::string want;
  for (const ReusePolicy next : {ReusePolicy::kVerify, ReusePolicy::kExact, ReusePolicy::kOff}) {
    Scene s(300);
    s.Run(s.first, ReusePolicy::kExact);
    s.Run(s.edited, ReusePolicy::kVerify);
    const std::string turn = s.start.turn_id;
    if (next != ReusePolicy::kOff) {  // the head goes on, or is made anew; all that is pending
      s.edited.push_back(User("and then?"));
      s.Run(s.edited, next);
    } else {
      s.b.keeper().MakeRoom(1 << 20);
      s.b.engine().pool().DropCached();
    }
    for (int i = 0; i < 3; ++i) s.b.keeper().Tend();
    std::string detail;
    const auto events = s.b.keeper().Events("ann", "chat", {"", 1000});
    for (const EventInfo& e : events->rows) {
      if (e.kind == "verified" && e.turn_id == turn) detail = e.detail;
    }
    CHECK(detail.starts_with("KL 0."));
    if (want.empty()) want = detail;
    CHECK(detail == want);
  }
}

TEST_CASE("verify stops for a turn, is bounded, and skips what it has no room for") {
  Scene s(300);
  s.Run(s.first, ReusePolicy::kExact);
  SUBCASE("a turn comes") {
    s.Run(s.edited, ReusePolicy::kVerify);
    std::unique_ptr<Turn> turn;
    s.b.while_computing = [&] {
      if (turn == nullptr) turn = s.b.Begin(Ask("other", s.first));
    };
    s.b.keeper().Tend();
    REQUIRE(turn != nullptr);
    CHECK(s.b.keeper().stats().verified == 0);
    s.b.while_computing = {};
    turn.reset();
    s.b.keeper().Tend();
    CHECK(s.b.keeper().stats().verified == 1);
  }
  SUBCASE("more than the queue holds") {
    const Messages edited = s.edited;
    for (size_t i = 0; i < Caretaker::kMaxJobs + 3; ++i) {
      Messages again = edited;
      again.push_back(User(std::to_string(i)));
      s.Run(again, ReusePolicy::kVerify);
    }
    CHECK(s.b.keeper().stats().verify_skipped == 3);
  }
  SUBCASE("exact answers are not measured") {
    s.edited = s.first;
    s.edited.push_back(User("more"));
    s.Run(s.edited, ReusePolicy::kVerify);
    s.b.keeper().Tend();
    CHECK(s.b.keeper().stats().verified == 0);
  }
}

// Two tools' outputs and answers to them; then a summary stands for the first ones.
TEST_CASE("compaction keeps the KV of the turns that stay, across messages") {
  Scene s;
  Messages all = {System("s")};
  for (int i = 0; i < 4; ++i) {
    all.push_back(User(Words(70, 10 + i)));
    s.Run(all, ReusePolicy::kExact);
  }
  Messages compacted = {System("s"), User("summary: " + Words(9, 20))};
  compacted.insert(compacted.end(), all.begin() + 5, all.end());
  compacted.push_back(User("go on"));
  s.Run(compacted, ReusePolicy::kFast);
  const StitchReport& report = s.start.stitch;
  REQUIRE(report.runs.size() == 1);  // messages, answers and what is between them in one piece
  CHECK(report.runs[0].used);
  CHECK(report.runs[0].end - report.runs[0].begin > 160);
  CHECK(report.shifted > 130);
  CHECK(report.shifted + report.totals.link == report.runs[0].end - report.runs[0].begin);
  const ProvenanceInfo map = s.Map(s.start.branch);
  REQUIRE(map.sources.size() == 1);
  CHECK(static_cast<int64_t>(map.sources[0].left.size()) == map.sources[0].home);
}

TEST_CASE("edits of a session: removed, replaced, moved, put in; what follows is used") {
  Scene s;
  Messages all = {System("s"), User(Words(70, 1)), User(Words(70, 2)), User(Words(90, 3))};
  s.Run(all, ReusePolicy::kExact);
  const auto edit = [&](std::vector<ItemEdit> edits) {
    MakeBranch make;
    make.edits = std::move(edits);
    const auto made = s.b.keeper().Branch("ann", "chat", make);
    REQUIRE_MESSAGE(made.ok(), made.status().ToString());
    const Messages question = {User("so?")};
    TurnRequest request = Ask("chat", question);
    request.session.branch = made->name;
    request.append = true;
    request.reuse.policy = ReusePolicy::kFast;
    auto turn = s.b.Begin(request);
    return turn->start().stitch;
  };
  const auto at = [](ItemEdit::Op op, int64_t item) {
    ItemEdit e;
    e.op = op;
    e.item = item;
    return e;
  };
  const auto remove = [&](int64_t item) { return at(ItemEdit::Op::kRemove, item); };
  const auto replace = [&](int64_t item, const std::string& text) {
    ItemEdit e = at(ItemEdit::Op::kReplace, item);
    e.change = [text](ChatMessage* m) { *m = User(text); };
    return e;
  };
  const auto put_in = [&](int64_t item, const std::string& text) {
    ItemEdit e = at(ItemEdit::Op::kInsert, item);
    e.message = User(text);
    return e;
  };
  SUBCASE("removed") {
    const StitchReport r = edit({remove(1)});
    CHECK(r.shifted > 140);
    CHECK(r.runs.size() == 1);
  }
  SUBCASE("replaced") { CHECK(edit({replace(1, "short")}).shifted > 140); }
  SUBCASE("two replaced") {
    CHECK(edit({replace(1, "short"), replace(3, "too")}).shifted > 50);
  }
  SUBCASE("put in") { CHECK(edit({put_in(1, "first of all")}).shifted > 220); }
  SUBCASE("moved to the end") {
    const StitchReport r = edit({remove(1), put_in(4, Words(70, 1))});
    CHECK(r.runs.size() == 2);
    CHECK(r.shifted > 190);
  }
}

}  // namespace
}  // namespace holdfast

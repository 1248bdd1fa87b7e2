// Approximate KV through the whole runtime: an agent that edits its history all the time, and exact
// answers beside approximate ones in any order.
#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <random>

#include "tests/api/runtime_bench.h"

namespace holdfast {
namespace {

std::string Document(int about, int sentences = 6) {
  std::string text;
  for (int i = 0; i < sentences; ++i) {
    text += "Line " + std::to_string(i) + " of file " + std::to_string(about) + " says " +
            std::to_string((i + 17 * about) * 7919 % 1009) + ". ";
  }
  return text;
}

ChatMessage Message(const std::string& role, const std::string& text) {
  Talk talk("");
  if (role == "tool") return talk.Tool("call", text).messages().back();
  return talk.User(text).messages().back();
}

ChatRequest Ask(const std::string& tenant, const std::string& session,
                const std::vector<ChatMessage>& messages, ReusePolicy policy) {
  ChatRequest r = Talk(session, tenant).Request();
  r.messages = messages;
  r.reuse.policy = policy;
  return r;
}

ChatMessage Said(const Answer& answer) { return Talk("").Keep(answer).messages().back(); }

// What an engine that never reused anything says of each token of an answer.
std::vector<uint64_t> FullPrefill(Engine& engine, const ChatDone& done) {
  std::vector<TokenId> tokens = done.prompt_tokens;
  tokens.insert(tokens.end(), done.completion_tokens.begin(), done.completion_tokens.end() - 1);
  GenerateRequest request;
  request.timeline = engine.NewTimeline(TenantScope("reference"));
  request.timeline->KeepPrivate();
  request.timeline->Extend(tokens);
  request.output_begin = static_cast<int64_t>(tokens.size());
  const auto first = static_cast<int64_t>(done.prompt_tokens.size()) - 1;
  request.observes = [first](int64_t index) { return index >= first; };
  std::vector<uint64_t> digests;
  request.observe_logits = [&](int64_t, std::span<const float> logits) {
    digests.push_back(LogitsDigest(logits));
  };
  auto generation = engine.Submit(std::move(request));
  REQUIRE(generation.ok());
  while (auto event = (*generation)->Next(-1)) {
    if (event->finish) REQUIRE(event->finish->status.ok());
  }
  return digests;
}

// Every token of the branch has one origin, and the sums are the context.
ProvenanceTotals CheckProvenance(RuntimeBench& b, const std::string& tenant,
                                 const std::string& session, const std::string& branch) {
  Keeper& keeper = b.runtime().keeper();
  const auto map = keeper.Provenance(tenant, session, branch);
  REQUIRE_MESSAGE(map.ok(), map.status().ToString());
  int64_t at = 0;
  for (const ProvenanceSpan& span : map->spans) {
    CHECK(span.begin == at);
    CHECK(span.end > at);
    if (span.source >= 0) CHECK(static_cast<size_t>(span.source) < map->sources.size());
    at = span.end;
  }
  CHECK(at == map->tokens);
  CHECK(at == static_cast<int64_t>(keeper.Tokens(tenant, session, branch)->size()));
  return TotalsOf(map->spans);
}

ReplayReport Verified(RuntimeBench& b, const std::string& session, const std::string& branch) {
  ReplayRequest request;
  request.tenant = "ann";
  request.session = session;
  request.branch = branch;
  auto replay = b.runtime().StartReplay(std::move(request));
  REQUIRE_MESSAGE(replay.ok(), replay.status().ToString());
  for (;;) {
    auto next = (*replay)->Next(-1);
    REQUIRE_MESSAGE(next.ok(), next.status().ToString());
    REQUIRE(next->has_value());
    if ((*next)->report) return *(*next)->report;
  }
}

// An agent's history: a task, what its tools have said, and its last steps.
struct Agent {
  std::vector<ChatMessage> outputs, steps;
  std::vector<ChatMessage> History(int round) const {
    std::vector<ChatMessage> all = {Message("user", "Find what is wrong in the files.")};
    all.insert(all.end(), outputs.begin(), outputs.end());
    all.insert(all.end(), steps.begin(), steps.end());
    all.push_back(Message("user", "Step " + std::to_string(round) + "?"));
    return all;
  }
  void Keep(const std::vector<ChatMessage>& history, const Answer& answer) {
    steps.push_back(history.back());
    steps.push_back(Said(answer));
    if (steps.size() > 6) steps.erase(steps.begin(), steps.begin() + 2);  // it forgets
  }
};

TEST_CASE("an agent drops, replaces and reads again its tools' outputs 30 times") {
  RuntimeBench b({.tend_every_ms = 0}), never;
  b.GiveCard();
  Agent agent;
  for (int i = 0; i < 6; ++i) agent.outputs.push_back(Message("tool", Document(i)));
  const auto all = agent.History(0);
  agent.Keep(all, b.Say(Ask("ann", "agent", all, ReusePolicy::kExact)));
  std::mt19937 random(7);
  int reused = 0;
  std::string branch;
  std::vector<ChatMessage> said;  // the whole of the last turn
  for (int round = 1; round <= 30; ++round) {
    CAPTURE(round);
    auto& outputs = agent.outputs;
    const size_t at = random() % outputs.size();
    const ChatMessage read = Message("tool", Document(static_cast<int>(random() % 6)));
    const bool many = outputs.size() > 5;
    if (round % 3 == 0 || many) outputs.erase(outputs.begin() + static_cast<int64_t>(at));
    if (round % 3 == 1) outputs[at % outputs.size()] = read;
    if (round % 3 == 2) outputs.push_back(read);
    const auto history = agent.History(round);
    const ReusePolicy policy = round % 5 == 0 ? ReusePolicy::kVerify : ReusePolicy::kFast;
    const Answer answer = b.Say(Ask("ann", "agent", history, policy));
    const TurnReport& report = answer.done.report;
    branch = report.start.branch;
    CHECK(report.durable);
    const ProvenanceTotals& usage = report.start.stitch.totals;
    CHECK(usage.sum() == static_cast<int64_t>(answer.done.prompt_tokens.size()));
    const ProvenanceTotals map = CheckProvenance(b, "ann", "agent", branch);
    CHECK(map.shifted == usage.shifted);
    CHECK(map.link == usage.link);
    CHECK(map.approximate >= usage.approximate);
    reused += usage.shifted > 0;
    agent.Keep(history, answer);
    said = history;
    said.push_back(Said(answer));
    if (round % 7 == 0) {
      b.Restart();
      CHECK(CheckProvenance(b, "ann", "agent", branch).shifted == map.shifted);
    }
    if (policy != ReusePolicy::kVerify) continue;
    b.runtime().keeper().Tend();
    const auto measured = b.runtime().keeper().Provenance("ann", "agent", branch)->measured;
    CHECK(measured.has_value() == (usage.approximate > 0));
    if (measured) CHECK(measured->mean > 0);
  }
  MESSAGE(reused, " of 30 turns reused KV behind an edit");
  CHECK(reused >= 24);

  Keeper& keeper = b.runtime().keeper();
  REQUIRE(keeper.Harden("ann", "agent", branch).value());
  keeper.Tend();
  keeper.Tend();
  const auto map = keeper.Provenance("ann", "agent", branch);
  CHECK(map->hardened);
  CHECK(CheckProvenance(b, "ann", "agent", branch).approximate == 0);
  const ReplayReport report = Verified(b, "agent", branch);
  if (report.divergence) FAIL(report.divergence->what, ": ", report.divergence->detail);
  CHECK(report.pages_memory > 0);
  CHECK(report.tokens == map->tokens);
  // It goes on exactly, from the hardened head.
  said.push_back(Message("user", "So?"));
  const Answer last = b.Say(Ask("ann", "agent", said, ReusePolicy::kFast));
  CHECK(last.done.report.start.branch == branch);
  CHECK(last.done.report.start.stitch.totals.approximate == 0);
  CHECK(last.digests == FullPrefill(never.runtime().engine(), last.done));
  const ReplayReport after = Verified(b, "agent", branch);
  CHECK_FALSE(after.divergence);
  CHECK(after.steps > 0);
}

// ---- any order ---------------------------------------------------------------------------------

class Storm {
 public:
  explicit Storm(uint32_t seed)
      : random_(seed),
        b_({.kv_bytes = 3u << 20, .max_resident = 3, .disk_bytes = 64u << 20,
            .tend_every_ms = 0}) {
    b_.GiveCard();
  }
  void Step() {
    switch (Below(12)) {
      case 0: return Evict();
      case 1: return b_.Restart();
      case 2: return Delete();
      case 3: return Harden();
      case 4: return b_.runtime().keeper().Tend();
      default: return Say();
    }
  }
  int approximate = 0, exact = 0, exact_after = 0;  // answers; exact ones in a tainted session

 private:
  struct Conversation {
    std::string tenant, session, branch;  // branch: of its last turn
    std::vector<ChatMessage> messages;
    bool tainted = false;                 // an answer in it was approximate
  };
  uint32_t Below(size_t n) { return static_cast<uint32_t>(random_() % n); }
  Conversation& Any() {
    const std::string tenant = Below(2) == 0 ? "ann" : "bob", session = Below(2) == 0 ? "x" : "y";
    Conversation& c = conversations_[tenant + session];
    c.tenant = tenant;
    c.session = session;
    return c;
  }
  // As agents do: takes something out, puts another thing in its place, reads something again.
  void Edit(std::vector<ChatMessage>* m) {
    const auto at = static_cast<int64_t>(Below(m->size()));
    const ChatMessage read = Message(Below(3) == 0 ? "user" : "tool",
                                     Document(static_cast<int>(Below(5))));
    switch (Below(4)) {
      case 0: m->erase(m->begin() + at); break;
      case 1: (*m)[static_cast<size_t>(at)] = read; break;
      case 2: m->insert(m->begin() + at, read); break;
      default: std::swap((*m)[static_cast<size_t>(at)], m->back()); break;
    }
  }
  void Say() {
    Conversation& c = Any();
    auto& m = c.messages;
    if (m.empty()) {
      for (int i = 0; i < 4; ++i) {
        m.push_back(Message(i == 0 ? "user" : "tool", Document(static_cast<int>(Below(5)))));
      }
    } else if (Below(3) > 0) {
      Edit(&m);
    }
    while (m.size() > 7) m.erase(m.begin() + 1);
    m.push_back(Message("user", "Now " + std::to_string(Below(3)) + "?"));
    constexpr ReusePolicy kPolicies[] = {
        ReusePolicy::kExact, ReusePolicy::kExact, ReusePolicy::kExact,    ReusePolicy::kFast,
        ReusePolicy::kFast,  ReusePolicy::kFast,  ReusePolicy::kBalanced, ReusePolicy::kQuality,
        ReusePolicy::kVerify};
    const ReusePolicy policy = kPolicies[Below(std::size(kPolicies))];
    const Answer answer = b_.Say(Ask(c.tenant, c.session, m, policy));
    const TurnStart& start = answer.done.report.start;
    c.branch = start.branch;
    const ProvenanceTotals& totals = start.stitch.totals;
    CHECK(totals.sum() == static_cast<int64_t>(answer.done.prompt_tokens.size()));
    CheckProvenance(b_, c.tenant, c.session, c.branch);
    if (policy == ReusePolicy::kExact) CHECK(totals.approximate == 0);
    if (totals.approximate == 0) {
      CHECK(answer.digests == FullPrefill(never_.runtime().engine(), answer.done));
      ++exact;
      exact_after += c.tainted;
    } else {
      ++approximate;
      c.tainted = true;
    }
    m.push_back(Said(answer));
  }
  void Evict() {
    b_.runtime().keeper().MakeRoom(1 << 20);  // all warm heads
    if (Below(2) == 0) b_.runtime().SyncPages();
    b_.runtime().engine().pool().DropCached();
  }
  void Delete() {
    Conversation& c = Any();
    const TenantScope scope(c.tenant);
    const auto segments = b_.runtime().segments().List(scope, 0, 100);
    if (!segments.empty() && Below(2) == 0) {
      CHECK(b_.runtime().segments().Delete(scope, segments[Below(segments.size())].id).ok());
    } else if (!c.messages.empty()) {
      CHECK(b_.runtime().keeper().Delete(c.tenant, c.session).ok());
      conversations_.erase(c.tenant + c.session);
    }
  }
  void Harden() {
    const Conversation& c = Any();
    if (c.messages.empty()) return;
    CHECK(b_.runtime().keeper().Harden(c.tenant, c.session, c.branch).ok());
    if (Below(2) == 0) b_.runtime().keeper().Tend();
  }

  std::mt19937 random_;
  RuntimeBench b_, never_;
  std::map<std::string, Conversation> conversations_;
};

TEST_CASE("whatever happens in whatever order, an exact answer has the bits of full prefill") {
  int approximate = 0, exact = 0, exact_after = 0;
  for (uint32_t seed = 1; seed <= 4; ++seed) {
    CAPTURE(seed);
    Storm storm(seed);
    for (int step = 0; step < 60; ++step) {
      CAPTURE(step);
      storm.Step();
    }
    approximate += storm.approximate;
    exact += storm.exact;
    exact_after += storm.exact_after;
  }
  MESSAGE(approximate, " approximate answers, ", exact, " exact ones, ", exact_after,
          " of them in sessions with approximate ones");
  CHECK(approximate > 30);
  CHECK(exact_after > 30);
}

}  // namespace
}  // namespace holdfast

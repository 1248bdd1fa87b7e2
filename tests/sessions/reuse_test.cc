// Sessions whose KV is approximate: turns go on with it, exact ones never see it, a restart gives the
// same bits, hardening makes all of it exact.
#include <doctest/doctest.h>

#include <random>

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

// The longest run of `prompt` behind token `from` that `chain` holds in its whole pages, at another
// place.
std::vector<FoundRun> LongestRun(const Digest& fp, const TenantScope& scope,
                                 const std::vector<TokenId>& chain,
                                 std::span<const TokenId> prompt) {
  const auto whole = static_cast<int64_t>(chain.size()) / kPageTokens * kPageTokens;
  const auto n = static_cast<int64_t>(prompt.size());
  int64_t best = 0, at = 0, source = 0;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < whole; ++j) {
      int64_t k = 0;
      while (i + k < n && j + k < whole && prompt[i + k] == chain[j + k]) ++k;
      if (i == j || k <= best) continue;
      best = k;
      at = i;
      source = j;
    }
  }
  if (best < kMinSegmentTokens) return {};
  auto v = std::make_shared<Variant>();
  v->row = 1;
  v->fp = fp;
  v->position = source;
  v->first = static_cast<int32_t>(source % kPageTokens);
  v->count = static_cast<int32_t>(best);
  const int64_t home = source - v->first;
  v->parent = RootKey(fp, scope, Digest{});
  for (int64_t b = 0; b < home; b += kPageTokens) {
    v->parent = NextKey(v->parent, std::span(chain).subspan(b, kPageTokens), Digest{});
  }
  v->tokens.assign(chain.begin() + home,
                   chain.begin() + (source + best + kPageTokens - 1) / kPageTokens * kPageTokens);
  return {{at, at + best, v, 0}};
}

std::shared_ptr<const ModelCard> AnyCard() {
  auto card = std::make_shared<ModelCard>();
  card->max_context = 10000;
  card->max_runs = 10;
  card->cells.push_back({CardKind::kInContext, 0, 2, 0, {32, 0},
                         {.mean = 0.01, .bound = 0.02, .contexts = 8}});
  return card;
}

// A session that had a long message in it, and then not any more.
struct Scene {
  std::vector<TokenId> chain;  // of the first turn
  SessionBench b{{.find_runs = [this](const TenantScope& scope, std::span<const TokenId> prompt) {
    return LongestRun(b.engine().model().fingerprint(), scope, chain, prompt);
  }}};
  Messages first = {System("s"), User(Words(60, 1)), User(Words(150, 2)), User("end?")};
  Messages edited = {System("s"), User(Words(150, 2)), User("end?")};
  Digests digests;  // of the turn last run
  TurnStart start;  // its

  Scene() { b.stitcher().SetCard(AnyCard()); }

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
    s.b.stitcher().SetCard(AnyCard());
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
      s.b.stitcher().SetCard(AnyCard());
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

}  // namespace
}  // namespace holdfast

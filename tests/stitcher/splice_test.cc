// Runs behind the exact prefix, from the plan to the logits: what is exact stays exact to the bit,
// what is approximate is labelled, faults cost rows and nothing else, recipes give the same bits.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <optional>
#include <random>

#include "engine/kv/memory_page_store.h"
#include "engine/model/softmax.h"
#include "stitcher/shadow.h"
#include "stitcher/stitcher.h"
#include "tests/engine/sched/sched_rig.h"

namespace holdfast {
namespace {

using Tokens = std::vector<TokenId>;

Tokens Text(int n, uint32_t seed) {
  std::mt19937 random(seed);
  Tokens out;
  for (int i = 0; i < n; ++i) out.push_back(static_cast<TokenId>(35 + random() % 90));
  return out;
}

Tokens Join(std::initializer_list<Tokens> parts) {
  Tokens out;
  for (const Tokens& p : parts) out.insert(out.end(), p.begin(), p.end());
  return out;
}

// A stitcher over a tiny model with pages in the pool and in a store in memory.
class SpliceRig {
 public:
  SpliceRig() : store_(MakeMemoryPageStore(0)) {
    stitcher_ = std::make_unique<Stitcher>(&rig_.pool(), store_.get(), rig_.model().fingerprint());
    stitcher_->SetCard(std::make_shared<const ModelCard>(
        OpenCard(rig_.model().fingerprint(), {.mean = 0.01, .bound = 0.02, .contexts = 8})));
    stitcher_->SetCompute([this](Timeline t, const ComputeOptions& options) -> Result<Timeline> {
      if (options.stop && options.stop()) return Status::Cancelled("told to stop");
      return Compute(std::move(t), options);
    });
  }

  // Digests of the rows that were pending, by index; the timeline, all filled.
  using Digests = std::map<int64_t, uint64_t>;
  Result<Timeline> Compute(Timeline timeline, Digests* digests) {
    ComputeOptions options;
    if (digests != nullptr) {
      options.on_logits = [digests](int64_t index, std::span<const float> logits) {
        (*digests)[index] = LogitsDigest(logits);
      };
    }
    return Compute(std::move(timeline), options);
  }
  Result<Timeline> Compute(Timeline timeline, const ComputeOptions& options) {
    Answer a = rig_.Run(ComputeRequest(std::move(timeline), options));
    if (!a.finish.status.ok()) return a.finish.status;
    return std::move(*a.finish.timeline);
  }

  StitchRequest Request(const Tokens& tokens, ReusePolicy policy = ReusePolicy::kExact,
                        const std::string& tenant = "a") {
    return {TenantScope(tenant), tokens, nullptr, {}, {.policy = policy}};
  }
  Stitched Stitch(const StitchRequest& request) {
    auto s = stitcher_->Stitch(request);
    REQUIRE_MESSAGE(s.ok(), s.status().ToString());
    return std::move(s).value();
  }
  Timeline Full(const Tokens& tokens, Digests* digests = nullptr,
                const std::string& tenant = "full") {
    auto t = Compute(Stitch(Request(tokens, ReusePolicy::kOff, tenant)).timeline, digests);
    REQUIRE(t.ok());
    return std::move(t).value();
  }

  // Tokens [begin, end) of a chain as a variant of it, and of a prompt that has them at `at`.
  FoundRun Find(const Tokens& chain, int64_t begin, int64_t end, int64_t at,
                const std::string& tenant = "a") {
    const Digest fp = rig_.model().fingerprint();
    PageKey parent = RootKey(fp, TenantScope(tenant), Digest{});
    for (int64_t b = 0; b + kPageTokens <= begin; b += kPageTokens) {
      parent = NextKey(parent, std::span(chain).subspan(b, kPageTokens), Digest{});
    }
    auto v = std::make_shared<Variant>(SliceOfChain(chain, parent, begin, end));
    v->fp = fp;
    v->row = next_row_++;
    return {at, at + end - begin, v, 0};
  }
  void StoreAll(const Timeline& t) {  // its sealed pages
    PageKey parent = t.chain_key(0);
    for (const Run& run : t.runs()) {
      if (run.count != kPageTokens || !run.page.sealed()) break;
      PageHeader header{PageKind::kPage, rig_.model().fingerprint(), run.page.key(), parent, {}};
      header.tokens.assign(run.page.tokens().begin(), run.page.tokens().end());
      std::vector<std::span<const std::byte>> payload;
      for (size_t g = 0; g < rig_.pool().groups().size(); ++g) {
        payload.emplace_back(run.page.payload(static_cast<int>(g)),
                             rig_.pool().groups()[g].PayloadBytes());
      }
      REQUIRE(store_->Put(header, payload).ok());
      parent = header.key;
    }
  }

  Rig& rig() { return rig_; }
  PageStore& store() { return *store_; }
  Stitcher& stitcher() { return *stitcher_; }

 private:
  Rig rig_;
  std::unique_ptr<PageStore> store_;
  std::unique_ptr<Stitcher> stitcher_;
  int64_t next_row_ = 1;
};
using Digests = SpliceRig::Digests;

// A history in which one part went: `body` was computed behind `head` and `gone`.
struct Edited {
  Tokens head = Text(70, 1), gone = Text(90, 2), body = Text(300, 3), question = Text(40, 4);
  Tokens before = Join({head, gone, body, question}), after = Join({head, body, question});
  FoundRun Run(SpliceRig& b) const {
    const auto at = static_cast<int64_t>(head.size()), from = at + 90;
    return b.Find(before, from, from + 300, at);
  }
};

// The edited prompt as a request of policy fast, with the run in it and its source at hand.
struct MovedRun {
  MovedRun(SpliceRig& b, const Edited& e)
      : source(b.Full(e.before, nullptr, "a")),
        runs{e.Run(b)},
        request(b.Request(e.after, ReusePolicy::kFast)) {
    request.runs = runs;
  }
  const Timeline source;
  const std::vector<FoundRun> runs;
  StitchRequest request;
};

// The digests of `got` must be those of full prefill.
void CheckSame(const Digests& got, const Digests& full) {
  REQUIRE(!got.empty());
  for (const auto& [index, digest] : got) CHECK_MESSAGE(digest == full.at(index), index);
}

void CheckSums(const Stitched& s) {
  const StitchReport& r = s.report;
  const int64_t n = s.timeline.size();
  CHECK(r.totals.sum() == n);
  CHECK(r.from_warm + r.from_pool + r.from_store + r.shifted + r.to_compute == n);
  int64_t at = 0;
  for (const ProvenanceSpan& span : s.provenance) {
    CHECK(span.begin == at);
    at = span.end;
  }
  CHECK(at == n);
}

TEST_CASE("a moved run is linked, used, labelled, and taints what follows it") {
  SpliceRig b;
  const Edited e;
  const MovedRun moved(b, e);
  const Stitched s = b.Stitch(moved.request);
  CheckSums(s);
  CHECK(s.report.from_pool == 64);
  CHECK(s.report.shifted == 268);
  CHECK(s.report.totals.link == 32);
  CHECK(s.report.totals.fresh == 46);
  CHECK(s.report.totals.approximate == 268 + 40);
  REQUIRE(s.report.runs.size() == 1);
  CHECK(s.report.runs[0].used);
  CHECK(s.report.runs[0].shift == -90);
  CHECK_FALSE(s.timeline.taint().IsZero());
  REQUIRE(s.recipe != nullptr);
  CHECK(s.recipe->spans == s.provenance);
  CHECK(s.recipe->exact_length() == 102);
  CHECK(s.recipe->approximate_end() == 370);
  CHECK(DecodeRecipe(EncodeRecipe(*s.recipe)).value() == *s.recipe);
}

TEST_CASE("exact requests, and requests without a card, use no run") {
  SpliceRig b;
  const Edited e;
  const Timeline source = b.Full(e.before, nullptr, "a");
  const std::vector<FoundRun> runs = {e.Run(b)};
  Digests full;
  b.Full(e.after, &full);
  StitchRequest request = b.Request(e.after);
  request.runs = runs;
  SUBCASE("exact") {}
  SUBCASE("no card") {
    b.stitcher().SetCard(nullptr);
    request.reuse.policy = ReusePolicy::kBalanced;
  }
  Stitched s = b.Stitch(request);
  CheckSums(s);
  CHECK(s.report.shifted == 0);
  CHECK(s.recipe == nullptr);
  CHECK_FALSE(s.report.runs[0].used);
  CHECK((s.report.fallback == "") == (request.reuse.policy == ReusePolicy::kExact));
  Digests got;
  REQUIRE(b.Compute(std::move(s.timeline), &got).ok());
  CheckSame(got, full);
}

TEST_CASE("E2: a run at home gives the bits of full prefill, under every policy") {
  const Tokens prompt = Text(500, 5);
  for (ReusePolicy policy : {ReusePolicy::kFast, ReusePolicy::kBalanced, ReusePolicy::kVerify}) {
    SpliceRig b;
    Digests full, got;
    const Timeline source = b.Full(prompt, &full, "a");
    const std::vector<FoundRun> runs = {b.Find(prompt, 45, 470, 45)};
    StitchRequest request = b.Request(prompt, policy, "b");  // another's prefix: the run alone
    request.runs = runs;
    Stitched s = b.Stitch(request);
    CheckSums(s);
    CHECK(s.report.runs[0].used);
    REQUIRE(b.Compute(std::move(s.timeline), &got).ok());
    CHECK(s.report.shifted > 290);  // by another's keys it is no chain of its own
    CheckSame(got, full);
  }
}

TEST_CASE("E3: what is linked never reads the rows that it takes the place of") {
  const Edited e;
  Digests clean, poisoned;
  for (bool poison : {false, true}) {
    SpliceRig b;
    const Timeline source = b.Full(e.before, nullptr, "a");
    const FoundRun run = e.Run(b);
    if (poison) {  // the source's rows of the link, and all that is not in the run
      for (const Run& r : source.runs()) {
        if (r.begin < 64) continue;  // the exact prefix
        const auto& g = b.rig().pool().groups()[0];
        for (int slot = 0; slot < kPageTokens; ++slot) {
          const int64_t index = r.begin - r.first + slot;
          if (index >= 192 && index < 460) continue;
          for (int layer = 0; layer < g.layers; ++layer) {
            for (int h = 0; h < g.heads; ++h) {
              std::byte* k = r.page.payload(0) + g.HeadOffset(layer, h);
              for (int d = 0; d < g.k_dim; ++d) std::memset(k + g.KOffset(d, slot), 0xff, 2);
              std::memset(k + g.KBytes() + slot * g.v_dim * 2, 0xff, g.v_dim * 2);
            }
          }
        }
      }
    }
    const std::vector<FoundRun> runs = {run};
    StitchRequest request = b.Request(e.after, ReusePolicy::kFast);
    request.runs = runs;
    Stitched s = b.Stitch(request);
    CHECK(s.report.shifted == 268);
    const auto t = b.Compute(std::move(s.timeline), poison ? &poisoned : &clean);
    REQUIRE_MESSAGE(t.ok(), t.status().ToString());
  }
  CHECK(clean == poisoned);
}

TEST_CASE("tainted KV never answers an exact request on the same tokens") {
  SpliceRig b;
  const Edited e;
  const MovedRun moved(b, e);
  Stitched s = b.Stitch(moved.request);
  auto head = b.Compute(std::move(s.timeline), nullptr);
  REQUIRE(head.ok());
  const Tokens longer = Join({e.after, Text(50, 6)});
  Digests full, got;
  b.Full(longer, &full);
  StitchRequest next = b.Request(longer);
  next.base = &*head;
  next.base_recipe = s.recipe.get();
  SUBCASE("exact: from the warm head only what is exact") {
    Stitched exact = b.Stitch(next);
    CheckSums(exact);
    CHECK(exact.timeline.taint().IsZero());
    CHECK(exact.timeline.filled() >= 102);  // up to where the run begins to be used
    REQUIRE(b.Compute(std::move(exact.timeline), &got).ok());
    CheckSame(got, full);
  }
  SUBCASE("off: nothing at all") {
    next.reuse.policy = ReusePolicy::kOff;
    Stitched off = b.Stitch(next);
    CHECK(off.report.to_compute == off.timeline.size());
  }
  SUBCASE("a policy that takes more care, or a contract that it breaks") {
    next.reuse.policy = ReusePolicy::kBalanced;
    CHECK(b.Stitch(next).timeline.taint().IsZero());
    next.reuse = {.policy = ReusePolicy::kFast, .max_kl = 0.019};
    CHECK(b.Stitch(next).timeline.taint().IsZero());
  }
  SUBCASE("the same policy goes on with it") {
    next.reuse.policy = ReusePolicy::kFast;
    Stitched on = b.Stitch(next);
    CheckSums(on);
    CHECK(on.report.from_warm == head->size());
    CHECK(on.report.totals.shifted == 268);
    CHECK(on.recipe->reuse.policy == ReusePolicy::kFast);
    CHECK(on.recipe->sources.size() == 1);
  }
}

// Histories with the same long part in them, edited before it and behind it. Most are new, so that
// only the moved part is there; some come again, when tainted KV of their very tokens is about.
class Histories {
 public:
  explicit Histories(std::mt19937& random) : random_(random) {}
  const Tokens& Next() {
    if (!all_.empty() && Below(3) == 0) return all_[Below(all_.size())];
    Tokens next = all_.empty() || Below(3) > 0
                      ? Join({edited_.head, Some(1, 90), edited_.body, Some(1, 60)})
                      : Join({all_.back(), Some(20, 60)});  // it goes on
    if (next.size() > 900) next = edited_.after;
    all_.push_back(std::move(next));
    return all_.back();
  }
  uint32_t Below(size_t n) { return static_cast<uint32_t>(random_() % n); }

 private:
  Tokens Some(int least, int most) {
    return Text(least + static_cast<int>(Below(static_cast<size_t>(most - least))),
                static_cast<uint32_t>(random_()));
  }
  std::mt19937& random_;
  const Edited edited_;
  std::deque<Tokens> all_;
};

struct InterleavingHead {
  std::optional<Timeline> timeline;
  std::shared_ptr<const Recipe> recipe;
  Tokens tokens;
};

// One request over `head`, which becomes its own; exact ones must have the bits of full prefill.
// Whether it is approximate.
bool RunOver(SpliceRig& b, const StitchRequest& wanted, bool looks, InterleavingHead* head) {
  StitchRequest request = wanted;
  const Tokens prompt(wanted.tokens.begin(), wanted.tokens.end());
  request.base = head->timeline ? &*head->timeline : nullptr;
  request.base_recipe = request.recipe = head->recipe.get();
  request.recipe_tokens = std::mismatch(head->tokens.begin(), head->tokens.end(), prompt.begin(),
                                        prompt.end()).first - head->tokens.begin();
  Stitched s = b.Stitch(request);
  CheckSums(s);
  CHECK(s.timeline.taint().IsZero() == (s.recipe == nullptr));
  // Who looks at logits computes every row; else what is in the pool is read, as the engine does.
  Digests got, full;
  auto t = b.Compute(std::move(s.timeline), looks ? &got : nullptr);
  REQUIRE(t.ok());
  if (!request.reuse.approximate()) {
    CHECK(s.recipe == nullptr);
    if (!looks) {  // its last row again, over all that is there
      REQUIRE(t->Truncate(t->size() - 1).ok());
      t->Extend({&prompt.back(), 1});
      t = b.Compute(std::move(t).value(), &got);
      REQUIRE(t.ok());
    }
    b.Full(prompt, &full);
    CheckSame(got, full);
  }
  head->timeline.emplace(std::move(t).value());
  head->recipe = s.recipe;
  head->tokens = prompt;
  return s.recipe != nullptr;
}

// Requests of all policies in any order, heads that go on, pages that go, two tenants: an exact one
// always has the bits of full prefill, whatever approximate KV of the same tokens is about.
TEST_CASE("no interleaving lets tainted KV into an exact answer") {
  int approximate = 0, asked = 0, exact = 0, tainted_heads = 0;
  for (uint32_t seed = 1; seed <= 6; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    SpliceRig b;
    const Edited e;
    for (const char* tenant : {"a", "b"}) b.StoreAll(b.Full(e.before, nullptr, tenant));
    Histories histories(random);
    std::map<std::string, InterleavingHead> heads;
    for (int step = 0; step < 30; ++step) {
      CAPTURE(step);
      const std::string tenant = histories.Below(2) == 0 ? "a" : "b";
      const Tokens prompt = histories.Next();
      const bool is_exact = histories.Below(2) == 0;
      InterleavingHead& head = heads[tenant];
      if (histories.Below(4) == 0) head.timeline.reset();  // let go; its recipe stays
      if (histories.Below(5) == 0) b.rig().pool().DropCached();
      const auto at = std::search(prompt.begin(), prompt.end(), e.body.begin(), e.body.end()) -
                      prompt.begin();
      const std::vector<FoundRun> runs = {b.Find(e.before, 160, 460, at, tenant)};
      StitchRequest request =
          b.Request(prompt, is_exact ? ReusePolicy::kExact : ReusePolicy::kFast, tenant);
      request.runs = runs;
      tainted_heads += is_exact && head.recipe != nullptr;
      approximate += RunOver(b, request, histories.Below(2) == 0, &head);
      exact += is_exact;
      asked += !is_exact;
    }
  }
  MESSAGE(approximate, " of ", asked, " turns approximate; ", exact, " exact, ", tainted_heads,
          " of them behind a tainted one");
  CHECK(approximate > asked / 2);
  CHECK(tainted_heads > exact / 4);
}

TEST_CASE("a recipe gives the same bits after everything was dropped") {
  SpliceRig b;
  const Edited e;
  Recipe recipe;
  Digests want, got;
  const Tokens longer = Join({e.after, Text(50, 6)});
  {
    const MovedRun moved(b, e);
    Stitched s = b.Stitch(moved.request);
    recipe = *s.recipe;
    auto head = b.Compute(std::move(s.timeline), &want);
    REQUIRE(head.ok());
    StitchRequest next = b.Request(longer, ReusePolicy::kFast);
    next.base = &*head;
    next.base_recipe = &recipe;
    REQUIRE(b.Compute(b.Stitch(next).timeline, &want).ok());
  }
  StitchRequest next = b.Request(longer, ReusePolicy::kFast);
  next.recipe = &recipe;
  next.recipe_tokens = static_cast<int64_t>(e.after.size());
  SUBCASE("its sources are in the pool") {}
  SUBCASE("all is gone, the sources' chains are known") {
    b.rig().pool().DropCached();
    recipe.sources[0].left.assign(e.before.begin(), e.before.begin() + recipe.sources[0].home);
  }
  std::optional<Timeline> base;
  SUBCASE("an exact head reaches to behind where the run begins") {
    base = b.Full(Tokens(e.after.begin(), e.after.begin() + 200), nullptr, "a");
    next.base = &*base;
  }
  SUBCASE("all is gone, also from there") {
    b.rig().pool().DropCached();
    Stitched s = b.Stitch(next);
    CHECK(s.report.hardened);
    CHECK(s.recipe == nullptr);
    Digests full;
    b.Full(longer, &full);
    REQUIRE(b.Compute(std::move(s.timeline), &got).ok());
    CheckSame(got, full);
    return;
  }
  Stitched s = b.Stitch(next);
  CheckSums(s);
  CHECK(s.report.remade);
  CHECK(s.report.totals.shifted == 268);
  const Digest taint = s.timeline.taint();
  CHECK_FALSE(taint.IsZero());
  REQUIRE(b.Compute(std::move(s.timeline), &got).ok());
  CHECK(got.size() >= 90);
  for (const auto& [index, digest] : got) {
    if (want.contains(index)) CHECK_MESSAGE(digest == want.at(index), index);
  }
}

// A store whose pages can be lost or damaged. (doctest runs no subcase behind one that returns.)
TEST_CASE("a run whose page can't be had is computed, not the request refused") {
  SpliceRig b;
  const Edited e;
  Digests full, got;
  {
    const Timeline source = b.Full(e.before, nullptr, "a");
    b.StoreAll(source);
    b.Full(e.after, &full);
  }
  b.rig().pool().DropCached();
  const FoundRun run = e.Run(b);
  const std::vector<FoundRun> runs = {run};
  StitchRequest request = b.Request(e.after, ReusePolicy::kFast);
  request.runs = runs;
  const PageKey victim = run.variant->PageKeys()[4];
  SUBCASE("missing") {
    REQUIRE(b.store().Delete(victim).ok());
    Stitched s = b.Stitch(request);
    CHECK(s.report.runs[0].reason == "its pages are gone");
    REQUIRE(b.Compute(std::move(s.timeline), &got).ok());
  }
  SUBCASE("corrupt") {
    PageHeader other{PageKind::kPage, b.rig().model().fingerprint(), victim, Digest{}, Tokens(32)};
    REQUIRE(b.store().Delete(victim).ok());
    std::vector<std::byte> bytes(b.rig().pool().groups()[0].PayloadBytes());
    const std::vector<std::span<const std::byte>> payload = {bytes};
    REQUIRE(b.store().Put(other, payload).ok());
    Stitched s = b.Stitch(request);
    CheckSums(s);
    CHECK(s.report.run_faults.size() == 1);
    CHECK(s.report.runs[0].reason == "corrupt");
    CHECK(s.recipe == nullptr);
    REQUIRE(b.Compute(std::move(s.timeline), &got).ok());
  }
  SUBCASE("all there: from the store") {
    Stitched s = b.Stitch(request);
    CHECK(s.report.shifted == 268);
    CHECK(s.report.run_faults.empty());
    const ProvenanceSpan& span = s.provenance[s.provenance.size() - 2];
    CHECK(span.tier == KvTier::kStore);
    return;
  }
  CheckSame(got, full);
}

TEST_CASE("windows are chosen over a probe, and computed") {
  SpliceRig b;
  const Edited e;
  const Timeline source = b.Full(e.before, nullptr, "a");
  FoundRun run = e.Run(b);
  auto isolated = std::make_shared<Variant>(*run.variant);
  isolated->kind = VariantKind::kIsolated;
  run.variant = isolated;
  const std::vector<FoundRun> runs = {run};
  StitchRequest request = b.Request(e.after, ReusePolicy::kBalanced);
  request.runs = runs;
  bool fails = false;
  b.stitcher().SetChooser([&](ProbeRequest probe) -> Result<std::vector<TokenRange>> {
    if (fails) return Status::Unavailable("no");
    CHECK(probe.budget == 60);
    CHECK(probe.heads == std::vector<int64_t>{70});
    CHECK(probe.runs == std::vector<TokenRange>{{102, 370}});
    CHECK(probe.timeline->size() == 410);
    CHECK(probe.timeline->pending() == 6 + 40);  // the whole run is in place
    return std::vector<TokenRange>{{192, 224}};
  });
  SUBCASE("chosen") {
    Stitched s = b.Stitch(request);
    CheckSums(s);
    CHECK(s.report.totals.selected == 32);
    CHECK(s.report.totals.link == 32);
    CHECK(s.report.shifted == 236);
    CHECK(s.recipe->sources.size() == 1);
    REQUIRE(b.Compute(std::move(s.timeline), nullptr).ok());
  }
  SUBCASE("nobody answers: the run is computed whole") {
    fails = true;
    Digests full, got;
    b.Full(e.after, &full);
    Stitched s = b.Stitch(request);
    CheckSums(s);
    CHECK(s.recipe == nullptr);
    REQUIRE(b.Compute(std::move(s.timeline), &got).ok());
    CheckSame(got, full);
  }
}

// Logits of the rows that say `answer`, over a context whose last row is pending.
std::vector<std::vector<float>> SaidOver(SpliceRig& b, Timeline context, const Tokens& answer) {
  std::vector<std::vector<float>> rows;
  ComputeOptions options;
  options.logits_from = context.size() - 1;
  options.on_logits = [&](int64_t, std::span<const float> logits) {
    rows.emplace_back(logits.begin(), logits.end());
  };
  context.KeepPrivate();
  context.Extend(std::span(answer).first(answer.size() - 1));
  REQUIRE(b.Compute(std::move(context), options).ok());
  REQUIRE(rows.size() == answer.size());
  return rows;
}

TEST_CASE("an approximate answer is measured against full prefill, token by token") {
  SpliceRig b;
  const Edited e;
  std::optional<Timeline> source = b.Full(e.before, nullptr, "a");
  const std::vector<FoundRun> runs = {e.Run(b)};
  StitchRequest request = b.Request(e.after, ReusePolicy::kVerify);
  request.runs = runs;
  Stitched s = b.Stitch(request);
  REQUIRE(s.recipe != nullptr);
  Recipe recipe = *s.recipe;
  const Tokens answer = Text(kShadowTokens + 40, 9);
  const Tokens all = Join({e.after, answer});
  std::optional<Timeline> head = std::move(*b.Compute(std::move(s.timeline), nullptr));

  ShadowKl want{.tokens = kShadowTokens};
  {
    const Tokens first(answer.begin(), answer.begin() + kShadowTokens);
    Timeline context = std::move(head->Fork(head->size() - 1)).value();
    context.Extend({&e.after.back(), 1});
    const auto got = SaidOver(b, std::move(context), first);
    const auto exact = SaidOver(
        b, b.Stitch(b.Request(e.after, ReusePolicy::kOff, "full")).timeline, first);
    double sum = 0, same = 0;
    for (size_t i = 0; i < first.size(); ++i) {
      const double kl = KlDivergence(exact[i], got[i]);
      sum += kl;
      want.largest = std::max(want.largest, kl);
      same += std::max_element(exact[i].begin(), exact[i].end()) - exact[i].begin() ==
              std::max_element(got[i].begin(), got[i].end()) - got[i].begin();
    }
    want.mean = sum / kShadowTokens;
    want.same_top = same / kShadowTokens;
  }
  CHECK(want.mean > 0);
  CHECK(want.same_top > 0);
  ShadowRequest shadow{.scope = TenantScope("a"), .tokens = all,
                       .answer_begin = static_cast<int64_t>(e.after.size()), .recipe = &recipe,
                       .base = &*head};
  SUBCASE("from the head") { CHECK(b.stitcher().Shadow(shadow).value() == want); }
  SUBCASE("from the recipe, and twice: exact pages of the same tokens are there then") {
    shadow.base = nullptr;
    head.reset();
    for (int i = 0; i < 2; ++i) CHECK(b.stitcher().Shadow(shadow).value() == want);
  }
  SUBCASE("a short answer") {
    shadow.tokens = std::span(all).first(e.after.size() + 1);
    CHECK(b.stitcher().Shadow(shadow).value().tokens == 1);
  }
  SUBCASE("what can't be made again is not measured") {
    shadow.base = nullptr;
    head.reset();
    source.reset();
    b.rig().pool().DropCached();
    CHECK(b.stitcher().Shadow(shadow).status().code() == Code::kNotFound);
  }
  SUBCASE("told to stop") {
    shadow.stop = [] { return true; };
    CHECK(b.stitcher().Shadow(shadow).status().code() == Code::kCancelled);
  }
}

TEST_CASE("recipes of damaged bytes are refused") {
  Recipe recipe;
  recipe.reuse.policy = ReusePolicy::kQuality;
  const Tokens chain = Text(320, 7);
  for (int64_t home : {64, 128}) {
    RecipeSource source;
    source.home = home;
    source.left.assign(chain.begin(), chain.begin() + home);
    source.tokens.assign(chain.begin() + home, chain.begin() + home + 96);
    recipe.sources.push_back(source);
  }
  AddSpan(&recipe.spans, {.begin = 0, .end = 40, .origin = KvOrigin::kExact});
  AddSpan(&recipe.spans, {.begin = 40, .end = 90, .origin = KvOrigin::kShifted, .source = 1,
                          .shift = -100, .generation = 1});
  const std::vector<std::byte> bytes = EncodeRecipe(recipe);
  CHECK(DecodeRecipe(bytes).value() == recipe);
  CHECK(bytes.size() < 1300);  // the second source adds one page to the first
  for (size_t n = 0; n < bytes.size(); ++n) {
    CHECK_FALSE(DecodeRecipe(std::span(bytes).first(n)).ok());
  }
  std::vector<std::byte> longer = bytes;
  longer.push_back(std::byte{0});
  CHECK_FALSE(DecodeRecipe(longer).ok());
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {  // anything but a crash
    std::vector<std::byte> damaged = bytes;
    damaged[random() % damaged.size()] = static_cast<std::byte>(random());
    DecodeRecipe(damaged).status().IgnoreError();
  }
}

TEST_CASE("pages found in the pool make no tainted row exact") {
  StitchReport report;
  report.totals = {.exact = 64, .shifted = 100, .fresh = 90, .approximate = 190};
  report.to_compute = 90;
  const StitchReport tainted = Settled(report, 64, nullptr, 1);
  CHECK(tainted.totals.exact == 64);
  CHECK(tainted.totals.fresh == 90);
  CHECK(tainted.to_compute == 26);
  CHECK(tainted.from_pool == 64);
  report.totals = {.exact = 64, .fresh = 90};
  CHECK(Settled(report, 64, nullptr, 1).totals.exact == 128);
}

TEST_CASE("runs that are not what they say are refused") {
  SpliceRig b;
  const Edited e;
  std::vector<FoundRun> runs = {e.Run(b)};
  StitchRequest request = b.Request(e.after, ReusePolicy::kFast);
  runs[0].end += 1;
  request.runs = runs;
  CHECK(b.stitcher().Stitch(request).status().code() == Code::kInvalid);
  runs[0].end -= 1;
  runs[0].begin += 1;
  CHECK(b.stitcher().Stitch(request).status().code() == Code::kInvalid);
}

}  // namespace
}  // namespace holdfast

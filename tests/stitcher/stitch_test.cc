// Stitch over a store that is slow or stalls: what it waits for, and what a race brings.
#include "stitcher/stitcher.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "engine/base/background.h"
#include "engine/kv/memory_page_store.h"
#include "tests/engine/kv/toy_kv.h"
#include "tests/engine/sched/sched_rig.h"

namespace holdfast {
namespace {

using Clock = std::chrono::steady_clock;
using Millis = std::chrono::duration<double, std::milli>;

double Since(Clock::time_point start) { return Millis(Clock::now() - start).count(); }

// Time that a disk or a processor takes.
void Spend(double ms) {
  std::mutex mu;
  std::condition_variable never;
  std::unique_lock lock(mu);
  never.wait_for(lock, Millis(ms), [] { return false; });
}

class SlowStore : public PageStore {
 public:
  void SetGetMs(double ms) { get_ms_ = ms; }
  void SetGetWork(std::chrono::milliseconds core) { get_work_ = core; }
  // After so many more pages none comes until Release, or for 10 s.
  void StallAfter(int gets) {
    std::lock_guard lock(mu_);
    stall_after_ = gets_ + gets;
  }
  void FailNext() { fails_ = true; }
  void Release() {
    std::lock_guard lock(mu_);
    stall_after_ = INT_MAX;
    released_.notify_all();
  }
  int gets() const {
    std::lock_guard lock(mu_);
    return gets_;
  }

  Status Put(const PageHeader& header,
             std::span<const std::span<const std::byte>> payload) override {
    return inner_->Put(header, payload);
  }
  Status Sync() override { return inner_->Sync(); }
  Status Get(const PageHeader& expect, std::span<const std::span<std::byte>> payload) override {
    {
      std::unique_lock lock(mu_);
      const int mine = ++gets_;
      released_.wait_for(lock, std::chrono::seconds(10), [&] { return mine <= stall_after_; });
    }
    Spend(get_ms_);
    const auto end = ThreadCpuTime() + get_work_.load();
    while (ThreadCpuTime() < end) {
    }
    if (fails_.exchange(false)) return Status::Io("the disk can't be read");
    return inner_->Get(expect, payload);
  }
  bool Contains(const PageKey& key) override { return inner_->Contains(key); }
  Status Delete(const PageKey& key) override { return inner_->Delete(key); }
  Result<DeletedPages> Collect(const std::function<Result<KeepPage>()>& keep) override {
    return inner_->Collect(keep);
  }
  void Renew(std::span<const PageKey>) override {}
  StoreStats stats() override { return inner_->stats(); }

 private:
  const std::unique_ptr<PageStore> inner_ = MakeMemoryPageStore(0);
  std::atomic<double> get_ms_{0};
  std::atomic<std::chrono::milliseconds> get_work_{std::chrono::milliseconds(0)};
  std::atomic<bool> fails_{false};
  mutable std::mutex mu_;
  std::condition_variable released_;
  int gets_ = 0, stall_after_ = INT_MAX;
};

// Writes down the whole pages of a timeline.
void Keep(const Timeline& timeline, const PagePool& pool, const Digest& fp, PageStore& store) {
  const std::vector<PageKey> keys = timeline.ExactKeys();
  for (size_t b = 0; b < keys.size(); ++b) {
    const PageLease& page = timeline.runs()[b].page;
    PageHeader header;
    header.fp = fp;
    header.key = keys[b];
    header.parent = timeline.chain_key(static_cast<int64_t>(b));
    header.tokens.assign(page.tokens().begin(), page.tokens().end());
    std::vector<std::span<const std::byte>> payload;
    for (size_t g = 0; g < pool.groups().size(); ++g) {
      payload.emplace_back(page.payload(static_cast<int>(g)), pool.groups()[g].PayloadBytes());
    }
    REQUIRE(store.Put(header, payload).ok());
  }
}

constexpr int64_t kPages = 24;

// What a prompt cost, and where it came from at the end.
struct Outcome {
  double ms = 0;
  StitchReport report;
};

struct Fixture {
  ~Fixture() { store.Release(); }
  PagePool pool{ToyGroups(), 256 * kToyPageBytes};
  SlowStore store;
  Stitcher stitcher{&pool, &store, Digest{}};
  const TenantScope scope{"a"};
  const std::vector<TokenId> prompt = ToyTokens(kPages * kPageTokens + 1);

  void KeepPages(std::span<const TokenId> tokens) {
    {
      Timeline t(&pool, scope, Digest{});
      t.Extend(tokens);
      ToyComputeAll(t);
      Keep(t, pool, Digest{}, store);
    }
    pool.DropCached();
  }
  // What loading and computing a page take, as the stitcher will have measured it.
  void Learn(double load_ms, double compute_ms) {
    const std::vector<TokenId> other = ToyTokens(15 * kPageTokens + 1, 5000);
    KeepPages(other);
    store.SetGetMs(load_ms * 2);  // two are read at a time
    REQUIRE(Start(other).report.from_store == 15 * kPageTokens);
    stitcher.ObserveCompute(kPageTokens, compute_ms);
  }
  Stitched Start(std::span<const TokenId> tokens) {
    auto stitched = stitcher.Stitch({scope, tokens, nullptr, {}});
    REQUIRE(stitched.ok());
    CHECK(stitched->timeline.size() == static_cast<int64_t>(tokens.size()));
    return std::move(stitched).value();
  }
  // The prefill, as the engine does it.
  StitchReport Prefill(Stitched* s, double page_ms) {
    Timeline& t = s->timeline;
    int64_t reused = 0;
    while (t.pending() > 0) {
      reused += t.Reuse(t.size() - 1);
      Spend(page_ms * static_cast<double>(std::min(t.pending(), int64_t{kPageTokens})) /
            kPageTokens);
      REQUIRE(ToyCompute(t, kPageTokens));
    }
    CHECK(ToyValues(t, t.size()) == ToyExact(t.tokens()));
    return Settled(s->report, reused, s->loading.get(), pool.page_bytes());
  }
  Outcome Run(std::span<const TokenId> tokens, double page_ms) {
    const auto start = Clock::now();
    Stitched s = Start(tokens);
    const StitchReport report = Prefill(&s, page_ms);
    CHECK(report.from_pool + report.from_store + report.to_compute ==
          static_cast<int64_t>(tokens.size()));
    return {Since(start), report};
  }
};

TEST_CASE_FIXTURE(Fixture, "what is quickly loaded is waited for") {
  Learn(0, 20);
  KeepPages(prompt);
  const Stitched s = Start(prompt);
  CHECK(s.loading == nullptr);
  CHECK(s.report.from_store == kPages * kPageTokens);
  CHECK(s.report.to_compute == 1);
  CHECK(s.report.miss == "");
}

TEST_CASE_FIXTURE(Fixture, "where loading takes as long as computing, both at once take half of it") {
  Learn(10, 10);
  const Outcome computed = Run(ToyTokens(kPages * kPageTokens + 1, 20'000), 10);
  CHECK(computed.report.from_store == 0);
  KeepPages(prompt);
  const int before = store.gets();
  const Outcome raced = Run(prompt, 10);
  MESSAGE("computed in ", computed.ms, " ms, raced in ", raced.ms, " ms");
  CHECK(raced.ms < 0.75 * computed.ms);
  CHECK(raced.report.from_store > kPages * kPageTokens / 4);
  CHECK(raced.report.from_store < kPages * kPageTokens * 3 / 4);
  CHECK(raced.report.from_pool == 0);
  CHECK(raced.report.bytes_loaded >=
        static_cast<uint64_t>(raced.report.from_store / kPageTokens) * pool.page_bytes());
  CHECK(store.gets() - before < kPages * 3 / 4);  // what the prefill has passed is not loaded
}

TEST_CASE_FIXTURE(Fixture, "a store that stalls in a race costs nothing: the prefill goes on") {
  Learn(10, 10);
  const Outcome computed = Run(ToyTokens(kPages * kPageTokens + 1, 20'000), 10);
  KeepPages(prompt);
  store.StallAfter(5);
  const Outcome raced = Run(prompt, 10);
  MESSAGE("computed in ", computed.ms, " ms, raced in ", raced.ms, " ms");
  CHECK(raced.ms < 1.1 * computed.ms);
  CHECK(raced.report.from_store == 5 * kPageTokens);
  CHECK(raced.report.from_pool == 0);
}

TEST_CASE_FIXTURE(Fixture, "a store that stalls while it is waited for costs a moment") {
  Learn(0, 20);
  KeepPages(prompt);
  store.StallAfter(6);
  const auto start = Clock::now();
  Stitched s = Start(prompt);
  CHECK(Since(start) >= kPatienceMs);
  CHECK(Since(start) < 2 * kPatienceMs);
  CHECK(s.report.miss == "slow_store");
  CHECK(s.report.from_store == 6 * kPageTokens);  // from the front
  REQUIRE(s.loading != nullptr);
  SUBCASE("it never answers") {
    const StitchReport report = Prefill(&s, 0);
    CHECK(report.from_store == 6 * kPageTokens);
  }
  SUBCASE("it answers after all") {
    store.Release();
    while (!s.loading->over()) std::this_thread::yield();
    CHECK(s.loading->late() == kPages - 6);
    const StitchReport report = Prefill(&s, 0);
    CHECK(report.from_store == kPages * kPageTokens);
    CHECK(report.to_compute == 1);
    CHECK(report.bytes_loaded == kPages * pool.page_bytes());
  }
}

TEST_CASE_FIXTURE(Fixture, "a page whose read fails is computed; those behind it are used") {
  Learn(0, 20);
  KeepPages(prompt);
  const int before = store.gets();
  store.FailNext();
  Stitched s = Start(prompt);
  CHECK(s.report.miss == "io_error");
  CHECK(s.report.from_store <= kPageTokens);  // one of the first two, by the thread that asks first
  CHECK(s.loading == nullptr);
  CHECK(store.gets() - before == kPages);
  const StitchReport report = Prefill(&s, 0);
  CHECK(report.to_compute == kPageTokens + 1);
  CHECK(report.from_store + report.from_pool == (kPages - 1) * kPageTokens);
}

TEST_CASE_FIXTURE(Fixture, "beside running sequences a rest follows each page") {
  std::atomic<bool> running{false};
  stitcher.SetRunning([&] { return running.load(); });
  Learn(0, 200);
  KeepPages(prompt);
  store.SetGetWork(std::chrono::milliseconds(2));
  constexpr double kPageMs = (2 + 5 * 2) / 2.0;  // by one of two threads, the rest included
  running = true;
  const auto start = Clock::now();
  CHECK(Start(prompt).report.from_store == kPages * kPageTokens);
  CHECK(Since(start) >= (kPages - 2) * kPageMs);  // nobody waits for the last rests
  CHECK(stitcher.rates().load_ms_per_page >= kPageMs);
}

TEST_CASE_FIXTURE(Fixture, "a partial page that stalls is given up, and dropped when it comes") {
  Learn(0, 20);
  PageHeader header;
  header.kind = PageKind::kTail;
  header.tokens = {1, 2, 3};
  header.key = TailKey(header.parent, header.tokens, Digest{});
  const std::vector<std::byte> bytes(pool.groups()[0].PayloadBytes(), std::byte{7});
  const std::vector<std::span<const std::byte>> payload(pool.groups().size(), bytes);
  REQUIRE(store.Put(header, payload).ok());
  const uint64_t leased = pool.stats().leased;
  {
    const auto page = stitcher.ReadTail(scope, header);
    REQUIRE(page.ok());
    CHECK(page->payload(0)[0] == std::byte{7});
  }
  CHECK(pool.stats().leased == leased);
  store.StallAfter(0);
  const auto start = Clock::now();
  CHECK(stitcher.ReadTail(scope, header).status().code() == Code::kUnavailable);
  CHECK(Since(start) >= kPatienceMs);
  CHECK(Since(start) < 2 * kPatienceMs);
  store.Release();
  while (pool.stats().leased != leased) std::this_thread::yield();
}

// A prompt that has pages 4 .. 23 of `prompt` 8 tokens later than they were computed.
struct Moved {
  std::vector<TokenId> tokens;
  std::vector<FoundRun> runs;
  std::shared_ptr<ModelCard> card = std::make_shared<ModelCard>();

  explicit Moved(const Fixture& f) : tokens(ToyTokens(4 * kPageTokens + 8, 40'000)) {
    auto v = std::make_shared<Variant>();
    v->position = 4 * kPageTokens;
    v->parent = RootKey(Digest{}, f.scope, Digest{});
    for (int b = 0; b < 4; ++b) {
      v->parent = NextKey(v->parent, std::span(f.prompt).subspan(b * kPageTokens, kPageTokens),
                          Digest{});
    }
    v->tokens.assign(f.prompt.begin() + v->position, f.prompt.end() - 1);
    v->count = static_cast<int32_t>(v->tokens.size());
    tokens.insert(tokens.end(), v->tokens.begin(), v->tokens.end());
    runs = {{4 * kPageTokens + 8, static_cast<int64_t>(tokens.size()), v, 0}};
    tokens.push_back(7);
    card->max_context = 100'000;
    card->max_runs = 10;
    card->cells = {{CardKind::kInContext, 0, 3, 0, {32, 0}, {.mean = 0.01, .contexts = 8}}};
  }
  StitchRequest Request(const Fixture& f) const {
    StitchRequest r{f.scope, tokens, nullptr, {}, {.policy = ReusePolicy::kFast}};
    r.runs = runs;
    return r;
  }
};

TEST_CASE_FIXTURE(Fixture, "a run whose pages stall is computed, after a moment") {
  Learn(0, 20);
  KeepPages(prompt);
  const Moved moved(*this);
  stitcher.SetCard(moved.card);
  SUBCASE("they come") {
    auto s = stitcher.Stitch(moved.Request(*this));
    REQUIRE(s.ok());
    CHECK(s->report.shifted == 20 * kPageTokens - 32);
    CHECK(s->report.run_faults.empty());
  }
  SUBCASE("they stall") {
    store.StallAfter(3);
    const auto start = Clock::now();
    auto s = stitcher.Stitch(moved.Request(*this));
    CHECK(Since(start) >= kPatienceMs);
    CHECK(Since(start) < 2 * kPatienceMs);
    REQUIRE(s.ok());
    CHECK(s->report.shifted == 0);
    CHECK(s->report.to_compute == s->timeline.size());
    CHECK(s->report.runs[0].reason == "slow_store");
    CHECK(s->report.run_faults.size() == 1);
    CHECK(s->recipe == nullptr);
  }
  SUBCASE("they stall when a recipe wants them") {
    std::shared_ptr<const Recipe> recipe = stitcher.Stitch(moved.Request(*this))->recipe;
    REQUIRE(recipe != nullptr);
    pool.DropCached();
    store.StallAfter(3);
    StitchRequest again = moved.Request(*this);
    again.runs = {};
    again.recipe = recipe.get();
    again.recipe_tokens = recipe->size();
    const auto start = Clock::now();
    auto s = stitcher.Stitch(again);
    CHECK(Since(start) < 2 * kPatienceMs);
    REQUIRE(s.ok());
    CHECK(s->report.hardened);
    CHECK(s->report.to_compute == s->timeline.size());
  }
}

TEST_CASE("a race that nobody wants any more ends") {
  SlowStore store;
  PagePool pool{ToyGroups(), 256 * kToyPageBytes};
  const TenantScope scope{"a"};
  const std::vector<TokenId> prompt = ToyTokens(kPages * kPageTokens + 1);
  {
    Timeline t(&pool, scope, Digest{});
    t.Extend(prompt);
    ToyComputeAll(t);
    Keep(t, pool, Digest{}, store);
  }
  pool.DropCached();
  store.StallAfter(3);
  {
    Stitcher stitcher(&pool, &store, Digest{});
    stitcher.ObserveCompute(1000, 100);
    auto stitched = stitcher.Stitch({scope, prompt, nullptr, {}});
    REQUIRE(stitched.ok());
    REQUIRE(stitched->loading != nullptr);
    stitched->loading.reset();
    store.Release();
  }
  CHECK(store.gets() <= 5);  // two were being read
}

TEST_CASE("an answer over a race has the bits of one that was computed") {
  Rig rig;
  SlowStore store;
  Stitcher stitcher(&rig.pool(), &store, rig.model().fingerprint());
  const std::vector<TokenId> prompt = SomePrompt(20 * kPageTokens + 7, 3);
  Answer want = rig.Run(rig.Request(prompt, 24));
  Keep(*want.finish.timeline, rig.pool(), rig.model().fingerprint(), store);
  want.finish.timeline.reset();
  store.SetGetMs(2);
  stitcher.ObserveCompute(1000, 1000);
  for (int round = 0; round < 3; ++round) {
    CAPTURE(round);
    rig.pool().DropCached();
    if (round > 0) store.StallAfter(round == 1 ? 6 : 0);
    auto stitched = stitcher.Stitch({TenantScope("a"), prompt, nullptr, {}});
    REQUIRE(stitched.ok());
    GenerateRequest request = rig.Request({}, 24);
    request.timeline = std::move(stitched->timeline);
    request.output_begin = request.timeline->size();
    if (round == 1) {
      store.Release();
      while (stitched->loading != nullptr && !stitched->loading->over()) {
        std::this_thread::yield();
      }
    }
    const Answer answer = rig.Run(std::move(request));
    CHECK(answer.tokens == want.tokens);
    CHECK(answer.digests == want.digests);
    const StitchReport report = Settled(stitched->report, answer.finish.reused,
                                        stitched->loading.get(), rig.pool().page_bytes());
    if (round < 2) CHECK(report.from_store == 20 * kPageTokens);
    if (round == 2) CHECK(report.from_store == 0);
    store.Release();
  }
}

}  // namespace
}  // namespace holdfast

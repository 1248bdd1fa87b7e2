#include "stitcher/stitcher.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

#include "engine/base/background.h"
#include "engine/base/elapsed.h"
#include "engine/base/moving_median.h"
#include "engine/base/queue.h"
#include "stitcher/shadow.h"
#include "stitcher/splice.h"

namespace holdfast {
namespace {

constexpr int kIoThreads = 2;
constexpr size_t kIoQueue = 256;    // loads waiting; what is beyond is computed
// After a page that is loaded beside running sequences, in times of what it took of a core: reading
// and checking takes memory's rate too, which standing back does not give back.
constexpr int kRest = 5;
constexpr int64_t kMinObservedRows = 16;  // fewer say more about overhead than about rows

int64_t CommonPrefix(std::span<const TokenId> a, std::span<const TokenId> b) {
  const auto end = std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first;
  return end - a.begin();
}

}  // namespace

struct Stitcher::Impl {
  // What is known about a prompt's exact chain: its keys, and where each page is.
  struct Chain {
    std::vector<PageKey> keys;  // of whole blocks below the last token
    std::vector<PageTier> tiers;
  };

  PagePool* pool;
  PageStore* store;
  Digest fp;
  BoundedQueue<std::function<void()>> io{kIoQueue};
  std::vector<std::thread> io_threads;
  std::condition_variable closing;   // with rates_mu: cuts rests short
  mutable std::mutex rates_mu;
  MovingMedian load_ms_per_page, compute_ms_per_token;
  ComputeFn compute;                 // constant once anything is stitched
  ChooseWindowsFn choose;
  std::function<bool()> running;
  mutable std::mutex card_mu;
  std::shared_ptr<const ModelCard> card;

  PageKey Root(const TenantScope& scope) const { return RootKey(fp, scope, Digest{}); }

  StitchRates rates() const {
    std::lock_guard lock(rates_mu);
    return {.load_ms_per_page = load_ms_per_page.Get(),
            .compute_ms_per_token = compute_ms_per_token.Get()};
  }

  // A prompt's exact chain, what would be done with it, and the blocks that come from the store.
  struct Reading {
    Chain chain;
    Plan plan;
    std::vector<int64_t> loads;
  };
  Reading Read(const StitchRequest& request) const;

  Chain FindChain(const StitchRequest& request, int64_t warm) const {
    Chain chain;
    PageKey key = Root(request.scope);
    const int64_t blocks = (static_cast<int64_t>(request.tokens.size()) - 1) / kPageTokens;
    bool reachable = true;  // past the first gap nothing more can be used
    for (int64_t b = 0; b < blocks && reachable; ++b) {
      key = NextKey(key, request.tokens.subspan(b * kPageTokens, kPageTokens), Digest{});
      PageTier tier = PageTier::kNone;
      if (pool->Contains(key)) {
        tier = PageTier::kPool;
      } else if (store != nullptr && store->Contains(key)) {
        tier = PageTier::kStore;
      }
      reachable = tier != PageTier::kNone || (b + 1) * kPageTokens <= warm;
      chain.keys.push_back(key);
      chain.tiers.push_back(tier);
    }
    return chain;
  }

  // Pages that are pinned, so that they do not make room for what follows them: by block, empty
  // where the pool has none. They are released from the tail.
  struct Held {
    std::vector<PageLease> pages;
    Held() = default;
    Held(Held&&) = default;
    ~Held() { Release(); }
    void Release() {
      while (!pages.empty()) pages.pop_back();
    }
  };
  // Those of the chain that the pool has, up to its first gap.
  Held HoldThere(const StitchRequest& request, const Chain& chain) const {
    Held held;
    for (size_t b = 0; b < chain.tiers.size() && chain.tiers[b] != PageTier::kNone; ++b) {
      PageLease& page = held.pages.emplace_back();
      if (chain.tiers[b] != PageTier::kPool) continue;
      page = pool->Find(chain.keys[b], request.tokens.subspan(b * kPageTokens, kPageTokens));
    }
    return held;
  }

  // The pages of the plan that come from the store.
  static std::vector<int64_t> BlocksToLoad(const Chain& chain, const Plan& plan) {
    std::vector<int64_t> blocks;
    for (const PlanStep& step : plan.steps) {
      if (step.action != PlanAction::kLoad && step.action != PlanAction::kRace) continue;
      for (int64_t b = step.begin / kPageTokens; b < step.end / kPageTokens; ++b) {
        if (chain.tiers[b] == PageTier::kStore) blocks.push_back(b);
      }
    }
    return blocks;
  }

  PageLoad::Chain ToLoad(const StitchRequest& request, const Chain& chain,
                         std::vector<int64_t> blocks) const {
    return {request.scope, fp, Root(request.scope), {request.tokens.begin(), request.tokens.end()},
            chain.keys, std::move(blocks)};
  }

  // Begins to load its blocks, one at least, on the I/O threads.
  std::shared_ptr<PageLoad> StartLoad(PageLoad::Chain chain, PageLoad::Order order) {
    const size_t threads = std::min<size_t>(kIoThreads, chain.blocks.size());
    auto load = std::make_shared<PageLoad>(pool, store, std::move(chain), order);
    for (size_t i = 0; i < threads; ++i) {
      // Where the queue is full or closing nobody loads, and what is not there in time is computed.
      io.TryPush([this, weak = std::weak_ptr(load)] { LoadNext(weak); });
    }
    return load;
  }

  // Loads one page of it, and then lets other loads have their turn. Runs on an I/O thread.
  void LoadNext(const std::weak_ptr<PageLoad>& weak) {
    do {
      std::shared_ptr<PageLoad> load = weak.lock();
      if (load == nullptr || io.closed()) return;
      const std::chrono::nanoseconds before = ThreadCpuTime();
      const std::optional<double> ms = load->Step();
      if (!ms) return;
      load.reset();
      std::chrono::duration<double, std::milli> rest{};
      if (running && running()) rest = kRest * (ThreadCpuTime() - before);
      std::unique_lock lock(rates_mu);
      closing.wait_for(lock, rest, [this] { return io.closed(); });
      load_ms_per_page.Add((*ms + rest.count()) / kIoThreads);
    } while (!io.TryPush([this, weak] { LoadNext(weak); }));
  }

  // Splices the whole pages [0, end) of the exact chain, those of `loads` as they have come, the
  // others from `held`; stops at the first that can't be had, and the report says why.
  void SplicePrefix(const Plan& plan, Held held, std::span<const int64_t> loads,
                    std::vector<Result<PageLease>> loaded, Stitched* out) {
    int64_t end = 0;
    for (const PlanStep& step : plan.steps) {
      if (step.action != PlanAction::kExact && step.action != PlanAction::kLoad) break;
      end = step.end / kPageTokens;
    }
    size_t next_load = 0;
    for (int64_t b = 0; b < end; ++b) {
      const bool load = next_load < loads.size() && loads[next_load] == b;
      Status fault;
      PageLease page;
      if (load && loaded[next_load].ok()) {
        page = std::move(loaded[next_load]).value();
      } else if (load) {
        fault = loaded[next_load].status();
      } else if (b < static_cast<int64_t>(held.pages.size())) {
        page = std::move(held.pages[b]);
      }
      next_load += load;
      if (!page) {
        out->report.miss = FaultName(fault);
        return;
      }
      if (Status s = out->timeline.Splice(std::move(page), 0, kPageTokens, 0); !s.ok()) {
        out->report.miss = "corrupt";
        return;
      }
      (load ? out->report.from_store : out->report.from_pool) += kPageTokens;
      out->report.bytes_loaded += load ? pool->page_bytes() : 0;
      AddSpan(&out->provenance, {.begin = b * kPageTokens, .end = (b + 1) * kPageTokens,
                                 .origin = KvOrigin::kExact,
                                 .tier = load ? KvTier::kStore : KvTier::kPool});
    }
  }

  Splicer::Parts PartsOfSplicer(Stitcher* stitcher) {
    Splicer::Parts parts;
    parts.pool = pool;
    parts.store = store;
    parts.fp = fp;
    parts.load = [this](PageLoad::Chain chain) {
      return StartLoad(std::move(chain), PageLoad::Order::kFront);
    };
    parts.rates = stitcher->rates();
    parts.card = stitcher->card();
    parts.choose = choose;
    if (compute) {
      parts.compute = [stitcher](const TenantScope& scope, std::span<const TokenId> chain) {
        return stitcher->ComputeExact(scope, chain, nullptr);
      };
    }
    return parts;
  }

  // Where a prompt's KV begins: the longest of what is exact, what a warm timeline has, and what a
  // recipe makes.
  struct Beginning {
    Chain chain;
    Plan plan;                       // of the exact prefix
    int64_t fork = 0;                // > 0: the base's first tokens instead
    const Recipe* remake = nullptr;  // the exact prefix, then this one's first `remake_to` tokens
    int64_t remake_to = 0;
    int64_t exact_end() const {
      return plan.TokensOf(PlanAction::kExact) + plan.TokensOf(PlanAction::kLoad);
    }
    int64_t reach() const { return exact_end() + plan.TokensOf(PlanAction::kRace); }
  };
  Beginning Begin(const StitchRequest& request, const StitchRates& rates) const;
  void PutBeginning(const StitchRequest& request, const Beginning& begin, Stitched* out);
  void PutPages(const StitchRequest& request, const Beginning& begin, Stitched* out);
};

Stitcher::Stitcher(PagePool* pool, PageStore* store, Digest fp) : impl_(new Impl) {
  impl_->pool = pool;
  impl_->store = store;
  impl_->fp = fp;
  for (int i = 0; i < kIoThreads; ++i) {
    impl_->io_threads.emplace_back([impl = impl_.get()] {
      StandBack();  // those who decode keep their pace
      while (auto task = impl->io.Pop()) (*task)();
    });
  }
}

Stitcher::~Stitcher() {
  impl_->io.Close();
  impl_->closing.notify_all();
  for (std::thread& t : impl_->io_threads) t.join();
}

void Stitcher::SetCompute(ComputeFn compute) { impl_->compute = std::move(compute); }
void Stitcher::SetChooser(ChooseWindowsFn choose) { impl_->choose = std::move(choose); }
void Stitcher::SetRunning(std::function<bool()> running) { impl_->running = std::move(running); }

void Stitcher::SetCard(std::shared_ptr<const ModelCard> card) {
  std::lock_guard lock(impl_->card_mu);
  impl_->card = std::move(card);
}

std::shared_ptr<const ModelCard> Stitcher::card() const {
  std::lock_guard lock(impl_->card_mu);
  return impl_->card;
}

void Stitcher::ObserveCompute(int64_t tokens, double ms) {
  if (tokens < kMinObservedRows) return;
  std::lock_guard lock(impl_->rates_mu);
  impl_->compute_ms_per_token.Add(ms / static_cast<double>(tokens));
}

void Stitcher::BeginWith(const StitchRates& earlier) {
  std::lock_guard lock(impl_->rates_mu);
  if (earlier.load_ms_per_page > 0) impl_->load_ms_per_page.Add(earlier.load_ms_per_page);
  if (earlier.compute_ms_per_token > 0) {
    impl_->compute_ms_per_token.Add(earlier.compute_ms_per_token);
  }
}

StitchRates Stitcher::rates() const { return impl_->rates(); }

StitchReport Settled(StitchReport report, int64_t reused, const PageLoad* loading,
                     size_t page_bytes) {
  const int64_t late = loading == nullptr ? 0 : loading->late();
  const int64_t raced = std::min(reused, late * kPageTokens);
  // Of a tainted timeline the pool has tainted pages too: they are no more exact for that.
  const int64_t found =
      std::min(report.totals.approximate > 0 ? raced : reused, report.totals.fresh);
  report.totals.exact += found;
  report.totals.fresh -= found;
  report.to_compute -= reused;
  report.from_store += raced;
  report.from_pool += reused - raced;
  report.bytes_loaded += static_cast<uint64_t>(late) * page_bytes;
  return report;
}

namespace {

Status CheckPieces(const StitchRequest& request) {
  int64_t at = 0;
  for (const Piece& p : request.pieces) {
    const int64_t n = p.end - p.begin;
    if (p.source == nullptr || n <= 0 || p.begin < 0 || p.at < at ||
        p.at + n > static_cast<int64_t>(request.tokens.size()) || p.end > p.source->filled()) {
      return Status::Invalid("stitcher: piece at token " + std::to_string(p.at) +
                             " overlaps, is empty, or lies outside its source or the prompt");
    }
    const auto theirs = p.source->tokens().subspan(p.begin, n);
    if (CommonPrefix(theirs, request.tokens.subspan(p.at, n)) != n) {
      return Status::Invalid("stitcher: piece at token " + std::to_string(p.at) +
                             ": the source's tokens differ from the prompt's");
    }
    at = p.at + n;
  }
  return Status();
}

// Runs that were found must lie in their variants, one behind the other, token by token.
Status CheckRuns(const StitchRequest& request) {
  int64_t at = 0;
  for (const FoundRun& run : request.runs) {
    const int64_t n = run.end - run.begin;
    const bool in_place = run.variant != nullptr && n > 0 && run.begin >= at &&
                          run.end <= static_cast<int64_t>(request.tokens.size()) &&
                          run.offset >= 0 && run.offset + n <= run.variant->count;
    if (!in_place || CommonPrefix(run.variant->body().subspan(run.offset, n),
                                  request.tokens.subspan(run.begin, n)) != n) {
      return Status::Invalid("stitcher: run at token " + std::to_string(run.begin) +
                             " overlaps, is empty, or is not what its variant holds");
    }
    at = run.end;
  }
  return Status();
}

PlanInput MakeInput(std::span<const TokenId> tokens, int64_t warm, std::span<const PageTier> tiers,
                    const StitchRates& rates) {
  PlanInput in;
  in.tokens = static_cast<int64_t>(tokens.size());
  in.page_tokens = kPageTokens;
  in.pages = tiers;
  in.base_filled = warm;
  in.load_ms_per_page = rates.load_ms_per_page;
  in.load_ms_fixed = rates.load_ms_fixed;
  in.compute_ms_per_token = rates.compute_ms_per_token;
  return in;
}

// How many of its first tokens have KV that rests on no approximation.
int64_t ExactLength(const Timeline& timeline) {
  for (const Run& run : timeline.runs()) {
    if (run.origin == KvOrigin::kShifted) return run.begin;
  }
  return timeline.size();
}

}  // namespace

Stitcher::Impl::Reading Stitcher::Impl::Read(const StitchRequest& request) const {
  Reading out;
  if (request.tokens.empty()) return out;
  out.chain = FindChain(request, 0);
  out.plan = MakePlan(MakeInput(request.tokens, 0, out.chain.tiers, rates()));
  out.loads = BlocksToLoad(out.chain, out.plan);
  return out;
}

Survey Stitcher::Look(const TenantScope& scope, std::span<const TokenId> tokens) const {
  Survey survey;
  survey.end = impl_->Root(scope);
  auto [chain, plan, loads] = impl_->Read({scope, tokens, nullptr, {}});
  survey.load = static_cast<int64_t>(loads.size()) * kPageTokens;
  while (!chain.tiers.empty() && chain.tiers.back() == PageTier::kNone) {
    chain.tiers.pop_back();
    chain.keys.pop_back();
  }
  for (const PageTier tier : chain.tiers) {
    (tier == PageTier::kPool ? survey.pool : survey.store) += kPageTokens;
  }
  if (!chain.keys.empty()) survey.end = chain.keys.back();
  survey.keys = std::move(chain.keys);
  return survey;
}

int64_t Stitcher::Prefetch(const TenantScope& scope, std::span<const TokenId> tokens,
                           int64_t max_pages) {
  const StitchRequest request{scope, tokens, nullptr, {}};
  auto [chain, plan, loads] = impl_->Read(request);
  Impl::Held held = impl_->HoldThere(request, chain);
  if (static_cast<int64_t>(loads.size()) > max_pages) loads.resize(std::max<int64_t>(max_pages, 0));
  int64_t pages = 0;
  if (!loads.empty()) {
    const auto load = impl_->StartLoad(impl_->ToLoad(request, chain, std::move(loads)),
                                       PageLoad::Order::kFront);
    // Nobody computes meanwhile, so it may take as long as computing would.
    auto loaded = load->Take(10 * plan.wait_ms_max);
    while (!loaded.empty()) {  // released from the tail
      pages += loaded.back().ok();
      loaded.pop_back();
    }
  }
  held.Release();
  impl_->pool->Renew(std::vector<PageKey>(chain.keys.rbegin(), chain.keys.rend()));
  return pages;
}

Result<PageLease> Stitcher::ReadTail(const TenantScope& scope, PageHeader header) {
  const std::chrono::duration<double, std::milli> patience(
      TailPatienceMs(MakeInput({}, 0, {}, rates()), static_cast<int64_t>(header.tokens.size())));
  if (patience.count() <= 0) {
    return Status::NotFound("stitcher: the rows are sooner computed than loaded");
  }
  struct Read {
    std::mutex mu;
    std::condition_variable came;
    bool given_up = false;
    std::optional<Result<PageLease>> page;
  };
  auto read = std::make_shared<Read>();
  auto task = [impl = impl_.get(), read, scope, header = std::move(header)] {
    std::unique_lock lock(read->mu);
    if (read->given_up) return;
    lock.unlock();
    Result<PageLease> page = ReadRecord(impl->pool, impl->store, scope, header);
    lock.lock();
    if (read->given_up) return page.status().IgnoreError();
    read->page.emplace(std::move(page));
    read->came.notify_one();
  };
  if (!impl_->io.TryPush(std::move(task))) {
    return Status::Unavailable("stitcher: too many loads wait");
  }
  std::unique_lock lock(read->mu);
  if (read->came.wait_for(lock, patience, [&] { return read->page.has_value(); })) {
    return std::move(*read->page);
  }
  read->given_up = true;
  return Status::Unavailable("stitcher: the store does not answer in time");
}

Stitcher::Impl::Beginning Stitcher::Impl::Begin(const StitchRequest& request,
                                                const StitchRates& rates) const {
  Beginning out;
  if (request.reuse.policy == ReusePolicy::kOff) {
    out.plan.miss = "reuse_off";
    return out;
  }
  const int64_t limit = static_cast<int64_t>(request.tokens.size()) - 1;
  int64_t warm = 0, exact_warm = 0;
  if (request.base != nullptr) {
    warm = std::min({CommonPrefix(request.base->tokens(), request.tokens), request.base->filled(),
                     limit});
    exact_warm = std::min(warm, ExactLength(*request.base));
  }
  out.chain = FindChain(request, exact_warm);
  out.plan = MakePlan(MakeInput(request.tokens, exact_warm, out.chain.tiers, rates));
  if (exact_warm > 0 && out.exact_end() == exact_warm) out.fork = exact_warm;
  const bool always = request.remake == StitchRequest::Remake::kAlways;
  const int64_t reach = out.reach();
  if (request.base_recipe != nullptr &&
      (always ? warm == limit
              : warm > reach && Serves(*request.base_recipe, request.reuse))) {
    out.fork = warm;
    return out;
  }
  if (request.recipe == nullptr || !(always || Serves(*request.recipe, request.reuse))) return out;
  const Recipe& recipe = *request.recipe;
  const int64_t to = std::min({recipe.size(), request.recipe_tokens, limit});
  if ((!always && reach >= std::min(recipe.approximate_end(), to)) ||
      recipe.exact_length() >= to) {
    return out;
  }
  // What the recipe makes follows from the rows that were exact then, and no more of them.
  out.remake = &recipe;
  out.remake_to = to;
  exact_warm = std::min(exact_warm, recipe.exact_length());
  const auto blocks = static_cast<size_t>(recipe.exact_length() / kPageTokens);
  if (out.chain.tiers.size() > blocks) out.chain.tiers.resize(blocks);
  out.plan = MakePlan(MakeInput(request.tokens, exact_warm, out.chain.tiers, rates));
  out.fork = exact_warm > 0 && out.exact_end() == exact_warm ? exact_warm : 0;
  return out;
}

// The pages of the exact prefix. Behind them are pending the rows of those that are on their way.
void Stitcher::Impl::PutPages(const StitchRequest& request, const Beginning& begin,
                              Stitched* out) {
  const std::vector<int64_t> loads = BlocksToLoad(begin.chain, begin.plan);
  const auto order = begin.plan.TokensOf(PlanAction::kRace) > 0 ? PageLoad::Order::kBack
                                                                : PageLoad::Order::kFront;
  Held held = HoldThere(request, begin.chain);
  std::shared_ptr<PageLoad> load;
  if (!loads.empty()) load = StartLoad(ToLoad(request, begin.chain, loads), order);
  std::vector<Result<PageLease>> loaded;
  if (load != nullptr && order == PageLoad::Order::kFront) {
    loaded = load->Take(begin.plan.wait_ms_max);
  }
  if (load != nullptr && !load->over()) out->loading = std::move(load);
  SplicePrefix(begin.plan, std::move(held), loads, std::move(loaded), out);
  const int64_t at = out->timeline.size(), raced = begin.reach() - at;
  if (out->loading == nullptr || raced <= 0) return;
  out->timeline.Extend(request.tokens.subspan(at, raced));
  out->report.to_compute += raced;
  AddSpan(&out->provenance, {.begin = at, .end = begin.reach()});
}

// The exact prefix, or the base's part, into the empty timeline of `out`.
void Stitcher::Impl::PutBeginning(const StitchRequest& request, const Beginning& begin,
                                  Stitched* out) {
  out->report.miss = begin.plan.miss;
  if (begin.fork == 0) {
    PutPages(request, begin, out);
    return;
  }
  auto fork = request.base->Fork(begin.fork);
  if (!fork.ok()) {
    out->report.miss = "pool_full";
    return;
  }
  out->timeline = std::move(fork).value();
  out->report.from_warm = begin.fork;
  if (out->timeline.taint().IsZero()) {
    out->provenance = {{.begin = 0, .end = begin.fork, .origin = KvOrigin::kExact,
                        .tier = KvTier::kWarm}};
    return;
  }
  for (ProvenanceSpan span : FirstOf(request.base_recipe->spans, begin.fork)) {
    span.tier = KvTier::kWarm;
    AddSpan(&out->provenance, span);
  }
  out->recipe = std::make_shared<const Recipe>(*request.base_recipe);
}

Result<Timeline> Stitcher::ComputeExact(const TenantScope& scope, std::span<const TokenId> tokens,
                                        const Timeline* base, const ComputeOptions& options) {
  if (!impl_->compute) return Status::Unavailable("stitcher: nobody is there to compute");
  HOLDFAST_ASSIGN_OR_RETURN(Stitched exact, Stitch({scope, tokens, base, {}}));
  return impl_->compute(std::move(exact.timeline), options);
}

Result<ShadowKl> Stitcher::Shadow(const ShadowRequest& request) {
  if (!impl_->compute) return Status::Unavailable("stitcher: nobody is there to compute");
  const auto context = request.tokens.first(static_cast<size_t>(request.answer_begin));
  auto answer = request.tokens.subspan(context.size());
  answer = answer.first(std::min<size_t>(answer.size(), kShadowTokens));
  const ComputeOptions options{.stop = request.stop};
  // Its whole pages stay in the pool, if this has to stop.
  HOLDFAST_RETURN_IF_ERROR(ComputeExact(request.scope, context, nullptr, options).status());
  StitchRequest as_served{request.scope, context, request.base, {}};
  as_served.recipe = as_served.base_recipe = request.recipe;
  as_served.recipe_tokens = request.answer_begin;
  as_served.remake = StitchRequest::Remake::kAlways;
  HOLDFAST_ASSIGN_OR_RETURN(Stitched served, Stitch(as_served));
  if (served.recipe == nullptr) {
    return Status::NotFound("stitcher: the context can't be made again as it was");
  }
  served.timeline.KeepPrivate();
  HOLDFAST_ASSIGN_OR_RETURN(Stitched exact, Stitch({request.scope, context, nullptr, {}}));
  return CompareAnswers(impl_->compute, std::move(served.timeline), std::move(exact.timeline),
                        answer, options);
}

Result<Stitched> Stitcher::Stitch(const StitchRequest& request) {
  const auto start = std::chrono::steady_clock::now();
  if (request.tokens.empty()) return Status::Invalid("stitcher: the prompt has no tokens");
  HOLDFAST_RETURN_IF_ERROR(CheckPieces(request));
  HOLDFAST_RETURN_IF_ERROR(CheckRuns(request));
  const StitchRates now = rates();
  Stitched out{Timeline(impl_->pool, request.scope, impl_->fp), {}};
  out.report.policy = request.reuse.policy;
  const Impl::Beginning begin = impl_->Begin(request, now);
  impl_->PutBeginning(request, begin, &out);
  Splicer splicer(impl_->PartsOfSplicer(this), request);
  auto use = Splicer::Runs::kAsPlanned;
  if (begin.remake != nullptr && !splicer.Remake(*begin.remake, begin.remake_to, &out)) {
    out.report.hardened = true;
    use = Splicer::Runs::kNone;
  }
  HOLDFAST_RETURN_IF_ERROR(splicer.Finish(use, &out));
  out.report.restore_ms = MsSince(start);
  return out;
}

}  // namespace holdfast

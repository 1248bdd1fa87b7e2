#include "stitcher/stitcher.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <latch>
#include <mutex>
#include <thread>
#include <utility>

#include "engine/base/moving_median.h"
#include "engine/base/queue.h"
#include "stitcher/splice.h"

namespace holdfast {
namespace {

constexpr int kIoThreads = 2;
constexpr size_t kIoQueue = 256;    // page reads waiting; more make the restoring request wait
constexpr int64_t kMinObservedRows = 16;  // fewer say more about overhead than about rows

double MsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

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
  mutable std::mutex rates_mu;
  MovingMedian load_ms_per_page, compute_ms_per_token;
  ComputeFn compute;                 // constant once anything is stitched
  ChooseWindowsFn choose;
  mutable std::mutex card_mu;
  std::shared_ptr<const ModelCard> card;

  PageKey Root(const TenantScope& scope) const { return RootKey(fp, scope, Digest{}); }

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

  // Reads the pages of `blocks` into private slots, all at once over the I/O threads. Entry i of
  // the result is the sealed page, or the error that took its place.
  std::vector<Result<PageLease>> Load(const StitchRequest& request, const Chain& chain,
                                      const std::vector<int64_t>& blocks) {
    std::vector<Result<PageLease>> pages;
    pages.reserve(blocks.size());
    for (size_t i = 0; i < blocks.size(); ++i) pages.emplace_back(PageLease());
    std::latch done(static_cast<std::ptrdiff_t>(blocks.size()));
    for (size_t i = 0; i < blocks.size(); ++i) {
      auto task = [&, i] {
        pages[i] = LoadOne(request, chain, blocks[i]);
        done.count_down();
      };
      if (!io.Push(task)) task();  // closing: do it here
    }
    done.wait();
    return pages;
  }

  // Load, and what it cost is remembered.
  std::vector<Result<PageLease>> LoadTimed(const StitchRequest& request, const Chain& chain,
                                           const std::vector<int64_t>& blocks) {
    const auto start = std::chrono::steady_clock::now();
    auto pages = Load(request, chain, blocks);
    if (blocks.empty()) return pages;
    std::lock_guard lock(rates_mu);
    load_ms_per_page.Add(MsSince(start) / static_cast<double>(blocks.size()));
    return pages;
  }

  Result<PageLease> LoadOne(const StitchRequest& request, const Chain& chain, int64_t block) {
    HOLDFAST_ASSIGN_OR_RETURN(PageLease page, pool->Allocate(request.scope));
    const auto tokens = request.tokens.subspan(block * kPageTokens, kPageTokens);
    PageHeader header;
    header.fp = fp;
    header.key = chain.keys[block];
    header.parent = block > 0 ? chain.keys[block - 1] : Root(request.scope);
    header.tokens.assign(tokens.begin(), tokens.end());
    std::vector<std::span<std::byte>> payload;
    const auto& groups = pool->groups();
    for (size_t g = 0; g < groups.size(); ++g) {
      payload.emplace_back(page.payload(static_cast<int>(g)), groups[g].PayloadBytes());
    }
    HOLDFAST_RETURN_IF_ERROR(store->Get(header, payload));
    return pool->Seal(std::move(page), header.key, header.parent, tokens, PageSource::kDisk);
  }

  // Splices the whole pages [0, end) of the exact chain; stops at the first that can't be had.
  // Where that is fewer than planned, the report says why.
  void SplicePrefix(const StitchRequest& request, const Chain& chain, const Plan& plan,
                    Stitched* out) {
    Timeline* timeline = &out->timeline;
    StitchReport* report = &out->report;
    std::vector<int64_t> loads;
    int64_t end = 0;
    for (const PlanStep& step : plan.steps) {
      if (step.action != PlanAction::kExact && step.action != PlanAction::kLoad) break;
      end = step.end / kPageTokens;
      if (step.action == PlanAction::kLoad) {
        for (int64_t b = step.begin / kPageTokens; b < end; ++b) loads.push_back(b);
      }
    }
    auto loaded = LoadTimed(request, chain, loads);
    size_t next_load = 0;
    for (int64_t b = 0; b < end; ++b) {
      const bool load = next_load < loads.size() && loads[next_load] == b;
      Status fault;
      PageLease page = TakePage(request, chain, b, load ? &loaded[next_load] : nullptr, &fault);
      next_load += load;
      if (!page) {
        report->miss = fault.ok()                           ? "evicted"
                       : fault.code() == Code::kExhausted ? "pool_full"
                       : fault.code() == Code::kIo        ? "io_error"
                                                          : "corrupt";
        return;
      }
      if (Status s = timeline->Splice(std::move(page), 0, kPageTokens, 0); !s.ok()) {
        report->miss = "corrupt";
        return;
      }
      (load ? report->from_store : report->from_pool) += kPageTokens;
      report->bytes_loaded += load ? pool->page_bytes() : 0;
      AddSpan(&out->provenance, {.begin = b * kPageTokens, .end = (b + 1) * kPageTokens,
                                 .origin = KvOrigin::kExact,
                                 .tier = load ? KvTier::kStore : KvTier::kPool});
    }
  }

  PageLease TakePage(const StitchRequest& request, const Chain& chain, int64_t block,
                     Result<PageLease>* loaded, Status* fault) {
    if (loaded == nullptr) {
      return pool->Find(chain.keys[block],
                        request.tokens.subspan(block * kPageTokens, kPageTokens));
    }
    if (loaded->ok()) return std::move(*loaded).value();
    *fault = loaded->status();
    return {};
  }

  Splicer::Parts PartsOfSplicer(Stitcher* stitcher) {
    Splicer::Parts parts;
    parts.pool = pool;
    parts.store = store;
    parts.fp = fp;
    parts.post = [this](std::function<void()> task) {
      if (!io.Push(task)) task();  // closing: do it here
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
  };
  Beginning Begin(const StitchRequest& request, const StitchRates& rates) const;
  void PutBeginning(const StitchRequest& request, const Beginning& begin, Stitched* out);
};

Stitcher::Stitcher(PagePool* pool, PageStore* store, Digest fp) : impl_(new Impl) {
  impl_->pool = pool;
  impl_->store = store;
  impl_->fp = fp;
  for (int i = 0; i < kIoThreads; ++i) {
    impl_->io_threads.emplace_back([impl = impl_.get()] {
      while (auto task = impl->io.Pop()) (*task)();
    });
  }
}

Stitcher::~Stitcher() {
  impl_->io.Close();
  for (std::thread& t : impl_->io_threads) t.join();
}

void Stitcher::SetCompute(ComputeFn compute) { impl_->compute = std::move(compute); }
void Stitcher::SetChooser(ChooseWindowsFn choose) { impl_->choose = std::move(choose); }

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

StitchRates Stitcher::rates() const {
  std::lock_guard lock(impl_->rates_mu);
  StitchRates r;
  r.load_ms_per_page = impl_->load_ms_per_page.Get();
  r.compute_ms_per_token = impl_->compute_ms_per_token.Get();
  return r;
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

Survey Stitcher::Look(const TenantScope& scope, std::span<const TokenId> tokens) const {
  Survey survey;
  survey.end = impl_->Root(scope);
  if (tokens.empty()) return survey;
  const StitchRequest request{scope, tokens, nullptr, {}};
  Impl::Chain chain = impl_->FindChain(request, 0);
  const Plan plan = MakePlan(MakeInput(tokens, 0, chain.tiers, rates()));
  survey.load = plan.TokensOf(PlanAction::kLoad);
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
  if (tokens.empty()) return 0;
  const StitchRequest request{scope, tokens, nullptr, {}};
  const Impl::Chain chain = impl_->FindChain(request, 0);
  const Plan plan = MakePlan(MakeInput(tokens, 0, chain.tiers, rates()));
  // What is there is pinned, so that it does not make room for what follows it.
  std::vector<PageLease> held;
  std::vector<int64_t> loads;
  for (const PlanStep& step : plan.steps) {
    for (int64_t b = step.begin / kPageTokens; b < step.end / kPageTokens; ++b) {
      if (step.action == PlanAction::kExact) {
        held.push_back(impl_->pool->Find(chain.keys[b], tokens.subspan(b * kPageTokens,
                                                                       kPageTokens)));
      } else if (step.action == PlanAction::kLoad &&
                 static_cast<int64_t>(loads.size()) < max_pages) {
        loads.push_back(b);
      }
    }
  }
  auto loaded = impl_->LoadTimed(request, chain, loads);
  int64_t pages = 0;
  while (!loaded.empty()) {  // released from the tail
    pages += loaded.back().ok();
    loaded.pop_back();
  }
  while (!held.empty()) held.pop_back();
  impl_->pool->Renew(std::vector<PageKey>(chain.keys.rbegin(), chain.keys.rend()));
  return pages;
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
  const int64_t exact_end = out.exact_end();
  if (exact_warm > 0 && exact_end == exact_warm) out.fork = exact_warm;
  if (warm > exact_end && request.base_recipe != nullptr &&
      Serves(*request.base_recipe, request.reuse)) {
    out.fork = warm;
    return out;
  }
  if (request.recipe == nullptr || !Serves(*request.recipe, request.reuse)) return out;
  const Recipe& recipe = *request.recipe;
  const int64_t to = std::min({recipe.size(), request.recipe_tokens, limit});
  if (exact_end >= std::min(recipe.approximate_end(), to) || recipe.exact_length() >= to) {
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

// The exact prefix, or the base's part, into the empty timeline of `out`.
void Stitcher::Impl::PutBeginning(const StitchRequest& request, const Beginning& begin,
                                  Stitched* out) {
  out->report.miss = begin.plan.miss;
  if (begin.fork == 0) {
    SplicePrefix(request, begin.chain, begin.plan, out);
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
                                        const Timeline* base) {
  if (!impl_->compute) return Status::Unavailable("stitcher: nobody is there to compute");
  HOLDFAST_ASSIGN_OR_RETURN(Stitched exact, Stitch({scope, tokens, base, {}}));
  return impl_->compute(std::move(exact.timeline));
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

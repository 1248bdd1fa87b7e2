#include "stitcher/stitcher.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

#include "engine/base/background.h"
#include "engine/base/moving_median.h"
#include "engine/base/queue.h"

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

  // Begins to load them on the I/O threads; null when there are none.
  std::shared_ptr<PageLoad> StartLoad(const StitchRequest& request, const Chain& chain,
                                      std::vector<int64_t> blocks, PageLoad::Order order) {
    if (blocks.empty()) return nullptr;
    const size_t threads = std::min<size_t>(kIoThreads, blocks.size());
    auto load = std::make_shared<PageLoad>(
        pool, store,
        PageLoad::Chain{request.scope, fp, {request.tokens.begin(), request.tokens.end()},
                        chain.keys, std::move(blocks)},
        order);
    for (size_t i = 0; i < threads; ++i) {
      // Where the queue is closing nobody loads, and all is computed.
      io.Push([this, weak = std::weak_ptr(load)] { LoadNext(weak); });
    }
    return load;
  }

  // Loads one page of it, and then lets other loads have their turn. Runs on an I/O thread.
  void LoadNext(const std::weak_ptr<PageLoad>& weak) {
    do {
      const std::shared_ptr<PageLoad> load = weak.lock();
      if (load == nullptr || io.closed()) return;
      const std::optional<double> ms = load->Step();
      if (!ms) return;
      std::lock_guard lock(rates_mu);
      load_ms_per_page.Add(*ms / kIoThreads);
    } while (!io.TryPush([this, weak] { LoadNext(weak); }));
  }

  // Splices the whole pages [0, end) of the exact chain, those of `loads` as they have come; stops
  // at the first that can't be had. Returns how many blocks are there, with the reason where that
  // is fewer.
  int64_t SplicePrefix(const StitchRequest& request, const Chain& chain, const Plan& plan,
                       std::span<const int64_t> loads, std::vector<Result<PageLease>> loaded,
                       Stitched* out) {
    int64_t end = 0;
    for (const PlanStep& step : plan.steps) {
      if (step.action != PlanAction::kExact && step.action != PlanAction::kLoad) break;
      end = step.end / kPageTokens;
    }
    size_t next_load = 0;
    for (int64_t b = 0; b < end; ++b) {
      const bool load = next_load < loads.size() && loads[next_load] == b;
      Status fault;
      PageLease page = TakePage(request, chain, b, load ? &loaded[next_load] : nullptr, &fault);
      next_load += load;
      if (!page) {
        out->report.miss = MissOf(fault);
        return b;
      }
      if (Status s = out->timeline.Splice(std::move(page), 0, kPageTokens, 0); !s.ok()) {
        out->report.miss = "corrupt";
        return b;
      }
      (load ? out->report.from_store : out->report.from_pool) += kPageTokens;
      out->report.bytes_loaded += load ? pool->page_bytes() : 0;
    }
    return end;
  }

  static const char* MissOf(const Status& fault) {
    switch (fault.code()) {
      case Code::kOk: return "evicted";
      case Code::kExhausted: return "pool_full";
      case Code::kIo: return "io_error";
      case Code::kUnavailable: return "slow_store";
      default: return "corrupt";
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

  // Uses pieces[i] at the indices [begin, end), run by run of its source.
  Status SplicePiece(const Piece& piece, int64_t begin, int64_t end, Timeline* timeline) {
    const int64_t move = piece.at - piece.begin;  // index here minus index there
    int64_t index = 0;
    for (const Run& run : piece.source->runs()) {
      const int64_t from = std::max(index, begin - move);
      const int64_t to = std::min(index + run.count, end - move);
      if (from < to) {
        if (!run.page || !run.page.sealed()) {
          return Status::Invalid("stitcher: piece at token " + std::to_string(begin) +
                                 ": its source is not sealed at token " + std::to_string(from));
        }
        HOLDFAST_RETURN_IF_ERROR(timeline->Splice(
            run.page.Share(), run.first + static_cast<int32_t>(from - index),
            static_cast<int32_t>(to - from), run.shift + static_cast<int32_t>(move)));
      }
      index += run.count;
    }
    return Status();
  }
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
  for (std::thread& t : impl_->io_threads) t.join();
}

void Stitcher::ObserveCompute(int64_t tokens, double ms) {
  if (tokens < kMinObservedRows) return;
  std::lock_guard lock(impl_->rates_mu);
  impl_->compute_ms_per_token.Add(ms / static_cast<double>(tokens));
}

StitchRates Stitcher::rates() const { return impl_->rates(); }

StitchReport Settled(StitchReport report, int64_t reused, const PageLoad* loading,
                     size_t page_bytes) {
  const int64_t late = loading == nullptr ? 0 : loading->late();
  const int64_t raced = std::min(reused, late * kPageTokens);
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

PlanInput MakeInput(const StitchRequest& request, int64_t warm, std::span<const PageTier> tiers,
                    std::span<const PieceRange> pieces, const StitchRates& rates) {
  PlanInput in;
  in.tokens = static_cast<int64_t>(request.tokens.size());
  in.page_tokens = kPageTokens;
  in.pages = tiers;
  in.base_filled = warm;
  in.pieces = pieces;
  in.load_ms_per_page = rates.load_ms_per_page;
  in.load_ms_fixed = rates.load_ms_fixed;
  in.compute_ms_per_token = rates.compute_ms_per_token;
  return in;
}

}  // namespace

Stitcher::Impl::Reading Stitcher::Impl::Read(const StitchRequest& request) const {
  Reading out;
  if (request.tokens.empty()) return out;
  out.chain = FindChain(request, 0);
  out.plan = MakePlan(MakeInput(request, 0, out.chain.tiers, {}, rates()));
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
  // What is there is pinned, so that it does not make room for what follows it.
  std::vector<PageLease> held;
  for (size_t b = 0; b < chain.keys.size() && chain.tiers[b] != PageTier::kNone; ++b) {
    if (chain.tiers[b] != PageTier::kPool) continue;
    held.push_back(impl_->pool->Find(chain.keys[b], tokens.subspan(b * kPageTokens, kPageTokens)));
  }
  if (static_cast<int64_t>(loads.size()) > max_pages) loads.resize(std::max<int64_t>(max_pages, 0));
  int64_t pages = 0;
  if (const auto load =
          impl_->StartLoad(request, chain, std::move(loads), PageLoad::Order::kFront)) {
    // Nobody computes meanwhile, so it may take as long as computing would.
    auto loaded = load->Take(10 * plan.wait_ms_max);
    while (!loaded.empty()) {  // released from the tail
      pages += loaded.back().ok();
      loaded.pop_back();
    }
  }
  while (!held.empty()) held.pop_back();
  impl_->pool->Renew(std::vector<PageKey>(chain.keys.rbegin(), chain.keys.rend()));
  return pages;
}

Result<Stitched> Stitcher::Stitch(const StitchRequest& request) {
  const auto start = std::chrono::steady_clock::now();
  if (request.tokens.empty()) return Status::Invalid("stitcher: the prompt has no tokens");
  HOLDFAST_RETURN_IF_ERROR(CheckPieces(request));
  const int64_t limit = static_cast<int64_t>(request.tokens.size()) - 1;

  int64_t warm = 0;
  bool exact = true;
  if (request.base != nullptr) {
    warm = std::min({CommonPrefix(request.base->tokens(), request.tokens), request.base->filled(),
                     limit});
    exact = request.base->taint().IsZero();
  }
  // An approximate base has its own chain; exact pages can't continue it.
  Impl::Chain chain = exact ? impl_->FindChain(request, warm) : Impl::Chain{};
  std::vector<PieceRange> pieces;
  for (const Piece& p : request.pieces) pieces.push_back({p.at, p.at + p.end - p.begin});

  Stitched out{Timeline(impl_->pool, request.scope, impl_->fp), {}, nullptr};
  Plan plan = MakePlan(MakeInput(request, warm, chain.tiers, pieces, rates()));
  out.report.miss = plan.miss;
  const int64_t exact_end = plan.TokensOf(PlanAction::kExact) + plan.TokensOf(PlanAction::kLoad);
  if (warm > 0 && exact_end == warm) {  // nothing reaches further than the warm timeline
    if (auto fork = request.base->Fork(warm); fork.ok()) {
      out.timeline = std::move(fork).value();
      out.report.from_warm = warm;
    } else {
      out.report.miss = "pool_full";
      plan = MakePlan(MakeInput(request, 0, {}, pieces, rates()));
    }
  } else {
    const std::vector<int64_t> loads = Impl::BlocksToLoad(chain, plan);
    const auto order = plan.TokensOf(PlanAction::kRace) > 0 ? PageLoad::Order::kBack
                                                            : PageLoad::Order::kFront;
    std::shared_ptr<PageLoad> load = impl_->StartLoad(request, chain, loads, order);
    std::vector<Result<PageLease>> loaded;
    if (load != nullptr && order == PageLoad::Order::kFront) loaded = load->Take(plan.wait_ms_max);
    if (load != nullptr && !load->over()) out.loading = std::move(load);
    const int64_t blocks =
        impl_->SplicePrefix(request, chain, plan, loads, std::move(loaded), &out);
    if (blocks * kPageTokens < exact_end) {  // a fault: keep what is verified, plan the rest anew
      plan = MakePlan(MakeInput(request, blocks * kPageTokens, {}, pieces, rates()));
    }
  }
  for (const PlanStep& step : plan.steps) {
    if (step.action == PlanAction::kShifted) {
      HOLDFAST_RETURN_IF_ERROR(impl_->SplicePiece(request.pieces[step.piece], step.begin, step.end,
                                                  &out.timeline));
      out.report.shifted += step.end - step.begin;
    } else if (step.action == PlanAction::kCompute || step.action == PlanAction::kRace) {
      out.timeline.Extend(request.tokens.subspan(step.begin, step.end - step.begin));
      out.report.to_compute += step.end - step.begin;
    }
  }
  out.report.restore_ms = MsSince(start);
  return out;
}

}  // namespace holdfast

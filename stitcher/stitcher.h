// The stitcher: from a list of token ids to a Timeline that already has all KV that can be had. The
// one way to restore: prefix reuse, restarts, forks and splices all go through Stitch.
//
// Stitch is a transaction: private slots, read, verify, publish. On any fault it keeps the longest
// verified prefix and leaves the rest to be computed; the answer is the same bits either way, and
// the report says what happened. Where loading takes about as long as computing, and where a store
// does not answer in time, both go on at once, from the two ends of what is missing (plan.h).
// Behind the exact prefix, runs that were computed elsewhere are used as far as the request's
// policy and the model card allow (run_plan.h); that is an approximation, and labelled so, token by
// token (recipe.h).
//
// Thread-safe; blocks on page I/O, so never called by the model thread. Owns two I/O threads, which
// stand back where others want the cores.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/kv/page_store.h"
#include "stitcher/compute.h"
#include "stitcher/page_load.h"
#include "stitcher/plan.h"
#include "stitcher/rates.h"
#include "stitcher/recipe.h"
#include "stitcher/run_plan.h"

namespace holdfast {

// KV computed elsewhere, to be used at `at`: the indices [begin, end) of `source`, which must hold
// them in sealed pages and the same tokens. Approximate unless it lies at home in the same chain.
struct Piece {
  const Timeline* source = nullptr;  // borrowed during the call
  int64_t begin = 0, end = 0;
  int64_t at = 0;
};

struct StitchRequest {
  TenantScope scope;
  std::span<const TokenId> tokens;
  const Timeline* base = nullptr;    // a warm timeline (a head): its common prefix is forked
  std::span<const Piece> pieces;     // ascending by `at`, disjoint; used as they are
  ReuseOptions reuse = {};
  std::span<const FoundRun> runs = {};        // ascending, disjoint
  std::span<const int64_t> boundaries = {};   // as RunPlanInput's
  const Recipe* base_recipe = nullptr;        // of `base`, where that is tainted
  // How the KV of the first `recipe_tokens` tokens was made, where it was tainted: it is made so
  // again, unless it is there (in `base`, or exact) or does not serve this request.
  const Recipe* recipe = nullptr;
  int64_t recipe_tokens = 0;
  // kAlways: also where exact KV is there, and whatever the request wants (to look at it again).
  enum class Remake : uint8_t { kWhereWanted, kAlways } remake = Remake::kWhereWanted;
};

// What became of a run of the request.
struct RunReport {
  int64_t begin = 0, end = 0;
  SegmentId segment;
  int64_t variant = 0;
  VariantKind kind = VariantKind::kInContext;
  int64_t shift = 0;
  bool used = false;
  int link = 0;               // tokens computed at its beginning
  std::string reason;
};

struct StitchReport {
  int64_t from_warm = 0;      // tokens by where their KV came from; the sum is the prompt
  int64_t from_pool = 0;
  int64_t from_store = 0;
  int64_t shifted = 0;
  int64_t to_compute = 0;
  double restore_ms = 0;      // spent in Stitch
  uint64_t bytes_loaded = 0;
  std::string miss;           // Plan::miss, or "corrupt", "io_error", "pool_full" after a fault,
                              // "slow_store": pages were not there in time
  // Of approximate reuse:
  ReusePolicy policy = ReusePolicy::kExact;  // that was asked for
  ProvenanceTotals totals;    // tokens by how their KV was made; the sum is the prompt
  std::vector<RunReport> runs;
  std::vector<std::string> run_faults;  // runs that were computed since a page could not be had
  std::string fallback;       // RunPlan::fallback
  double expected_kl = 0, kl_bound = 0;  // by the card, nats a token
  double cost_ms = 0, full_ms = 0;       // estimates of the plan
  bool remade = false;        // by a recipe
  bool hardened = false;      // a recipe's source can't be had: computed in full
};

struct Stitched {
  Timeline timeline;          // size() == tokens.size(); filled() up to the first row to compute
  StitchReport report;
  // Pages that are still on their way while the timeline's rows are computed, or null. Dropping it
  // ends that; the prefill takes what has come (Timeline::Reuse).
  std::shared_ptr<PageLoad> loading = nullptr;
  Provenance provenance = {};                      // of all its tokens
  std::shared_ptr<const Recipe> recipe = nullptr;  // null: the timeline is exact
};

// The report once all rows are there: of `to_compute`, `reused` tokens were found in the pool, and
// came there by `loading` (may be null) as far as that has loaded any.
StitchReport Settled(StitchReport report, int64_t reused, const PageLoad* loading,
                     size_t page_bytes);

// Computes all rows of a timeline that are pending, and gives it back. Blocks.
using ComputeFn = std::function<Result<Timeline>(Timeline, const ComputeOptions&)>;

struct ShadowRequest {
  TenantScope scope;
  std::span<const TokenId> tokens;   // context and answer
  int64_t answer_begin = 0;
  const Recipe* recipe = nullptr;    // of the context; of the answer's tokens it says nothing
  const Timeline* base = nullptr;    // the context as it was served, where it is warm
  std::function<bool()> stop = {};   // as ComputeOptions's
};
inline constexpr int64_t kShadowTokens = 256;  // of an answer, its first ones

// What a question is asked over: all runs in place, nothing of them computed; the rows between them
// and the question itself are pending. Its KV is thrown away.
struct ProbeRequest {
  std::optional<Timeline> timeline;
  std::vector<TokenRange> runs;      // of which windows may be chosen; without what is linked
  std::vector<int64_t> heads;        // where the runs begin
  int64_t budget = 0;                // tokens
};
// Windows inside `runs`, ascending, disjoint (select.h). Blocks.
using ChooseWindowsFn = std::function<Result<std::vector<TokenRange>>(ProbeRequest)>;

// Where the KV of a prompt is. From the first page on that is nowhere, nothing can be used again.
struct Survey {
  int64_t pool = 0, store = 0;   // tokens in whole pages there
  int64_t load = 0;              // of `store`, those that are worth loading
  std::vector<PageKey> keys;     // of the pages in pool and store, in order
  PageKey end;                   // the chain's key after them
};

class Stitcher {
 public:
  // `store` may be null (nothing below the pool). All must outlive the stitcher.
  Stitcher(PagePool* pool, PageStore* store, Digest fp);
  ~Stitcher();
  // Before the first Stitch. Without `compute` a recipe whose sources are gone is not made again;
  // without `choose` no plan has windows.
  void SetCompute(ComputeFn compute);
  void SetChooser(ChooseWindowsFn choose);
  // Whether sequences run now; asked by the I/O threads. While they do, a rest follows each page
  // that is loaded, so that they keep their pace. Without `running` none does.
  void SetRunning(std::function<bool()> running);
  // The model's card, or null: from the next Stitch on.
  void SetCard(std::shared_ptr<const ModelCard> card);
  std::shared_ptr<const ModelCard> card() const;

  Result<Stitched> Stitch(const StitchRequest& request);
  // Everything exact and computed, from `base` (may be null), pages and SetCompute's function.
  // Blocks for a prefill.
  Result<Timeline> ComputeExact(const TenantScope& scope, std::span<const TokenId> tokens,
                                const Timeline* base, const ComputeOptions& options = {});
  // What the context's approximate KV moved in an answer: the answer's tokens as they were given
  // (teacher-forced, full vocabulary), over the context as it was made and over full prefill.
  // Blocks for a prefill. kNotFound: the context can't be made again as it was. kCancelled: `stop`.
  Result<ShadowKl> Shadow(const ShadowRequest& request);
  // Reads the partial page of `header`, on the I/O threads, into a page of its own, by the rule of
  // TailPatienceMs. kNotFound: its rows are sooner computed. kUnavailable: it has not come in time,
  // and is dropped when it comes.
  Result<PageLease> ReadTail(const TenantScope& scope, PageHeader header);
  // Reads nothing.
  Survey Look(const TenantScope& scope, std::span<const TokenId> tokens) const;
  // Loads from the store into the pool what Stitch would load, as far as `max_pages` go; the pages
  // stay there as cache, the last to be dropped. Waits for about as long as computing would take.
  // Returns the pages loaded.
  int64_t Prefetch(const TenantScope& scope, std::span<const TokenId> tokens, int64_t max_pages);
  // Tells what computing cost: `tokens` rows in `ms`. Feeds the planner.
  void ObserveCompute(int64_t tokens, double ms);
  // Takes over what an earlier process has measured, as one sample of each that is not 0.
  void BeginWith(const StitchRates& earlier);
  StitchRates rates() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace holdfast

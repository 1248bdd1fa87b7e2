// Planning behind the exact prefix (plan.h): which runs of a prompt are used, and what of them is
// computed nevertheless, decided before anything moves. Pure functions, with a table test.
//
// A run is a span that was computed elsewhere (segment.h). Using one is an approximation, so it
// takes a policy that allows it and a model card that says what it costs. Of a used run are
// computed:
//   link      its first k tokens, which heal the seam (LINK-k), on to the end of the sentence or
//             message where one ends within kBoundaryReach
//   selected  windows that the question's attention chooses; they are known only once the rest is
//             in place, so a plan is made in two stages: PlanRuns says how many tokens (`select`),
//             AddWindows puts them in
//   fresh     runs that are refused, and everything that is in no run
//
// A plan is never slower than full prefill by its own estimate: at kWorthwhile of that or more, no
// run is used.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/kv/timeline.h"
#include "stitcher/card.h"
#include "stitcher/plan.h"
#include "stitcher/segment.h"
#include "stitcher/select.h"

namespace holdfast {

inline constexpr int64_t kBoundaryReach = 16;  // tokens by which a link may grow to end well
inline constexpr double kWorthwhile = 0.8;     // of the time of full prefill

// How much of a prompt's KV a request lets be approximate.
enum class ReusePolicy : uint8_t {
  kOff,       // everything is computed, the prefix too
  kExact,     // the exact prefix alone: the same bits as full prefill
  kFast,      // LINK-32; refuses isolated variants
  kBalanced,  // in context LINK-128; isolated LINK-32 and windows of a fifth
  kQuality,   // LINK-128, and windows of a fifth (in context) or two fifths (isolated)
  kVerify,    // as balanced; then a full prefill in the shadow measures what it cost
};
const char* ReusePolicyName(ReusePolicy policy);
std::optional<ReusePolicy> ParseReusePolicy(std::string_view name);

struct ReuseOptions {
  ReusePolicy policy = ReusePolicy::kExact;
  double max_kl = 0;  // nats a token that 95 % of requests stay under, by the card; 0 = unsaid
  double budget = 1;  // of the tokens in runs, the share that may be computed again
  bool approximate() const { return policy > ReusePolicy::kExact; }
  bool operator==(const ReuseOptions&) const = default;
};

// Tokens [begin, end): of run `run` as it is (kShifted), or computed: of a run (kLink, kSelected),
// or of none (kFresh).
struct RunStep {
  int64_t begin = 0, end = 0;
  int run = -1;                // index into RunPlanInput::runs; -1: in none that is used
  KvOrigin origin = KvOrigin::kFresh;
  bool operator==(const RunStep&) const = default;
};

// KV from elsewhere that could be used for the indices [begin, end).
struct RunOffer {
  int64_t begin = 0, end = 0;
  bool as_is = false;          // used whole, whatever the policy (the caller has decided)
  VariantKind kind = VariantKind::kInContext;
  PageTier tier = PageTier::kPool;  // the furthest of its pages
  int64_t pages_to_load = 0;
  std::string_view fault = {};  // with kNone: why, where somebody has tried to get them
  int32_t generation = 0;      // of the variant; only 0 is used
  int64_t shift = 0;
};

struct RunPlanInput {
  int64_t tokens = 0;                    // of the prompt
  int64_t begin = 0;                     // what lies before it is there, or is planned for
  std::span<const RunOffer> runs;        // ascending, disjoint, inside the prompt
  std::span<const int64_t> boundaries;   // ascending: where sentences and messages begin
  ReuseOptions reuse;
  const ModelCard* card = nullptr;       // null = there is none: only exact reuse is offered
  bool selects = false;                  // somebody is there who can choose windows
  double load_ms_per_page = 0;           // measured; 0 = unknown, taken as free
  double compute_ms_per_token = 0;       // measured; 0 = unknown, taken as dear
};

// What became of a run, and why, in words.
struct RunChoice {
  bool used = false;
  int link = 0;                // tokens computed at its beginning
  double expected_kl = 0;      // mean of the card's cell, nats a token
  double kl_bound = 0;         // what 95 % of contexts stay under: the contract compares this
  std::string reason;
};

struct RunPlan {
  std::vector<RunStep> steps;   // ascending, covering [begin, tokens) without gaps
  std::vector<RunChoice> choices;  // one per run of the input
  std::string fallback;         // why no run is used at all, where runs were found; else ""
  int64_t select = 0;           // tokens of used runs to be chosen by the question (AddWindows)
  double expected_kl = 0;       // of the worst run: the card measures whole prompts
  double kl_bound = 0;
  double cost_ms = 0, full_ms = 0;  // estimates: of this plan, of computing everything
  int64_t TokensOf(KvOrigin origin) const;
};

// The last token is always computed, since its logits are wanted.
RunPlan PlanRuns(const RunPlanInput& input);

// The second stage: of used runs, the tokens in `windows` (ascending, disjoint) are computed too.
// What lies outside of used runs is ignored.
RunPlan AddWindows(RunPlan plan, std::span<const TokenRange> windows);

}  // namespace holdfast

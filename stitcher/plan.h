// Planning the exact prefix: what of a prompt's KV is used again, loaded or computed, decided
// before anything moves. A pure function of its input, with a table test. What is done with
// approximate runs behind the prefix is planned by run_plan.h.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace holdfast {

// kRace: computed from the front while its pages are loaded from the back, until the two meet.
enum class PlanAction : uint8_t { kExact, kLoad, kCompute, kRace };
const char* PlanActionName(PlanAction action);

struct PlanStep {
  PlanAction action = PlanAction::kCompute;
  int64_t begin = 0, end = 0;  // token indices [begin, end)
  bool operator==(const PlanStep&) const = default;
};

// Where the page of a block of the exact chain is.
enum class PageTier : uint8_t { kNone, kPool, kStore };

struct PlanInput {
  int64_t tokens = 0;                    // of the prompt
  int page_tokens = 32;
  std::span<const PageTier> pages;       // of the exact chain, from block 0 on; the rest is kNone
  int64_t base_filled = 0;               // indices that a warm timeline of the same tokens covers
  double load_ms_per_page = 0;           // measured, of several at once; 0 = unknown, taken as free
  double load_ms_fixed = 0;              // once per restore
  double compute_ms_per_token = 0;       // measured; 0 = unknown, taken as dear
};

struct Plan {
  std::vector<PlanStep> steps;  // ascending, covering [0, tokens) without gaps
  std::string miss;             // why the exact prefix ended: "", "absent", "cheaper_to_compute"
  double wait_ms_max = 0;       // for the pages to load; those that come later are raced for
  int64_t TokensOf(PlanAction action) const;
};

// Rules: the exact prefix goes on while its pages are in the pool or in the store; a warm timeline
// counts as exact as far as it reaches; pages are loaded by the rule of SplitLoading; the last
// token is always computed, since its logits are wanted.
Plan MakePlan(const PlanInput& input);

// How to get pages that are in the store, by what loading and computing them costs:
//   loading takes no tenth of computing, or nobody would notice   load, and wait for it
//   neither is quick                                              race
//   else                                                          compute
// A race takes the time until the prefill, from the front, meets the loads, from the back: with c
// ms to compute a page and l ms to load one, n pages take n*c*l/(c+l). It is never slower than
// computing, whatever the store does. Waiting is bounded by a tenth of computing, or kPatienceMs,
// so that a store that stalls costs that much; then what has not come is raced for.
inline constexpr double kUnnoticedMs = 25;
inline constexpr double kPatienceMs = 250;
inline constexpr double kPatienceUnknownMs = 2000;  // while nobody knows what computing costs
struct Loading {
  PlanAction action = PlanAction::kLoad;  // kLoad, kRace or kCompute
  int64_t load_pages = 0;  // that come from the store, as far as one can tell
  double ms = 0;           // until all are there
  double wait_ms_max = 0;
};
Loading SplitLoading(const PlanInput& input, int64_t pages);

// How long to wait for the partial page behind the whole ones, of `rows`: as long as computing them
// takes, or kPatienceMs. 0: it is not loaded, since that takes longer, and one would notice.
double TailPatienceMs(const PlanInput& input, int64_t rows);

}  // namespace holdfast

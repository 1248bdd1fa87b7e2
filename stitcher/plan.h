// Planning the exact prefix: what of a prompt's KV is used again, loaded or computed, decided
// before anything moves. A pure function of its input, with a table test. What is done with
// approximate runs behind the prefix is planned by run_plan.h.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace holdfast {

enum class PlanAction : uint8_t { kExact, kLoad, kCompute };
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
  double load_ms_per_page = 0;           // measured; 0 = unknown, taken as free
  double load_ms_fixed = 0;              // once per restore
  double compute_ms_per_token = 0;       // measured; 0 = unknown, taken as dear
};

struct Plan {
  std::vector<PlanStep> steps;  // ascending, covering [0, tokens) without gaps
  std::string miss;             // why the exact prefix ended: "", "absent", "cheaper_to_compute"
  int64_t TokensOf(PlanAction action) const;
};

// Rules: the exact prefix goes on while its pages are in the pool or in the store; a warm timeline
// counts as exact as far as it reaches; a range of pages is loaded only when loading (fixed cost
// included) is quicker than computing it; the last token is always computed, since its logits are
// wanted.
Plan MakePlan(const PlanInput& input);

}  // namespace holdfast

#include "stitcher/plan.h"

#include <algorithm>

namespace holdfast {
namespace {

// Appends [begin, end) with `action`, joining it to the step before where that is alike.
void AddStep(std::vector<PlanStep>* steps, PlanAction action, int64_t begin, int64_t end) {
  if (begin >= end) return;
  if (!steps->empty() && steps->back().action == action && steps->back().end == begin) {
    steps->back().end = end;
    return;
  }
  steps->push_back({action, begin, end});
}

bool LoadingPays(const PlanInput& input, int64_t pages) {
  if (input.compute_ms_per_token <= 0) return true;
  const double load = input.load_ms_fixed + input.load_ms_per_page * static_cast<double>(pages);
  const double compute =
      input.compute_ms_per_token * static_cast<double>(pages * input.page_tokens);
  return load <= compute;
}

// The exact prefix over whole pages below `limit`; returns where it ends.
int64_t PlanExactPrefix(const PlanInput& input, int64_t limit, Plan* plan) {
  const int64_t warm = std::min(input.base_filled, limit);
  const int64_t blocks = limit / input.page_tokens;
  auto tier = [&](int64_t block) {
    if ((block + 1) * input.page_tokens <= warm) return PageTier::kPool;
    return block < static_cast<int64_t>(input.pages.size()) ? input.pages[block] : PageTier::kNone;
  };
  // Where loading is dear it must pay for itself over all that it makes reachable.
  int64_t reachable = 0, to_load = 0;
  while (reachable < blocks && tier(reachable) != PageTier::kNone) {
    to_load += tier(reachable) == PageTier::kStore;
    ++reachable;
  }
  const bool load = to_load > 0 && LoadingPays(input, to_load);
  int64_t end = 0;
  for (int64_t b = 0; b < reachable; ++b) {
    const PageTier t = tier(b);
    if (t == PageTier::kStore && !load) {
      plan->miss = "cheaper_to_compute";
      break;
    }
    end = (b + 1) * input.page_tokens;
    AddStep(&plan->steps, t == PageTier::kStore ? PlanAction::kLoad : PlanAction::kExact,
            b * input.page_tokens, end);
  }
  if (warm > end && plan->miss.empty()) {  // a warm timeline reaches into a partial page
    AddStep(&plan->steps, PlanAction::kExact, end, warm);
    end = warm;
  }
  if (end < blocks * input.page_tokens && plan->miss.empty()) plan->miss = "absent";
  return end;
}

}  // namespace

const char* PlanActionName(PlanAction action) {
  switch (action) {
    case PlanAction::kExact: return "exact";
    case PlanAction::kLoad: return "load";
    case PlanAction::kCompute: return "compute";
  }
  return "unknown";
}

int64_t Plan::TokensOf(PlanAction action) const {
  int64_t n = 0;
  for (const PlanStep& s : steps) n += s.action == action ? s.end - s.begin : 0;
  return n;
}

Plan MakePlan(const PlanInput& input) {
  Plan plan;
  const int64_t limit = input.tokens - 1;  // the last token is always computed
  if (input.tokens <= 0) return plan;
  const int64_t at = PlanExactPrefix(input, limit, &plan);
  AddStep(&plan.steps, PlanAction::kCompute, at, input.tokens);
  return plan;
}

}  // namespace holdfast

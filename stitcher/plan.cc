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
  const Loading loading = SplitLoading(input, to_load);
  plan->wait_ms_max = loading.wait_ms_max;
  int64_t end = 0;
  for (int64_t b = 0; b < reachable; ++b) {
    const PageTier t = tier(b);
    if (t == PageTier::kStore && loading.action == PlanAction::kCompute) {
      plan->miss = "cheaper_to_compute";
      break;
    }
    if (t == PageTier::kStore && loading.action == PlanAction::kRace) {
      end = reachable * input.page_tokens;  // what is in the pool behind it is met there
      AddStep(&plan->steps, PlanAction::kRace, b * input.page_tokens, end);
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
    case PlanAction::kRace: return "race";
  }
  return "unknown";
}

int64_t Plan::TokensOf(PlanAction action) const {
  int64_t n = 0;
  for (const PlanStep& s : steps) n += s.action == action ? s.end - s.begin : 0;
  return n;
}

Loading SplitLoading(const PlanInput& input, int64_t pages) {
  Loading out;
  const auto n = static_cast<double>(pages);
  const double load = input.load_ms_fixed + input.load_ms_per_page * n;
  const double page = input.compute_ms_per_token * input.page_tokens;
  const double compute = page * n;
  out.load_pages = pages;
  out.ms = load;
  out.wait_ms_max = page <= 0 ? kPatienceUnknownMs : std::max(compute / 10, kPatienceMs);
  if (page <= 0 || (load <= compute && load <= std::max(compute / 10, kUnnoticedMs))) return out;
  const double met = (compute - input.load_ms_fixed) / (input.load_ms_per_page + page);
  out.load_pages = std::clamp<int64_t>(static_cast<int64_t>(met), 0, pages);
  if (out.load_pages == 0 || compute <= kUnnoticedMs) {
    out.action = PlanAction::kCompute;
    out.load_pages = 0;
  } else {
    out.action = PlanAction::kRace;
  }
  out.ms = page * static_cast<double>(pages - out.load_pages);
  return out;
}

double TailPatienceMs(const PlanInput& input, int64_t rows) {
  const double load = input.load_ms_fixed + input.load_ms_per_page;
  const double compute = input.compute_ms_per_token * static_cast<double>(rows);
  if (compute <= 0) return kPatienceUnknownMs;
  return load <= std::max(compute, kUnnoticedMs) ? std::max(compute, kPatienceMs) : 0;
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

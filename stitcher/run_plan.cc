#include "stitcher/run_plan.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace holdfast {
namespace {

constexpr std::array<const char*, 6> kPolicyNames = {"off",      "exact",   "fast",
                                                     "balanced", "quality", "verify"};

// How much of a run each policy computes again.
CardSetting SettingOf(ReusePolicy policy, VariantKind kind) {
  const bool isolated = kind == VariantKind::kIsolated;
  switch (policy) {
    case ReusePolicy::kFast: return {32, 0};
    case ReusePolicy::kQuality: return {128, isolated ? 40 : 20};
    default: return isolated ? CardSetting{32, 20} : CardSetting{128, 0};
  }
}

CardKind KindOnCard(VariantKind kind) {
  return kind == VariantKind::kIsolated ? CardKind::kIsolated : CardKind::kInContext;
}

int64_t ShortestRun(const CardSetting& setting) {
  return std::max<int64_t>(kMinSegmentTokens, 2 * setting.link);
}

std::string Number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.3g", value);
  return text;
}

std::string SettingText(const CardSetting& setting) {
  std::string text = "LINK-" + std::to_string(setting.link);
  if (setting.windows > 0) text += " and windows of " + std::to_string(setting.windows) + " %";
  return text;
}

// Appends `step`, joining it to the step before where that is alike.
void AddStep(std::vector<RunStep>* steps, RunStep step) {
  if (step.begin >= step.end) return;
  if (!steps->empty()) {
    RunStep& last = steps->back();
    if (last.run == step.run && last.origin == step.origin && last.end == step.begin) {
      last.end = step.end;
      return;
    }
  }
  steps->push_back(step);
}

// A run as far as it lies behind the prefix and before the last token.
struct Clipped {
  int64_t begin = 0, end = 0;
  int64_t size() const { return std::max<int64_t>(0, end - begin); }
};

class RunPlanner {
 public:
  explicit RunPlanner(const RunPlanInput& input) : in_(input) {
    const int64_t limit = in_.tokens - 1;  // the last token is always computed
    for (const RunOffer& run : in_.runs) {
      clipped_.push_back({std::max(run.begin, in_.begin), std::min(run.end, limit)});
    }
    settings_.resize(in_.runs.size());
  }

  void Run(RunPlan* plan) {
    plan->choices.resize(in_.runs.size());
    if (in_.runs.empty()) return Lay(plan);
    Sift(plan);
    if (used_ > 0) Choose(plan);
    const bool as_is = std::any_of(in_.runs.begin(), in_.runs.end(),
                                   [](const RunOffer& run) { return run.as_is; });
    Budget(plan);
    Lay(plan);
    NoteFallback(plan);
    if (used_ == 0 || as_is || plan->cost_ms < kWorthwhile * plan->full_ms) return;
    const std::string why =
        "not worth it: " + Number(100 * plan->cost_ms / plan->full_ms) + " % of full prefill";
    plan->steps.clear();
    for (RunChoice& choice : plan->choices) {
      if (choice.used) choice = {.reason = why};
    }
    plan->fallback = why;
    plan->select = 0;
    plan->expected_kl = plan->kl_bound = 0;
    Lay(plan);
  }

 private:
  // Refuses what can't be used whatever the setting.
  void Sift(RunPlan* plan) {
    const ReuseOptions& reuse = in_.reuse;
    std::vector<size_t> able;
    for (size_t i = 0; i < in_.runs.size(); ++i) {
      const RunOffer& run = in_.runs[i];
      RunChoice& choice = plan->choices[i];
      if (clipped_[i].size() == 0) {
        choice.reason = "the exact prefix covers it";
      } else if (run.as_is) {
        choice.used = true;
        choice.reason = "as the caller wants it";
      } else if (!reuse.approximate()) {
        choice.reason = std::string(ReusePolicyName(reuse.policy)) + ": the prefix alone";
      } else if (in_.card == nullptr) {
        choice.reason = plan->fallback =
            "no model card: only exact reuse is offered (holdfast calibrate makes one)";
      } else if (run.tier == PageTier::kNone) {
        choice.reason = run.fault.empty() ? "its pages are gone" : run.fault;
      } else if (run.generation > 0) {
        choice.reason = "it rests on approximate KV itself";
      } else if (run.kind == VariantKind::kIsolated && reuse.policy == ReusePolicy::kFast) {
        choice.reason = "isolated: fast refuses it";
      } else if (clipped_[i].size() < kMinSegmentTokens) {
        choice.reason = "shorter than " + std::to_string(kMinSegmentTokens) + " tokens";
      } else {
        able.push_back(i);
      }
    }
    if (in_.card == nullptr) {
      used_ = CountUsed(*plan);
      return;
    }
    const auto most = static_cast<size_t>(std::max(0, in_.card->max_runs));
    std::stable_sort(able.begin(), able.end(), [&](size_t a, size_t b) {
      return clipped_[a].size() > clipped_[b].size();
    });
    for (size_t n = 0; n < able.size(); ++n) {
      RunChoice& choice = plan->choices[able[n]];
      choice.used = n < most;
      if (!choice.used) {
        choice.reason = "more runs than the " + std::to_string(most) + " that the card covers";
      }
    }
    used_ = CountUsed(*plan);
  }

  // Where no run is used: what speaks against the longest.
  void NoteFallback(RunPlan* plan) const {
    if (used_ > 0 || !plan->fallback.empty() || !in_.reuse.approximate()) return;
    int64_t longest = 0;  // one that the exact prefix covers is no loss
    for (size_t i = 0; i < in_.runs.size(); ++i) {
      if (clipped_[i].size() <= longest) continue;
      longest = clipped_[i].size();
      plan->fallback = plan->choices[i].reason;
    }
  }

  static int CountUsed(const RunPlan& plan) {
    return static_cast<int>(std::count_if(plan.choices.begin(), plan.choices.end(),
                                          [](const RunChoice& c) { return c.used; }));
  }

  std::optional<CardKl> Expect(size_t i, const CardSetting& setting) const {
    return ExpectedKl(*in_.card, {.kind = KindOnCard(in_.runs[i].kind),
                                  .tokens = clipped_[i].size(),
                                  .runs = used_,
                                  .shift = std::abs(in_.runs[i].shift),
                                  .context = in_.tokens,
                                  .generation = in_.runs[i].generation + 1,
                                  .setting = setting});
  }

  double Rows(size_t i, const CardSetting& setting) const {
    const auto n = static_cast<double>(clipped_[i].size());
    return std::min(n, setting.link + setting.windows / 100.0 * n);
  }

  // What the policy does, or with `max_kl` the cheapest that keeps it. Else *why not.
  std::optional<CardSetting> SettingFor(size_t i, CardKl* kl, std::string* why) const {
    const ReuseOptions& reuse = in_.reuse;
    const VariantKind kind = in_.runs[i].kind;
    const CardSetting usual = SettingOf(reuse.policy, kind);
    std::vector<CardSetting> settings = {usual};
    if (reuse.max_kl > 0) settings = CardSettings(*in_.card, KindOnCard(kind));
    *why = reuse.max_kl > 0 ? "nothing that the card knows keeps its KL below " +
                                  Number(reuse.max_kl)
                            : "the card says nothing of such a run with " + SettingText(usual);
    for (const CardSetting& setting : settings) {
      if (setting.windows > 0 && reuse.policy == ReusePolicy::kFast) continue;
      if (setting.windows > 0 && !in_.selects) {
        *why = "nobody is there to choose the windows that it needs";
        continue;
      }
      if (clipped_[i].size() < ShortestRun(setting)) {
        *why = "shorter than the " + std::to_string(ShortestRun(setting)) + " tokens that " +
               SettingText(setting) + " is worth";
        continue;
      }
      const std::optional<CardKl> expected = Expect(i, setting);
      if (!expected || (reuse.max_kl > 0 && expected->bound > reuse.max_kl)) continue;
      *kl = *expected;
      return setting;
    }
    return std::nullopt;
  }

  void Choose(RunPlan* plan) {
    for (size_t i = 0; i < in_.runs.size(); ++i) {
      RunChoice& choice = plan->choices[i];
      const RunOffer& run = in_.runs[i];
      if (!choice.used || run.as_is) continue;
      std::string why;
      CardKl kl;
      const std::optional<CardSetting> setting = SettingFor(i, &kl, &why);
      if (!setting) {
        choice = {.reason = why};
        continue;
      }
      const double saved =
          in_.compute_ms_per_token * (static_cast<double>(clipped_[i].size()) - Rows(i, *setting));
      if (in_.compute_ms_per_token > 0 && LoadMs(run) > saved) {
        choice = {.reason = "quicker computed than loaded"};
        continue;
      }
      settings_[i] = *setting;
      choice.link = static_cast<int>(LinkEnd(i) - clipped_[i].begin);
      choice.expected_kl = kl.mean;
      choice.kl_bound = kl.bound;
      choice.reason = SettingText(*setting) + ", expected KL " + Number(kl.mean) + " nats a token";
      plan->expected_kl = std::max(plan->expected_kl, kl.mean);
      plan->kl_bound = std::max(plan->kl_bound, kl.bound);
    }
    used_ = CountUsed(*plan);
  }

  int64_t LinkEnd(size_t i) const {
    const int64_t end = std::min(clipped_[i].begin + settings_[i].link, clipped_[i].end);
    if (settings_[i].link == 0) return end;
    const auto next = std::lower_bound(in_.boundaries.begin(), in_.boundaries.end(), end);
    const bool near = next != in_.boundaries.end() && *next <= end + kBoundaryReach;
    return near ? std::min(*next, clipped_[i].end) : end;
  }

  double LoadMs(const RunOffer& run) const {
    return in_.load_ms_per_page * static_cast<double>(run.pages_to_load);
  }

  // How many tokens the question may choose. Seams are healed whatever the budget.
  void Budget(RunPlan* plan) {
    double windows = 0;
    int64_t reusable = 0, link = 0;
    for (size_t i = 0; i < in_.runs.size(); ++i) {
      if (!plan->choices[i].used) continue;
      reusable += clipped_[i].size();
      link += plan->choices[i].link;
      windows += settings_[i].windows / 100.0 * static_cast<double>(clipped_[i].size());
    }
    const double allowed = in_.reuse.budget * static_cast<double>(reusable);
    const double left = std::max(0.0, allowed - static_cast<double>(link));
    // The contract goes before the budget.
    if (in_.reuse.max_kl <= 0) windows = std::min(windows, left);
    plan->select = std::llround(windows);
  }

  // The steps behind the prefix, and what they cost.
  void Lay(RunPlan* plan) {
    std::vector<RunStep>* steps = &plan->steps;
    int64_t at = in_.begin;
    double load_ms = 0;
    for (size_t i = 0; i < in_.runs.size(); ++i) {
      if (!plan->choices[i].used) continue;
      const int run = static_cast<int>(i);
      const auto [begin, end] = clipped_[i];
      const int64_t from = begin + plan->choices[i].link;
      AddStep(steps, {at, begin});
      AddStep(steps, {begin, from, run, KvOrigin::kLink});
      AddStep(steps, {from, end, run, KvOrigin::kShifted});
      at = end;
      load_ms += LoadMs(in_.runs[i]);
    }
    AddStep(steps, {at, in_.tokens});
    const double rate = in_.compute_ms_per_token > 0 ? in_.compute_ms_per_token : 1;
    const int64_t total = in_.tokens - in_.begin;
    const int64_t kept = plan->TokensOf(KvOrigin::kShifted) - plan->select;
    const auto rows = static_cast<double>(total - kept);
    plan->cost_ms = rate * rows + (in_.compute_ms_per_token > 0 ? load_ms : 0);
    plan->full_ms = rate * static_cast<double>(total);
  }

  const RunPlanInput& in_;
  std::vector<Clipped> clipped_;
  std::vector<CardSetting> settings_;
  int used_ = 0;
};

}  // namespace

const char* ReusePolicyName(ReusePolicy policy) {
  return kPolicyNames[static_cast<size_t>(policy)];
}

std::optional<ReusePolicy> ParseReusePolicy(std::string_view name) {
  const auto it = std::find(kPolicyNames.begin(), kPolicyNames.end(), name);
  if (it == kPolicyNames.end()) return std::nullopt;
  return static_cast<ReusePolicy>(it - kPolicyNames.begin());
}

int64_t RunPlan::TokensOf(KvOrigin origin) const {
  int64_t n = 0;
  for (const RunStep& s : steps) n += s.origin == origin ? s.end - s.begin : 0;
  return n;
}

RunPlan PlanRuns(const RunPlanInput& input) {
  RunPlan plan;
  RunPlanner(input).Run(&plan);
  return plan;
}

RunPlan AddWindows(RunPlan plan, std::span<const TokenRange> windows) {
  std::vector<RunStep> steps;
  for (const RunStep& step : plan.steps) {
    int64_t at = step.begin;
    for (const TokenRange& w : windows) {
      if (step.origin != KvOrigin::kShifted) break;
      const int64_t begin = std::max(w.begin, at), end = std::min(w.end, step.end);
      if (begin >= end) continue;
      AddStep(&steps, {at, begin, step.run, step.origin});
      AddStep(&steps, {begin, end, step.run, KvOrigin::kSelected});
      at = end;
    }
    AddStep(&steps, {at, step.end, step.run, step.origin});
  }
  plan.steps = std::move(steps);
  plan.select = 0;
  return plan;
}

}  // namespace holdfast

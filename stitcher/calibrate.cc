#include "stitcher/calibrate.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <tuple>

namespace holdfast {
namespace {

constexpr int kResamples = 2000;
constexpr double kLeastKl = 1e-6;  // below is noise

double Mean(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// The 95 % quantile of Student's t (one-sided), by its expansion around the normal one.
double StudentQuantile(double df) {
  constexpr double z = 1.6448536;
  const double z3 = z * z * z, z5 = z3 * z * z;
  return z + (z3 + z) / (4 * df) + (5 * z5 + 16 * z3 + 3 * z) / (96 * df * df) +
         (3 * z5 * z * z + 19 * z5 + 17 * z3 - 15 * z) / (384 * df * df * df);
}

bool IsControl(ReuseHow how) {
  return how == ReuseHow::kUnturned || how == ReuseHow::kPrefix || how == ReuseHow::kTranslated ||
         how == ReuseHow::kOtherKv;
}

bool Has(const std::vector<ContextEdit>& edits, ContextEdit edit) {
  return std::find(edits.begin(), edits.end(), edit) != edits.end();
}

std::vector<ReuseMethod> MethodsFor(const SweepOptions& options, ContextEdit edit, bool has_other) {
  std::vector<ReuseMethod> out;
  for (const ReuseMethod& m : options.methods) {
    if (IsControl(m.how) && !Has(options.control_edits, edit)) continue;
    if (m.how == ReuseHow::kOtherKv && !has_other) continue;
    out.push_back(m);
  }
  return out;
}

}  // namespace

// ---- The sweep.

SweepOptions QualitySweep() {
  SweepOptions options;
  options.edits.assign(std::begin(kContextEdits), std::end(kContextEdits));
  options.methods = StandardMethods();
  options.control_edits = {ContextEdit::kDelete, ContextEdit::kChunks512};
  return options;
}

SweepOptions CardSweep(SweepSize size) {
  SweepOptions options = QualitySweep();
  std::erase_if(options.methods, [](const ReuseMethod& m) { return m.how != ReuseHow::kReuse; });
  if (size == SweepSize::kWhole) return options;
  options.contexts = kCardMinContexts;
  options.edits = {ContextEdit::kDelete, ContextEdit::kInsert, ContextEdit::kThin,
                   ContextEdit::kChunks512};
  std::erase_if(options.methods, [](const ReuseMethod& m) {
    return m.name != "link32" && m.name != "link128" && m.name != "link32+win20";
  });
  return options;
}

Status RunSweep(Model& model, Model* other, const SweepOptions& options) {
  HOLDFAST_ASSIGN_OR_RETURN(const auto maker, ContextMaker::Create(model, options.texts));
  TrialRunner runner(model, other, kMaxTrialTokens);
  const int64_t most = std::min<int64_t>(kMaxTrialTokens, model.config().context_length);
  double total = 0, done = 0;  // trials
  for (ContextEdit edit : options.edits) {
    total += options.contexts *
             static_cast<double>(MethodsFor(options, edit, other != nullptr).size());
  }
  const auto go_on = [&] { return !options.go_on || options.go_on(done / total); };
  for (int c = 0; c < options.contexts; ++c) {
    for (const ContextEdit edit : options.edits) {
      const auto methods = MethodsFor(options, edit, other != nullptr);
      const uint64_t seed = options.first_seed + static_cast<uint64_t>(c);
      HOLDFAST_ASSIGN_OR_RETURN(const TestContext context, maker->Make(edit, seed));
      const auto size = static_cast<int64_t>(context.tokens.size());
      if (size + options.answer_tokens > most || context.runs.empty()) {
        done += static_cast<double>(methods.size());
        continue;
      }
      if (!go_on()) return {};
      HOLDFAST_RETURN_IF_ERROR(runner.Begin(context, options.answer_tokens));
      for (const ReuseMethod& method : methods) {
        if (!go_on()) return {};
        HOLDFAST_ASSIGN_OR_RETURN(Trial trial, runner.Run(method));
        trial.edit = ContextEditName(edit);
        trial.seed = seed;
        if (options.on_trial) options.on_trial(trial);
        ++done;
      }
    }
  }
  go_on();
  return {};
}

// ---- Statistics.

Interval BootstrapMean(std::span<const double> values) {
  Interval out;
  if (values.empty()) return out;
  out.mean = out.low = out.high = Mean(values);
  if (values.size() < 2) return out;
  SeededRandom random(values.size());
  std::vector<double> means;
  for (int i = 0; i < kResamples; ++i) {
    double sum = 0;
    for (size_t n = 0; n < values.size(); ++n) sum += values[random.Below(values.size())];
    means.push_back(sum / static_cast<double>(values.size()));
  }
  std::sort(means.begin(), means.end());
  out.low = means[kResamples * 25 / 1000];
  out.high = means[kResamples * 975 / 1000];
  return out;
}

double PredictionBound(std::span<const double> values) {
  const double n = static_cast<double>(values.size());
  std::vector<double> logs;
  for (const double v : values) logs.push_back(std::log(std::max(v, kLeastKl)));
  const double mean = Mean(logs);
  double squares = 0;
  for (const double l : logs) squares += (l - mean) * (l - mean);
  const double bound =
      mean + StudentQuantile(n - 1) * std::sqrt(squares / (n - 1) * (1 + 1 / n));
  std::sort(logs.begin(), logs.end());
  const auto rank = static_cast<size_t>(std::ceil((n + 1) * 0.95));
  return std::exp(std::max(bound, logs[std::min(rank, logs.size()) - 1]));
}

namespace {

// Figures of the trials of one group.
struct Group {
  std::vector<double> kl, top1, recomputed, rows;

  void Add(const Trial& t) {
    kl.push_back(t.kl);
    top1.push_back(static_cast<double>(t.same_top) / t.tokens);
    recomputed.push_back(t.recomputed);
    rows.push_back(t.rows);
  }
  CardKl Kl() const {
    CardKl out;
    const Interval interval = BootstrapMean(kl);
    out.mean = interval.mean;
    out.mean_upper = interval.high;
    out.median = Median(kl);
    out.bound = PredictionBound(kl);
    out.top1 = Mean(top1);
    out.recomputed = Mean(recomputed);
    out.rows = Mean(rows);
    out.contexts = static_cast<int>(kl.size());
    return out;
  }
};

Summary SummaryOf(std::span<const Trial* const> trials) {
  Summary s;
  Group group;
  for (const Trial* t : trials) {
    group.Add(*t);
    s.tokens += t->tokens;
    s.largest_kl = std::max(s.largest_kl, t->largest_kl);
    s.first_divergence += t->first_divergence;
    s.same_answer += t->same_top == t->tokens;
  }
  const double n = static_cast<double>(trials.size());
  s.edit = trials[0]->edit;
  s.method = trials[0]->method;
  s.contexts = static_cast<int>(trials.size());
  s.kl = BootstrapMean(group.kl);
  s.same_top = BootstrapMean(group.top1);
  s.median_kl = Median(group.kl);
  s.first_divergence /= n;
  s.same_answer /= n;
  s.recomputed = Mean(group.recomputed);
  s.rows = Mean(group.rows);
  return s;
}

// Labels of the cell that a trial counts for; level 0 is the narrowest, each further one merges a
// class (its label is then the hardest that occurs).
using CellKey = std::tuple<CardKind, int, int, int, int, int>;
constexpr int kLevels = 4;

CellKey KeyOf(const Trial& t, int level) {
  const int tokens = level < 3 ? CardClass(kCardTokens, t.min_tokens) : -1;
  const int runs = level < 2 ? CardClass(kCardRuns, t.runs) : -1;
  const int shift = level < 1 ? CardClass(kCardShift, t.max_shift) : -1;
  return {t.kind, tokens, runs, shift, t.setting.link, t.setting.windows};
}

CardCell CellOf(std::span<const Trial* const> trials) {
  CardCell cell;
  cell.kind = trials[0]->kind;
  cell.setting = trials[0]->setting;
  cell.tokens = static_cast<int>(kCardTokens.size());
  Group group;
  for (const Trial* t : trials) {
    cell.tokens = std::min(cell.tokens, CardClass(kCardTokens, t->min_tokens));
    cell.runs = std::max(cell.runs, CardClass(kCardRuns, t->runs));
    cell.shift = std::max(cell.shift, CardClass(kCardShift, t->max_shift));
    group.Add(*t);
  }
  cell.kl = group.Kl();
  return cell;
}

bool SamePlace(const CardCell& a, const CardCell& b) {
  return a.kind == b.kind && a.tokens == b.tokens && a.runs == b.runs && a.shift == b.shift &&
         a.setting == b.setting;
}

}  // namespace

std::vector<Summary> Summarise(std::span<const Trial> trials) {
  std::vector<std::vector<const Trial*>> groups;
  for (const Trial& t : trials) {
    const auto same = [&](const std::vector<const Trial*>& g) {
      return g[0]->edit == t.edit && g[0]->method == t.method;
    };
    auto it = std::find_if(groups.begin(), groups.end(), same);
    if (it == groups.end()) it = groups.insert(groups.end(), std::vector<const Trial*>());
    it->push_back(&t);
  }
  std::vector<Summary> out;
  for (const auto& g : groups) out.push_back(SummaryOf(g));
  return out;
}

ModelCard MakeCard(const Digest& fingerprint, const std::string& name, const std::string& kv_type,
                   std::span<const Trial> trials) {
  ModelCard card;
  card.model = fingerprint;
  card.name = name;
  card.kv_type = kv_type;
  std::vector<double> noise;
  std::map<std::tuple<std::string, std::string>, int> per_edit;  // edit, method
  for (const Trial& t : trials) {
    if (t.how == ReuseHow::kOtherKv) noise.push_back(t.kl);
    if (t.how != ReuseHow::kReuse) continue;
    card.seed = card.seed == 0 ? t.seed : std::min(card.seed, t.seed);
    card.max_context = std::max(card.max_context, t.context);
    card.min_tokens = card.min_tokens == 0 ? t.min_tokens : std::min(card.min_tokens, t.min_tokens);
    card.max_runs = std::max(card.max_runs, t.runs);
    card.contexts = std::max(card.contexts, ++per_edit[{t.edit, t.method}]);
  }
  if (!noise.empty()) card.noise = Mean(noise);
  for (int level = 0; level < kLevels; ++level) {
    std::map<CellKey, std::vector<const Trial*>> groups;
    for (const Trial& t : trials) {
      if (t.how == ReuseHow::kReuse) groups[KeyOf(t, level)].push_back(&t);
    }
    for (const auto& [key, group] : groups) {
      if (group.size() < static_cast<size_t>(kCardMinContexts)) continue;
      const CardCell cell = CellOf(group);
      const bool is_there = std::any_of(card.cells.begin(), card.cells.end(),
                                        [&](const CardCell& c) { return SamePlace(c, cell); });
      if (!is_there) card.cells.push_back(cell);
    }
  }
  return card;
}

}  // namespace holdfast

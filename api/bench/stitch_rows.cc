// The results of benches of the stitcher: what was measured, beside what it should be.
#include <algorithm>

#include "api/bench/bench_run.h"
#include "api/bench/stitch_bench.h"

namespace holdfast {
namespace {

constexpr const char* kCardNote = "by a card that allows everything: no quality is measured here";

Chart StitchChart(const StitchFigures& figures, const std::string& title) {
  Chart chart{title, "tokens of the prompt computed", "ms", {}};
  const auto add = [&](const std::string& label, int64_t rows, const std::vector<double>& ms) {
    ChartSeries series{label, ChartSeries::Style::kPoints, {}};
    for (const double v : ms) series.points.emplace_back(static_cast<double>(rows), v);
    chart.series.push_back(std::move(series));
  };
  add("holdfast, fast", figures.computed, figures.fast_ms);
  add("holdfast, full prefill", figures.tokens, figures.full_ms);
  for (const auto& [peer, ms] : figures.peers) add(peer, figures.tokens, ms);
  return chart;
}

void AddStitchFigures(const StitchFigures& f, Json* result) {
  const auto count = [&](const std::string& what, int64_t value, const std::string& unit) {
    AddFigure({.what = what, .value = static_cast<double>(value), .unit = unit}, result);
  };
  const double fast = Median(f.fast_ms), full = Median(f.full_ms);
  AddFigure({.what = "of full prefill", .value = 100 * fast / full, .unit = "%", .most = 15},
            result);
  AddFigure({.what = "full prefill", .value = full, .unit = "ms"}, result);
  AddFigure({.what = "pages taken beyond those with computed rows",
             .value = static_cast<double>(f.extra_pages),
             .unit = "pages",
             .most = 0},
            result);
  AddFigure({.what = "plan, pins, table", .value = f.stitch_ms, .unit = "ms"}, result);
  count("tokens of the prompt", f.tokens, "");
  count("behind the exact prefix", f.behind, "");
  count("computed", f.computed, "");
  count("of these in no run", f.fresh, "");
  count("runs", f.runs, "");
}

// The limit computes the same rows at the end of the context.
Result<Json> BenchStitch(BenchRun& run, const BenchName& name, HistoryEdit edit) {
  const BenchOptions& options = run.options();
  HOLDFAST_ASSIGN_OR_RETURN(const ModelCost cost, run.CostAlone());
  StitchOptions what{.engine = options.engine,
                     .peers = options.peers,
                     .edit = edit,
                     .tokens = name.n,
                     .reps = options.reps,
                     .progress = run.ProgressOf(name)};
  what.engine.kv_bytes = static_cast<size_t>(KvBytes(cost, 4 * name.n));
  HOLDFAST_ASSIGN_OR_RETURN(const StitchFigures figures, MeasureStitch(what));
  Samples samples = {figures.fast_ms, figures.peers, figures.notes};
  const Limit limit = LimitOf(cost, run.Rates(run.threads()),
                              {.rows = figures.computed,
                               .context = figures.tokens - figures.computed,
                               .logits = 1});
  Json result = ResultJson(options, name, samples, 1000 * limit.seconds());
  result["card"] = kCardNote;
  AddStitchFigures(figures, &result);
  run.Draw(StitchChart(figures, "Time to first token, " + name.text + " (" + options.model_name +
                                    ")"));
  return result;
}

}  // namespace

Result<Json> BenchStitchInsert(BenchRun& run, const BenchName& name) {
  return BenchStitch(run, name, HistoryEdit::kInsert);
}
Result<Json> BenchStitchSwap(BenchRun& run, const BenchName& name) {
  return BenchStitch(run, name, HistoryEdit::kSwap);
}
Result<Json> BenchStitchReplace(BenchRun& run, const BenchName& name) {
  return BenchStitch(run, name, HistoryEdit::kReplace);
}

// There is no limit to compare with.
Result<Json> BenchStitchPlan(BenchRun& run, const BenchName& name) {
  HOLDFAST_RETURN_IF_ERROR(run.Open());
  HOLDFAST_ASSIGN_OR_RETURN(const StitchPlanFigures figures,
                            MeasureStitchPlan(run.engine(), name.n, run.options().reps));
  Json result = ResultJson(run.options(), name, {figures.plan_ms, {}, {}}, 0);
  result["card"] = kCardNote;
  AddFigure({.what = "plan, pins, table", .value = Median(figures.plan_ms), .unit = "ms",
             .most = 2.0 * static_cast<double>(name.n) / 100},
            &result);
  AddFigure({.what = "finding them, per 1000 tokens", .value = figures.find_ms, .unit = "ms",
             .most = 1},
            &result);
  AddFigure({.what = "tokens of the prompt", .value = static_cast<double>(figures.tokens),
             .unit = ""},
            &result);
  return result;
}

// The limit is that of decode.
Result<Json> BenchStitchDecode(BenchRun& run, const BenchName& name) {
  HOLDFAST_RETURN_IF_ERROR(run.Open());
  HOLDFAST_ASSIGN_OR_RETURN(
      const StitchDecodeFigures figures,
      MeasureStitchDecode(run.engine(), run.bench(), name.n, run.options().reps));
  const PassWork pass = {.context = figures.tokens + kDecodeTokens / 2, .logits = 1};
  const Limit limit =
      LimitOf(run.cost(), run.Rates(run.threads(), PassBytes(run.cost(), pass)), pass);
  Json result = ResultJson(run.options(), name, {figures.stitched, {}, {}}, 1 / limit.seconds());
  const double exact = Median(figures.exact), stitched = Median(figures.stitched);
  AddFigure({.what = "longer than after an exact context", .value = 100 * (exact / stitched - 1),
             .unit = "%", .most = 5},
            &result);
  AddFigure({.what = "after an exact context", .value = exact, .unit = "tok/s"}, &result);
  AddFigure({.what = "tokens of the context", .value = static_cast<double>(figures.tokens),
             .unit = ""},
            &result);
  return result;
}

}  // namespace holdfast

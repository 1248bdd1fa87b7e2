// The results of benches of the session keeper: what was measured, beside what it should be.
#include <algorithm>
#include <cstdio>
#include <map>

#include "api/bench/agent_trace.h"
#include "api/bench/bench_run.h"
#include "api/bench/beside_bench.h"
#include "api/bench/keeper_bench.h"
#include "api/bench/many_sessions.h"
#include "api/bench/start_bench.h"
#include "api/bench/switch_bench.h"

namespace holdfast {
namespace {

constexpr double kRawReadPart = 0.7;  // of it that a cold restore is to reach
constexpr double kColdExtraMs = 15;   // and what it may take beside

Samples OursAlone(std::vector<double> ours) { return {std::move(ours), {}, {}}; }

Status NeedsProgram(const BenchRun& run, const BenchName& name) {
  if (!run.options().program.empty()) return Status();
  return Status::Invalid("bench: " + name.text + ": no program to start");
}

// What slot files cost each peer; `of` picks the figure.
void AddPeerSlots(BenchRun& run, const std::string& text, int64_t tokens,
                  std::vector<double> PeerSlotFigures::*of, Samples* samples) {
  for (const Peer& peer : run.options().peers) {
    const std::string name = peer.name + " slot file";
    auto theirs = MeasurePeerSlot({.peer = peer,
                                   .engine = run.options().engine,
                                   .text = text,
                                   .tokens = tokens,
                                   .reps = run.options().reps});
    if (theirs.ok()) samples->peers[name] = std::move((*theirs).*of);
    else samples->notes[name] = theirs.status().message();
  }
}

// Against the percentile, so that a chart shows the median and every tail.
Chart PercentileChart(const std::string& what, const std::string& of, const BenchOptions& options,
                      const std::map<std::string, std::vector<double>>& series) {
  Chart chart{what + " (" + options.model_name + ")", "percentile of " + of, "ms", {}};
  for (const auto& [label, ms] : series) {
    ChartSeries line{label, ChartSeries::Style::kLine, {}};
    for (size_t percent = 0; percent < 100; ++percent) {
      line.points.emplace_back(static_cast<double>(percent), Percentile(ms, percent));
    }
    chart.series.push_back(std::move(line));
  }
  return chart;
}

// Ours and the peers' of one figure.
Chart PeersChart(const std::string& what, const std::string& of, const BenchOptions& options,
                 const Samples& samples) {
  std::map<std::string, std::vector<double>> series = samples.peers;
  series["holdfast"] = samples.ours;
  return PercentileChart(what, of, options, series);
}

Chart RestoreChart(const RestoreFigures& figures, const std::string& model) {
  using Style = ChartSeries::Style;
  ChartSeries warm{"in the page cache", Style::kPoints, {}};
  ChartSeries cold{"on disk alone", Style::kPoints, {}};
  ChartSeries bound{"bound of the latter", Style::kDashes, {}};
  for (const RestoreFigures::Point& p : figures.points) {
    const auto x = static_cast<double>(p.tokens);
    warm.points.emplace_back(x, Median(p.warm_ms));
    cold.points.emplace_back(x, Median(p.cold_ms));
    bound.points.emplace_back(x, 1000 * p.bytes / (kRawReadPart * figures.raw_read) + kColdExtraMs);
  }
  return {"Restoring pages against tokens (" + model + ")", "tokens restored", "ms",
          {std::move(warm), std::move(cold), std::move(bound)}};
}

void AddRestoreFigures(const RestoreFigures& figures, Json* result) {
  const RestoreFigures::Point& all = figures.points.back();
  const double warm = Median(all.warm_ms), cold = Median(all.cold_ms);
  AddFigure({.what = "restore, cold page cache",
             .value = cold,
             .unit = "ms",
             .most = 1000 * all.bytes / (kRawReadPart * figures.raw_read) + kColdExtraMs},
            result);
  AddFigure({.what = "restore, warm page cache", .value = warm, .unit = "ms"}, result);
  // Of as many tokens as were restored.
  const double prefill = figures.prefill_ms * static_cast<double>(all.tokens) /
                         static_cast<double>(std::max<int64_t>(figures.prompt, 1));
  AddFigure({.what = "prefill of these tokens, in warm restores",
             .value = prefill / warm,
             .unit = "x",
             .least = 100},
            result);
  AddFigure({.what = "bytes restored", .value = all.bytes / 1e6, .unit = "MB"}, result);
  AddFigure({.what = "read rate past the page cache", .value = figures.raw_read / 1e6,
             .unit = "MB/s"},
            result);
}

Result<Json> BenchBeside(BenchRun& run, const BenchName& name, Beside what) {
  HOLDFAST_RETURN_IF_ERROR(run.Open());
  HOLDFAST_ASSIGN_OR_RETURN(const BesideFigures figures,
                            MeasureBeside(run.engine(), {.what = what,
                                                        .progress = run.ProgressOf(name)}));
  run.bench().Forget();
  const double p50 = Median(figures.without_ms), p99 = Percentile(figures.without_ms, 99);
  const bool save = what == Beside::kSave;
  Json result = ResultJson(run.options(), name, OursAlone({Median(figures.with_ms)}), p50);
  AddFigure({.what = "between tokens, p50", .value = Median(figures.with_ms), .unit = "ms",
             .most = p50 * (save ? 1.05 : 1.2)},
            &result);
  AddFigure({.what = "between tokens, p99", .value = Percentile(figures.with_ms, 99), .unit = "ms",
             .most = p99 * (save ? 1.3 : 1.6)},
            &result);
  AddFigure({.what = "nothing beside, p50", .value = p50, .unit = "ms"}, &result);
  AddFigure({.what = "nothing beside, p99", .value = p99, .unit = "ms"}, &result);
  AddFigure({.what = save ? "saved beside" : "restored beside",
             .value = figures.bytes_per_s / 1e6,
             .unit = "MB/s"},
            &result);
  run.Draw(PercentileChart("Time between tokens", "tokens", run.options(),
                           {{save ? "while others save" : "while others restore",
                             figures.with_ms},
                            {"nothing beside", figures.without_ms}}));
  return result;
}

Chart TraceChart(const TraceFigures& figures, const std::string& model) {
  Chart chart{"Time to first token of agents' turns (" + model + ")", "tokens of the prompt", "ms",
              {}};
  const auto add = [&](const std::string& label, const TraceSide& side) {
    ChartSeries series{label, ChartSeries::Style::kPoints, {}};
    for (const TraceSide::Turn& turn : side.turns) {
      series.points.emplace_back(static_cast<double>(turn.prompt), turn.first_ms);
    }
    chart.series.push_back(std::move(series));
  };
  add("holdfast", figures.ours);
  for (const auto& [peer, side] : figures.peers) add(peer, side);
  return chart;
}

void AddTraceFigures(const std::string& who, const TraceSide& side, Json* result) {
  const std::vector<double> ms = side.FirstMs();
  AddFigure({.what = who + ": p99 to the first token", .value = Percentile(ms, 99), .unit = "ms"},
            result);
  Figure hits{.what = who + ": hits of the possible", .value = 100 * side.HitRate(), .unit = "%"};
  if (who == "holdfast") hits.least = 97;
  AddFigure(hits, result);
  AddFigure({.what = who + ": tokens read for one written",
             .value = static_cast<double>(side.read) /
                      static_cast<double>(std::max<int64_t>(side.written, 1)),
             .unit = ""},
            result);
}

}  // namespace

// The limit reads the table's bytes.
Result<Json> BenchFork(BenchRun& run, const BenchName& name) {
  run.Close();
  const BenchOptions& options = run.options();
  HOLDFAST_ASSIGN_OR_RETURN(const ForkFigures figures,
                            MeasureFork(options.engine, name.n, options.reps));
  const auto n = static_cast<double>(figures.tokens);
  const double bytes = n * sizeof(TokenId) + n / kPageTokens * (sizeof(Run) + sizeof(PageKey));
  Json result = ResultJson(options, name, OursAlone(figures.p99_ms),
                           1000 * bytes / run.Rates(run.threads()).read);
  double worst = Median(figures.p99_ms);
  ChartSeries points{"p99 in memory", ChartSeries::Style::kPoints, {}};
  for (const ForkFigures::Point& p : figures.points) {
    points.points.emplace_back(static_cast<double>(p.tokens), p.p99_ms);
    worst = std::max(worst, p.p99_ms);
  }
  const double sync_p99 = Percentile(figures.sync_ms, 99);
  AddFigure({.what = "in memory, worst p99 of any length", .value = worst, .unit = "ms", .most = 1},
            &result);
  AddFigure({.what = "pages that a fork takes to go on",
             .value = static_cast<double>(figures.pages_taken),
             .unit = "pages",
             .most = 1},
            &result);
  AddFigure({.what = "durable, p50", .value = Median(figures.durable_ms), .unit = "ms",
             .most = 1 + Median(figures.sync_ms)},
            &result);
  AddFigure({.what = "durable, p99", .value = Percentile(figures.durable_ms, 99), .unit = "ms",
             .most = 1 + sync_p99},
            &result);
  AddFigure({.what = "fdatasync of 12 KiB, p50", .value = Median(figures.sync_ms), .unit = "ms"},
            &result);
  AddFigure({.what = "fdatasync of 12 KiB, p99", .value = sync_p99, .unit = "ms"}, &result);
  if (figures.tokens != name.n) result["context"] = figures.tokens;
  run.Draw({"Forking against tokens (" + options.model_name + ")", "tokens of the fork", "ms",
            {std::move(points)}});
  run.Draw(PercentileChart("Forking durably", "forks and rewinds", options,
                           {{"fork or rewind", figures.durable_ms},
                            {"fdatasync of 12 KiB", figures.sync_ms}}));
  return result;
}

// The limit is a sync: all that a snapshot can't do without.
Result<Json> BenchSave(BenchRun& run, const BenchName& name) {
  run.Close();
  const BenchOptions& options = run.options();
  HOLDFAST_ASSIGN_OR_RETURN(const SaveFigures figures,
                            MeasureSave(options.engine, name.n, options.reps));
  Samples samples = OursAlone(figures.ms);
  AddPeerSlots(run, figures.text, figures.tokens, &PeerSlotFigures::save_ms, &samples);
  Json result = ResultJson(options, name, samples, figures.sync_ms);
  AddFigure({.what = "right after the first turn", .value = figures.first_ms, .unit = "ms"},
            &result);
  AddFigure({.what = "fdatasync of 12 KiB, p50", .value = figures.sync_ms, .unit = "ms"}, &result);
  run.Draw(PeersChart("Saving a session", "saves", options, samples));
  return result;
}

Result<Json> BenchCommit(BenchRun& run, const BenchName& name) {
  run.Close();
  HOLDFAST_ASSIGN_OR_RETURN(const CommitFigures figures,
                            MeasureCommit(run.options().engine, name.n));
  const double p50 = Median(figures.ack_ms), sync = Median(figures.sync_ms);
  Json result = ResultJson(run.options(), name, OursAlone(figures.ack_ms), sync);
  AddFigure({.what = "acknowledged after the last token, p50", .value = p50, .unit = "ms",
             .most = sync + 2},
            &result);
  AddFigure({.what = "acknowledged after the last token, p99",
             .value = Percentile(figures.ack_ms, 99),
             .unit = "ms",
             .most = 25},
            &result);
  AddFigure({.what = "fdatasync of 12 KiB, p50", .value = sync, .unit = "ms"}, &result);
  AddFigure({.what = "fdatasync of 12 KiB, p99", .value = Percentile(figures.sync_ms, 99),
             .unit = "ms"},
            &result);
  AddFigure({.what = "checkpoints meanwhile", .value = static_cast<double>(figures.checkpoints),
             .unit = "", .least = 1},
            &result);
  run.Draw(PercentileChart("From the last token to the end of a turn", "turns", run.options(),
                           {{"turn", figures.ack_ms},
                            {"fdatasync of 12 KiB", figures.sync_ms}}));
  return result;
}

// The limit writes the new pages and nothing else.
Result<Json> BenchWritten(BenchRun& run, const BenchName& name) {
  run.Close();
  HOLDFAST_ASSIGN_OR_RETURN(const WrittenFigures figures,
                            MeasureWritten(run.options().engine, name.n));
  if (figures.page_bytes <= 0) return Status::Invalid("bench: written: no page became full");
  const auto turns = static_cast<double>(figures.turns);
  const double ratio = figures.written_bytes / figures.page_bytes;
  Json result = ResultJson(run.options(), name, OursAlone({ratio}), 1);
  AddFigure({.what = figures.on_disk ? "written to disk, in new pages" : "write calls, in pages",
             .value = ratio,
             .unit = "x",
             .most = 1.2},
            &result);
  AddFigure({.what = "new pages per turn", .value = figures.page_bytes / turns / 1e6, .unit = "MB"},
            &result);
  AddFigure({.what = "tokens per turn", .value = static_cast<double>(figures.tokens) / turns,
             .unit = "", .least = 200},
            &result);
  return result;
}

// The limit reads the pages and passes over what is computed.
Result<Json> BenchRestore(BenchRun& run, const BenchName& name) {
  run.Close();  // two models would not fit everywhere
  const BenchOptions& options = run.options();
  HOLDFAST_ASSIGN_OR_RETURN(const RestoreFigures figures,
                            MeasureRestore(options.engine, name.n, options.reps));
  Samples samples = OursAlone(figures.restart_ms);
  AddPeerSlots(run, figures.text, figures.prompt, &PeerSlotFigures::restart_ms, &samples);
  const MachineRates rates = run.Rates(run.threads());
  const double pages = KvBytes(figures.cost, figures.restored) / rates.read;
  const Limit pass = LimitOf(figures.cost, rates, {.rows = figures.computed,
                                                   .context = figures.restored, .logits = 1});
  Json result = ResultJson(options, name, samples, 1000 * (pages + pass.seconds()));
  result["cold_ms"] = figures.first_ms;
  result["share_of_cold"] = Median(figures.restart_ms) / figures.first_ms;
  result["tokens_restored"] = figures.restored;
  result["tokens_computed"] = figures.computed;
  AddRestoreFigures(figures, &result);
  run.Draw(RestoreChart(figures, options.model_name));
  return result;
}

// The limit reads an agent's pages and computes what is new.
Result<Json> BenchSwitch(BenchRun& run, const BenchName& name) {
  HOLDFAST_RETURN_IF_ERROR(NeedsProgram(run, name));
  const BenchOptions& options = run.options();
  HOLDFAST_ASSIGN_OR_RETURN(const ModelCost cost, run.CostAlone());
  SwitchOptions what{.program = options.program,
                     .engine = options.engine,
                     .peers = options.peers,
                     .agents = static_cast<int>(name.sequences),
                     .tokens = name.n,
                     .rounds = options.reps,
                     .progress = run.ProgressOf(name)};
  what.engine.kv_bytes = static_cast<size_t>(KvBytes(cost, 2 * SwitchContext(name.n)));
  HOLDFAST_ASSIGN_OR_RETURN(SwitchFigures figures, MeasureSwitch(what));
  const Samples samples = {std::move(figures.ours), std::move(figures.peers),
                           std::move(figures.notes)};
  const MachineRates rates = run.Rates(run.threads());
  const Limit pass = LimitOf(cost, rates, {.rows = 32, .context = name.n, .logits = 1});
  Json result = ResultJson(options, name, samples,
                           1000 * (KvBytes(cost, name.n) / rates.read + pass.seconds()));
  for (const auto& [peer, ms] : samples.peers) {
    AddFigure({.what = "of " + peer,
               .value = 100 * Median(samples.ours) / Median(ms),
               .unit = "%",
               .most = peer.ends_with("slot files") ? 15 : 40},
              &result);
  }
  const SwitchParts& p = figures.parts;
  for (const auto& [part, ms] :
       {std::pair("restore", p.restore), std::pair("queue", p.queue),
        std::pair("prefill of what is new", p.prefill), std::pair("the rest", p.rest)}) {
    AddFigure({.what = part, .value = ms, .unit = "ms"}, &result);
  }
  AddFigure({.what = "tokens of the prompt computed", .value = p.computed, .unit = ""}, &result);
  run.Draw(PeersChart("Time to first token after a switch", "switches", options, samples));
  return result;
}

// The limit is the same agents with nothing beside them.
Result<Json> BenchBesideSave(BenchRun& run, const BenchName& name) {
  return BenchBeside(run, name, Beside::kSave);
}
Result<Json> BenchBesideRestore(BenchRun& run, const BenchName& name) {
  return BenchBeside(run, name, Beside::kRestore);
}

// Seconds beyond those over an empty folder; there is no limit to compare with.
Result<Json> BenchManySessions(BenchRun& run, const BenchName& name) {
  HOLDFAST_RETURN_IF_ERROR(NeedsProgram(run, name));
  run.Close();
  HOLDFAST_ASSIGN_OR_RETURN(
      const ManySessionsFigures figures,
      MeasureManySessions({.program = run.options().program,
                           .engine = run.options().engine,
                           .sessions = name.n,
                           .reps = std::min(run.options().reps, 3),
                           .progress = run.ProgressOf(name)}));
  const double beyond = std::max(0.0, Median(figures.ready_s) - Median(figures.empty_s));
  Json result = ResultJson(run.options(), name, OursAlone({beyond}), 0);
  AddFigure({.what = "until ready, beyond loading the model", .value = beyond, .unit = "s",
             .most = 2},
            &result);
  AddFigure({.what = "loading the model", .value = Median(figures.empty_s), .unit = "s"}, &result);
  const auto add = [&result](const std::string& what, const std::vector<double>& ms) {
    AddFigure({.what = what + ", p50", .value = Median(ms), .unit = "ms", .most = 10}, &result);
    AddFigure({.what = what + ", p99", .value = Percentile(ms, 99), .unit = "ms", .most = 10},
              &result);
  };
  add("a page of the list", figures.list_ms);
  add("a session and its items", figures.open_ms);
  AddFigure({.what = "turns in it", .value = static_cast<double>(figures.turns), .unit = ""},
            &result);
  AddFigure({.what = "pages in it", .value = static_cast<double>(figures.pages), .unit = ""},
            &result);
  AddFigure({.what = "database", .value = figures.database_bytes / 1e6, .unit = "MB"}, &result);
  AddFigure({.what = "made in", .value = figures.made_s, .unit = "s"}, &result);
  run.Draw(PercentileChart("Requests to a server with " + std::to_string(name.n) + " sessions",
                           "requests", run.options(),
                           {{"a page of the list", figures.list_ms},
                            {"a session and its items", figures.open_ms}}));
  return result;
}

// The limit computes what is new of a mean turn.
Result<Json> BenchAgentTrace(BenchRun& run, const BenchName& name) {
  HOLDFAST_RETURN_IF_ERROR(NeedsProgram(run, name));
  const BenchOptions& options = run.options();
  HOLDFAST_RETURN_IF_ERROR(run.Open());
  const int64_t context = std::min(run.engine().max_context(), kTraceContextMost);
  HOLDFAST_ASSIGN_OR_RETURN(const ModelCost cost, run.CostAlone());
  TraceOptions what{.program = options.program,
                    .engine = options.engine,
                    .peers = options.peers,
                    .shape = {.turns = static_cast<int>(name.n), .context = context - kTraceSlack},
                    .progress = run.ProgressOf(name)};
  what.engine.kv_bytes = static_cast<size_t>(KvBytes(cost, 2 * context));
  if (what.shape.context < kTraceSlack) {
    return Status::Invalid("bench: agent-trace: this model's context is too short for it");
  }
  HOLDFAST_ASSIGN_OR_RETURN(TraceFigures figures, MeasureTrace(what));
  Samples samples = OursAlone(figures.ours.FirstMs());
  samples.notes = figures.notes;
  for (const auto& [peer, side] : figures.peers) samples.peers[peer] = side.FirstMs();
  int64_t rows = 0, cached = 0;
  for (const TraceSide::Turn& turn : figures.ours.turns) {
    rows += turn.prompt - turn.possible;
    cached += turn.possible;
  }
  const int64_t turns = std::max<int64_t>(1, static_cast<int64_t>(figures.ours.turns.size()));
  const Limit pass = LimitOf(cost, run.Rates(run.threads()),
                             {.rows = rows / turns, .context = cached / turns, .logits = 1});
  Json result = ResultJson(options, name, samples, 1000 * pass.seconds());
  AddTraceFigures("holdfast", figures.ours, &result);
  for (const auto& [peer, side] : figures.peers) AddTraceFigures(peer, side, &result);
  run.Draw(TraceChart(figures, options.model_name));
  return result;
}

}  // namespace holdfast

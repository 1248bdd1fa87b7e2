// What the benches of one run share: the machine's rates, one engine at a time, samples beside
// those of peers. For api/bench alone.
#pragma once

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "api/bench/bench.h"
#include "api/bench/engine_bench.h"
#include "api/bench/limits.h"

namespace holdfast {

// Figures of one workload: ours and, by name, the peers'.
struct Samples {
  std::vector<double> ours;
  std::map<std::string, std::vector<double>> peers;
  std::map<std::string, std::string> notes;  // of peers that have no figure, or not all
  MachineRates rates = {};  // of Measure: medians of those before each of ours and after the last
};

class BenchRun;
struct BenchName;

struct BenchKind {
  const char* name;
  const char* unit;
  bool rate;              // more is better
  int64_t n;              // where the name does not say
  int64_t sequences = 1;  // so, too; 0: the name must say
  Result<Json> (*measure)(BenchRun& run, const BenchName& name) = nullptr;
};

// "agents8@1024" -> agents, 1024, 8 sequences.
struct BenchName {
  std::string text;
  const BenchKind* kind = nullptr;
  int64_t n = 0;
  int64_t sequences = 1;

  bool Is(const char* name) const { return std::strcmp(kind->name, name) == 0; }
};

// A result with what all of them have; `limit` in its unit, 0: unknown.
Json ResultJson(const BenchOptions& options, const BenchName& name, const Samples& samples,
                double limit);

// A figure beside a result's value, with what it should be at most or at least where that is known.
struct Figure {
  std::string what;
  double value = 0;
  std::string unit;
  std::optional<double> most = {}, least = {};
};
void AddFigure(const Figure& figure, Json* result);  // to its "figures"

// What the session keeper costs (session_rows.cc).
Result<Json> BenchFork(BenchRun& run, const BenchName& name);
Result<Json> BenchSave(BenchRun& run, const BenchName& name);
Result<Json> BenchCommit(BenchRun& run, const BenchName& name);
Result<Json> BenchWritten(BenchRun& run, const BenchName& name);
Result<Json> BenchRestore(BenchRun& run, const BenchName& name);
Result<Json> BenchSwitch(BenchRun& run, const BenchName& name);
Result<Json> BenchBesideSave(BenchRun& run, const BenchName& name);
Result<Json> BenchBesideRestore(BenchRun& run, const BenchName& name);
Result<Json> BenchManySessions(BenchRun& run, const BenchName& name);
Result<Json> BenchAgentTrace(BenchRun& run, const BenchName& name);
// What reuse behind an edit costs (stitch_rows.cc).
Result<Json> BenchStitchInsert(BenchRun& run, const BenchName& name);
Result<Json> BenchStitchSwap(BenchRun& run, const BenchName& name);
Result<Json> BenchStitchReplace(BenchRun& run, const BenchName& name);
Result<Json> BenchStitchPlan(BenchRun& run, const BenchName& name);
Result<Json> BenchStitchDecode(BenchRun& run, const BenchName& name);

class BenchRun {
 public:
  // `options` outlives the run; its engine.cpu.threads is not 0.
  BenchRun(const BenchOptions& options, std::string level)
      : options_(options), level_(std::move(level)) {}

  const BenchOptions& options() const { return options_; }
  const std::string& level() const { return level_; }
  int threads() const { return options_.engine.cpu.threads; }

  // The machine's rates with so many threads, memory read over so many bytes (0: those of the
  // model), which a cache may hold: those of this moment, since others may use the machine too.
  // Takes about a second.
  MachineRates Rates(int threads, double bytes = 0) const;
  // An engine with so many threads; the one before goes. Null after Close.
  Status Open(int threads);
  Status Open() { return Open(threads()); }
  void Close();
  EngineBench& bench() { return *bench_; }
  Engine& engine() { return *engine_; }
  const ModelCost& cost() const { return cost_; }
  // The model's cost, with no engine left open.
  Result<ModelCost> CostAlone();
  // Tells the options' progress how far `name` is.
  std::function<void(double fraction)> ProgressOf(const BenchName& name) const;
  void Draw(Chart chart) { charts_.push_back(std::move(chart)); }
  std::vector<Chart> TakeCharts() { return std::move(charts_); }

  // Runs `ours` once to warm up, then it and each peer's `test` (none: our figures alone) in turn,
  // `reps` times; `peer_reps` of a peer. `bytes` as in Rates.
  Result<Samples> Measure(const std::string& what, const std::function<Result<double>()>& ours,
                          const std::optional<PeerTest>& test, int threads, int peer_reps,
                          double bytes = 0);

 private:
  const BenchOptions& options_;
  const std::string level_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<EngineBench> bench_;
  int engine_threads_ = 0;
  ModelCost cost_;
  std::vector<Chart> charts_;
};

// Time per new token against something that grows.
struct ScaleResult {
  struct Point {
    double x = 0, ours_ms = 0, limit_ms = 0;
    std::map<std::string, double> peers_ms;
  };
  std::string name, title, x_label;
  double slope_x = 1;        // slopes are per so much of x
  std::string slope_unit;    // "ms per 1000 tokens of context"
  std::vector<Point> points;
  std::map<std::string, std::string> notes;

  double Slope() const;
  double LimitSlope() const;
  double PeerSlope(const std::string& peer) const;
};
Result<ScaleResult> MeasureScale(BenchRun& run, const std::string& name);
Chart ChartOf(const ScaleResult& result, const std::string& model);
Json JsonOf(const ScaleResult& result);

}  // namespace holdfast

// What the benches of one run share: the machine's rates, one engine at a time, samples beside
// those of peers. For api/bench alone.
#pragma once

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
};

class BenchRun {
 public:
  // `options` outlives the run; its engine.cpu.threads is not 0.
  BenchRun(const BenchOptions& options, std::string level)
      : options_(options), level_(std::move(level)) {}

  const BenchOptions& options() const { return options_; }
  const std::string& level() const { return level_; }
  int threads() const { return options_.engine.cpu.threads; }

  // The machine's rates with so many threads, memory read over as many bytes as the model has.
  // Measured once.
  const MachineRates& Rates(int threads);
  // An engine with so many threads; the one before goes. Null after Close.
  Status Open(int threads);
  Status Open() { return Open(threads()); }
  void Close();
  EngineBench& bench() { return *bench_; }
  Engine& engine() { return *engine_; }
  const ModelCost& cost() const { return cost_; }

  // Runs `ours` once to warm up, then it and each peer's `test` (none: our figures alone) in turn,
  // `reps` times; `peer_reps` of a peer.
  Result<Samples> Measure(const std::string& what, const std::function<Result<double>()>& ours,
                          const std::optional<PeerTest>& test, int threads, int peer_reps);

 private:
  const BenchOptions& options_;
  const std::string level_;
  std::map<int, MachineRates> rates_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<EngineBench> bench_;
  int engine_threads_ = 0;
  ModelCost cost_;
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

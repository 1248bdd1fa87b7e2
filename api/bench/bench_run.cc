#include "api/bench/bench_run.h"

#include <algorithm>
#include <filesystem>

#include "engine/backend/cpu/roofline.h"

namespace holdfast {
namespace {

constexpr int64_t kLeastRead = 64 << 20;  // bytes that stand for memory where the model is unknown

}  // namespace

const MachineRates& BenchRun::Rates(int threads) {
  const auto known = rates_.find(threads);
  if (known != rates_.end()) return known->second;
  std::error_code none;
  const auto file = std::filesystem::file_size(options_.engine.model_path, none);
  const int64_t bytes = none ? kLeastRead : std::max(kLeastRead, static_cast<int64_t>(file));
  const Roofline r = MeasureRoofline({.level = level_, .threads = threads, .dram_bytes = bytes});
  return rates_[threads] = {.read = r.dram_read, .int8 = r.int8, .fp32 = r.fp32};
}

Status BenchRun::Open(int threads) {
  if (engine_ != nullptr && engine_threads_ == threads) return Status();
  Close();
  EngineOptions engine = options_.engine;
  engine.cpu.threads = threads;
  HOLDFAST_ASSIGN_OR_RETURN(engine_, Engine::Open(engine));
  HOLDFAST_ASSIGN_OR_RETURN(cost_, CostOf(engine.model_path, engine_->model()));
  bench_ = std::make_unique<EngineBench>(engine_.get());
  engine_threads_ = threads;
  return Status();
}

void BenchRun::Close() {
  bench_.reset();
  engine_.reset();
}

Result<Samples> BenchRun::Measure(const std::string& what,
                                  const std::function<Result<double>()>& ours,
                                  const std::optional<PeerTest>& test, int threads,
                                  int peer_reps) {
  Samples samples;
  HOLDFAST_RETURN_IF_ERROR(ours().status());
  for (int rep = 0; rep < options_.reps; ++rep) {
    if (options_.progress) options_.progress(what, static_cast<double>(rep) / options_.reps);
    HOLDFAST_ASSIGN_OR_RETURN(const double value, ours());
    samples.ours.push_back(value);
    if (!test.has_value() || rep >= peer_reps) continue;
    for (const Peer& peer : options_.peers) {
      if (samples.notes.contains(peer.name)) continue;
      const auto figure = RunPeer(peer, *test, options_.engine.model_path, threads);
      if (figure.ok()) {
        samples.peers[peer.name].push_back(*figure);
      } else {
        samples.notes[peer.name] = figure.status().message();
      }
    }
  }
  return samples;
}

}  // namespace holdfast

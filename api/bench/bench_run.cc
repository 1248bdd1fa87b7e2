#include "api/bench/bench_run.h"

#include <algorithm>
#include <filesystem>

#include "engine/backend/cpu/roofline.h"

namespace holdfast {
namespace {

constexpr int64_t kLeastRead = 64 << 20;  // bytes that stand for memory where the model is unknown

}  // namespace

Json ResultJson(const BenchOptions& options, const BenchName& name, const Samples& samples,
                double limit) {
  const double value = Median(samples.ours);
  const bool rate = name.kind->rate;
  Json result = {{"name", name.text},
                 {"model", options.model_name},
                 {"value", value},
                 {"unit", name.kind->unit},
                 {"limit", limit > 0 ? Json(limit) : Json(nullptr)},
                 {"share", limit > 0 ? Json(rate ? value / limit : limit / value) : Json(nullptr)},
                 {"samples", samples.ours},
                 {"peers", Json::object()}};
  for (const auto& [peer, figures] : samples.peers) {
    const double theirs = Median(figures);
    result["peers"][peer] = {{"value", theirs},
                             {"ratio", rate ? value / theirs : theirs / value},
                             {"samples", figures}};
  }
  for (const auto& [peer, note] : samples.notes) result["peers"][peer]["note"] = note;
  return result;
}

void AddFigure(const Figure& figure, Json* result) {
  Json json = {{"what", figure.what}, {"value", figure.value}, {"unit", figure.unit}};
  bool met = true;
  if (figure.most) {
    json["most"] = *figure.most;
    met = figure.value <= *figure.most;
  }
  if (figure.least) {
    json["least"] = *figure.least;
    met = met && figure.value >= *figure.least;
  }
  if (figure.most || figure.least) json["met"] = met;
  (*result)["figures"].push_back(std::move(json));
}

MachineRates BenchRun::Rates(int threads, double bytes) const {
  std::error_code none;
  const auto file = std::filesystem::file_size(options_.engine.model_path, none);
  if (bytes == 0 && !none) bytes = static_cast<double>(file);
  const Roofline r =
      MeasureRoofline({.level = level_,
                       .threads = threads,
                       .dram_bytes = std::max(kLeastRead, static_cast<int64_t>(bytes))});
  return {.read = r.dram_read, .int8 = r.int8, .fp32 = r.fp32};
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

Result<ModelCost> BenchRun::CostAlone() {
  HOLDFAST_RETURN_IF_ERROR(Open());
  Close();
  return cost_;
}

std::function<void(double)> BenchRun::ProgressOf(const BenchName& name) const {
  if (!options_.progress) return [](double) {};
  return [this, text = name.text](double fraction) { options_.progress(text, fraction); };
}

Result<Samples> BenchRun::Measure(const std::string& what,
                                  const std::function<Result<double>()>& ours,
                                  const std::optional<PeerTest>& test, int threads,
                                  int peer_reps, double bytes) {
  Samples samples;
  std::vector<MachineRates> rates;
  HOLDFAST_RETURN_IF_ERROR(ours().status());
  for (int rep = 0; rep < options_.reps; ++rep) {
    if (options_.progress) options_.progress(what, static_cast<double>(rep) / options_.reps);
    rates.push_back(Rates(threads, bytes));
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
  rates.push_back(Rates(threads, bytes));
  samples.rates = MedianOf(rates);
  return samples;
}

}  // namespace holdfast

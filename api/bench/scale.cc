// How the time per new token grows. Peers get one run per point, and only where that is quick.
#include <algorithm>
#include <cstdio>

#include "api/bench/bench_run.h"

namespace holdfast {
namespace {

constexpr int64_t kContextLeast = 512, kContextMost = 32768;
constexpr int64_t kSequencesMost = 64;
constexpr int64_t kOtherContext = 512;         // where something else grows
constexpr int64_t kPeerContextMost = 4096;
constexpr int64_t kPeerSequencesMost = 8;

struct Place {  // of a point
  double x = 0;
  int threads = 1;
  int64_t sequences = 1, context = 0;
  bool with_peers = false;
};

Status AddPoint(BenchRun& run, const Place& place, ScaleResult* result) {
  HOLDFAST_RETURN_IF_ERROR(run.Open(place.threads));
  const auto kind = place.sequences > 1 ? PeerTest::Kind::kAgents : PeerTest::Kind::kDecode;
  std::optional<PeerTest> test;
  if (place.with_peers) test = PeerTest{kind, place.context, kDecodeTokens, place.sequences};
  char what[64];
  std::snprintf(what, sizeof(what), "%s %g", result->name.c_str(), place.x);
  const PassWork pass = {.sequences = place.sequences, .rows = 1,
                         .context = place.context + kDecodeTokens / 2, .logits = 1};
  HOLDFAST_ASSIGN_OR_RETURN(
      const Samples samples,
      run.Measure(what, [&] { return run.bench().Agents(place.sequences, place.context); }, test,
                  place.threads, 1, PassBytes(run.cost(), pass)));
  // tok/s of all sequences; a new token of each comes with every step.
  const double per_step = 1000 * static_cast<double>(place.sequences);
  const auto step_ms = [&](double rate) { return per_step / rate; };
  ScaleResult::Point point = {
      .x = place.x,
      .ours_ms = step_ms(Median(samples.ours)),
      .limit_ms = 1000 * LimitOf(run.cost(), samples.rates, pass).seconds(),
      .peers_ms = {}};
  for (const auto& [peer, rates] : samples.peers) point.peers_ms[peer] = step_ms(Median(rates));
  for (const auto& [peer, note] : samples.notes) result->notes[peer] = note;
  result->points.push_back(std::move(point));
  return Status();
}

Status ScaleContext(BenchRun& run, ScaleResult* result) {
  result->title = "Time per new token against context";
  result->x_label = "context (tokens)";
  result->slope_x = 1000;
  result->slope_unit = "ms per 1000 tokens";
  HOLDFAST_RETURN_IF_ERROR(run.Open());
  for (int64_t n = kContextLeast; n <= kContextMost; n *= 2) {
    const int64_t fits = run.bench().Fit(n, kDecodeTokens + 1, 1);
    if (fits <= n / 2) break;  // the point before is the last
    HOLDFAST_RETURN_IF_ERROR(AddPoint(run, {.x = static_cast<double>(fits),
                                            .threads = run.threads(),
                                            .context = fits,
                                            .with_peers = n <= kPeerContextMost}, result));
  }
  return Status();
}

Status ScaleSequences(BenchRun& run, ScaleResult* result) {
  result->title = "Time per new token of each sequence against sequences";
  result->x_label = "sequences of 512 tokens that decode together";
  result->slope_unit = "ms per sequence";
  HOLDFAST_RETURN_IF_ERROR(run.Open());
  run.bench().Forget();
  for (int64_t n = 1; n <= kSequencesMost; n *= 2) {
    if (run.bench().Fit(kOtherContext, kDecodeTokens + 1, n) < kOtherContext) break;
    HOLDFAST_RETURN_IF_ERROR(AddPoint(run, {.x = static_cast<double>(n),
                                            .threads = run.threads(),
                                            .sequences = n,
                                            .context = kOtherContext,
                                            .with_peers = n <= kPeerSequencesMost}, result));
  }
  run.bench().Forget();
  return Status();
}

Status ScaleThreads(BenchRun& run, ScaleResult* result) {
  result->title = "Time per new token against threads, after 512 tokens";
  result->x_label = "threads";
  result->slope_unit = "ms per thread";
  for (int n = 1; n <= run.threads(); ++n) {
    if ((n & (n - 1)) != 0 && n != run.threads()) continue;  // powers of two, and all
    HOLDFAST_RETURN_IF_ERROR(AddPoint(run, {.x = static_cast<double>(n),
                                            .threads = n,
                                            .context = kOtherContext,
                                            .with_peers = true}, result));
  }
  return Status();
}

// `of(point)`: the milliseconds, or null where there are none.
template <typename F>
double SlopeOf(const ScaleResult& result, const F& of) {
  std::vector<double> x, y;
  for (const ScaleResult::Point& p : result.points) {
    const double* ms = of(p);
    if (ms == nullptr) continue;
    x.push_back(p.x / result.slope_x);
    y.push_back(*ms);
  }
  return FittedSlope(x, y);
}

std::string Labelled(const std::string& name, double slope, const std::string& unit) {
  char text[96];
  std::snprintf(text, sizeof(text), "%s: %+.3g %s", name.c_str(), slope, unit.c_str());
  return text;
}

}  // namespace

double ScaleResult::Slope() const {
  return SlopeOf(*this, [](const Point& p) { return &p.ours_ms; });
}

double ScaleResult::LimitSlope() const {
  return SlopeOf(*this, [](const Point& p) { return &p.limit_ms; });
}

double ScaleResult::PeerSlope(const std::string& peer) const {
  return SlopeOf(*this, [&](const Point& p) {
    const auto at = p.peers_ms.find(peer);
    return at == p.peers_ms.end() ? nullptr : &at->second;
  });
}

Result<ScaleResult> MeasureScale(BenchRun& run, const std::string& name) {
  ScaleResult result;
  result.name = name;
  const auto measure = name == "scale-context"     ? ScaleContext
                       : name == "scale-sequences" ? ScaleSequences
                                                   : ScaleThreads;
  HOLDFAST_RETURN_IF_ERROR(measure(run, &result));
  if (result.points.empty()) {
    return Status::Exhausted("bench: " + name + ": the memory for KV holds no point of it");
  }
  return result;
}

Chart ChartOf(const ScaleResult& result, const std::string& model) {
  Chart chart{result.title + " (" + model + ")", result.x_label, "ms per new token", {}};
  using Style = ChartSeries::Style;
  ChartSeries ours{Labelled("holdfast", result.Slope(), result.slope_unit), Style::kPoints, {}};
  ChartSeries limit{Labelled("limit", result.LimitSlope(), result.slope_unit), Style::kDashes, {}};
  std::map<std::string, ChartSeries> peers;
  for (const ScaleResult::Point& p : result.points) {
    ours.points.emplace_back(p.x, p.ours_ms);
    limit.points.emplace_back(p.x, p.limit_ms);
    for (const auto& [peer, ms] : p.peers_ms) peers[peer].points.emplace_back(p.x, ms);
  }
  chart.series = {std::move(ours), std::move(limit)};
  for (auto& [peer, series] : peers) {
    series.label = Labelled(peer, result.PeerSlope(peer), result.slope_unit);
    chart.series.push_back(std::move(series));
  }
  return chart;
}

Json JsonOf(const ScaleResult& result) {
  Json points = Json::array(), peers = Json::object();
  for (const ScaleResult::Point& p : result.points) {
    points.push_back({{"x", p.x}, {"value", p.ours_ms}, {"limit", p.limit_ms},
                      {"share", p.limit_ms / p.ours_ms}, {"peers", p.peers_ms}});
    for (const auto& [peer, ms] : p.peers_ms) peers[peer]["value"] = result.PeerSlope(peer);
  }
  for (const auto& [peer, note] : result.notes) peers[peer]["note"] = note;
  return {{"value", result.Slope()},   {"unit", result.slope_unit},
          {"limit", result.LimitSlope()}, {"points_unit", "ms per new token"},
          {"x", result.x_label},       {"points", std::move(points)},
          {"peers", std::move(peers)}};
}

}  // namespace holdfast

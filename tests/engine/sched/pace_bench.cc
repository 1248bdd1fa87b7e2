// How running decodes keep their pace while another agent prefills: percentiles of the time between
// two tokens of one stream, alone and beside the prefill.
//
//   pace_bench MODEL.gguf [agents] [prefill tokens] [threads]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "engine/engine.h"

namespace holdfast {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kPrompt = 200, kBefore = 60;

double Millis(Clock::duration d) { return std::chrono::duration<double, std::milli>(d).count(); }

struct Gap {
  Clock::time_point end;
  double ms;
};

std::shared_ptr<Generation> Submit(Engine& engine, int64_t prompt, int64_t max_tokens, int seed) {
  GenerateRequest request;
  std::vector<TokenId> tokens;
  for (int64_t i = 0; i < prompt; ++i) {
    tokens.push_back(static_cast<TokenId>((i * 7919 + seed * 104729) % 10000 + 100));
  }
  request.timeline = engine.NewTimeline(TenantScope("bench"));
  request.timeline->Extend(tokens);
  request.output_begin = prompt;
  request.sampling.temperature = 0;
  request.max_tokens = max_tokens;
  request.ignore_end = true;
  request.speculate = false;
  auto generation = engine.Submit(std::move(request));
  if (!generation.ok()) {
    std::fprintf(stderr, "%s\n", generation.status().ToString().c_str());
    std::exit(1);
  }
  return std::move(*generation);
}

// Takes the events of a stream until its end or `stop`.
void Listen(Generation& stream, std::vector<Gap>* gaps) {
  std::optional<Clock::time_point> last;
  while (auto event = stream.Next(-1)) {
    if (event->finish) {
      event->finish->status.IgnoreError();
      return;
    }
    const auto now = Clock::now();
    if (last) gaps->push_back({now, Millis(now - *last)});
    last = now;
  }
}

double Percentile(std::vector<double> values, double p) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(p * static_cast<double>(values.size() - 1))];
}

int Main(int argc, char** argv) {
  if (argc < 2) return 2;
  const int agents = argc > 2 ? std::atoi(argv[2]) : 1;
  EngineOptions options;
  options.model_path = argv[1];
  options.cpu.threads = argc > 4 ? std::atoi(argv[4]) : 2;
  options.kv_bytes = size_t{2} << 30;
  auto engine = Engine::Open(options);
  if (!engine.ok()) {
    std::fprintf(stderr, "%s\n", engine.status().ToString().c_str());
    return 1;
  }
  const int64_t rows =
      std::min<int64_t>(argc > 3 ? std::atoi(argv[3]) : 8000, (*engine)->max_context() - 1);
  // The prefill alone, which also measures the limits.
  auto start = Clock::now();
  std::vector<Gap> none;
  Listen(*Submit(**engine, rows, 1, 1), &none);
  const double alone_ms = Millis(Clock::now() - start);

  std::vector<std::shared_ptr<Generation>> streams;
  std::vector<std::vector<Gap>> gaps(static_cast<size_t>(agents));
  std::vector<std::thread> listeners;
  for (int i = 0; i < agents; ++i) streams.push_back(Submit(**engine, kPrompt, 4000, 10 + i));
  for (int i = 0; i < agents; ++i) {
    listeners.emplace_back([&, i] { Listen(*streams[i], &gaps[i]); });
  }
  const auto generated = [&] { return static_cast<int64_t>((*engine)->stats().generated); };
  const int64_t first = generated() + agents * (kBefore + 5);
  while (generated() < first) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  start = Clock::now();
  Listen(*Submit(**engine, rows, 1, 2), &none);
  const auto end = Clock::now();
  for (auto& stream : streams) stream->Cancel();
  for (std::thread& listener : listeners) listener.join();

  std::vector<double> before, beside;
  for (const auto& stream : gaps) {
    for (size_t i = 3; i < stream.size(); ++i) {
      if (stream[i].end < start) before.push_back(stream[i].ms);
      if (stream[i].end - std::chrono::milliseconds(50) > start && stream[i].end < end) {
        beside.push_back(stream[i].ms);
      }
    }
  }
  std::printf("agents %d: alone p50 %.1f p99 %.1f ms; beside a prefill of %lld p50 %.1f p99 %.1f "
              "max %.1f ms (%zu gaps): p50 %.2fx, p99 %.2fx; prefill %.0f ms alone, %.0f beside\n",
              agents, Percentile(before, .5), Percentile(before, .99), static_cast<long long>(rows),
              Percentile(beside, .5), Percentile(beside, .99), Percentile(beside, 1),
              beside.size(), Percentile(beside, .5) / Percentile(before, .5),
              Percentile(beside, .99) / Percentile(before, .99), alone_ms, Millis(end - start));
  return 0;
}

}  // namespace
}  // namespace holdfast

int main(int argc, char** argv) { return holdfast::Main(argc, argv); }

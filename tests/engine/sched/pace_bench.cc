// How running decodes keep their pace while another agent prefills: percentiles of the time between
// two tokens of one stream, alone and beside the prefill; by the clock, and in processor time of
// this process, which means the same where other processes disturb.
//
//   pace_bench MODEL.gguf [agents] [prefill tokens] [threads]
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <thread>
#include <vector>

#include "engine/engine.h"

namespace holdfast {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kPrompt = 200;
constexpr size_t kBefore = 60;

double Millis(Clock::duration d) { return std::chrono::duration<double, std::milli>(d).count(); }

double CpuMillis() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return 1e3 * static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_nsec);
}

struct Gap {
  Clock::time_point end;
  double ms, cpu_ms;
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

// Takes the events of a stream until its end; `*heard`: gaps so far.
void Listen(Generation& stream, std::vector<Gap>* gaps, std::atomic<size_t>* heard = nullptr) {
  std::optional<Clock::time_point> last;
  double last_cpu = 0;
  while (auto event = stream.Next(-1)) {
    if (event->finish) {
      event->finish->status.IgnoreError();
      return;
    }
    const auto now = Clock::now();
    const double cpu = CpuMillis();
    if (last) gaps->push_back({now, Millis(now - *last), cpu - last_cpu});
    if (heard != nullptr) {
      *heard = gaps->size();
      heard->notify_all();
    }
    last = now;
    last_cpu = cpu;
  }
}

// Until every stream has heard so many more.
void AwaitGaps(const std::vector<std::atomic<size_t>>& heard, size_t more) {
  for (const std::atomic<size_t>& count : heard) {
    const size_t goal = count + more;
    for (size_t now = count; now < goal; now = count) count.wait(now);
  }
}

// When what is measured begins and ends.
struct Times {
  Clock::time_point alone, prefill, end;
};

double Percentile(std::vector<double> values, double p) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(p * static_cast<double>(values.size() - 1))];
}

template <typename F>
void Report(const char* what, const std::vector<std::vector<Gap>>& gaps, const Times& times,
            F measure) {
  std::vector<double> before, beside;
  for (const auto& stream : gaps) {
    for (const Gap& gap : stream) {
      const Clock::time_point begin = gap.end - std::chrono::microseconds(int64_t(1000 * gap.ms));
      if (begin >= times.alone && gap.end < times.prefill) before.push_back(measure(gap));
      if (begin >= times.prefill && gap.end < times.end) beside.push_back(measure(gap));
    }
  }
  std::printf("%s between tokens: alone p50 %.1f p99 %.1f ms; beside p50 %.1f p99 %.1f max %.1f ms "
              "(%zu): p50 %.2fx, p99 %.2fx of p50, %.2fx of p99\n",
              what, Percentile(before, .5), Percentile(before, .99), Percentile(beside, .5),
              Percentile(beside, .99), Percentile(beside, 1), beside.size(),
              Percentile(beside, .5) / Percentile(before, .5),
              Percentile(beside, .99) / Percentile(before, .5),
              Percentile(beside, .99) / Percentile(before, .99));
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
  const auto start = Clock::now();
  std::vector<Gap> none;
  Listen(*Submit(**engine, rows, 1, 1), &none);
  const double alone_ms = Millis(Clock::now() - start);

  std::vector<std::shared_ptr<Generation>> streams;
  std::vector<std::vector<Gap>> gaps(static_cast<size_t>(agents));
  std::vector<std::thread> listeners;
  std::vector<std::atomic<size_t>> heard(static_cast<size_t>(agents));
  for (int i = 0; i < agents; ++i) streams.push_back(Submit(**engine, kPrompt, 4000, 10 + i));
  for (int i = 0; i < agents; ++i) {
    listeners.emplace_back([&, i] { Listen(*streams[i], &gaps[i], &heard[i]); });
  }
  Times times;
  AwaitGaps(heard, 3);  // all decode
  times.alone = Clock::now();
  AwaitGaps(heard, kBefore);
  times.prefill = Clock::now();
  Listen(*Submit(**engine, rows, 1, 2), &none);
  times.end = Clock::now();
  for (auto& stream : streams) stream->Cancel();
  for (std::thread& listener : listeners) listener.join();

  std::printf("%d agents, a prefill of %lld rows: %.0f ms alone, %.0f ms beside them\n", agents,
              static_cast<long long>(rows), alone_ms, Millis(times.end - times.prefill));
  Report("clock", gaps, times, [](const Gap& gap) { return gap.ms; });
  Report("processor time", gaps, times, [](const Gap& gap) { return gap.cpu_ms; });
  return 0;
}

}  // namespace
}  // namespace holdfast

int main(int argc, char** argv) { return holdfast::Main(argc, argv); }

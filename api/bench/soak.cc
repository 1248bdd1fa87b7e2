#include "api/bench/soak.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <mutex>
#include <random>
#include <thread>

#include "api/bench/limits.h"
#include "api/bench/scratch.h"
#include "api/bench/turn.h"
#include "engine/base/memory.h"

namespace holdfast {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kDiskBytes = size_t{2} << 30;
constexpr int kWordsMost = 600;    // of a message; half of the messages have fewer than 70
constexpr int kAnswerMost = 200;   // tokens
constexpr auto kAfterFailure = std::chrono::milliseconds(200);
constexpr double kMiB = 1024.0 * 1024.0;

// What the agents share.
struct Soak {
  Runtime& runtime;
  Clock::time_point end;
  std::atomic<int64_t> turns{0}, conversations{0}, failed{0};
  std::mutex mu{};
  std::string error{};

  bool is_over() const { return Clock::now() >= end; }
  void Failed(const Status& status) {
    ++failed;
    {
      std::lock_guard lock(mu);
      error = status.ToString();
    }
    std::this_thread::sleep_for(kAfterFailure);
  }
};

class Agent {
 public:
  Agent(Soak* soak, int number)
      : soak_(soak), number_(number), random_(static_cast<unsigned>(number)) {}

  void Run() {
    while (!soak_->is_over()) {
      Converse();
      ++soak_->conversations;
    }
  }

 private:
  int Between(int least, int most) {
    return std::uniform_int_distribution<int>(least, most)(random_);
  }
  // As many small ones as large ones, by order of magnitude.
  int Length(int least, int most) {
    std::uniform_real_distribution<double> log(std::log(least), std::log(most));
    return static_cast<int>(std::exp(log(random_)));
  }

  std::string Text(int words) {
    static constexpr const char* kWords[] = {"file", "line", "test", "build", "the", "of", "error",
                                             "return", "value", "is", "in", "open", "step", "and"};
    std::string text = "Look at " + std::to_string(Between(0, 99999)) + ":";
    for (int i = 0; i < words; ++i) text += std::string(" ") + kWords[Between(0, 13)];
    return text;
  }

  ChatRequest Request(const std::string& session, std::vector<ChatMessage> messages) {
    ChatRequest request;
    request.tenant = "bench";
    request.session.id = session;
    request.messages = std::move(messages);
    request.sampling.temperature = number_ % 2 == 0 ? 0.0f : 0.8f;
    request.max_tokens = Length(8, kAnswerMost);
    return request;
  }

  // Ends early when time is up, the context is full or a turn fails.
  void Converse() {
    const std::string session = "agent-" + std::to_string(number_) + "-" + std::to_string(count_++);
    std::vector<ChatMessage> messages = {
        BenchMessage("system", "You are one of several agents that work on a large program.")};
    const int turns = Between(2, 12);
    for (int i = 0; i < turns && !soak_->is_over(); ++i) {
      messages.push_back(BenchMessage("user", Text(Length(8, kWordsMost))));
      auto turn = TakeTurn(soak_->runtime, Request(session, messages));
      if (turn.status().message().starts_with("context_length_exceeded")) return;
      if (!turn.ok()) return soak_->Failed(turn.status());
      ++soak_->turns;
      messages.push_back(BenchMessage("assistant", turn->done.content));
    }
  }

  Soak* soak_;
  const int number_;
  int count_ = 0;
  std::mt19937 random_;
};

// What went on since `before`, which it replaces.
SoakPoint PointOf(Runtime& runtime, double seconds, EngineStats* before) {
  const EngineStats now = runtime.stats().engine;
  const auto rate = [&](uint64_t a, uint64_t b) { return static_cast<double>(b - a) / seconds; };
  SoakPoint point;
  point.tokens_per_s = rate(before->generated, now.generated);
  point.prompt_per_s = rate(before->prefill_rows, now.prefill_rows);
  point.resident_mib = static_cast<double>(ResidentMemory()) / kMiB;
  point.pool_mib = static_cast<double>(now.pool.slots) *
                   static_cast<double>(runtime.engine().pool().page_bytes()) / kMiB;
  *before = now;
  return point;
}

void AddSlopes(SoakFigures* figures) {
  std::vector<double> hours, resident, speed;
  double sum = 0;
  for (size_t i = figures->points.size() / 3; i < figures->points.size(); ++i) {
    const SoakPoint& point = figures->points[i];
    hours.push_back(point.minute / 60);
    resident.push_back(point.resident_mib);
    speed.push_back(point.tokens_per_s);
    sum += point.tokens_per_s;
  }
  figures->resident_mib_per_hour = FittedSlope(hours, resident);
  if (sum > 0) {
    figures->speed_change_per_hour =
        FittedSlope(hours, speed) * static_cast<double>(speed.size()) / sum;
  }
}

}  // namespace

Result<SoakFigures> MeasureSoak(const SoakOptions& options) {
  const ScratchDir dir;
  RuntimeOptions runtime_options;
  runtime_options.engine = options.engine;
  if (options.engine.kv_bytes == 0) runtime_options.engine.kv_bytes = kSoakKvBytes;
  runtime_options.data_dir = dir.path;
  runtime_options.disk_bytes = kDiskBytes;
  HOLDFAST_ASSIGN_OR_RETURN(auto runtime, Runtime::Open(runtime_options));

  const auto start = Clock::now();
  const std::chrono::duration<double> step(options.seconds / kSoakPoints);
  Soak soak{*runtime, start + std::chrono::duration_cast<Clock::duration>(step * kSoakPoints)};
  std::vector<std::thread> threads;
  for (int i = 0; i < options.agents; ++i) threads.emplace_back([&, i] { Agent(&soak, i).Run(); });
  SoakFigures figures;
  EngineStats before = runtime->stats().engine;
  for (int i = 1; i <= kSoakPoints; ++i) {
    std::this_thread::sleep_until(start + std::chrono::duration_cast<Clock::duration>(step * i));
    figures.points.push_back(PointOf(*runtime, step.count(), &before));
    figures.points.back().minute = step.count() * i / 60;
    if (options.progress) options.progress(static_cast<double>(i) / kSoakPoints);
  }
  for (std::thread& thread : threads) thread.join();
  runtime->Shutdown(0);
  figures.turns = soak.turns;
  figures.conversations = soak.conversations;
  figures.failed = soak.failed;
  figures.error = soak.error;
  AddSlopes(&figures);
  return figures;
}

}  // namespace holdfast

#include "api/bench/start_bench.h"

#include <chrono>

#include "api/bench/engine_bench.h"
#include "api/bench/scratch.h"
#include "api/bench/servers.h"
#include "api/bench/turn.h"

namespace holdfast {
namespace {

using Clock = std::chrono::steady_clock;

double MsSince(Clock::time_point t) {
  return std::chrono::duration<double, std::milli>(Clock::now() - t).count();
}

Result<TimedTurn> Ask(Runtime& runtime, const std::vector<ChatMessage>& messages) {
  ChatRequest request;
  request.tenant = "bench";
  request.session.id = "restore";
  request.messages = messages;
  request.sampling.temperature = 0;
  request.max_tokens = 4;
  return TakeTurn(runtime, std::move(request));
}

}  // namespace

Result<RestoreFigures> MeasureRestore(const EngineOptions& engine, int64_t n) {
  const ScratchDir dir;
  RuntimeOptions runtime_options;
  runtime_options.engine = engine;
  runtime_options.data_dir = dir.path;
  RestoreFigures figures;
  std::vector<ChatMessage> messages;
  {
    HOLDFAST_ASSIGN_OR_RETURN(auto runtime, Runtime::Open(runtime_options));
    std::string text;
    size_t tokens = 0;
    for (int i = 0; static_cast<int64_t>(tokens) < n; ++i) {
      text += "Entry " + std::to_string(i * 7919 % 10007) + " of the log says that step " +
              std::to_string(i) + " went well. ";
      if (i % 16 != 0) continue;
      HOLDFAST_ASSIGN_OR_RETURN(const auto ids, runtime->engine().tokenizer().EncodePlain(text));
      tokens = ids.size();
    }
    messages.push_back(BenchMessage("user", text));
    HOLDFAST_ASSIGN_OR_RETURN(const TimedTurn cold, Ask(*runtime, messages));
    figures.cold_ms = cold.first_ms;
    messages.push_back(BenchMessage("assistant", cold.done.content));
    runtime->Shutdown(0);
  }
  HOLDFAST_ASSIGN_OR_RETURN(auto runtime, Runtime::Open(runtime_options));
  messages.push_back(BenchMessage("user", "And then?"));
  HOLDFAST_ASSIGN_OR_RETURN(const TimedTurn again, Ask(*runtime, messages));
  figures.restart_ms = again.first_ms;
  figures.restored = again.done.report.start.stitch.from_store;
  figures.computed = again.done.report.start.stitch.to_compute;
  HOLDFAST_ASSIGN_OR_RETURN(figures.cost, CostOf(engine.model_path, runtime->engine().model()));
  runtime->Shutdown(0);
  return figures;
}

Result<double> MeasureLoad(const std::string& program, const EngineOptions& engine) {
  const ScratchDir dir;
  const auto start = Clock::now();
  HOLDFAST_RETURN_IF_ERROR(ServerProcess::Start(program, engine, dir.path).status());
  return MsSince(start) / 1000;
}

}  // namespace holdfast

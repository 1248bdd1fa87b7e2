#include "api/bench/start_bench.h"

#include <chrono>

#include "api/bench/disk.h"
#include "api/bench/engine_bench.h"
#include "api/bench/scratch.h"
#include "api/bench/servers.h"
#include "api/bench/turn.h"
#include "engine/base/elapsed.h"

namespace holdfast {
namespace {

using Clock = std::chrono::steady_clock;

std::string FollowUp(int number) { return "And then, after " + std::to_string(number) + "?"; }

class RestoreBench {
 public:
  explicit RestoreBench(const EngineOptions& engine) {
    options_.engine = engine;
    options_.data_dir = dir_.path;
  }

  Result<RestoreFigures> Run(int64_t n, int reps) {
    HOLDFAST_RETURN_IF_ERROR(Begin(n));
    for (int rep = 0; rep < reps; ++rep) HOLDFAST_RETURN_IF_ERROR(Restart(rep));
    for (const size_t part : {8, 4, 2, 1}) {
      HOLDFAST_RETURN_IF_ERROR(AddPoint(figures_.text.size() / part, reps));
    }
    HOLDFAST_ASSIGN_OR_RETURN(figures_.cost,
                              CostOf(options_.engine.model_path, runtime_->engine().model()));
    runtime_->Shutdown(0);
    return std::move(figures_);
  }

 private:
  Result<TimedTurn> Ask(const std::string& session, const std::vector<ChatMessage>& messages,
                        int64_t max_tokens) {
    ChatRequest request;
    request.tenant = "bench";
    request.session.id = session;
    request.messages = messages;
    request.sampling.temperature = 0;
    request.max_tokens = max_tokens;
    return TakeTurn(*runtime_, std::move(request));
  }

  Status Begin(int64_t n) {
    HOLDFAST_ASSIGN_OR_RETURN(runtime_, Runtime::Open(options_));
    HOLDFAST_ASSIGN_OR_RETURN(figures_.text, LogText(n, 0, CounterOf(*runtime_)));
    messages_ = {BenchMessage("user", figures_.text)};
    HOLDFAST_ASSIGN_OR_RETURN(const TimedTurn turn, Ask("restore", messages_, 4));
    figures_.prompt = turn.done.report.start.prompt_tokens;
    figures_.first_ms = turn.first_ms;
    figures_.prefill_ms = turn.done.report.prefill_ms;
    messages_.push_back(BenchMessage("assistant", turn.done.content));
    return Status();
  }

  Status Restart(int rep) {
    runtime_->Shutdown(0);
    runtime_.reset();
    HOLDFAST_ASSIGN_OR_RETURN(runtime_, Runtime::Open(options_));
    std::vector<ChatMessage> messages = messages_;
    messages.push_back(BenchMessage("user", FollowUp(rep)));
    HOLDFAST_ASSIGN_OR_RETURN(const TimedTurn turn, Ask("restore", messages, 4));
    figures_.restart_ms.push_back(turn.first_ms);
    figures_.restored = turn.done.report.start.stitch.from_store;
    figures_.computed = turn.done.report.start.stitch.to_compute;
    return Status();
  }

  // What is kept is on disk alone afterwards.
  void Demote() {
    PagePool& pool = runtime_->engine().pool();
    runtime_->keeper().MakeRoom(static_cast<int64_t>(pool.stats().slots_max) + 1);
    runtime_->SyncPages();
    pool.DropCached();
  }

  Status AddPoint(size_t bytes, int reps) {
    const std::string text = figures_.text.substr(0, figures_.text.rfind("Entry", bytes));
    RestoreFigures::Point point;
    std::vector<double> raw;
    for (int rep = 0; rep < 2 * reps; ++rep) {
      const bool cold = rep % 2 != 0;
      Demote();
      if (cold) {
        HOLDFAST_RETURN_IF_ERROR(DropPageCache(dir_.path + "/pages"));
        HOLDFAST_ASSIGN_OR_RETURN(raw.emplace_back(), RawReadRate(dir_.path + "/pages"));
      }
      HOLDFAST_ASSIGN_OR_RETURN(
          const TimedTurn turn,
          Ask("part-" + std::to_string(sessions_++), {BenchMessage("user", text)}, 1));
      const StitchReport& stitch = turn.done.report.start.stitch;
      (cold ? point.cold_ms : point.warm_ms).push_back(stitch.restore_ms);
      point.tokens = stitch.from_store;
      point.bytes = static_cast<double>(stitch.bytes_loaded);
    }
    figures_.points.push_back(std::move(point));
    figures_.raw_read = Median(std::move(raw));
    return Status();
  }

  const ScratchDir dir_;
  RuntimeOptions options_;
  std::unique_ptr<Runtime> runtime_;
  std::vector<ChatMessage> messages_;
  RestoreFigures figures_;
  int sessions_ = 0;
};

// One slot over a folder of slot files.
Result<ServerProcess> StartWithSlots(const PeerSlotOptions& o, const std::string& dir) {
  return ServerProcess::StartPeer(o.peer, o.engine.model_path, o.engine.cpu.threads,
                                  {"-np", "1", "-c", std::to_string(o.tokens + 1024),
                                   "--cache-ram", "0", "--slot-save-path", dir + "/"});
}

}  // namespace

Result<RestoreFigures> MeasureRestore(const EngineOptions& engine, int64_t n, int reps) {
  return RestoreBench(engine).Run(n, reps);
}

Result<PeerSlotFigures> MeasurePeerSlot(const PeerSlotOptions& options) {
  const ScratchDir dir;
  const Json file = {{"filename", "slot"}};
  Json messages = Json::array({{{"role", "user"}, {"content", options.text}}});
  const auto body = [&] {
    return Json{{"messages", messages}, {"max_tokens", 4}, {"temperature", 0}};
  };
  PeerSlotFigures figures;
  {
    HOLDFAST_ASSIGN_OR_RETURN(const ServerProcess server, StartWithSlots(options, dir.path));
    HOLDFAST_ASSIGN_OR_RETURN(const ServerProcess::Turn turn, server.Chat(body()));
    messages.push_back({{"role", "assistant"}, {"content", turn.content}});
    for (int rep = 0; rep < options.reps; ++rep) {
      const auto start = Clock::now();
      HOLDFAST_RETURN_IF_ERROR(server.Post("/slots/0?action=save", file).status());
      figures.save_ms.push_back(MsSince(start));
    }
  }
  HOLDFAST_ASSIGN_OR_RETURN(const ServerProcess server, StartWithSlots(options, dir.path));
  for (int rep = 0; rep < options.reps; ++rep) {
    messages.push_back({{"role", "user"}, {"content", FollowUp(rep)}});
    const auto start = Clock::now();
    HOLDFAST_RETURN_IF_ERROR(server.Post("/slots/0?action=restore", file).status());
    const double restore_ms = MsSince(start);
    HOLDFAST_ASSIGN_OR_RETURN(const ServerProcess::Turn turn, server.Chat(body()));
    figures.restart_ms.push_back(restore_ms + turn.first_ms);
    messages.erase(messages.size() - 1);
  }
  return figures;
}

Result<double> MeasureLoad(const std::string& program, const EngineOptions& engine,
                           const std::string& data_dir) {
  const ScratchDir dir;
  const auto start = Clock::now();
  HOLDFAST_ASSIGN_OR_RETURN(  // its end is not timed
      const ServerProcess server,
      ServerProcess::Start(program, engine, data_dir.empty() ? dir.path : data_dir));
  return MsSince(start) / 1000;
}

}  // namespace holdfast

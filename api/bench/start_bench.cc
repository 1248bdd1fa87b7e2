#include "api/bench/start_bench.h"

#include <chrono>
#include <cstdlib>
#include <filesystem>

#include "api/bench/engine_bench.h"
#include "api/bench/process.h"
#include "api/json.h"

namespace holdfast {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double MsSince(Clock::time_point t) {
  return std::chrono::duration<double, std::milli>(Clock::now() - t).count();
}

// A folder that goes away.
struct TempDir {
  TempDir() : path((fs::temp_directory_path() / "holdfast-bench-XXXXXX").string()) {
    if (mkdtemp(path.data()) == nullptr) path.clear();
  }
  ~TempDir() {
    std::error_code ignored;
    if (!path.empty()) fs::remove_all(path, ignored);
  }
  std::string path;
};

ChatMessage Message(const std::string& role, const std::string& text) {
  ChatMessage m;
  m.role = role;
  m.text = text;
  m.raw_json = DumpJson({{"role", role}, {"content", text}});
  return m;
}

struct FirstToken {
  double ms = 0;
  ChatDone done;
};

Result<FirstToken> TimeToFirstToken(Runtime& runtime, const std::vector<ChatMessage>& messages) {
  ChatRequest request;
  request.tenant = "bench";
  request.session.id = "restore";
  request.messages = messages;
  request.sampling.temperature = 0;
  request.max_tokens = 4;
  FirstToken out;
  const auto start = Clock::now();
  HOLDFAST_ASSIGN_OR_RETURN(auto stream, runtime.Chat(std::move(request)));
  for (;;) {
    auto event = stream->Next(-1);
    if (!event.has_value()) continue;
    if (out.ms == 0 && !event->tokens.empty()) out.ms = MsSince(start);
    if (!event->done.has_value()) continue;
    out.done = std::move(*event->done);
    if (!out.done.status.ok()) return out.done.status;
    if (out.ms == 0) out.ms = MsSince(start);
    return out;
  }
}

}  // namespace

Result<RestoreFigures> MeasureRestore(const EngineOptions& engine, int64_t n) {
  const TempDir dir;
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
    messages.push_back(Message("user", text));
    HOLDFAST_ASSIGN_OR_RETURN(const FirstToken cold, TimeToFirstToken(*runtime, messages));
    figures.cold_ms = cold.ms;
    messages.push_back(Message("assistant", cold.done.content));
    runtime->Shutdown(0);
  }
  HOLDFAST_ASSIGN_OR_RETURN(auto runtime, Runtime::Open(runtime_options));
  messages.push_back(Message("user", "And then?"));
  HOLDFAST_ASSIGN_OR_RETURN(const FirstToken again, TimeToFirstToken(*runtime, messages));
  figures.restart_ms = again.ms;
  figures.restored = again.done.report.start.stitch.from_store;
  figures.computed = again.done.report.start.stitch.to_compute;
  HOLDFAST_ASSIGN_OR_RETURN(figures.cost, CostOf(engine.model_path, runtime->engine().model()));
  runtime->Shutdown(0);
  return figures;
}

Result<double> MeasureLoad(const std::string& program, const EngineOptions& engine) {
  const TempDir dir;
  std::vector<std::string> argv = {program, "serve", "--json", "--port", "0", "--model",
                                   engine.model_path, "--data", dir.path, "--threads",
                                   std::to_string(engine.cpu.threads)};
  if (!engine.cpu.level.empty()) argv.insert(argv.end(), {"--cpu", engine.cpu.level});
  if (engine.kv_bytes != 0) {
    argv.insert(argv.end(), {"--kv-memory", std::to_string(engine.kv_bytes)});
  }
  const auto start = Clock::now();
  HOLDFAST_ASSIGN_OR_RETURN(ChildProcess server, ChildProcess::Start(argv));
  std::string line;
  if (!server.ReadLine(&line) || !line.starts_with("{\"listening\"")) {
    const Status end = server.Wait();
    return end.ok() ? Status::Io("bench: the server did not say that it listens") : end;
  }
  return MsSince(start) / 1000;
}

}  // namespace holdfast

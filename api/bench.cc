#include "api/bench.h"

#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <thread>

namespace holdfast {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr int kDecodeTokens = 64;
constexpr int kAppendTokens = 16;
constexpr int kForks = 300;

double MsSince(Clock::time_point t) {
  return std::chrono::duration<double, std::milli>(Clock::now() - t).count();
}

double Median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v.empty() ? 0 : v[v.size() / 2];
}

// "decode@4096" -> {"decode", 4096}.
struct BenchName {
  std::string kind;
  int64_t n = 0;
};
Result<BenchName> ParseName(const std::string& text) {
  const size_t at = text.find('@');
  BenchName name{text.substr(0, at), 4096};
  if (at != std::string::npos) {
    const char* end = text.data() + text.size();
    if (std::from_chars(text.data() + at + 1, end, name.n).ptr != end || name.n < 0) name.kind = "";
  }
  for (const char* kind : {"prefill", "decode", "append16", "fork", "restore"}) {
    if (name.kind == kind) return name;
  }
  return Status::Invalid("bench: unknown name '" + text + "'; see holdfast bench list");
}

// Bytes per second at which all threads together read `bytes` of memory, best of five: as much as
// the weights take, so that the share of them that a large cache holds counts alike. memchr for a
// byte that is not there reads as fast as the C library can, from four streams in turn.
double ReadBandwidth(size_t bytes, int threads) {
  constexpr size_t kBlock = 4096, kStreams = 4;
  const size_t blocks = bytes / static_cast<size_t>(threads) / kBlock / kStreams + 1;
  const size_t share = blocks * kBlock * kStreams;
  const size_t size = share * static_cast<size_t>(threads);
  void* memory = nullptr;
  if (posix_memalign(&memory, size_t{2} << 20, size) != 0) return 0;
  madvise(memory, size, MADV_HUGEPAGE);
  std::memset(memory, 1, size);
  const size_t passes = std::max<size_t>(1, (size_t{1} << 30) / size);  // long enough to time
  double best = 0;
  std::atomic<bool> whole{true};
  for (int rep = 0; rep < 5; ++rep) {
    std::vector<std::thread> workers;
    const auto start = Clock::now();
    for (int t = 0; t < threads; ++t) {
      workers.emplace_back([&, t] {
        const char* p = static_cast<const char*>(memory) + share * static_cast<size_t>(t);
        for (size_t n = 0; n < passes * blocks * kStreams; ++n) {
          const size_t i = n % (blocks * kStreams);
          const char* block = p + (i % kStreams * blocks + i / kStreams) * kBlock;
          if (std::memchr(block, 0, kBlock) != nullptr) whole = false;
        }
      });
    }
    for (std::thread& w : workers) w.join();
    best = std::max(best, static_cast<double>(size * passes) / (MsSince(start) / 1000));
  }
  std::free(memory);
  return whole ? best : 0;
}

std::string CpuModel() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

int UsableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

// Runs one llama-bench test once; its tokens per second.
Result<double> RunLlamaBench(const std::string& dir, const std::string& model, int threads,
                             const BenchName& name) {
  std::string program = dir + "/llama-bench";
  if (!fs::exists(program)) program = dir + "/bin/llama-bench";
  if (!fs::exists(program)) return Status::NotFound("bench: no llama-bench in " + dir);
  const std::string n = std::to_string(name.n);
  std::string test = " -p " + n + " -n 0";
  if (name.kind == "decode") test = " -p 0 -n " + std::to_string(kDecodeTokens) + " -d " + n;
  if (name.kind == "append16") test = " -p " + std::to_string(kAppendTokens) + " -n 0 -d " + n;
  const std::string command = "'" + program + "' -m '" + model + "' -t " +
                              std::to_string(threads) +
                              " -fa 1 -ctk f16 -ctv f16 -r 1 -o json 2>/dev/null" + test;
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return Status::Io("bench: cannot run " + program);
  std::string out;
  char buffer[4096];
  for (size_t got; (got = fread(buffer, 1, sizeof(buffer), pipe)) > 0;) out.append(buffer, got);
  const int rc = pclose(pipe);
  const size_t begin = out.find('[');
  auto json = ParseJson(begin == std::string::npos ? "" : std::string_view(out).substr(begin));
  if (rc != 0 || !json.ok() || json->empty()) return Status::Io("bench: failed: " + command);
  return (*json)[json->size() - 1]["avg_ts"].get<double>();
}

class EngineBench {
 public:
  EngineBench(Engine* engine) : engine_(engine) {}

  Result<double> Prefill(int64_t n) {
    HOLDFAST_ASSIGN_OR_RETURN(const Timed run, Compute(NewTimeline(n), 0));
    return static_cast<double>(n) / run.ms * 1000;
  }

  Result<double> Decode(int64_t n) {
    HOLDFAST_ASSIGN_OR_RETURN(const Timed run, Compute(NewTimeline(std::max<int64_t>(n, 1)),
                                                       kDecodeTokens + 1));
    return kDecodeTokens / run.decode_ms * 1000;
  }

  Result<double> Append(int64_t n) {
    HOLDFAST_RETURN_IF_ERROR(PrepareBase(n));
    auto fork = base_->Fork(n);
    if (!fork.ok()) return fork.status();
    fork->Extend(Tokens(kAppendTokens));
    HOLDFAST_ASSIGN_OR_RETURN(const Timed run, Compute(std::move(*fork), 0));
    return kAppendTokens / run.ms * 1000;
  }

  Result<double> ForkP99(int64_t n) {
    HOLDFAST_RETURN_IF_ERROR(PrepareBase(n));
    std::vector<double> ms;
    for (int i = 0; i < kForks; ++i) {
      const auto start = Clock::now();
      auto fork = base_->Fork(n - 1 - i % (kPageTokens - 1));
      if (!fork.ok()) return fork.status();
      ms.push_back(MsSince(start));
    }
    std::sort(ms.begin(), ms.end());
    return ms[ms.size() * 99 / 100];
  }

 private:
  struct Timed {
    double ms = 0;         // from Submit to the end
    double decode_ms = 0;  // from the first token to the last
    std::optional<Timeline> timeline;
  };

  std::vector<TokenId> Tokens(int64_t n) {
    std::vector<TokenId> out;
    while (static_cast<int64_t>(out.size()) < n) {
      const PhiloxBlock b = Philox(42, counter_++, 0);
      const auto id = static_cast<TokenId>(b.v[0] % engine_->tokenizer().vocab_size());
      if (!engine_->tokenizer().IsSpecial(id)) out.push_back(id);
    }
    return out;
  }

  Timeline NewTimeline(int64_t n) {
    Timeline t = engine_->NewTimeline(TenantScope("bench"));
    t.Extend(Tokens(n));
    return t;
  }

  Status PrepareBase(int64_t n) {
    if (base_.has_value() && base_->size() == n) return Status();
    base_.reset();
    HOLDFAST_ASSIGN_OR_RETURN(Timed run, Compute(NewTimeline(n), 0));
    base_ = std::move(run.timeline);
    return Status();
  }

  Result<Timed> Compute(Timeline timeline, int64_t max_tokens) {
    GenerateRequest request;
    request.output_begin = timeline.size();
    request.timeline = std::move(timeline);
    request.sampling.temperature = 0;
    request.max_tokens = max_tokens;
    request.ignore_end = true;
    Timed timed;
    const auto start = Clock::now();
    HOLDFAST_ASSIGN_OR_RETURN(auto generation, engine_->Submit(std::move(request)));
    Clock::time_point first, last;
    int64_t tokens = 0;
    for (;;) {
      auto event = generation->Next(-1);
      if (!event.has_value()) return Status::Cancelled("bench: the engine is gone");
      if (event->token.has_value()) {
        last = Clock::now();
        if (tokens++ == 0) first = last;
      }
      if (!event->finish.has_value()) continue;
      timed.ms = MsSince(start);
      timed.decode_ms = std::chrono::duration<double, std::milli>(last - first).count();
      if (!event->finish->status.ok()) return event->finish->status;
      timed.timeline = std::move(event->finish->timeline);
      return timed;
    }
  }

  Engine* engine_;
  uint64_t counter_ = 0;
  std::optional<Timeline> base_;
};

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

struct RestoreFigures {
  double cold_ms = 0, restart_ms = 0;
  int64_t restored = 0, computed = 0;
};

// One conversation of about n tokens: cold, then once more after the process's state is gone.
Result<RestoreFigures> MeasureRestore(const BenchOptions& options, int64_t n) {
  const TempDir dir;
  RuntimeOptions runtime_options;
  runtime_options.engine = options.engine;
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
  runtime->Shutdown(0);
  return figures;
}

// What the bytes allow, in the unit of the figure; 0 where arithmetic is the limit.
double LimitOf(const BenchName& name, const Engine& engine, double bandwidth) {
  if (name.kind != "decode" || bandwidth <= 0) return 0;
  double kv = 0;
  for (const LayerGroup& g : engine.model().groups()) {
    kv += static_cast<double>(g.PayloadBytes()) / kPageTokens;
  }
  const double bytes = static_cast<double>(engine.model().weight_bytes()) +
                       kv * static_cast<double>(name.n + kDecodeTokens / 2);
  return bandwidth / bytes;
}

Result<Json> BenchRestore(const BenchOptions& options, const std::string& text,
                          const BenchName& name) {
  std::vector<double> cold, restart;
  RestoreFigures last;
  for (int rep = 0; rep < options.reps; ++rep) {
    options.progress(text, static_cast<double>(rep) / options.reps);
    HOLDFAST_ASSIGN_OR_RETURN(last, MeasureRestore(options, name.n));
    cold.push_back(last.cold_ms);
    restart.push_back(last.restart_ms);
  }
  return Json{{"name", text},
              {"model", options.model_name},
              {"value", Median(restart)},
              {"unit", "ms"},
              {"limit", nullptr},
              {"cold_ms", Median(cold)},
              {"share_of_cold", Median(restart) / Median(cold)},
              {"tokens_restored", last.restored},
              {"tokens_computed", last.computed},
              {"samples", restart},
              {"peers", Json::object()}};
}

Result<double> RunOnce(EngineBench& bench, const BenchName& name) {
  if (name.kind == "prefill") return bench.Prefill(name.n);
  if (name.kind == "decode") return bench.Decode(name.n);
  if (name.kind == "append16") return bench.Append(name.n);
  return bench.ForkP99(name.n);
}

Result<Json> BenchEngine(const BenchOptions& options, Engine& engine, EngineBench& bench,
                         const std::string& text, const BenchName& name, double bandwidth) {
  const bool lower_is_better = name.kind == "fork";
  const bool has_peer = !options.llama_cpp_dir.empty() && !lower_is_better;
  const int threads = options.threads > 0 ? options.threads : UsableCores();
  std::vector<double> ours, peers;
  HOLDFAST_ASSIGN_OR_RETURN(const double warm_up, RunOnce(bench, name));
  static_cast<void>(warm_up);
  for (int rep = 0; rep < options.reps; ++rep) {
    options.progress(text, static_cast<double>(rep) / options.reps);
    HOLDFAST_ASSIGN_OR_RETURN(const double value, RunOnce(bench, name));
    ours.push_back(value);
    if (!has_peer) continue;
    HOLDFAST_ASSIGN_OR_RETURN(const double peer,
                              RunLlamaBench(options.llama_cpp_dir, options.engine.model_path,
                                            threads, name));
    peers.push_back(peer);
  }
  const double limit = LimitOf(name, engine, bandwidth);
  Json result = {{"name", text},
                 {"model", options.model_name},
                 {"value", Median(ours)},
                 {"unit", lower_is_better ? "ms" : "tok/s"},
                 {"limit", limit > 0 ? Json(limit) : Json(nullptr)},
                 {"samples", ours},
                 {"peers", Json::object()}};
  if (has_peer) {
    result["peers"]["llama.cpp"] = {{"value", Median(peers)},
                                    {"ratio", Median(ours) / Median(peers)},
                                    {"samples", peers}};
  }
  return result;
}

}  // namespace

std::vector<std::string> BenchNames() {
  return {"prefill@512", "decode@0", "decode@4096", "append16@4096", "fork@4096", "restore@4000"};
}

Result<Json> RunBench(const BenchOptions& options) {
  Json results = Json::array();
  std::unique_ptr<Engine> engine;
  std::unique_ptr<EngineBench> bench;
  const int threads = options.threads > 0 ? options.threads : UsableCores();
  double bandwidth = 0;
  std::string level;
  for (const std::string& text : options.names) {
    HOLDFAST_ASSIGN_OR_RETURN(const BenchName name, ParseName(text));
    if (name.kind == "restore") {
      bench.reset();
      engine.reset();  // two models would not fit everywhere
      HOLDFAST_ASSIGN_OR_RETURN(Json result, BenchRestore(options, text, name));
      results.push_back(std::move(result));
      continue;
    }
    if (engine == nullptr) {
      HOLDFAST_ASSIGN_OR_RETURN(engine, Engine::Open(options.engine));
      bench = std::make_unique<EngineBench>(engine.get());
      level = engine->cpu_level();
      bandwidth = ReadBandwidth(engine->model().weight_bytes(), threads);
    }
    HOLDFAST_ASSIGN_OR_RETURN(Json result,
                              BenchEngine(options, *engine, *bench, text, name, bandwidth));
    results.push_back(std::move(result));
  }
  return Json{{"machine",
               {{"cpu", CpuModel()},
                {"threads", threads},
                {"level", level},
                {"read_bytes_per_s", bandwidth}}},
              {"results", std::move(results)}};
}

}  // namespace holdfast

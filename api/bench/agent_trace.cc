#include "api/bench/agent_trace.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <mutex>
#include <thread>

#include "api/bench/scratch.h"
#include "api/bench/servers.h"

namespace holdfast {
namespace {

constexpr double kSystemPart = 0.35;   // of the context
constexpr double kPauseMean = 0.3;     // seconds
constexpr double kLongPause = 5;       // times that, one in kLongOneIn
constexpr int kLongOneIn = 8;
constexpr int64_t kLeastInput = 24, kLeastAnswer = 4;
constexpr int kSlots = 2;              // of a peer

// Numbers in [0, 1) that are the same everywhere.
class Draws {
 public:
  Draws(uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {}
  double Uniform() { return Philox(seed_, count_++, stream_).v[0] * 0x1p-32; }
  double Exponential(double mean) { return -mean * std::log1p(-Uniform()); }

 private:
  const uint64_t seed_, stream_;
  uint64_t count_ = 0;
};

std::string Words(int64_t tokens, Draws& draws) {
  static constexpr const char* kWords[] = {"file", "line", "test", "build", "the", "of", "error",
                                           "return", "value", "is", "in", "open", "step", "and"};
  std::string text;
  for (int64_t i = 0; i < tokens; ++i) {
    if (i > 0) text += ' ';
    text += kWords[static_cast<size_t>(draws.Uniform() * std::size(kWords))];
  }
  return text;
}

// The messages of an agent's turns; each word is a token in every tokenizer that we know.
std::string InputOf(int turn, int64_t tokens, Draws& draws) {
  const std::string head = turn == 0 ? "Your task is this: " : "The tool has answered: ";
  return head + Words(tokens - 5, draws);
}

struct Traced {
  TracePlan plan;
  std::string system;
  std::vector<std::vector<std::string>> inputs;  // by agent and turn
};

Traced MakeTrace(const TraceShape& shape) {
  Traced trace{PlanTrace(shape), {}, {}};
  Draws draws(shape.seed, 0);
  trace.system = Words(trace.plan.system_tokens, draws);
  for (size_t a = 0; a < trace.plan.agents.size(); ++a) {
    Draws own(shape.seed, 1000 + a);
    std::vector<std::string>& inputs = trace.inputs.emplace_back();
    for (size_t t = 0; t < trace.plan.agents[a].size(); ++t) {
      inputs.push_back(
          InputOf(static_cast<int>(t), trace.plan.agents[a][t].input_tokens, own));
    }
  }
  return trace;
}

// Tokens of a turn as the server counted them.
struct Counted {
  int64_t prompt = 0, cached = 0, generated = 0;
};

Counted CountedOf(const ServerProcess::Turn& turn) {
  if (!turn.keeper.empty()) {
    const Json tokens = turn.keeper.value("tokens", Json::object());
    const auto n = [&](const char* key) { return tokens.value(key, int64_t{0}); };
    return {n("prompt"), n("warm") + n("pool") + n("disk"), n("generated")};
  }
  const auto n = [&](const char* key) { return turn.timings.value(key, int64_t{0}); };
  return {n("prompt_n") + n("cache_n"), n("cache_n"), n("predicted_n")};
}

// One server's run of a trace: a thread per agent.
class TraceRun {
 public:
  TraceRun(const Traced& trace, const ServerProcess& server) : trace_(trace), server_(server) {}

  Result<TraceSide> Run(const std::function<void(double)>& progress) {
    progress_ = progress;
    std::vector<std::thread> threads;
    for (size_t a = 0; a < trace_.inputs.size(); ++a) {
      threads.emplace_back([this, a] {
        Status status = Agent(a);
        std::lock_guard lock(mu_);
        if (first_.ok()) first_ = std::move(status);
        else status.IgnoreError();
      });
    }
    for (std::thread& t : threads) t.join();
    HOLDFAST_RETURN_IF_ERROR(std::move(first_));
    return std::move(side_);
  }

 private:
  Status Agent(size_t a) {
    Json messages = Json::array({{{"role", "system"}, {"content", trace_.system}}});
    int64_t before = 0;  // tokens that the agent's last turn ended with
    const std::vector<TraceTurn>& turns = trace_.plan.agents[a];
    for (size_t t = 0; t < turns.size(); ++t) {
      std::this_thread::sleep_for(std::chrono::duration<double>(turns[t].pause_s));
      messages.push_back({{"role", "user"}, {"content", trace_.inputs[a][t]}});
      HOLDFAST_ASSIGN_OR_RETURN(const ServerProcess::Turn turn,
                                server_.Chat({{"messages", messages},
                                              {"max_tokens", turns[t].answer_tokens},
                                              {"temperature", 0},
                                              {"session_id", "trace-" + std::to_string(a)}}));
      messages.push_back({{"role", "assistant"}, {"content", turn.content}});
      Note(turn, &before);
    }
    return Status();
  }

  void Note(const ServerProcess::Turn& turn, int64_t* before) {
    const Counted counted = CountedOf(turn);
    std::lock_guard lock(mu_);
    const size_t all = trace_.inputs.size() * trace_.inputs[0].size();
    progress_(static_cast<double>(++done_) / static_cast<double>(all));
    side_.read += counted.prompt;
    side_.written += counted.generated;
    const int64_t possible = std::min(*before, counted.prompt);
    if (*before > 0) {
      side_.turns.push_back(
          {counted.prompt, std::min(counted.cached, possible), possible, turn.first_ms});
    }
    *before = counted.prompt + counted.generated;
  }

  const Traced& trace_;
  const ServerProcess& server_;
  std::function<void(double)> progress_;
  std::mutex mu_;
  Status first_;
  TraceSide side_;
  size_t done_ = 0;
};

}  // namespace

TracePlan PlanTrace(const TraceShape& shape) {
  const auto context = static_cast<double>(shape.context);
  const auto turns = static_cast<double>(shape.turns);
  TracePlan plan;
  plan.system_tokens = static_cast<int64_t>(kSystemPart * context);
  // A turn reads, on average, what lies between the beginning and the full context.
  const double room = context - static_cast<double>(plan.system_tokens);
  const double mean_read = static_cast<double>(plan.system_tokens) + room * (turns + 1) / turns / 2;
  const double mean_answer = mean_read / shape.ratio;
  const double mean_input =
      std::max(room / turns - mean_answer - kTraceMarkup, static_cast<double>(kLeastInput));
  for (int a = 0; a < shape.agents; ++a) {
    Draws draws(shape.seed, 1 + static_cast<uint64_t>(a));
    std::vector<TraceTurn> own(static_cast<size_t>(shape.turns));
    double sum = 0;
    std::vector<double> weights;
    for (TraceTurn& turn : own) {
      const bool is_first = weights.empty();
      const double pause = draws.Exponential(kPauseMean);
      const bool is_long = draws.Uniform() * kLongOneIn < 1;
      turn.pause_s = is_first ? 0 : is_long ? kLongPause * pause : pause;
      turn.answer_tokens = std::max<int64_t>(
          kLeastAnswer, std::llround(mean_answer * (0.5 + draws.Uniform())));
      weights.push_back(0.2 + draws.Exponential(0.8));
      sum += weights.back();
    }
    for (size_t t = 0; t < own.size(); ++t) {  // together as many as there is room for
      const auto tokens = static_cast<int64_t>(mean_input * turns * weights[t] / sum);
      own[t].input_tokens = std::max(kLeastInput, tokens);
    }
    plan.agents.push_back(std::move(own));
  }
  return plan;
}

std::vector<double> TraceSide::FirstMs() const {
  std::vector<double> ms;
  for (const Turn& turn : turns) ms.push_back(turn.first_ms);
  return ms;
}

double TraceSide::HitRate() const {
  int64_t cached = 0, possible = 0;
  for (const Turn& turn : turns) {
    cached += turn.cached;
    possible += turn.possible;
  }
  return possible > 0 ? static_cast<double>(cached) / static_cast<double>(possible) : 0;
}

Result<TraceFigures> MeasureTrace(const TraceOptions& options) {
  const Traced trace = MakeTrace(options.shape);
  const double sides = 1.0 + static_cast<double>(options.peers.size());
  double done = 0;
  const auto progress = [&](double part) { options.progress((done + part) / sides); };
  TraceFigures figures;
  {
    const ScratchDir dir;
    HOLDFAST_ASSIGN_OR_RETURN(const ServerProcess server,
                              ServerProcess::Start(options.program, options.engine, dir.path));
    HOLDFAST_ASSIGN_OR_RETURN(figures.ours, TraceRun(trace, server).Run(progress));
  }
  const std::vector<std::string> flags = {
      "-np", std::to_string(kSlots),
      "-c", std::to_string(kSlots * (options.shape.context + kTraceSlack)),
      "--cache-ram", "8192"};
  for (const Peer& peer : options.peers) {
    ++done;
    auto server = ServerProcess::StartPeer(peer, options.engine.model_path,
                                           options.engine.cpu.threads, flags);
    Result<TraceSide> side =
        server.ok() ? TraceRun(trace, *server).Run(progress) : server.status();
    if (side.ok()) figures.peers[peer.name] = std::move(*side);
    else figures.notes[peer.name] = side.status().message();
  }
  return figures;
}

}  // namespace holdfast

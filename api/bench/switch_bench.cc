#include "api/bench/switch_bench.h"

#include <chrono>

#include "api/bench/limits.h"
#include "api/bench/scratch.h"
#include "api/bench/servers.h"
#include "api/bench/turn.h"
#include "engine/base/elapsed.h"

namespace holdfast {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kSlots = 2;
constexpr int kAnswerTokens = 8;

struct Agent {
  std::string id;
  Json messages = Json::array();
};

std::string NextMessage(int round) {
  return "Round " + std::to_string(round) + ": entry " + std::to_string(round * 37 % 101) +
         " was changed. Say in a few words what you make of it.";
}

Json BodyOf(const Agent& agent) {
  return {{"messages", agent.messages},
          {"max_tokens", kAnswerTokens},
          {"temperature", 0}};
}

using Turns = std::vector<ServerProcess::Turn>;
// A turn of an agent with some server: milliseconds to its first token, and what was said.
using TurnTaker = std::function<Result<ServerProcess::Turn>(int number, const Agent& agent)>;

// Rounds of all agents; the first one computes their contexts and is not counted.
Result<Turns> Rounds(const SwitchOptions& options, std::vector<Agent> agents,
                     const TurnTaker& take) {
  Turns turns;
  for (int round = 0; round <= options.rounds; ++round) {
    for (int i = 0; i < options.agents; ++i) {
      Agent& agent = agents[i];
      if (round > 0) {
        agent.messages.push_back({{"role", "user"}, {"content", NextMessage(round)}});
      }
      HOLDFAST_ASSIGN_OR_RETURN(ServerProcess::Turn turn, take(i, agent));
      agent.messages.push_back({{"role", "assistant"}, {"content", turn.content}});
      if (round > 0) turns.push_back(std::move(turn));
    }
  }
  return turns;
}

// Medians over the turns of our own server.
SwitchParts PartsOf(const Turns& turns) {
  std::vector<double> restore, queue, prefill, rest, computed;
  for (const ServerProcess::Turn& turn : turns) {
    const Json timings = turn.keeper.value("timings", Json::object());
    const auto ms = [&](const char* part) { return timings.value(part, 0.0); };
    restore.push_back(ms("restore_ms"));
    queue.push_back(ms("queue_ms"));
    prefill.push_back(ms("prefill_ms"));
    rest.push_back(turn.first_ms - restore.back() - queue.back() - prefill.back());
    computed.push_back(turn.keeper.value("tokens", Json::object()).value("computed", 0.0));
  }
  return {Median(restore), Median(queue), Median(prefill), Median(rest), Median(computed)};
}

std::vector<double> FirstMs(const Turns& turns) {
  std::vector<double> ms;
  for (const ServerProcess::Turn& turn : turns) ms.push_back(turn.first_ms);
  return ms;
}

Result<Turns> SwitchSlotFiles(const SwitchOptions& options, const Peer& peer,
                              const std::vector<std::string>& flags,
                              const std::vector<Agent>& agents) {
  const ScratchDir dir;
  std::vector<std::string> more = flags;
  more.insert(more.end(), {"--cache-ram", "0", "--slot-save-path", dir.path + "/"});
  HOLDFAST_ASSIGN_OR_RETURN(
      const ServerProcess server,
      ServerProcess::StartPeer(peer, options.engine.model_path, options.engine.cpu.threads, more));
  std::vector<bool> saved(agents.size());
  const auto take = [&](int i, const Agent& agent) -> Result<ServerProcess::Turn> {
    const std::string slot = "/slots/" + std::to_string(i % kSlots);
    const Json file = {{"filename", "agent" + std::to_string(i)}};
    const auto start = Clock::now();
    if (saved[i]) HOLDFAST_RETURN_IF_ERROR(server.Post(slot + "?action=restore", file).status());
    const double restore_ms = MsSince(start);
    Json body = BodyOf(agent);
    body["id_slot"] = i % kSlots;
    HOLDFAST_ASSIGN_OR_RETURN(ServerProcess::Turn turn, server.Chat(std::move(body)));
    turn.first_ms += restore_ms;
    HOLDFAST_RETURN_IF_ERROR(server.Post(slot + "?action=save", file).status());
    saved[i] = true;
    return turn;
  };
  return Rounds(options, agents, take);
}

Result<Turns> SwitchCacheRam(const SwitchOptions& options, const Peer& peer,
                             const std::vector<std::string>& flags,
                             const std::vector<Agent>& agents) {
  std::vector<std::string> more = flags;
  more.insert(more.end(), {"--cache-ram", "8192"});
  HOLDFAST_ASSIGN_OR_RETURN(
      const ServerProcess server,
      ServerProcess::StartPeer(peer, options.engine.model_path, options.engine.cpu.threads, more));
  return Rounds(options, agents,
                [&](int, const Agent& agent) { return server.Chat(BodyOf(agent)); });
}

}  // namespace

int64_t SwitchContext(int64_t tokens) { return tokens + 1024; }

Result<SwitchFigures> MeasureSwitch(const SwitchOptions& options) {
  SwitchFigures figures;
  std::vector<Agent> agents;
  const double parts = 1.0 + 2.0 * static_cast<double>(options.peers.size());
  double done = 0;
  const auto progress = [&] {
    if (options.progress) options.progress(done++ / parts);
  };
  progress();
  {
    const ScratchDir dir;
    HOLDFAST_ASSIGN_OR_RETURN(const ServerProcess server,
                              ServerProcess::Start(options.program, options.engine, dir.path));
    const CountTokens count = [&](const std::string& text) { return server.CountTokens(text); };
    for (int i = 0; i < options.agents; ++i) {
      HOLDFAST_ASSIGN_OR_RETURN(const std::string text, LogText(options.tokens, i, count));
      agents.push_back({.id = "agent" + std::to_string(i),
                        .messages = Json::array({{{"role", "user"}, {"content", text}}})});
    }
    const auto take = [&](int, const Agent& agent) {
      Json body = BodyOf(agent);
      body["session_id"] = agent.id;
      return server.Chat(std::move(body));
    };
    HOLDFAST_ASSIGN_OR_RETURN(const auto turns, Rounds(options, agents, take));
    figures.ours = FirstMs(turns);
    figures.parts = PartsOf(turns);
  }
  const std::vector<std::string> flags = {
      "-np", std::to_string(kSlots), "-c", std::to_string(kSlots * SwitchContext(options.tokens))};
  for (const Peer& peer : options.peers) {
    for (const auto& [what, measure] : {std::pair("slot files", &SwitchSlotFiles),
                                        std::pair("cache-ram", &SwitchCacheRam)}) {
      progress();
      const std::string name = peer.name + " " + what;
      auto theirs = measure(options, peer, flags, agents);
      if (theirs.ok()) figures.peers[name] = FirstMs(*theirs);
      else figures.notes[name] = theirs.status().message();
    }
  }
  return figures;
}

}  // namespace holdfast

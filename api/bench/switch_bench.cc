#include "api/bench/switch_bench.h"

#include <chrono>

#include "api/bench/scratch.h"
#include "api/bench/servers.h"

namespace holdfast {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kSlots = 2;
constexpr int kAnswerTokens = 8;

struct Agent {
  std::string id;
  Json messages = Json::array();
};

Result<std::string> FirstMessage(int agent, int64_t tokens, const ServerProcess& ours) {
  std::string text = "You are agent " + std::to_string(agent) + ". This is your log.\n";
  int64_t count = 0;
  for (int i = 0; count < tokens; ++i) {
    text += "Entry " + std::to_string((i + 13 * agent) * 7919 % 10007) + ": step " +
            std::to_string(i) + " went well. ";
    if (i % 16 != 15) continue;
    HOLDFAST_ASSIGN_OR_RETURN(const Json answer, ours.Post("/tokenize", {{"content", text}}));
    count = answer["count"].get<int64_t>();
  }
  return text;
}

std::string NextMessage(int round) {
  return "Round " + std::to_string(round) + ": entry " + std::to_string(round * 37 % 101) +
         " was changed. Say in a few words what you make of it.";
}

Json BodyOf(const Agent& agent) {
  return {{"messages", agent.messages},
          {"max_tokens", kAnswerTokens},
          {"temperature", 0}};
}

// A turn of an agent with some server: milliseconds to its first token, and what was said.
using TakeTurn = std::function<Result<ServerProcess::Turn>(int number, const Agent& agent)>;

// Rounds of all agents; the first one computes their contexts and is not counted.
Result<std::vector<double>> Rounds(const SwitchOptions& options, std::vector<Agent> agents,
                                   const TakeTurn& take) {
  std::vector<double> figures;
  for (int round = 0; round <= options.rounds; ++round) {
    for (int i = 0; i < options.agents; ++i) {
      Agent& agent = agents[i];
      if (round > 0) {
        agent.messages.push_back({{"role", "user"}, {"content", NextMessage(round)}});
      }
      HOLDFAST_ASSIGN_OR_RETURN(const ServerProcess::Turn turn, take(i, agent));
      agent.messages.push_back({{"role", "assistant"}, {"content", turn.content}});
      if (round > 0) figures.push_back(turn.first_ms);
    }
  }
  return figures;
}

Result<std::vector<double>> SwitchSlotFiles(const SwitchOptions& options, const Peer& peer,
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
    const std::chrono::duration<double, std::milli> restore = Clock::now() - start;
    Json body = BodyOf(agent);
    body["id_slot"] = i % kSlots;
    HOLDFAST_ASSIGN_OR_RETURN(ServerProcess::Turn turn, server.Chat(std::move(body)));
    turn.first_ms += restore.count();
    HOLDFAST_RETURN_IF_ERROR(server.Post(slot + "?action=save", file).status());
    saved[i] = true;
    return turn;
  };
  return Rounds(options, agents, take);
}

Result<std::vector<double>> SwitchCacheRam(const SwitchOptions& options, const Peer& peer,
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
    for (int i = 0; i < options.agents; ++i) {
      HOLDFAST_ASSIGN_OR_RETURN(const std::string text, FirstMessage(i, options.tokens, server));
      agents.push_back({.id = "agent" + std::to_string(i),
                        .messages = Json::array({{{"role", "user"}, {"content", text}}})});
    }
    const auto take = [&](int, const Agent& agent) {
      Json body = BodyOf(agent);
      body["session_id"] = agent.id;
      return server.Chat(std::move(body));
    };
    HOLDFAST_ASSIGN_OR_RETURN(figures.ours, Rounds(options, agents, take));
  }
  const std::vector<std::string> flags = {
      "-np", std::to_string(kSlots), "-c", std::to_string(kSlots * SwitchContext(options.tokens))};
  for (const Peer& peer : options.peers) {
    for (const auto& [what, measure] : {std::pair("slot files", &SwitchSlotFiles),
                                        std::pair("cache-ram", &SwitchCacheRam)}) {
      progress();
      const std::string name = peer.name + " " + what;
      auto theirs = measure(options, peer, flags, agents);
      if (theirs.ok()) figures.peers[name] = std::move(*theirs);
      else figures.notes[name] = theirs.status().message();
    }
  }
  return figures;
}

}  // namespace holdfast

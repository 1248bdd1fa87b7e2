// What it costs to go on with another agent: more agents than the memory for KV holds, over HTTP.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "api/bench/peers.h"
#include "api/runtime.h"

namespace holdfast {

struct SwitchOptions {
  std::string program;    // holdfast
  EngineOptions engine;   // kv_bytes: room for two agents
  std::vector<Peer> peers;
  int agents = 8;
  int64_t tokens = 3000;  // of each agent, before the first switch
  int rounds = 3;
  std::function<void(double fraction)> progress;
};
// Where our time to the first token goes, in ms: as the keeper reports it, and what it does not
// time (HTTP, matching and tokenising, the admitted row, the first token's way).
struct SwitchParts {
  double restore = 0, queue = 0, prefill = 0, rest = 0;
  double computed = 0;       // tokens of the prompt
};
struct SwitchFigures {
  std::vector<double> ours;  // ms to the first token of a turn, one per switch
  SwitchParts parts;         // medians
  // By name: "llama.cpp slot files", "llama.cpp cache-ram"; and what went wrong with one.
  std::map<std::string, std::vector<double>> peers;
  std::map<std::string, std::string> notes;
};

// Each agent has a conversation of `tokens` tokens. Then they take turns, round robin: some 32 new
// tokens, 8 generated. A peer's llama-server has two slots of the same size, and either a file per
// agent, restored before its turn (timed) and saved after it (not timed), or its cache in host
// memory of 8 GiB, which nothing limits to the memory that we have.
Result<SwitchFigures> MeasureSwitch(const SwitchOptions& options);

// Tokens that one agent's context may grow to.
int64_t SwitchContext(int64_t tokens);

}  // namespace holdfast

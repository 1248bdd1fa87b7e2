// Agents as they are seen in production: some forty turns each, tools that pause them, and 142
// times as many tokens read as written. Three of them over one server, with memory for the KV of
// two.
//
// A trace is fixed by its shape and seed. An agent begins with the system prompt that all share,
// about a third of its context; each turn brings a tool's output or a wish, and waits for an answer
// of at most so many tokens; by the last turn the context is full. Outputs are mostly short and now
// and then long, and so are pauses.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "api/bench/peers.h"
#include "api/bench/turn.h"
#include "api/runtime.h"

namespace holdfast {

struct TraceShape {
  int agents = 3;
  int turns = 40;
  int64_t context = 7680;        // tokens that a conversation ends with, more or less
  double ratio = 142;            // of all tokens read to all written
  uint64_t seed = 1;
};
struct TraceTurn {
  double pause_s = 0;            // before it; 0 for the first
  int64_t input_tokens = 0;      // of its message
  int64_t answer_tokens = 0;     // at most
};
struct TracePlan {
  int64_t system_tokens = 0;
  std::vector<std::vector<TraceTurn>> agents;
};
// Pure. Each turn costs kTraceMarkup tokens beside message and answer.
TracePlan PlanTrace(const TraceShape& shape);
inline constexpr int64_t kTraceMarkup = 12;
inline constexpr int64_t kTraceContextMost = 8192;  // however large the model's is
inline constexpr int64_t kTraceSlack = 512;         // of it, left free

// What one server made of a trace: the turns after each agent's first, by agent.
struct TraceSide {
  struct Turn {
    int64_t prompt = 0;          // tokens
    int64_t cached = 0;          // of them, not computed again
    int64_t possible = 0;        // of them, those that the agent's turn before ended with
    double first_ms = 0;
  };
  std::vector<Turn> turns;
  int64_t read = 0, written = 0;  // tokens of all turns
  std::vector<double> FirstMs() const;
  double HitRate() const;        // cached of possible
};

struct TraceOptions {
  std::string program;           // holdfast
  EngineOptions engine;          // kv_bytes: for two contexts
  std::vector<Peer> peers;
  TraceShape shape;
  std::function<void(double fraction)> progress;
};
struct TraceFigures {
  TraceSide ours;
  std::map<std::string, TraceSide> peers;  // llama-server: two slots, `--cache-ram 8192`
  std::map<std::string, std::string> notes;
};
Result<TraceFigures> MeasureTrace(const TraceOptions& options);

}  // namespace holdfast

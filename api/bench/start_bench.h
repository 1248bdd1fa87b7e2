// What is timed over a restart: a conversation that goes on from disk, and a server that loads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "api/bench/limits.h"
#include "api/bench/peers.h"
#include "api/runtime.h"

namespace holdfast {

struct RestoreFigures {
  std::string text;                  // of the first message, about n tokens
  int64_t prompt = 0;                // tokens of the first turn, computed from nothing
  double first_ms = 0;               // to the first token of its answer, from nothing
  double prefill_ms = 0;             // of which computing took
  std::vector<double> restart_ms;    // to the first token of the next turn, after a restart
  int64_t restored = 0, computed = 0;  // tokens, in the last of these
  // A part of the text, as the first message of a session of its own, nothing of it in memory: what
  // finding and loading its pages took.
  struct Point {
    int64_t tokens = 0;              // restored
    double bytes = 0;
    std::vector<double> warm_ms, cold_ms;  // in the page cache, and not
  };
  std::vector<Point> points;         // an eighth, a quarter, a half, all
  double raw_read = 0;               // bytes/s of the page files past the page cache, meanwhile
  ModelCost cost;
};
Result<RestoreFigures> MeasureRestore(const EngineOptions& engine, int64_t n, int reps);

// The same with a peer's llama-server and a slot file: ms of saving the slot (which nothing syncs),
// and, after a restart, from the request that restores it to the first token of the next turn.
struct PeerSlotFigures {
  std::vector<double> save_ms, restart_ms;
};
struct PeerSlotOptions {
  Peer peer;
  EngineOptions engine;
  std::string text;
  int64_t tokens = 0;                // of the text
  int reps = 1;
};
Result<PeerSlotFigures> MeasurePeerSlot(const PeerSlotOptions& options);

// Seconds from starting `program` as a server until it says that it listens. `data_dir` "" = an
// empty folder that goes away.
Result<double> MeasureLoad(const std::string& program, const EngineOptions& engine,
                           const std::string& data_dir = "");

}  // namespace holdfast

// What is timed over a restart: a conversation that goes on from disk, and a server that loads.
#pragma once

#include <cstdint>
#include <string>

#include "api/bench/limits.h"
#include "api/runtime.h"

namespace holdfast {

struct RestoreFigures {
  double cold_ms = 0, restart_ms = 0;  // to the first token
  int64_t restored = 0, computed = 0;  // tokens, after the restart
  ModelCost cost;
};
// One conversation of about n tokens: cold, then once more after the process's state is gone.
Result<RestoreFigures> MeasureRestore(const EngineOptions& engine, int64_t n);

// Seconds from starting `program` as a server until it says that it listens.
Result<double> MeasureLoad(const std::string& program, const EngineOptions& engine);

}  // namespace holdfast

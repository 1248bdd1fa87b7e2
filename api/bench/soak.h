// Agents in multi-turn conversations for a long time: does memory grow, does it become slower?
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "api/runtime.h"

namespace holdfast {

struct SoakOptions {
  EngineOptions engine;     // kv_bytes 0: kSoakKvBytes, so that the pool is soon full
  int agents = 16;
  double seconds = 1800;
  std::function<void(double fraction)> progress;
};
inline constexpr size_t kSoakKvBytes = size_t{512} << 20;

struct SoakPoint {
  double minute = 0;         // since the start, at its end
  double tokens_per_s = 0;   // generated, all agents
  double prompt_per_s = 0;   // rows of prompts computed
  double resident_mib = 0;   // of the process
  double pool_mib = 0;       // memory that the page pool has touched, part of it
};
struct SoakFigures {
  std::vector<SoakPoint> points;          // kSoakPoints of them
  int64_t turns = 0, conversations = 0;
  int64_t failed = 0;                     // turns that ended in an error; `error`: of the last
  std::string error;
  // From a third of the time on, when the pool is full and conversations have all ages.
  double resident_mib_per_hour = 0;
  double speed_change_per_hour = 0;       // of tokens_per_s, as a part of its mean
};
inline constexpr int kSoakPoints = 30;

// Each agent talks with one conversation after the other, of 2 to 12 turns with messages and
// answers of mixed lengths, under one system prompt, until time is up; an answer that still runs
// then ends by itself. Data lies in a folder that goes away.
Result<SoakFigures> MeasureSoak(const SoakOptions& options);

}  // namespace holdfast

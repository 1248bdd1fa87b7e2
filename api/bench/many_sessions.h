// A data folder with many sessions: how long a server needs until it is ready, and to list or open
// one of them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "api/runtime.h"

namespace holdfast {

inline constexpr int64_t kSessionsWithPages = 500;

struct ManySessionsOptions {
  std::string program;               // holdfast
  EngineOptions engine;
  int64_t sessions = 10000;          // kSessionsWithPages of them, or all where they are fewer,
                                     // have pages
  int reps = 3;
  std::function<void(double fraction)> progress;
};
struct ManySessionsFigures {
  std::vector<double> ready_s;       // from starting the server over the folder until it listens
  std::vector<double> empty_s;       // the same over an empty folder: loading the model
  std::vector<double> list_ms;       // GET /v1/sessions?limit=20, from all over the list
  std::vector<double> open_ms;       // GET /v1/sessions/{id}, and its items, of random ones
  int64_t turns = 0, tokens = 0, pages = 0;
  double database_bytes = 0, page_bytes = 0;
  double made_s = 0;                 // making the folder took
};
// Sessions without pages have two turns of some 70 tokens that went through the keeper uncomputed
// (CommitUncomputed); those with pages one computed turn. Several threads make them.
Result<ManySessionsFigures> MeasureManySessions(const ManySessionsOptions& options);

}  // namespace holdfast

// Benchmarks with fixed workloads, side by side with a peer in one run.
//
//   prefill@N    tok/s  N tokens from nothing
//   decode@N     tok/s  one sequence, 64 tokens after N
//   append16@N   tok/s  16 new tokens on N cached ones
//   fork@N       ms     p99 of forking a timeline of N tokens
//   restore@N    ms     time to first token after a restart, N tokens on disk (page cache warm)
//
// Ours and the peer's runs alternate; each figure is the median of `reps`. Tokens come from a fixed
// generator, a new prompt for each run, so that nothing is found in a cache by accident. `limit` is
// what the bytes that must be read (weights and KV) allow at the read bandwidth measured over as
// many bytes as the weights take; null where arithmetic, not bandwidth, is the limit.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "api/json.h"
#include "api/runtime.h"

namespace holdfast {

struct BenchOptions {
  EngineOptions engine;
  std::string model_name;
  std::vector<std::string> names;  // "decode@4096", ...
  std::string llama_cpp_dir;       // folder of llama-bench, or of its bin/; "" = no peer
  int reps = 5;
  int threads = 0;
  std::function<void(const std::string& what, double fraction)> progress;
};

std::vector<std::string> BenchNames();  // what `bench all` runs

// {"machine": {...}, "results": [...]}. kInvalid for an unknown name; kIo when the peer fails.
Result<Json> RunBench(const BenchOptions& options);

}  // namespace holdfast

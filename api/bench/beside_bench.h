// Decoding while others save or restore: the time between tokens of two agents, with pages on their
// way to disk or back beside them, one session of 1,024 tokens after the other without a pause, and
// without.
#pragma once

#include <chrono>
#include <functional>
#include <utility>
#include <vector>

#include "api/bench/engine_bench.h"

namespace holdfast {

enum class Beside : uint8_t {
  kSave,     // sealed pages through a PageWriter, at its own pace, into a store that is full: older
             // ones go
  kRestore,  // pages that are on disk alone into the pool (Stitcher::Prefetch)
};

struct BesideOptions {
  Beside what = Beside::kSave;
  std::chrono::milliseconds phase{1250};    // eight with them, eight without
  std::function<void(double fraction)> progress;
};
struct BesideFigures {
  std::vector<double> with_ms, without_ms;  // between tokens
  int64_t sessions = 0;                     // saved or restored
  double bytes_per_s = 0;                   // of pages, while that went on
};
Result<BesideFigures> MeasureBeside(Engine& engine, const BesideOptions& options);

using BesideClock = std::chrono::steady_clock;
using BesideSpan = std::pair<BesideClock::time_point, BesideClock::time_point>;
// Splits the times between tokens that came at `tokens` (ascending) into those that a span of
// `busy` (ascending, disjoint) meets and those that lie in one of `quiet`; others count nowhere.
void SplitGaps(const std::vector<BesideClock::time_point>& tokens,
               const std::vector<BesideSpan>& busy, const std::vector<BesideSpan>& quiet,
               BesideFigures* figures);

}  // namespace holdfast

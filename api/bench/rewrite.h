// A copy-heavy agent turn: a file of 120 lines stands in the prompt and is to be written again with
// one edit, greedily, once with speculation and once without.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "api/bench/limits.h"
#include "api/runtime.h"

namespace holdfast {

inline constexpr int64_t kRewriteTokens = 512;  // of an answer, at most

struct RewriteFigures {
  std::vector<double> with, without;  // tok/s from the first token to the last, runs in turn
  bool same_tokens = true;            // of all answers
  int64_t prompt = 0, tokens = 0;
  DraftCounts drafts;                 // of the last answer with speculation
  ModelCost cost;
};
Result<RewriteFigures> MeasureRewrite(const EngineOptions& engine, int reps);

std::string RewriteFile();  // the 120 lines

}  // namespace holdfast

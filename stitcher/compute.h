// Computes what a timeline lacks on the engine, without an answer. For any thread but the model's.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "engine/engine.h"

namespace holdfast {

struct ComputeOptions {
  // Gets the logits of the pending rows from `logits_from` on, in order of index, on the model's
  // thread; a row may come again. Null = none are made.
  int64_t logits_from = 0;
  std::function<void(int64_t index, std::span<const float> logits)> on_logits = {};
  // Asked every now and then: true ends it (kCancelled). Pages that are sealed by then stay in the
  // pool as cache, so that the next try goes on from there. Null = never.
  std::function<bool()> stop = {};
};

// Asks for the timeline's pending rows and nothing else; `stop` is the waiting side's.
GenerateRequest ComputeRequest(Timeline timeline, const ComputeOptions& options = {});
// Blocks until every row of such a request is there, and gives the timeline back. The engine's
// error, or kCancelled.
Result<Timeline> ComputeOn(Engine& engine, GenerateRequest request,
                           const std::function<bool()>& stop = {});

}  // namespace holdfast

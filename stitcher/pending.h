// Computes what a timeline lacks on a ForwardPass of the caller's, without the engine and its
// thread: for verify, calibration and tests.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "engine/kv/timeline.h"
#include "engine/model/model.h"

namespace holdfast {

// How shifted runs are read. kUnturned is a control of the quality benches: queries are not turned,
// as if every run lay at home.
enum class ShiftReading : uint8_t { kTurned, kUnturned };

struct PendingOptions {
  int64_t chunk = 64;            // rows of a pass
  int64_t logits_from = 0;       // rows of tokens from here on have logits
  ShiftReading reading = ShiftReading::kTurned;
  // Each row with logits, ascending; an empty row failed. Null = none are made.
  std::function<void(int64_t index, std::span<const float> logits)> on_logits;
  // As GenerateRequest::observe_queries; null = no.
  std::function<void(int layer, const Timeline& timeline, std::span<const int64_t> rows,
                     std::span<const float> q)> on_queries;
};

// kExhausted: the timeline's pool is full; rows done so far stay.
Status ComputePending(const Model& model, ForwardPass& pass, Timeline& timeline,
                      const PendingOptions& options);

}  // namespace holdfast

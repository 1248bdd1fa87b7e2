// Which rows go into the next pass, who is admitted, who gives way: pure functions over plain
// values, so that every policy is a table in a test. Nothing here changes what a sequence computes,
// only when.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "engine/kv/key.h"

namespace holdfast {

// What the choice knows of a sequence that could compute now.
struct Candidate {
  uint64_t id = 0;             // order of submission
  std::string_view tenant;
  int64_t pending = 0;         // rows to compute, >= 1
  int64_t chunk = 0;           // most rows in one pass; 0 = any
  uint64_t last_step = 0;      // when it last had rows in a pass
  PageKey next_block;          // Timeline::NextBlockKey
};

struct Pick {
  size_t candidate = 0;  // index into the candidates
  int64_t rows = 0;
};

// Sequences with at most this many pending rows run in the decode pass, between the layers of a
// prefill pass: a decoding sequence, a jump-ahead of a grammar, a short new turn.
inline constexpr int64_t kShortRows = 16;

// For the decode pass: one sequence of each tenant in turn, those that waited longest first, whole
// as long as `rows_max` allows.
std::vector<Pick> PickShort(std::span<const Candidate> candidates, int64_t rows_max);

// For the prefill pass: `rows_max` in equal parts for the tenants, what one can't use for the
// others. Of a tenant's part half goes to its oldest sequence and half to the one with the fewest
// rows left, so that a short prompt doesn't wait for a long one and the long one still gets on; the
// rest in order of submission. Of sequences that are about to compute the same page only the oldest
// is picked: the others will find it in the pool.
std::vector<Pick> PickLong(std::span<const Candidate> candidates, int64_t rows_max);

// A tenant with waiting requests.
struct Waiting {
  uint64_t id = 0;  // of its first request
  int running = 0;  // sequences of the tenant that run
};
// Index of the tenant whose first request is admitted next: the fewest running, then the oldest.
size_t PickAdmission(std::span<const Waiting> tenants);

struct AdmissionState {
  int running = 0, running_max = 0;
  int starved = 0;         // running sequences that wait for a page
  int64_t pages_needed = 0;
  int64_t pages_free = 0;  // not leased
};
// Whether one more may run. An empty engine admits anything, so that too big a request fails with
// an error of its own instead of waiting for ever.
bool MayAdmit(const AdmissionState& state);

struct Holder {
  uint64_t id = 0;
  int64_t pages = 0;  // that it would give back
};
inline constexpr size_t kNobody = SIZE_MAX;
// Who gives its pages back when nobody can get on: the youngest that holds any. kNobody when a
// single sequence is left: then others than sequences hold the memory.
size_t PickVictim(std::span<const Holder> running);

// How many rows a step may have so that it lasts at most `step_ms_max`: measured, one row at least.
class RowLimit {
 public:
  RowLimit(int64_t rows_max, double step_ms_max)
      : rows_max_(rows_max), step_ms_max_(step_ms_max), rows_(rows_max < 64 ? rows_max : 64) {}
  int64_t rows() const { return rows_; }
  // The limit for a step of `ms`, when steps take for each row what the last one took: kRowsLeast
  // at least (fewer would read the weights for too little), rows() at most.
  int64_t RowsWithin(double ms) const;
  static constexpr int64_t kRowsLeast = 16;
  // A step of `rows` rows took `ms`. Shrinks at once; grows to at most double, and only after a
  // step that used the limit.
  void Measured(int64_t rows, double ms);

 private:
  int64_t rows_max_;
  double step_ms_max_;
  int64_t rows_;
  double row_ms_ = 0;  // of the last step; 0: none yet
};

}  // namespace holdfast

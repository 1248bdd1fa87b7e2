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
  int64_t context = 0;         // tokens before them
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
// Tokens before a row of these picks, on average.
double MeanContext(std::span<const Candidate> candidates, std::span<const Pick> picks);

// A request that waits.
struct Waiting {
  uint64_t id = 0;
  int tenant_running = 0;  // sequences of its tenant that run
  int64_t pages = 0;       // for all that it has to compute
  int passed_over = 0;     // times that a later one was admitted, for want of pages for this one
};
struct Room {
  int running = 0, running_max = 0;
  int starved = 0;         // running sequences that wait for a page
  int64_t pages = 0;       // that nobody holds and no running sequence has yet to fill

  bool is_open() const { return running == 0 || (running < running_max && starved == 0); }
};
// Who has waited for pages so often is waited for.
inline constexpr int kPassedOverMax = 16;
// Indices of requests, the last of which is admitted next and the others are passed over; empty:
// nobody is. First comes the tenant with the fewest running sequences, then the oldest request;
// where its pages are not there, the next may go ahead. An empty engine admits anything, so that a
// request that is too big fails with an error of its own instead of waiting for ever.
std::vector<size_t> PickAdmission(std::span<const Waiting> waiting, const Room& room);

struct Holder {
  uint64_t id = 0;
  int64_t pages = 0;  // that it would give back
};
inline constexpr size_t kNobody = SIZE_MAX;
// Who gives its pages back when nobody can get on: the youngest that holds any, or kNobody.
size_t PickVictim(std::span<const Holder> holders);

}  // namespace holdfast

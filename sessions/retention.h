// Retention: what goes first when memory or disk space runs out. Pure: no clock, no I/O.
//
//   score = P(resumed soon) x seconds saved / bytes
//
// over whole heads (a head is a branch's tip with its pages). Closed and superseded heads go before
// all others whatever their score, pinned ones after all others. Inside a head pages go from the
// tail; no head goes before those that continue it, since what they share stays anyway.
//
// P by state and hints; times in milliseconds:
//   running, restoring             1
//   a next turn is expected        kExpected from kSoonMs before until as long after as the wait
//   (a tool's end, or `wake_at`)   was, kSoonMs at least; less the further it lies ahead
//   else                           halves with every kHalfLifeMs without use; while a `ttl` lasts
//                                  never below 1/2, a quarter of it once the `ttl` has ended
// A hint moves a head in the line. It never locks memory: a pinned head goes when it is the last.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace holdfast {

// Where a head is in its life; sessions/head_table.h has the diagram.
enum class HeadState : uint8_t {
  kResident, kWarm, kCold, kRestoring, kRunning, kToolWait, kSuperseded, kClosed
};
std::string_view HeadStateName(HeadState state);

inline constexpr int64_t kSoonMs = 60'000;
inline constexpr int64_t kHalfLifeMs = 600'000;
inline constexpr double kExpected = 0.9;

struct HeadFacts {
  HeadState state = HeadState::kCold;
  int64_t last_use_ms = 0;
  int64_t expected_ms = 0;    // when its next turn is expected; 0 = nobody knows
  int64_t keep_until_ms = 0;  // end of its `ttl`; 0 = it has none
  bool pinned = false;
};

// P(resumed soon), 0 to 1.
double ResumeChance(const HeadFacts& facts, int64_t now_ms);

struct Candidate {
  HeadFacts facts;
  double seconds = 0;         // that its presence saves: to load or to compute what would go
  int64_t bytes = 0;          // that would be free
  int parent = -1;            // index of the candidate that this one continues; no cycles
};
double Score(const Candidate& candidate, int64_t now_ms);

// Indices of all candidates, the one to go first at the front.
std::vector<size_t> DropOrder(std::span<const Candidate> candidates, int64_t now_ms);

// Whether a branch lies where nobody goes on: `by` left it before its end, kept more than half of
// it (so it is another way on, not another conversation with the same beginning), and was used
// since.
struct BranchUse {
  std::string_view name, parent;
  int64_t tokens = 0, parent_tokens = 0, updated_ms = 0;
};
bool IsSuperseded(const BranchUse& branch, const BranchUse& by);
// Indices of those of a session's branches (names are unique) that another one supersedes, each
// once, ascending. Takes time in proportion to their number.
std::vector<size_t> Superseded(std::span<const BranchUse> branches);

}  // namespace holdfast

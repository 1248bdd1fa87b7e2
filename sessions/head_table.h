// The life of heads (a head: the tip of a branch), as the keeper knows them. What a head's state is
// decides what goes first when space runs out (retention.h), what is loaded ahead of its next turn
// (caretaker.cc), and what the endpoints show.
//
//                     TurnBegun               TurnRestored
//      any but running ------> RESTORING (turn) ---------> RUNNING
//                                                             |
//            TurnAborted: to resident or cold                 | TurnCommitted
//            (also from restoring)                            v
//                                     tool calls in the answer?  yes: TOOL-WAIT   no: RESIDENT
//                                                                        |            |
//                                                                 LetGo  +-----+------+
//                                                                              v
//      PrefetchBegun                          PagesSeen: none is missing     WARM
//   warm, cold, superseded --> RESTORING (prefetch) --Prefetched--> WARM <---------> COLD
//                                       or COLD, by what came      PagesSeen: some are missing
//
//   Supersede: resident, tool-wait, warm, cold -> SUPERSEDED, until TurnBegun or a prefetch
//   Close: all of a session's heads, from any state without a turn -> CLOSED, that is forgotten
//
//   state        its timeline            its pages                       a turn
//   resident     kept (WarmHeads)        pinned in the pool              -
//   tool-wait    kept                    pinned                          expected at the tool's end
//   running      with the turn           pinned                          runs
//   restoring    being made, or none     on their way into the pool      prepares, or a prefetch
//   warm         none                    cached in the pool, all         -
//   cold         none                    some only on disk or nowhere    -
//   superseded   kept or none            anywhere                        another branch went on
//   closed       none                    nobody's                        never again
//
// A head that the table does not know is cold. At most kMaxHeads are known; heads without a
// timeline, used longest ago, are forgotten first. One function per transition; CheckInvariants
// after each in debug builds, of the head that changed.
//
// Thread-safe; one lock for microseconds, no I/O. Calls nothing of the keeper's.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "engine/base/moving_median.h"
#include "engine/kv/key.h"
#include "sessions/retention.h"
#include "sessions/turn.h"

namespace holdfast {

struct HeadId {
  int64_t sid = 0, branch = 0;
  std::string tenant, session;  // session: "sess_..."
};

// What is known of a head beside its state when it enters the table.
struct HeadMemory {
  int64_t expected_ms = 0, keep_until_ms = 0;
  bool pinned = false;
};

class HeadTable {
 public:
  static constexpr size_t kMaxHeads = 4096;
  static constexpr size_t kMaxTools = 1024;            // whose pauses are known
  static constexpr int64_t kUnknownPauseMs = 10'000;   // of a tool that was never seen to end
  static constexpr int64_t kLongestPauseMs = 3'600'000;  // a longer one says nothing of the tool
  static constexpr int64_t kPrefetchLeadMs = 2'000;    // before a turn is expected

  // ---- transitions ----
  // A turn has the lease. A head that waited for tools tells how long they took.
  void TurnBegun(const HeadId& id, const HeadMemory& memory, int64_t now_ms);
  // `loading`: the keys of a chain of which pages are still on their way; else empty.
  void TurnRestored(int64_t branch, std::vector<PageKey> loading = {});
  // The answer's tools (their names) and the client's hints decide when the next turn is expected.
  // The head counts as resident until LetGo.
  struct Committed {
    std::span<const ToolCall> calls;
    HeadMemory memory;                  // expected_ms: `wake_at`, or 0
    int64_t now_ms = 0;
  };
  void TurnCommitted(int64_t branch, const Committed& what);
  enum class Kept : uint8_t { kNothing, kTimeline };
  void TurnAborted(int64_t branch, Kept kept);
  // Its timeline goes; `keys`: its whole pages, root first. Nothing changes while it is in use.
  void LetGo(int64_t branch, std::vector<PageKey> keys);
  void Supersede(int64_t branch);
  // False when the head is in use, has its timeline, or is being loaded: nothing is to be done.
  bool PrefetchBegun(const HeadId& id, const HeadMemory& memory);
  // Of `total` whole pages, `there` are in the pool now, from the root on.
  struct Pages {
    int64_t there = 0, total = 0;
  };
  void Prefetched(int64_t branch, std::vector<PageKey> keys, const Pages& pages);
  void PagesSeen(int64_t branch, const Pages& pages);
  void Close(int64_t sid);

  // ---- what follows from it ----
  std::optional<HeadState> StateOf(int64_t branch) const;
  HeadFacts FactsOf(int64_t branch) const;  // of an unknown head: cold, never used
  void SetMemory(const HeadId& id, const HeadMemory& memory);  // hints that came without a turn
  // Heads that have no timeline or whose turn runs, with pages that may be cached in the pool.
  struct Line {
    int64_t branch = 0;
    HeadFacts facts;
    std::vector<PageKey> keys;        // root first
    int64_t total = 0;                // whole pages that it has, here or elsewhere
  };
  std::vector<Line> Lines() const;
  // Heads to be loaded now since their turn is expected; each once per expectation.
  std::vector<HeadId> TakeDue(int64_t now_ms);
  // How long the slowest of the tools usually takes.
  int64_t PauseOf(const std::string& tenant, std::span<const std::string> tools) const;
  // What tools took, by what names a tenant's tool: a hash, so that it says nothing of them.
  using Pauses = std::map<Digest, std::vector<double>>;  // ms, oldest first
  Pauses TakeNewPauses();  // of the tools that were seen to end since the last call
  void KnowPauses(const Pauses& pauses);  // from an earlier process
  struct Counts {
    uint64_t by_state[8] = {};
  };
  Counts counts() const;

 private:
  struct Head {
    HeadId id;
    HeadState state = HeadState::kCold;
    HeadMemory memory;
    bool turn = false, timeline = false, prefetch = false;
    int64_t last_use_ms = 0;
    int64_t taken_ms = 0;               // the expectation that TakeDue has given out
    std::vector<std::string> tools;     // that its last answer called
    std::vector<PageKey> keys;          // root first; of those that may be in the pool
    int64_t total = 0;                  // whole pages when its timeline went
  };
  using Heads = std::map<int64_t, Head>;  // by branch

  Head& Enter(const HeadId& id, const HeadMemory& memory);
  Head* Known(int64_t branch);
  int64_t PauseLocked(const std::string& tenant, std::span<const std::string> tools) const;
  void ObservePause(const Head& head, int64_t pause_ms);
  void ForgetOldest();
  static void See(Head* head, const Pages& pages);
  static void CheckInvariants(const Head& head);

  mutable std::mutex mu_;
  Heads heads_;
  std::map<Digest, MovingMedian> pauses_;
  std::set<Digest> new_pauses_;
};

}  // namespace holdfast

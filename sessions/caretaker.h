// The caretaker: the keeper's own thread, which does ahead of need what turns would else wait for.
// A round (Tend), every `every_ms`, is, in this order:
//   1 demote      lets go of the least worthy warm heads while the pool still has room, and writes
//                 down those that one more turn like the last would take the place of, so that it
//                 does not wait for files
//   2 line up     cached pages in the pool, and pages on disk once that is nearly full, in order
//                 of their heads' worth: what belongs to no head goes first, superseded heads next,
//                 pinned segments last (as far as they fill half of either)
//   3 prefetch    heads whose next turn is expected (a tool's end, `wake_at`), and those asked for
//   4 sweep       some sessions whose time to live has ended go; what tools took and what the
//                 stitcher has measured is saved; where something was deleted since the last gc,
//                 and no turn runs or that has waited long, the next one runs (collect.cc)
//   5 idle work   while no turn runs: branches that are to be exact again (harden), answers that
//                 are measured against full prefill (verify); one in a round. When a turn comes it
//                 stops, and goes on later from the pages that are done
// In between, when a turn has its pages, after it, and with each prefetch that is asked for, it is
// poked to do 1 and 3 at once: lining up costs more the more heads are known, so that it waits for
// its round.
//
// What goes is decided by retention.h alone, from the states in head_table.h. On disk a pass over
// all branches of all tenants is cut into steps, so that prefetches do not wait for it.
//
// Thread-safe. Owns one thread between Start and Stop; without it, Tend does all of it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "sessions/head_table.h"
#include "sessions/keeper.h"
#include "sessions/log.h"

namespace holdfast {

struct PrefetchJob {
  HeadId id;
  std::vector<TokenId> tokens;
};

class Caretaker {
 public:
  static constexpr size_t kMaxJobs = 64;

  explicit Caretaker(Keeper::Impl* keeper) : k_(*keeper) {}
  ~Caretaker() { Stop(); }

  void Start(int64_t every_ms);  // 0 = no thread
  void Stop();
  void Poke();                   // demotes and prefetches now, where there is a thread
  void Tend();
  // kExhausted when kMaxJobs wait.
  Status Enqueue(PrefetchJob job);
  // Work that stops when MustYield (kCancelled, and comes again). kExhausted as Enqueue.
  using IdleWork = std::function<Status()>;
  Status EnqueueIdle(IdleWork work);
  bool MustYield() const;  // a turn runs, a poke wants the thread, or the keeper shuts down
  uint64_t prefetches() const { return prefetches_; }
  uint64_t pages_prefetched() const { return pages_prefetched_; }

 private:
  // A head on disk: a branch, or a snapshot.
  struct Stored {
    HeadId id;
    Point head;
    int64_t tokens = 0;
    HeadFacts facts;
  };

  void Run(int64_t every_ms);
  void Hurry();
  void Demote();
  void LineUpPool();
  void LineUpStore();
  void BeginLineUpStore();
  Result<std::vector<Stored>> AllStored();
  void TakeDue();
  void RunJobs();
  void Sweep();
  void CollectGarbage();
  void DoIdleWork();

  Keeper::Impl& k_;
  std::mutex tend_mu_;               // one round at a time
  std::vector<Stored> to_line_up_;   // under tend_mu_: of the pass over the disk; the next last
  bool is_lining_up_ = false;        // such a pass is under way
  int64_t next_pass_ms_ = 0;
  int64_t next_sweep_ms_ = 0, next_gc_look_ms_ = 0;  // under tend_mu_

  std::mutex mu_;
  std::condition_variable changed_;
  std::atomic<bool> poked_{false}, stopping_{false};  // raised under mu_
  std::deque<PrefetchJob> jobs_;
  std::deque<IdleWork> idle_;
  std::thread thread_;
  std::atomic<uint64_t> prefetches_{0}, pages_prefetched_{0};
};

}  // namespace holdfast

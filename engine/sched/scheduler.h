// The one model thread: takes requests from a bounded queue, computes their rows in two passes, and
// gives each its tokens. Blocks on nothing but its queue and does no I/O.
//
// A turn of the loop: take what came, end what was abandoned, admit; then a decode step, or a layer
// of the prefill pass (pace.h says which), or, when nobody can get on, make room or sleep.
#pragma once

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "engine/sched/batch.h"
#include "engine/sched/pace.h"
#include "engine/sched/pass.h"
#include "engine/sched/sequence.h"

namespace holdfast {

class Scheduler {
 public:
  // Drafts where measurements say that it pays, or (tests) wherever there is one.
  enum class Speculation : uint8_t { kOff, kMeasured, kAlways };
  struct Options {
    int running_max = 64;
    int queued_max = 256;
    int prefill_rows_max = 256;
    int64_t context_max = 0;
    Speculation speculation = Speculation::kMeasured;
    double step_ms_max = 200;        // a decode step, or a layer of a prefill pass
    double starved_ms_max = 2000;    // how long a lone sequence waits for memory that others hold
  };

  // `model` and `pool` must outlive this.
  Scheduler(Model* model, PagePool* pool, const Options& options);
  ~Scheduler();  // Shutdown

  // As Engine's. Any thread.
  Result<std::shared_ptr<Generation>> Submit(GenerateRequest&& request);
  void Shutdown();
  EngineStats stats() const;  // without the pool's

 private:
  using SequencePtr = std::unique_ptr<Sequence>;

  // What other threads touch; Generations share it, since they may outlive the scheduler.
  struct Inbox {
    std::mutex mu;
    std::condition_variable changed;
    std::vector<SequencePtr> arrived;
    bool raised = false;   // something to look at: a cancel, room in a sink
    bool closed = false;
    uint64_t next_id = 1;
    EngineStats stats;
  };

  enum class Rows : uint8_t { kShort, kLong };

  void Loop();
  bool TakeArrived();  // false: closed
  void Reap();
  void Admit();
  bool DecodeStep();
  bool PrefillStep();
  void FillPrefill();
  std::vector<Candidate> Runnable(Rows rows, std::vector<Sequence*>* who);
  void FillDecode();
  bool Add(Pass& pass, Sequence& sequence, int64_t rows);
  bool MayDraft() const;
  void Complete(Pass& pass, Rows rows);
  bool Settle();
  bool MakeRoom();
  bool LetWaitingGo();
  void Preempt(size_t index);
  bool WaitForOthers();
  void Sleep();
  void EndAll();
  std::vector<Sequence*> Waiters();
  std::vector<Sequence*> Everybody();  // who waits and who runs
  int64_t Starved() const;
  Room FreeRoom() const;

  Model* const model_;
  PagePool* const pool_;
  const Options options_;
  const std::shared_ptr<Inbox> inbox_;

  // Of the model thread:
  std::map<std::string, std::deque<SequencePtr>> waiting_;  // by tenant, in order of submission
  std::vector<SequencePtr> running_;                        // in order of admission
  Pass prefill_, decode_;
  Pace pace_;
  uint64_t step_ = 0;
  std::optional<Sequence::Clock::time_point> starved_since_;
  std::mutex join_mu_;
  std::thread thread_;
};

}  // namespace holdfast

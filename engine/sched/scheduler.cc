#include "engine/sched/scheduler.h"

#include <algorithm>
#include <cassert>

namespace holdfast {
namespace {

// Sinks of clients that went away without a word, and memory that others hold, are looked at so
// often.
constexpr auto kParkedPoll = std::chrono::milliseconds(100);
constexpr auto kStarvedPoll = std::chrono::milliseconds(10);
constexpr double kPrefillShare = 0.75;  // of a decode step's time, for prefill after it

int64_t PagesFor(int64_t rows) { return (rows + kPageTokens - 1) / kPageTokens + 1; }

int64_t PagesHeld(const Sequence& sequence) {
  int64_t pages = 0;
  for (const Run& run : sequence.timeline().runs()) pages += static_cast<bool>(run.page);
  return pages;
}

}  // namespace

Scheduler::Scheduler(Model* model, PagePool* pool, const Options& options)
    : model_(model),
      pool_(pool),
      options_(options),
      inbox_(std::make_shared<Inbox>()),
      prefill_(*model),
      decode_(*model),
      prefill_limit_(options.prefill_rows_max, options.step_ms_max),
      decode_limit_(options.running_max * kShortRows, options.step_ms_max),
      thread_([this] { Loop(); }) {}

Scheduler::~Scheduler() { Shutdown(); }

void Scheduler::Shutdown() {
  {
    std::lock_guard lock(inbox_->mu);
    inbox_->closed = true;
  }
  inbox_->changed.notify_all();
  std::lock_guard lock(join_mu_);
  if (thread_.joinable()) thread_.join();
}

Result<std::shared_ptr<Generation>> Scheduler::Submit(GenerateRequest&& request) {
  HOLDFAST_RETURN_IF_ERROR(
      ValidateRequest(request, model_->config().vocab, options_.context_max));
  auto generation = std::make_shared<Generation>();
  generation->wake_ = [inbox = inbox_] {
    {
      std::lock_guard lock(inbox->mu);
      inbox->raised = true;
    }
    inbox->changed.notify_one();
  };
  {
    std::lock_guard lock(inbox_->mu);
    if (inbox_->closed) return Status::Unavailable("engine: shutting down");
    if (inbox_->stats.queued >= options_.queued_max) {
      return Status::Exhausted("engine: " + std::to_string(options_.queued_max) +
                               " requests are waiting");
    }
    ++inbox_->stats.queued;
    inbox_->arrived.push_back(std::make_unique<Sequence>(inbox_->next_id++, std::move(request),
                                                         &model_->tokenizer(),
                                                         options_.context_max, generation));
  }
  inbox_->changed.notify_one();
  return generation;
}

EngineStats Scheduler::stats() const {
  std::lock_guard lock(inbox_->mu);
  return inbox_->stats;
}

void Scheduler::Loop() {
  while (TakeArrived()) {
    Reap();
    Settle();
    Admit();
    bool advanced = DecodeStep();
    advanced = PrefillStep() || advanced;
    const bool has_settled = Settle();
    if (advanced) {
      starved_since_.reset();
    } else if (!has_settled && !MakeRoom()) {
      Sleep();
    }
  }
  EndAll();
}

bool Scheduler::TakeArrived() {
  std::vector<SequencePtr> arrived;
  bool closed = false;
  {
    std::lock_guard lock(inbox_->mu);
    arrived.swap(inbox_->arrived);
    inbox_->raised = false;
    closed = inbox_->closed;
  }
  for (SequencePtr& sequence : arrived) {
    waiting_[sequence->tenant()].push_back(std::move(sequence));
  }
  return !closed;
}

// Ends what was abandoned. A sequence in a pass ends with the pass.
void Scheduler::Reap() {
  if (prefill_.in_flight() && prefill_.is_moot()) prefill_.Abandon();
  const auto reap = [](Sequence& sequence) {
    if (sequence.finished() || sequence.in_pass || !sequence.abandoned()) return;
    sequence.Finish(FinishReason::kCancelled, Status::Cancelled("cancelled by its client"));
  };
  for (auto& [tenant, queue] : waiting_) {
    for (SequencePtr& sequence : queue) reap(*sequence);
  }
  for (SequencePtr& sequence : running_) reap(*sequence);
}

// Ends a turn: counts, tells the clients, lets go of what is finished. Who has heard of an event
// sees it in the counts. True when something was finished.
bool Scheduler::Settle() {
  uint64_t generated = 0, finished = 0, failed = 0;
  DraftCounts drafts;
  int waiting = 0;
  const auto count = [&](Sequence& sequence) {
    const DraftCounts its = sequence.TakeDraftCounts();
    drafts.drafted += its.drafted;
    drafts.accepted += its.accepted;
    generated += static_cast<uint64_t>(sequence.TakeGenerated());
    finished += sequence.finished();
    failed += sequence.failed();
  };
  for (auto& [tenant, queue] : waiting_) {
    for (SequencePtr& sequence : queue) {
      count(*sequence);
      waiting += sequence->finished();
    }
  }
  for (SequencePtr& sequence : running_) count(*sequence);
  {
    std::lock_guard lock(inbox_->mu);
    inbox_->stats.generated += generated;
    inbox_->stats.finished += finished;
    inbox_->stats.failed += failed;
    inbox_->stats.drafted += static_cast<uint64_t>(drafts.drafted);
    inbox_->stats.accepted += static_cast<uint64_t>(drafts.accepted);
    inbox_->stats.queued -= waiting;
    const auto runs = [](const auto& s) { return !s->finished(); };
    inbox_->stats.running =
        static_cast<int>(std::count_if(running_.begin(), running_.end(), runs));
  }
  const auto deliver = [](const SequencePtr& sequence) {
    sequence->Deliver();
    return sequence->finished();
  };
  for (auto& [tenant, queue] : waiting_) std::erase_if(queue, deliver);
  std::erase_if(waiting_, [](const auto& entry) { return entry.second.empty(); });
  std::erase_if(running_, deliver);
  return finished > 0;
}

int64_t Scheduler::Starved() const {
  return std::count_if(running_.begin(), running_.end(),
                       [](const SequencePtr& s) { return s->starved; });
}

void Scheduler::Admit() {
  while (!waiting_.empty()) {
    std::vector<Waiting> tenants;
    for (const auto& [tenant, queue] : waiting_) {
      const auto running = std::count_if(running_.begin(), running_.end(), [&](const auto& s) {
        return s->tenant() == tenant;
      });
      tenants.push_back({queue.front()->id(), static_cast<int>(running)});
    }
    const auto entry = std::next(waiting_.begin(), static_cast<int64_t>(PickAdmission(tenants)));
    const Sequence& next = *entry->second.front();
    const PoolStats pool = pool_->stats();
    if (!MayAdmit({.running = static_cast<int>(running_.size()),
                   .running_max = options_.running_max,
                   .starved = static_cast<int>(Starved()),
                   .pages_needed = PagesFor(next.timeline().pending()),
                   .pages_free = static_cast<int64_t>(pool.slots_max - pool.leased)})) {
      return;
    }
    running_.push_back(std::move(entry->second.front()));
    entry->second.pop_front();
    if (entry->second.empty()) waiting_.erase(entry);
    running_.back()->Admitted();
    std::lock_guard lock(inbox_->mu);
    --inbox_->stats.queued;
    ++inbox_->stats.running;
  }
}

// Sequences that could compute now and have many or few rows to.
std::vector<Candidate> Scheduler::Runnable(Rows rows, std::vector<Sequence*>* who) {
  std::vector<Candidate> candidates;
  for (const SequencePtr& sequence : running_) {
    if (sequence->finished() || sequence->in_pass || sequence->Parked()) continue;
    if (sequence->TakeFromPool()) {
      sequence->Advance({});  // a request that only computes, and all of it was there
      continue;
    }
    const Candidate candidate = sequence->candidate();
    if ((candidate.pending <= kShortRows) != (rows == Rows::kShort)) continue;
    candidates.push_back(candidate);
    who->push_back(sequence.get());
  }
  return candidates;
}

void Scheduler::Fill(Pass& pass, std::span<const Pick> picks, std::span<Sequence* const> who) {
  for (const Pick& pick : picks) Add(pass, *who[pick.candidate], pick.rows);
}

bool Scheduler::Add(Pass& pass, Sequence& sequence, int64_t rows) {
  if (pass.Add(sequence, rows).ok()) return true;
  sequence.starved = true;
  sequence.DropDrafts();
  return false;
}

// Drafts take neither rows nor pages that somebody needs.
bool Scheduler::MayDraft() const {
  if (options_.speculation == Speculation::kOff || Starved() > 0) return false;
  const PoolStats pool = pool_->stats();
  return pool.slots_max - pool.leased > 2 * running_.size();
}

// Fills the decode pass; what its limit leaves goes to drafts, in the order of the picks.
void Scheduler::FillWithDrafts(std::span<const Pick> picks, std::span<Sequence* const> who) {
  PassSoFar pass{.rows = 0, .tokens = static_cast<double>(picks.size())};
  for (const Pick& pick : picks) pass.rows += pick.rows;
  const bool may_draft = MayDraft();
  const PassCost* cost = options_.speculation == Speculation::kAlways ? nullptr : &decode_cost_;
  for (const Pick& pick : picks) {
    Sequence& sequence = *who[pick.candidate];
    int64_t drafts = 0;
    double gain = 0;
    if (may_draft && pick.rows == sequence.timeline().pending()) {
      drafts = sequence.Propose(decode_limit_.rows() - pass.rows, pass, cost, &gain);
    }
    if (!Add(decode_, sequence, pick.rows + drafts)) continue;
    pass.rows += drafts;
    pass.tokens += gain;
  }
}

// Whether another layer comes before the next decode step.
bool Scheduler::PrefillHasTime() const {
  if (!prefill_.in_flight()) return false;
  return prefill_since_ms_ == 0 ||
         prefill_since_ms_ + prefill_.layer_ms() <= kPrefillShare * decode_ms_;
}

bool Scheduler::DecodeStep() {
  if (PrefillHasTime()) return false;
  std::vector<Sequence*> who;
  const std::vector<Candidate> candidates = Runnable(Rows::kShort, &who);
  FillWithDrafts(PickShort(candidates, decode_limit_.rows()), who);
  decodes_run_ = decode_.rows() > 0;
  if (!decodes_run_) return false;
  decode_.Begin();
  while (!decode_.StepLayer()) {
  }
  prefill_since_ms_ = 0;
  decode_limit_.Measured(decode_.rows(), decode_.ms());
  decode_cost_.Measured(decode_.rows(), decode_.ms());
  decode_ms_ = decode_cost_.ms(decode_.rows());
  Complete(decode_, Rows::kShort);
  return true;
}

bool Scheduler::PrefillStep() {
  if (!prefill_.in_flight()) {
    std::vector<Sequence*> who;
    const std::vector<Candidate> candidates = Runnable(Rows::kLong, &who);
    const int64_t rows = decodes_run_ ? prefill_limit_.RowsWithin(kPrefillShare * decode_ms_)
                                      : prefill_limit_.rows();
    Fill(prefill_, PickLong(candidates, rows), who);
    if (prefill_.rows() == 0) return false;
    prefill_.Begin();
  }
  const double before = prefill_.ms();
  const bool is_done = prefill_.StepLayer();
  prefill_since_ms_ += prefill_.ms() - before;
  if (is_done) {
    prefill_limit_.Measured(prefill_.rows(), prefill_.layer_ms_max());
    Complete(prefill_, Rows::kLong);
  }
  return true;
}

void Scheduler::Complete(Pass& pass, Rows rows) {
  const auto count = static_cast<uint64_t>(pass.rows());
  const double ms = pass.ms();
  const double step_ms = rows == Rows::kShort ? ms : pass.layer_ms_max();
  pass.Complete(++step_);
  std::lock_guard lock(inbox_->mu);
  EngineStats& stats = inbox_->stats;
  stats.steps += 1;
  stats.rows += count;
  (rows == Rows::kShort ? stats.decode_rows : stats.prefill_rows) += count;
  stats.step_ms_max = std::max(stats.step_ms_max, step_ms);
  stats.busy_seconds += ms / 1000;
}

// Nobody got on. When that is for want of pages, takes them from somebody; false: there is nothing
// to do but wait.
bool Scheduler::MakeRoom() {
  if (Starved() == 0) return false;
  std::vector<Holder> holders;
  for (const SequencePtr& sequence : running_) {
    holders.push_back({sequence->id(), PagesHeld(*sequence)});
  }
  const size_t victim = PickVictim(holders);
  if (victim == kNobody) return WaitForOthers();
  Preempt(victim);
  return true;
}

// Back to the head of its tenant's queue, without KV; its tokens and all that it said stay.
void Scheduler::Preempt(size_t index) {
  SequencePtr sequence = std::move(running_[index]);
  running_.erase(running_.begin() + static_cast<int64_t>(index));
  sequence->Preempted();
  waiting_[sequence->tenant()].push_front(std::move(sequence));
  std::lock_guard lock(inbox_->mu);
  ++inbox_->stats.preempted;
  ++inbox_->stats.queued;
  --inbox_->stats.running;
}

// A sequence alone, and the pool is full: idle timelines hold it. They may let go; not for ever.
bool Scheduler::WaitForOthers() {
  const auto now = Sequence::Clock::now();
  if (!starved_since_.has_value()) starved_since_ = now;
  const std::chrono::duration<double, std::milli> waited = now - *starved_since_;
  if (waited.count() < options_.starved_ms_max) return false;
  starved_since_.reset();
  for (const SequencePtr& sequence : running_) {
    if (!sequence->starved) continue;
    sequence->Finish(FinishReason::kError,
                     Status::Exhausted("pool: no page for " +
                                       std::to_string(sequence->timeline().pending()) +
                                       " rows; other timelines hold the memory"));
    break;
  }
  Settle();
  return true;
}

void Scheduler::Sleep() {
  std::unique_lock lock(inbox_->mu);
  const auto ready = [&] {
    return inbox_->closed || inbox_->raised || !inbox_->arrived.empty();
  };
  if (running_.empty()) {
    inbox_->changed.wait(lock, ready);
  } else {
    inbox_->changed.wait_for(lock, Starved() > 0 ? kStarvedPoll : kParkedPoll, ready);
  }
}

void Scheduler::EndAll() {
  prefill_.Abandon();
  const auto end = [](Sequence& sequence) {
    sequence.Finish(FinishReason::kCancelled, Status::Unavailable("engine: shutting down"));
  };
  for (auto& [tenant, queue] : waiting_) {
    for (SequencePtr& sequence : queue) end(*sequence);
  }
  for (SequencePtr& sequence : running_) end(*sequence);
  Settle();
}

}  // namespace holdfast

#include "engine/sched/scheduler.h"

#include <algorithm>
#include <cassert>

namespace holdfast {
namespace {

// Sinks of clients that went away without a word, and memory that others hold, are looked at so
// often.
constexpr auto kParkedPoll = std::chrono::milliseconds(100);
constexpr auto kStarvedPoll = std::chrono::milliseconds(10);
constexpr double kEarly = 0.25;  // of a pass, after which it does not begin anew

int64_t PagesFor(int64_t rows) { return (rows + kPageTokens - 1) / kPageTokens + 1; }

int64_t PagesHeld(const Sequence& sequence) {
  int64_t pages = 0;
  for (const Run& run : sequence.timeline().runs()) pages += static_cast<bool>(run.page);
  return pages;
}

// Which of them gives its pages back, or kNobody.
template <typename Pointers>
size_t VictimOf(const Pointers& sequences) {
  std::vector<Holder> holders;
  for (const auto& sequence : sequences) {
    holders.push_back({sequence->id(), PagesHeld(*sequence)});
  }
  return PickVictim(holders);
}

}  // namespace

Scheduler::Scheduler(Model* model, PagePool* pool, const Options& options)
    : model_(model),
      pool_(pool),
      options_(options),
      inbox_(std::make_shared<Inbox>()),
      prefill_(*model),
      decode_(*model),
      pace_({.prefill_rows_max = options.prefill_rows_max,
             .decode_rows_max = options.running_max * kShortRows,
             .step_ms_max = options.step_ms_max}),
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

std::vector<Sequence*> Scheduler::Waiters() {
  std::vector<Sequence*> all;
  for (auto& [tenant, queue] : waiting_) {
    for (SequencePtr& sequence : queue) all.push_back(sequence.get());
  }
  return all;
}

std::vector<Sequence*> Scheduler::Everybody() {
  std::vector<Sequence*> all = Waiters();
  for (SequencePtr& sequence : running_) all.push_back(sequence.get());
  return all;
}

// Ends what was abandoned. A sequence in a pass ends with the pass.
void Scheduler::Reap() {
  if (prefill_.in_flight() && prefill_.is_moot()) prefill_.Abandon();
  for (Sequence* sequence : Everybody()) {
    if (sequence->finished() || sequence->in_pass || !sequence->abandoned()) continue;
    sequence->Finish(FinishReason::kCancelled, Status::Cancelled("cancelled by its client"));
  }
}

// Ends a turn: counts, tells the clients, lets go of what is finished. Who has heard of an event
// sees it in the counts. True when something was finished.
bool Scheduler::Settle() {
  EngineStats news;  // what is new of the counters
  for (Sequence* sequence : Everybody()) {
    const DraftCounts drafts = sequence->TakeDraftCounts();
    news.drafted += static_cast<uint64_t>(drafts.drafted);
    news.accepted += static_cast<uint64_t>(drafts.accepted);
    news.generated += static_cast<uint64_t>(sequence->TakeGenerated());
    news.finished += sequence->finished();
    news.failed += sequence->failed();
  }
  const auto goes_on = [](const SequencePtr& sequence) { return !sequence->finished(); };
  const auto count = [&](const auto& sequences) {
    return static_cast<int>(std::count_if(sequences.begin(), sequences.end(), goes_on));
  };
  int ended_waiting = 0;
  for (const auto& [tenant, queue] : waiting_) {
    ended_waiting += static_cast<int>(queue.size()) - count(queue);
  }
  {
    std::lock_guard lock(inbox_->mu);
    EngineStats& stats = inbox_->stats;
    stats.generated += news.generated;
    stats.finished += news.finished;
    stats.failed += news.failed;
    stats.drafted += news.drafted;
    stats.accepted += news.accepted;
    stats.queued -= ended_waiting;
    stats.running = count(running_);
  }
  const auto deliver = [](const SequencePtr& sequence) {
    sequence->Deliver();
    return sequence->finished();
  };
  for (auto& [tenant, queue] : waiting_) std::erase_if(queue, deliver);
  std::erase_if(waiting_, [](const auto& entry) { return entry.second.empty(); });
  std::erase_if(running_, deliver);
  return news.finished > 0;
}

int64_t Scheduler::Starved() const {
  return std::count_if(running_.begin(), running_.end(),
                       [](const SequencePtr& s) { return s->starved; });
}

Room Scheduler::FreeRoom() const {
  const PoolStats pool = pool_->stats();
  Room room{.running = static_cast<int>(running_.size()),
            .running_max = options_.running_max,
            .starved = static_cast<int>(Starved()),
            .pages = static_cast<int64_t>(pool.slots_max - pool.leased)};
  for (const SequencePtr& s : running_) room.pages -= PagesFor(s->timeline().pending());
  return room;
}

void Scheduler::Admit() {
  while (!waiting_.empty()) {
    const Room room = FreeRoom();
    if (!room.is_open()) return;
    std::vector<Waiting> waiting;
    std::vector<std::pair<std::deque<SequencePtr>*, size_t>> place;
    for (auto& [tenant, queue] : waiting_) {
      const auto running = std::count_if(running_.begin(), running_.end(),
                                         [&](const auto& s) { return s->tenant() == tenant; });
      for (size_t i = 0; i < queue.size(); ++i) {
        waiting.push_back({.id = queue[i]->id(),
                           .tenant_running = static_cast<int>(running),
                           .pages = PagesFor(queue[i]->timeline().pending()),
                           .passed_over = queue[i]->passed_over});
        place.emplace_back(&queue, i);
      }
    }
    const std::vector<size_t> picked = PickAdmission(waiting, room);
    if (picked.empty()) return;
    for (const size_t i : std::span(picked).first(picked.size() - 1)) {
      ++(*place[i].first)[place[i].second]->passed_over;
    }
    auto& [queue, at] = place[picked.back()];
    running_.push_back(std::move((*queue)[at]));
    queue->erase(queue->begin() + static_cast<int64_t>(at));
    if (queue->empty()) waiting_.erase(running_.back()->tenant());
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

// What the pass's limit leaves goes to drafts, in the order of the picks.
void Scheduler::FillDecode() {
  std::vector<Sequence*> who;
  const std::vector<Candidate> candidates = Runnable(Rows::kShort, &who);
  const std::vector<Pick> picks = PickShort(candidates, pace_.DecodeRows());
  PassSoFar pass{.rows = 0, .tokens = static_cast<double>(picks.size())};
  for (const Pick& pick : picks) pass.rows += pick.rows;
  const bool may_draft = MayDraft();
  const PassCost* cost =
      options_.speculation == Speculation::kAlways ? nullptr : &pace_.decode_cost();
  for (const Pick& pick : picks) {
    Sequence& sequence = *who[pick.candidate];
    int64_t drafts = 0;
    double gain = 0;
    if (may_draft && pick.rows == sequence.timeline().pending()) {
      drafts = sequence.Propose(pace_.DecodeRows() - pass.rows, pass, cost, &gain);
    }
    if (!Add(decode_, sequence, pick.rows + drafts)) continue;
    pass.rows += drafts;
    pass.tokens += gain;
  }
}

bool Scheduler::DecodeStep() {
  if (prefill_.in_flight() && pace_.MayGoOn(prefill_.layer_ms())) return false;
  FillDecode();
  if (decode_.rows() > 0) {
    decode_.Begin();
    while (!decode_.StepLayer()) {
    }
  }
  pace_.Decoded(decode_.rows(), decode_.ms());
  if (decode_.rows() == 0) return false;
  Complete(decode_, Rows::kShort);
  return true;
}

void Scheduler::FillPrefill() {
  std::vector<Sequence*> who;
  const std::vector<Candidate> candidates = Runnable(Rows::kLong, &who);
  const auto some = PickLong(candidates, Pace::kPrefillRowsLeast);  // as long as nobody ends, the
  const int64_t rows = pace_.PrefillRows(MeanContext(candidates, some));  // parts are the same
  for (const Pick& pick : PickLong(candidates, rows)) {
    Add(prefill_, *who[pick.candidate], pick.rows);
  }
}

bool Scheduler::PrefillStep() {
  const auto measured = [&] {
    pace_.Prefilled(prefill_.rows(), prefill_.context(), prefill_.layer_ms_max());
  };
  if (prefill_.in_flight() && prefill_.done() <= kEarly &&
      pace_.IsTooLong(prefill_.rows(), prefill_.layer_ms())) {
    measured();
    prefill_.Abandon();
  }
  if (!prefill_.in_flight()) {
    FillPrefill();
    if (prefill_.rows() == 0) return false;
    prefill_.Begin();
  }
  const double before = prefill_.ms();
  const bool is_done = prefill_.StepLayer();
  pace_.Layer(prefill_.ms() - before);
  if (is_done) {
    measured();
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
  if (LetWaitingGo()) return true;
  const size_t victim = running_.size() < 2 ? kNobody : VictimOf(running_);
  if (victim == kNobody) return WaitForOthers();
  Preempt(victim);
  return true;
}

// A request that waits holds the pages of its history, found or restored for it. It gives them back
// before anybody loses what was computed; when its turn comes it takes what is left of them.
bool Scheduler::LetWaitingGo() {
  const std::vector<Sequence*> waiters = Waiters();
  const size_t victim = VictimOf(waiters);
  if (victim == kNobody) return false;
  waiters[victim]->Preempted();
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

// A sequence alone, and the pool is full: timelines of no request hold it. They may let go; it
// waits, but not for ever.
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
  for (Sequence* sequence : Everybody()) {
    sequence->Finish(FinishReason::kCancelled, Status::Unavailable("engine: shutting down"));
  }
  Settle();
}

}  // namespace holdfast

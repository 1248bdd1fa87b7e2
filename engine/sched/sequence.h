// One request on its way through the engine: its timeline, what it has said so far, and how it
// ends. Knows nothing of batches; the scheduler computes rows and calls Advance with the logits
// that follow.
//
// Drafts (draft.h) stand at the end of its timeline, as pending rows, from Propose to the end of
// the pass that computes them. Each token that is said takes the place of the next draft: where
// they are equal its row is there already, else this and all later drafts go and leave no trace.
// So tokens, logprobs, digests and pages are what they are without drafts.
//
//            admitted               rows computed               Advance
//   waiting ----------> running ------------------> all there ----------> running (a token pending)
//      ^                   |                            |
//      +---- preempted ----+                            +--> finished (timeline given back)
//
// Used by the model thread alone, except for its construction and for Computed (Pass::Complete).
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "engine/sched/batch.h"
#include "engine/sched/draft.h"
#include "engine/sched/stop_filter.h"

namespace holdfast {

class Sequence {
 public:
  using Clock = std::chrono::steady_clock;

  // `request` is as ValidateRequest wants it. `tokenizer` outlives this; `context_max` in tokens.
  Sequence(uint64_t id, GenerateRequest request, const Tokenizer* tokenizer, int64_t context_max,
           std::shared_ptr<Generation> generation);

  uint64_t id() const { return id_; }
  const std::string& tenant() const { return tenant_; }
  Timeline& timeline() { return *request_.timeline; }
  const Timeline& timeline() const { return *request_.timeline; }
  const GenerateRequest& request() const { return request_; }
  bool finished() const { return finished_; }
  bool failed() const { return failed_; }  // finished with kError
  int64_t TakeGenerated() { return generated_ - std::exchange(counted_, generated_); }

  // Cancelled, or nobody listens any more.
  bool abandoned() const;
  // Whether its sink is full; stays so until half of it is drained.
  bool Parked();
  Candidate candidate() const;
  bool WantsLogits(int64_t index) const;
  int64_t drafts() const { return drafts_; }
  // Adds at most `most` drafts to the pending rows, as many as pay in `pass` (without `cost`: all);
  // returns how many. `*gain`: tokens that they bring on average.
  int64_t Propose(int64_t most, const PassSoFar& pass, const PassCost* cost, double* gain);
  void DropDrafts();
  // A value in a pass with drafts was not finite: maybe only because of them. Never again.
  void DistrustDrafts();
  DraftCounts TakeDraftCounts();
  // Takes what the pool has of the rows to come. True when nothing is left to compute.
  bool TakeFromPool();

  void Admitted();
  void Preempted() { timeline().ReleaseKv(); }
  // The next `rows` of its rows have their KV, drafts too, computed in pass number `step`.
  // `logits(index)`: of the row of that token, empty where none were wanted. Says what follows once
  // all rows are there.
  using LogitsOf = std::function<std::span<const float>(int64_t index)>;
  void Computed(int64_t rows, uint64_t step, const LogitsOf& logits);
  // All rows are there: says the next token or tokens, or finishes. `logits`: of the last row;
  // empty when max_tokens is 0.
  void Advance(std::span<const float> logits);
  // Emits what is held back and the Finish event, with the timeline.
  void Finish(FinishReason reason, Status status);
  // Events wait here until the scheduler has counted them; then they go to the client.
  void Deliver();

  // Scheduling state, kept by the scheduler.
  bool in_pass = false;  // its pages are being written
  bool starved = false;  // the pool had no page for it
  int passed_over = 0;   // as Waiting's

 private:
  struct Planned {
    TokenId token;
    bool by_grammar;
  };
  // Each of its rows is to be computed, as it stands: none from the pool, none drafted.
  bool computes_all() const {
    return request_.chunk != 0 || request_.observe_logits != nullptr ||
           request_.observe_queries != nullptr;
  }
  int64_t said() const { return timeline().size() - drafts_; }  // tokens that are no drafts
  void Append(TokenId token);
  void FillVerified();
  void TakeBackDrafts();
  Status PlanForced();
  Result<Sample> Draw(std::span<const float> logits, TokenId only);
  void Say(Sample sample, bool by_grammar);
  void SayPlanned(std::span<const float> logits);
  void Emit(std::vector<TokenEvent> tokens);

  const uint64_t id_;
  GenerateRequest request_;
  const std::string tenant_;
  const Tokenizer* const tokenizer_;
  const int64_t context_max_;
  const std::shared_ptr<Generation> generation_;
  StreamDecoder decoder_;
  StopFilter stop_filter_;
  std::deque<Planned> planned_;  // tokens that come next without a draw
  std::vector<uint32_t> mask_;
  std::vector<Generation::Event> outbox_;
  DraftIndex draft_index_;
  Acceptance acceptance_;
  int64_t match_length_ = 0;  // of the drafts in the pass
  int64_t drafts_ = 0;        // tokens at the end of the timeline that nobody has said
  int64_t verified_ = 0;      // said tokens before them, whose rows the pass has computed as drafts
  int64_t undrafted_ = 0;     // passes since the last draft, when one was possible
  bool distrusts_drafts_ = false;
  DraftCounts draft_counts_, draft_counts_taken_;
  int64_t generated_ = 0, counted_ = 0;
  int64_t prefilled_ = 0, reused_ = 0;
  uint64_t last_step_ = 0;
  bool parked_ = false;
  bool was_admitted_ = false;
  bool finished_ = false, failed_ = false;
  Clock::time_point submitted_, admitted_, first_token_;
};

// kInvalid, naming the field, when the request can't run on a model of `vocab` tokens.
Status ValidateRequest(const GenerateRequest& request, int64_t vocab, int64_t context_max);

}  // namespace holdfast

// One request on its way through the engine: its timeline, what it has said so far, and how it
// ends. Knows nothing of batches; the scheduler computes rows and calls Advance with the logits
// that follow.
//
//            admitted               rows computed               Advance
//   waiting ----------> running ------------------> all there ----------> running (a token pending)
//      ^                   |                            |
//      +---- preempted ----+                            +--> finished (timeline given back)
//
// Used by the model thread alone, except for its construction.
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
  // Takes what the pool has of the rows to come. True when nothing is left to compute.
  bool TakeFromPool();

  void Admitted();
  void Preempted() { timeline().ReleaseKv(); }
  // The next `rows` of its rows have their KV, computed in pass number `step`.
  void Computed(int64_t rows, uint64_t step);
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

 private:
  struct Planned {
    TokenId token;
    bool by_grammar;
  };
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

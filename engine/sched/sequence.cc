#include "engine/sched/sequence.h"

#include <algorithm>
#include <cassert>

namespace holdfast {
namespace {

constexpr size_t kStopsMax = 16;
constexpr size_t kStopBytesMax = 256;
constexpr int kTopLogprobsMax = 20;
// After so many passes without a draft a short one is tried in spite of the measurements.
constexpr int64_t kProbeAfter = 64;
constexpr int64_t kProbeDrafts = 4;

double Millis(Sequence::Clock::duration d) {
  return std::chrono::duration<double, std::milli>(d).count();
}

bool AllInVocabulary(std::span<const TokenId> tokens, int64_t vocab) {
  return std::all_of(tokens.begin(), tokens.end(),
                     [&](TokenId t) { return t >= 0 && t < vocab; });
}

}  // namespace

Status ValidateRequest(const GenerateRequest& request, int64_t vocab, int64_t context_max) {
  if (!request.timeline.has_value()) return Status::Invalid("request: no timeline");
  const Timeline& timeline = *request.timeline;
  if (timeline.pending() < 1) return Status::Invalid("request: the timeline has no pending row");
  if (!AllInVocabulary(timeline.tokens(), vocab) || !AllInVocabulary(request.forced, vocab)) {
    return Status::Invalid("request: a token is not in the vocabulary of " + std::to_string(vocab));
  }
  if (request.max_tokens < 0) return Status::Invalid("max_tokens: must not be negative");
  const int64_t least = timeline.size() + (request.max_tokens > 0 ? 1 : 0);
  if (least > context_max) {
    return Status::Invalid("context: " + std::to_string(timeline.size()) +
                           " tokens and an answer do not fit in " + std::to_string(context_max));
  }
  if (request.output_begin < 0 || request.output_begin > timeline.size()) {
    return Status::Invalid("output_begin: must lie in the timeline");
  }
  if (request.top_logprobs < -1 || request.top_logprobs > kTopLogprobsMax) {
    return Status::Invalid("top_logprobs: must be -1 to 20");
  }
  if (request.chunk < 0) return Status::Invalid("chunk: must not be negative");
  if (request.stop.size() > kStopsMax) return Status::Invalid("stop: more than 16 strings");
  for (const std::string& stop : request.stop) {
    if (stop.empty() || stop.size() > kStopBytesMax) {
      return Status::Invalid("stop: each must have 1 to 256 bytes");
    }
  }
  return ValidateSampling(request.sampling);
}

Sequence::Sequence(uint64_t id, GenerateRequest request, const Tokenizer* tokenizer,
                   int64_t context_max, std::shared_ptr<Generation> generation)
    : id_(id),
      request_(std::move(request)),
      tenant_(request_.timeline->scope().tenant()),
      tokenizer_(tokenizer),
      context_max_(context_max),
      generation_(std::move(generation)),
      decoder_(tokenizer),
      stop_filter_(request_.stop),
      submitted_(Clock::now()),
      admitted_(submitted_),
      first_token_(submitted_) {
  for (TokenId token : request_.forced) planned_.push_back({token, false});
}

bool Sequence::abandoned() const {
  return generation_->cancelled_.load(std::memory_order_relaxed) || generation_.use_count() == 1;
}

bool Sequence::Parked() {
  const size_t waiting = generation_->waiting();
  if (waiting >= Generation::kSinkEvents) parked_ = true;
  if (waiting <= Generation::kSinkEvents / 2) parked_ = false;
  return parked_;
}

Candidate Sequence::candidate() const {
  // Who may not take pages from the pool has no use for following another.
  const bool follows = request_.chunk == 0 && !request_.observe_logits;
  return {.id = id_,
          .tenant = tenant(),
          .pending = timeline().pending(),
          .chunk = request_.observe_logits && request_.chunk == 0 ? 64 : request_.chunk,
          .last_step = last_step_,
          .next_block = follows ? timeline().NextBlockKey() : PageKey{}};
}

bool Sequence::WantsLogits(int64_t index) const {
  if (request_.observe_logits && (!request_.observes || request_.observes(index))) return true;
  return request_.max_tokens > 0 && index >= said() - 1;
}

int64_t Sequence::Propose(int64_t most, const PassSoFar& pass, const PassCost* cost,
                          double* gain) {
  assert(drafts_ == 0);
  *gain = 0;
  const bool may = request_.speculate && request_.chunk == 0 && !request_.observe_logits;
  if (!may || distrusts_drafts_) return 0;
  // The pass says one token in any case; what comes after the answer's end is of no use.
  most = std::min({most, kDraftTokensMax, request_.max_tokens - generated_ - 1,
                   context_max_ - timeline().size() - 1});
  if (most <= 0) return 0;
  draft_index_.Follow(timeline().tokens());
  const DraftIndex::Match match = draft_index_.Find(timeline().tokens());
  if (match.length == 0) return 0;
  const double rate = acceptance_.Rate(match.length);
  int64_t count = cost == nullptr ? most : DraftLength(pass, rate, most, *cost);
  if (count == 0) {
    if (++undrafted_ < kProbeAfter) return 0;
    count = std::min(most, kProbeDrafts);
  }
  timeline().Extend(DraftFrom(timeline().tokens(), match, count));
  undrafted_ = 0;
  match_length_ = match.length;
  drafts_ = count;
  *gain = DraftGain(rate, count);
  return count;
}

void Sequence::DropDrafts() {
  if (drafts_ == 0) return;
  timeline().Truncate(said()).IgnoreError();  // not longer than it is
  drafts_ = 0;
}

// At the end: without drafts the tokens said last would have no page yet.
void Sequence::TakeBackDrafts() {
  DropDrafts();
  if (verified_ == 0) return;
  verified_ = 0;
  const int64_t filled = timeline().filled();
  const auto tokens = timeline().tokens().subspan(static_cast<size_t>(filled));
  const std::vector<TokenId> last(tokens.begin(), tokens.end());
  timeline().Truncate(filled).IgnoreError();  // not longer than it is
  timeline().Extend(last);
}

void Sequence::DistrustDrafts() {
  distrusts_drafts_ = true;
  DropDrafts();
}

DraftCounts Sequence::TakeDraftCounts() {
  const DraftCounts before = std::exchange(draft_counts_taken_, draft_counts_);
  return {draft_counts_.drafted - before.drafted, draft_counts_.accepted - before.accepted};
}

bool Sequence::TakeFromPool() {
  if (request_.chunk != 0 || request_.observe_logits) return false;
  // The last row is computed in any case: its logits are wanted.
  const int64_t end = timeline().size() - (request_.max_tokens > 0 ? 1 : 0);
  reused_ += timeline().Reuse(end);
  return timeline().pending() == 0;
}

void Sequence::Admitted() {
  if (!was_admitted_) admitted_ = Clock::now();
  was_admitted_ = true;
}

void Sequence::Computed(int64_t rows, uint64_t step, const LogitsOf& logits) {
  last_step_ = step;
  starved = false;
  const int64_t certain = std::min(rows, timeline().pending() - drafts_);
  if (generated_ == 0) prefilled_ += certain;
  draft_counts_.drafted += rows - certain;
  // Drafts that the pool had no page for go.
  const int64_t left_out = std::min(drafts_, timeline().pending() - rows);
  timeline().Truncate(timeline().size() - left_out).IgnoreError();  // not longer than it is
  drafts_ -= left_out;
  timeline().Filled(certain);
  while (!finished_ && timeline().pending() == drafts_ + verified_) Advance(logits(said() - 1));
  if (!finished_) FillVerified();
}

// Rows of said tokens count as filled once the next token is asked for: whoever gets the timeline
// finds the last token pending, as without drafts.
void Sequence::FillVerified() {
  timeline().Filled(std::exchange(verified_, 0));
}

void Sequence::Advance(std::span<const float> logits) {
  FillVerified();
  assert(timeline().pending() == drafts_ && !finished_);
  if (generated_ == 0) first_token_ = Clock::now();
  if (request_.max_tokens == 0) return Finish(FinishReason::kLength, {});
  if (Status s = PlanForced(); !s.ok()) return Finish(FinishReason::kError, std::move(s));
  if (!planned_.empty()) return SayPlanned(logits);
  Result<Sample> sample = Draw(logits, kNoToken);
  if (!sample.ok()) return Finish(FinishReason::kError, sample.status());
  if (request_.constraint) {
    Status s = request_.constraint->Accept(sample->token);
    if (!s.ok()) return Finish(FinishReason::kError, std::move(s));
  }
  Say(std::move(*sample), false);
}

// What the grammar leaves no choice about comes next, after what the request forces.
Status Sequence::PlanForced() {
  if (!planned_.empty() || !request_.constraint) return {};
  for (TokenId token : request_.constraint->Forced()) planned_.push_back({token, true});
  return {};
}

// Without logprobs all planned tokens are said at once and computed together; with them each waits
// for its logits.
void Sequence::SayPlanned(std::span<const float> logits) {
  do {
    const Planned next = planned_.front();
    planned_.pop_front();
    Sample sample{.token = next.token, .logprob = 0, .top = {}, .logits_digest = 0};
    if (request_.top_logprobs >= 0) {
      Result<Sample> drawn = Draw(logits, next.token);
      if (!drawn.ok()) return Finish(FinishReason::kError, drawn.status());
      sample = std::move(*drawn);
    }
    if (request_.constraint) {
      Status s = request_.constraint->Accept(next.token);
      if (!s.ok()) return Finish(FinishReason::kError, std::move(s));
    }
    Say(std::move(sample), next.by_grammar);
  } while (!finished_ && !planned_.empty() && request_.top_logprobs < 0);
}

// Draws the next token; `only`: that one, for its logprob.
Result<Sample> Sequence::Draw(std::span<const float> logits, TokenId only) {
  std::span<const uint32_t> mask;
  if (only != kNoToken || request_.constraint) {
    mask_.assign((logits.size() + 31) / 32, 0);
    mask = mask_;
  }
  if (only != kNoToken) {
    mask_[static_cast<size_t>(only) / 32] |= 1u << (only % 32);
  } else if (request_.constraint) {
    const size_t words = std::min(mask_.size(), (tokenizer_->vocab_size() + 31) / 32);
    HOLDFAST_RETURN_IF_ERROR(request_.constraint->FillMask(std::span(mask_).first(words)));
  }
  return SampleToken(request_.sampling, {.logits = logits,
                                         .history = timeline().tokens().first(said()),
                                         .output_begin = static_cast<size_t>(request_.output_begin),
                                         .mask = mask,
                                         .turn_seed = request_.turn_seed,
                                         .position = said(),
                                         .top_logprobs = std::max(0, request_.top_logprobs)});
}

// Appends one token to the timeline, or finds it there as a draft.
void Sequence::Append(TokenId token) {
  if (drafts_ > 0) {
    const bool is_right = timeline().tokens()[said()] == token;
    acceptance_.Learn(match_length_, is_right, !is_right);
    if (is_right) {
      --drafts_;
      ++verified_;
      ++draft_counts_.accepted;
      return;
    }
    DropDrafts();
  }
  timeline().Extend({&token, 1});
}

// Appends one token to the timeline and to the answer.
void Sequence::Say(Sample sample, bool by_grammar) {
  const TokenId token = sample.token;
  Append(token);
  ++generated_;
  std::vector<TokenEvent> certain;
  std::string text = decoder_.Push(token);
  stop_filter_.Push({std::move(sample), by_grammar, std::move(text)}, decoder_.held_bytes(),
                    &certain);
  Emit(std::move(certain));
  const bool may_go_on = request_.ignore_end && !request_.constraint;
  if (stop_filter_.stopped()) {
    Finish(FinishReason::kStopString, {});
  } else if (tokenizer_->IsEndOfGeneration(token) && !may_go_on) {
    Finish(FinishReason::kEnd, {});
  } else if (generated_ >= request_.max_tokens || said() >= context_max_) {
    Finish(FinishReason::kLength, {});
  }
}

void Sequence::Emit(std::vector<TokenEvent> tokens) {
  for (TokenEvent& token : tokens) outbox_.push_back({std::move(token), std::nullopt});
}

void Sequence::Finish(FinishReason reason, Status status) {
  assert(!finished_);
  TakeBackDrafts();
  finished_ = true;
  failed_ = reason == FinishReason::kError;
  const bool stopped = stop_filter_.stopped();
  StopFilter::Rest rest = stop_filter_.Finish();
  Emit(std::move(rest.tokens));
  FinishEvent finish;
  finish.text = std::move(rest.text);
  if (stopped) {
    timeline().Truncate(timeline().size() - rest.cut).IgnoreError();  // cut <= what was said
  } else {
    finish.text += decoder_.Flush();
  }
  const auto now = Clock::now();
  if (!was_admitted_) admitted_ = now;
  if (generated_ == 0) first_token_ = now;
  finish.reason = reason;
  finish.status = std::move(status);
  finish.prefilled = prefilled_;
  finish.reused = reused_;
  finish.drafts = draft_counts_;
  finish.queue_ms = Millis(admitted_ - submitted_);
  finish.prefill_ms = Millis(first_token_ - admitted_);
  finish.decode_ms = Millis(now - first_token_);
  finish.timeline = std::move(request_.timeline);
  outbox_.push_back({std::nullopt, std::move(finish)});
}

void Sequence::Deliver() {
  for (Generation::Event& event : outbox_) generation_->Push(std::move(event));
  outbox_.clear();
}

}  // namespace holdfast

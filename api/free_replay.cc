#include "api/free_replay.h"

#include <algorithm>
#include <utility>

#include "api/chat_stream.h"
#include "api/recorded_request.h"

namespace holdfast {
namespace {

// The turn whose input holds all edited items; null when there are no edits.
Result<const RecordedTurn*> TurnOfEdits(const Recording& recording,
                                        const std::vector<ReplayEdit>& edits) {
  const RecordedTurn* turn = nullptr;
  for (size_t i = 0; i < edits.size(); ++i) {
    const std::string field = "edits[" + std::to_string(i) + "].item: ";
    const int64_t item = edits[i].item;
    if (item < 0 || item >= static_cast<int64_t>(recording.items.size())) {
      return Status::Invalid(field + "the branch has " + std::to_string(recording.items.size()) +
                             " items");
    }
    if (recording.items[item].sampled) {
      return Status::Invalid(field + "item " + std::to_string(item) +
                             " is an answer: replay it from a point in it instead");
    }
    const RecordedTurn* of = recording.TurnOf(recording.items[item].first);
    if (of == nullptr) return Status::Invalid(field + "no answer follows that item");
    if (turn != nullptr && of != turn) {
      return Status::Invalid(field + "all edits must lie in the input of one answer");
    }
    turn = of;
  }
  return turn;
}

}  // namespace

Result<FreePlan> PlanFreeReplay(const Recording& recording, const ReplayRequest& request) {
  if (recording.turns.empty()) return Status::Invalid("branch: it has no answer to replay");
  FreePlan plan;
  HOLDFAST_ASSIGN_OR_RETURN(plan.turn, TurnOfEdits(recording, request.edits));
  if (request.from > 0) {
    const RecordedTurn* of = recording.TurnOf(request.from);
    if (of == nullptr) return Status::Invalid("from: no answer lies there or behind it");
    if (plan.turn != nullptr && of != plan.turn) {
      return Status::Invalid("from: the edited items belong to another answer");
    }
    plan.turn = of;
  }
  if (plan.turn == nullptr) plan.turn = &recording.turns.back();
  if (request.from > plan.turn->output) {
    if (!request.edits.empty()) {
      return Status::Invalid("from: an answer over edited items begins anew");
    }
    plan.forced.assign(recording.tokens.begin() + plan.turn->output,
                       recording.tokens.begin() + request.from);
  }
  plan.recorded.assign(recording.tokens.begin() + plan.turn->output,
                       recording.tokens.begin() + plan.turn->end);
  for (int64_t i = 0; i < plan.turn->items; ++i) {
    const int64_t item = plan.turn->first_item + i;
    const auto edit = std::find_if(request.edits.begin(), request.edits.end(),
                                   [&](const ReplayEdit& e) { return e.item == item; });
    plan.messages.push_back(MessageOf(recording.items[item]));
    if (edit != request.edits.end()) SetContent(edit->content, &plan.messages.back());
  }
  if (plan.messages.empty()) return Status::Invalid("from: no message comes before that answer");
  return plan;
}

bool FreePlan::Foreign() const {
  return std::any_of(changed.begin(), changed.end(), [](const std::string& name) {
    return name == "weights" || name == "tokenizer" || name == "model";
  });
}

Status MeetModel(const Recording& recording, const Basis& now, const Tokenizer& tokenizer,
                 FreePlan* plan) {
  const auto& then = plan->turn->basis;
  if (!then) return Status();
  plan->changed = ChangesBetween(*then, now);
  if (then->tokenizer == now.tokenizer) return Status();
  if (!plan->forced.empty()) {
    return Status::Invalid("from: the answer is in another tokenizer's tokens, and can only begin "
                           "anew");
  }
  const RecordedItem& answer = recording.items[plan->turn->first_item + plan->turn->items];
  HOLDFAST_ASSIGN_OR_RETURN(plan->recorded, tokenizer.EncodePlain(answer.content));
  return Status();
}

FreeReplay::FreeReplay(Recording recording, const FreePlan& plan,
                       std::unique_ptr<ChatStream> stream)
    : recording_(std::move(recording)), changed_(plan.changed), stream_(std::move(stream)) {
  outcome_.recorded_begin = plan.turn->output;
  outcome_.recorded = plan.recorded;
  if (plan.Foreign()) {
    outcome_.miss.emplace().reason = "model_changed";
    outcome_.miss->field = "model";
    outcome_.miss->at_token = plan.stands;
  }
  outcome_.forced = static_cast<int64_t>(plan.forced.size());
  item_ = plan.turn->first_item + plan.turn->items;
}

ReplayEvent FreeReplay::Event() const {
  ReplayEvent e;
  e.done = outcome_.begin + static_cast<int64_t>(outcome_.replayed.size());
  e.total = std::max(total_, e.done);
  return e;
}

void FreeReplay::TakeTokens(const ChatEvent& event) {
  for (size_t i = 0; i < event.tokens.size(); ++i) {
    const auto n = static_cast<int64_t>(outcome_.replayed.size());
    ReplayStep step;
    step.index = outcome_.begin + n;
    step.item = item_;
    step.origin = n < outcome_.forced ? TokenOrigin::kForced : TokenOrigin::kSampled;
    step.drawn = event.tokens[i];
    const bool there = n < static_cast<int64_t>(outcome_.recorded.size());
    step.recorded = there ? outcome_.recorded[n] : kNoToken;
    // Of another model there is none to compare.
    if (there && !outcome_.miss) {
      step.recorded_digest = recording_.digests[outcome_.recorded_begin + n];
    }
    if (i < event.logprobs.size()) {
      step.digest = event.logprobs[i].sample.logits_digest;
      step.logprob = event.logprobs[i].sample.logprob;
      step.top = event.logprobs[i].sample.top;
    }
    outcome_.replayed.push_back(event.tokens[i]);
    ReplayEvent e = Event();
    e.step = std::move(step);
    ready_.push_back(std::move(e));
  }
}

Status FreeReplay::TakeDone(ChatDone done) {
  if (done.finish == ChatFinish::kError || done.finish == ChatFinish::kCancelled) {
    return done.status.ok() ? Status::Cancelled("the replay was cancelled")
                            : std::move(done.status);
  }
  done.status.IgnoreError();
  outcome_.turn_id = done.report.start.turn_id;
  outcome_.branch = done.report.start.branch;
  outcome_.finish = FinishName(done.finish);
  outcome_.content = done.content;
  outcome_.replayed = done.completion_tokens;  // without what a stop string cut
  outcome_.diff = DiffTokens(outcome_.recorded, outcome_.replayed);
  ReplayEvent e = Event();
  ReplayReport report;
  report.tokens = static_cast<int64_t>(outcome_.replayed.size());
  report.changed = changed_;
  report.ms = done.report.restore_ms + done.report.queue_ms + done.report.prefill_ms +
              done.report.decode_ms;
  e.report = std::move(report);
  e.free = outcome_;
  ready_.push_back(std::move(e));
  return Status();
}

Result<std::optional<ReplayEvent>> FreeReplay::Next(int timeout_ms) {
  while (ready_.empty() && !ended_) {
    auto event = stream_->Next(timeout_ms);
    if (!event) return std::optional<ReplayEvent>();
    if (event->started) {
      outcome_.begin = event->started->prompt_tokens;
      total_ = outcome_.begin + static_cast<int64_t>(outcome_.recorded.size());
    }
    TakeTokens(*event);
    if (!event->done) continue;
    ended_ = true;
    HOLDFAST_RETURN_IF_ERROR(TakeDone(std::move(*event->done)));
  }
  if (ready_.empty()) return std::optional<ReplayEvent>();
  ReplayEvent e = std::move(ready_.front());
  ready_.pop_front();
  return std::optional<ReplayEvent>(std::move(e));
}

}  // namespace holdfast

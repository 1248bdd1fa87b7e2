// Inside the runtime: a recorded answer given again with something changed, as a new branch.
#pragma once

#include <deque>
#include <memory>
#include <string>

#include "api/runtime.h"

namespace holdfast {

// The turn that a free replay is of, and what goes into the new one. Pure.
struct FreePlan {
  const RecordedTurn* turn = nullptr;  // of the recording
  std::vector<ChatMessage> messages;   // its input, edited
  std::vector<TokenId> forced;         // of its answer, before the point
  std::vector<TokenId> recorded;       // its answer
  std::vector<std::string> changed;    // since then (ChangesBetween)
  int64_t stands = 0;                  // tokens of the branch that stand for what they stood for
  bool Foreign() const;                // another model or tokenizer gave it
};
// kInvalid, naming the field: no turn there, an edit of an answer, edits in more than one turn.
Result<FreePlan> PlanFreeReplay(const Recording& recording, const ReplayRequest& request);
// Compares with what answers now: the recorded answer of another tokenizer becomes text in this
// one's tokens. kInvalid: a point inside such an answer.
Status MeetModel(const Recording& recording, const Basis& now, const Tokenizer& tokenizer,
                 FreePlan* plan);

class FreeReplay : public Replay {
 public:
  FreeReplay(Recording recording, const FreePlan& plan, std::unique_ptr<ChatStream> stream);
  Result<std::optional<ReplayEvent>> Next(int timeout_ms) override;
  void Cancel() override { stream_->Cancel(); }
  const Recording& recording() const override { return recording_; }

 private:
  ReplayEvent Event() const;
  void TakeTokens(const ChatEvent& event);
  Status TakeDone(ChatDone done);

  Recording recording_;
  FreeOutcome outcome_;
  std::vector<std::string> changed_;
  std::unique_ptr<ChatStream> stream_;
  std::deque<ReplayEvent> ready_;
  int64_t total_ = 0;
  int64_t item_ = 0;
  bool ended_ = false;
};

}  // namespace holdfast

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
};
// kInvalid, naming the field: no turn there, an edit of an answer, edits in more than one turn.
Result<FreePlan> PlanFreeReplay(const Recording& recording, const ReplayRequest& request);

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
  std::unique_ptr<ChatStream> stream_;
  std::deque<ReplayEvent> ready_;
  int64_t total_ = 0;
  int64_t item_ = 0;
  bool ended_ = false;
};

}  // namespace holdfast

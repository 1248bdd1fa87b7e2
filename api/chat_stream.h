// Inside the runtime: a chat turn as a stream of events. LiveStream runs on its consumer's thread:
// it pulls what the engine makes, finds tool calls in the text, and commits the turn before kDone.
// ReplayStream serves a committed turn from the log.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "api/runtime.h"
#include "api/tool_calls.h"

namespace holdfast {

// Streams that are alive, so that a shutdown can wait for them.
class StreamCount {
 public:
  void Add();
  void Remove();
  bool WaitForNone(int timeout_ms);

 private:
  std::mutex mu_;
  std::condition_variable none_;
  int count_ = 0;
};

const char* FinishName(ChatFinish finish);  // as clients and the token log say it

// What a finished turn keeps for a replay: opaque to the keeper.
struct StoredResponse {
  ChatFinish finish = ChatFinish::kStop;
  std::string content, warning;
  std::vector<ToolCall> tool_calls;
};
std::string EncodeResponse(const StoredResponse& response);
Result<StoredResponse> DecodeResponse(std::string_view bytes);
// The assistant's message as a template sees it.
std::string AssistantJson(const std::string& content, const std::vector<ToolCall>& calls);

struct LiveStreamParts {
  Keeper* keeper = nullptr;
  Engine* engine = nullptr;
  Stitcher* stitcher = nullptr;
  StreamCount* alive = nullptr;
  std::unique_ptr<Turn> turn;
  std::shared_ptr<Generation> generation;
  std::vector<std::string> tool_names;  // empty: text is text
  ParallelCalls parallel = ParallelCalls::kMany;
  std::string warning;
  int top_logprobs = -1;
  size_t forced = 0;  // tokens that the request puts before what is drawn
};

class LiveStream : public ChatStream {
 public:
  explicit LiveStream(LiveStreamParts parts);
  ~LiveStream() override;
  std::optional<ChatEvent> Next(int timeout_ms) override;
  void Cancel() override;

 private:
  void Take(TokenEvent token);
  void Queue(std::vector<ToolCallEvent> pieces);
  void Finish(FinishEvent finish);
  ChatFinish End(const FinishEvent& finish, TurnOutcome outcome, ChatDone* done);
  void RelieveShortage();

  LiveStreamParts p_;
  ToolCallReader reader_;
  std::deque<ChatEvent> ready_;
  std::vector<GeneratedToken> generated_;
  std::string content_;
  std::vector<ToolCall> calls_;
  TurnStart start_;
  std::vector<TokenId> prompt_;
  bool started_ = false, ended_ = false;
  bool dropped_ = false;  // its consumer went away before the end
};

class ReplayStream : public ChatStream {
 public:
  ReplayStream(StreamCount* alive, const Turn& turn, StoredResponse response);
  ~ReplayStream() override;
  std::optional<ChatEvent> Next(int timeout_ms) override;
  void Cancel() override {}

 private:
  StreamCount* const alive_;
  std::deque<ChatEvent> ready_;
};

}  // namespace holdfast

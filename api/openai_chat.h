// /v1/chat/completions: bytes to ChatRequest, ChatEvents to bytes. JSON ends here (DESIGN section
// 7). Pure: no I/O, no state beyond an answer's own.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "api/api_error.h"
#include "api/fields.h"
#include "api/json.h"
#include "api/runtime.h"
#include "stitcher/segment_store.h"

namespace holdfast {

// What the HTTP side needs to know beside the ChatRequest itself.
struct ChatCall {
  ChatRequest request;
  std::string model;            // as asked for; the answer names the real one
  bool stream = false;
  bool include_usage = false;   // stream_options.include_usage
  bool return_token_ids = false;
  bool logprobs = false;
};

inline constexpr size_t kMaxMessages = 4096;
inline constexpr size_t kMaxTools = 512;
inline constexpr size_t kMaxTextBytes = 16u << 20;  // of one content

// What a content part that names a segment stands for (SegmentNamed, in segments.h).
using SegmentReader = std::function<Result<SegmentBody>(std::string_view id)>;

// Reads the body of POST /v1/chat/completions (or of POST .../turns, whose `messages` only add).
// Fills everything but tenant, request id and idempotency key. Fields that we do not know are
// ignored, as agents send many.
std::optional<ApiError> ReadChatCall(std::string_view body, const SegmentReader& segments,
                                     ChatCall* out);

// One message of a history. `path`: where it stands, for errors.
ChatMessage ReadMessage(const Json& object, const std::string& path,
                        const SegmentReader& segments, std::optional<ApiError>* error);
// `pin` and `wake_at`: what a client says of a branch's future.
void ReadForesight(Fields& body, std::optional<bool>* pin, int64_t* wake_at_ms);

// The `miss` object of responses, or null.
Json MissJson(const std::optional<Miss>& miss);
// Tokens by how their KV was made.
Json TotalsJson(const ProvenanceTotals& totals);
// Where the branch stands once the turn is committed; nullopt: it is not, or was served again.
std::optional<HeadTag> HeadAfter(const TurnReport& report);
// The `keeper` object of responses.
Json KeeperJson(const TurnReport& report);
Json UsageJson(const ChatDone& done);

// Writes one answer, whole or as chunks; both carry the same id and time.
class ChatWriter {
 public:
  ChatWriter(const ChatCall& call, std::string id, std::string model, int64_t created_unix_s);

  // chat.completion
  std::string Whole(const ChatDone& done, const std::vector<TokenId>& tokens,
                    const std::vector<ChatTokenLogprob>& logprobs) const;

  // chat.completion.chunk: the `data:` payloads for one event, none to a few.
  std::vector<std::string> Chunks(const ChatEvent& event);

 private:
  Json Base(std::string_view object) const;
  std::string Chunk(Json delta, const ChatEvent& event, Json finish_reason = nullptr) const;

  const ChatCall& call_;
  std::string id_, model_;
  int64_t created_;
  bool role_sent_ = false;
};

}  // namespace holdfast

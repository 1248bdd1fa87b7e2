// Inside the runtime: what of a ChatRequest decides its answer beside messages and tools, as text
// for the token log, and back again for a replay.
#pragma once

#include <string>
#include <string_view>

#include "api/runtime.h"

namespace holdfast {

// One JSON object: sampling, limits, stops, tool choice, format.
std::string SamplingText(const ChatRequest& request);

// The fields of `text` into *request; those that it lacks stay as they are. `tools_json`: the
// request's tools, "" = none. kInvalid for a field of the wrong type (of a replay's own wishes).
Status ReadSamplingText(std::string_view text, ChatRequest* request);
Status ReadToolsText(std::string_view tools_json, ChatRequest* request);

// A message of the log as a request has it: `raw_json` with its tool calls read again.
ChatMessage MessageOf(const RecordedItem& item);
// Gives a message another content.
void SetContent(const std::string& content, ChatMessage* message);

}  // namespace holdfast

// A chat turn as benches take it: what is said, and when its tokens came.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "api/runtime.h"

namespace holdfast {

ChatMessage BenchMessage(const std::string& role, const std::string& text);

// A log of sentences of `tokens` tokens or a few hundred more; another one for each `number`.
using CountTokens = std::function<Result<int64_t>(const std::string& text)>;
Result<std::string> LogText(int64_t tokens, int number, const CountTokens& count);
CountTokens CounterOf(Runtime& runtime);

struct TimedTurn {
  double first_ms = 0;  // from the call to the first token (to the end where there was none)
  double rate = 0;      // tok/s from the first event with tokens to the last
  double ack_ms = 0;    // from the last token to the end, which comes after the commit
  ChatDone done;        // its status is ok
};
// Takes a turn to its end; its status where that is not ok. Any thread.
Result<TimedTurn> TakeTurn(Runtime& runtime, ChatRequest request);

}  // namespace holdfast

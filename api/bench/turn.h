// A chat turn as benches take it: what is said, and when its tokens came.
#pragma once

#include <string>

#include "api/runtime.h"

namespace holdfast {

ChatMessage BenchMessage(const std::string& role, const std::string& text);

struct TimedTurn {
  double first_ms = 0;  // from the call to the first token (to the end where there was none)
  double rate = 0;      // tok/s from the first event with tokens to the last
  ChatDone done;        // its status is ok
};
// Takes a turn to its end; its status where that is not ok. Any thread.
Result<TimedTurn> TakeTurn(Runtime& runtime, ChatRequest request);

}  // namespace holdfast

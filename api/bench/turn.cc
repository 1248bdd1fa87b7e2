#include "api/bench/turn.h"

#include <chrono>
#include <optional>

#include "api/json.h"

namespace holdfast {

using Clock = std::chrono::steady_clock;

ChatMessage BenchMessage(const std::string& role, const std::string& text) {
  ChatMessage m;
  m.role = role;
  m.text = text;
  m.raw_json = DumpJson({{"role", role}, {"content", text}});
  return m;
}

Result<TimedTurn> TakeTurn(Runtime& runtime, ChatRequest request) {
  const auto start = Clock::now();
  std::optional<Clock::time_point> first, last;
  int64_t after_first = 0;  // tokens that came after the first event that had some
  HOLDFAST_ASSIGN_OR_RETURN(auto stream, runtime.Chat(std::move(request)));
  for (;;) {
    auto event = stream->Next(-1);
    if (!event.has_value()) continue;
    if (!event->tokens.empty()) {
      last = Clock::now();
      if (first) after_first += static_cast<int64_t>(event->tokens.size());
      if (!first) first = last;
    }
    if (!event->done.has_value()) continue;
    if (!event->done->status.ok()) return event->done->status;
    const auto answered = first.value_or(Clock::now());
    const std::chrono::duration<double> first_s = answered - start;
    const std::chrono::duration<double> rest_s = last.value_or(answered) - answered;
    const double seconds = rest_s.count();
    return TimedTurn{1000 * first_s.count(),
                     seconds > 0 ? static_cast<double>(after_first) / seconds : 0,
                     std::move(*event->done)};
  }
}

}  // namespace holdfast

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

Result<std::string> LogText(int64_t tokens, int number, const CountTokens& count) {
  std::string text = "You are agent " + std::to_string(number) + ". This is your log.\n";
  int64_t there = 0;
  for (int i = 0; there < tokens; ++i) {
    text += "Entry " + std::to_string((i + 13 * number) * 7919 % 10007) + ": step " +
            std::to_string(i) + " went well. ";
    if (i % 16 != 15) continue;
    HOLDFAST_ASSIGN_OR_RETURN(there, count(text));
  }
  return text;
}

CountTokens CounterOf(Runtime& runtime) {
  return [&tokenizer = runtime.engine().tokenizer()](const std::string& text) -> Result<int64_t> {
    HOLDFAST_ASSIGN_OR_RETURN(const auto ids, tokenizer.EncodePlain(text));
    return static_cast<int64_t>(ids.size());
  };
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
    const auto end = Clock::now();
    const auto answered = first.value_or(end);
    const std::chrono::duration<double> first_s = answered - start;
    const std::chrono::duration<double> rest_s = last.value_or(answered) - answered;
    const std::chrono::duration<double> ack_s = end - last.value_or(end);
    const double seconds = rest_s.count();
    return TimedTurn{1000 * first_s.count(),
                     seconds > 0 ? static_cast<double>(after_first) / seconds : 0,
                     1000 * ack_s.count(), std::move(*event->done)};
  }
}

}  // namespace holdfast

// Finds tool calls in an answer as it is written: text goes in, text and calls come out.
//
// Small models write calls in many shapes; all of these are taken for calls when the name is one of
// the request's tools, the JSON is whole, and (but for the tagged shape) it ends the message:
//   <tool_call>{"name": "f", "arguments": {...}}</tool_call>    once or more, the end tag may lack
//   {"name": "f", "arguments": {...}}                           bare, at the start of a line; also
//   [{"name": ...}, {"name": ...}]                              several, or one after another
//   ```json                                                     the same inside a fence
//   {"function": {"name": ..., "arguments": "{...}"}}           OpenAI's own; `parameters` too
// Arguments may be an object or a string that spells one; they come out as JSON text with the
// model's order of keys.
//
// What may become a call is held back: at most kMaxUnsure bytes while no name of a tool has been
// seen in it, then it is text. Everything else comes out at once. Pure: a function of the text,
// however it is cut into pieces. One thread at a time.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "sessions/turn.h"

namespace holdfast {

struct ToolCallEvent {
  enum class Kind : uint8_t { kText, kCall } kind = Kind::kText;
  std::string text;  // kText
  int index = 0;     // kCall
  ToolCall call;     // kCall, whole
};

class ToolCallReader {
 public:
  static constexpr size_t kMaxUnsure = 4096;
  static constexpr int kMaxDepth = 64;      // of a call's JSON; deeper is text
  static constexpr int kMaxCalls = 128;     // in one message

  struct Options {
    std::vector<std::string> names;  // of the tools on offer; empty: everything is text
    ParallelCalls parallel = ParallelCalls::kMany;  // kOne: calls after the first are dropped
    std::function<std::string(int index)> new_id;
  };
  explicit ToolCallReader(Options options) : options_(std::move(options)) {}

  std::vector<ToolCallEvent> Push(std::string_view text);
  // The message has ended.
  std::vector<ToolCallEvent> Finish();
  bool any_calls() const { return calls_ > 0; }

 private:
  enum class Shape : uint8_t { kNone, kTagged, kBare, kFenced };
  enum class Verdict : uint8_t { kMore, kCalls, kText };

  void Step(bool at_end);
  bool FindCandidate(bool at_end);
  Verdict Judge(bool at_end);
  Verdict JudgeTagged(bool at_end);
  Verdict JudgeUntilEnd(bool at_end);
  // Reads one JSON value of calls at held_[at ..]; moves `at` behind it.
  Verdict ReadCalls(size_t* at, bool at_end);
  bool IsSure() const;
  void EmitText(std::string_view text);
  void EmitCalls();
  void GiveUp();

  const Options options_;
  std::vector<ToolCallEvent> out_;
  std::string held_;       // not yet decided, or blanks that may stand before a call
  Shape shape_ = Shape::kNone;
  std::vector<ToolCall> found_;  // in the candidate that is held
  size_t consumed_ = 0;    // of held_: the tagged call that was just read
  size_t skip_ = 0;        // bytes of held_ that were judged to be text
  bool line_start_ = true; // only blanks since the last newline before held_
  int calls_ = 0;
};

}  // namespace holdfast

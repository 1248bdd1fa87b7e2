#include "api/tool_calls.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace holdfast {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kOpenTag = "<tool_call>";
constexpr std::string_view kCloseTag = "</tool_call>";
constexpr std::string_view kFence = "```";
constexpr std::string_view kBlanks = " \t\r\n";

size_t SkipBlanks(std::string_view s, size_t at) {
  const size_t next = s.find_first_not_of(kBlanks, at);
  return next == std::string_view::npos ? s.size() : next;
}

// How a JSON value that begins at `at` with '{' or '[' ends: its end, kOpen (more to come), or
// kBad.
constexpr size_t kOpen = std::string_view::npos, kBad = kOpen - 1;
size_t EndOfJson(std::string_view s, size_t at) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = at; i < s.size(); ++i) {
    const char c = s[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > ToolCallReader::kMaxDepth) return kBad;
    } else if (c == '}' || c == ']') {
      if (--depth == 0) return i + 1;
    }
  }
  return kOpen;
}

// False when the first key of the object at `at` is there and no call begins so.
bool MayBeCall(std::string_view s, size_t at) {
  at = SkipBlanks(s, at);
  while (at < s.size() && s[at] == '[') at = SkipBlanks(s, at + 1);
  if (at >= s.size()) return true;
  if (s[at] != '{') return false;
  at = SkipBlanks(s, at + 1);
  if (at >= s.size()) return true;
  if (s[at] != '"') return false;
  const std::string_view key = s.substr(at + 1);
  for (std::string_view known : {"name", "arguments", "parameters", "function", "type", "id"}) {
    const std::string quoted = std::string(known) + '"';
    if (key.starts_with(quoted) || std::string_view(quoted).starts_with(key)) return true;
  }
  return false;
}

// The call that an object spells; false when it is none of ours.
bool ReadCall(const Json& object, const std::vector<std::string>& names, ToolCall* call) {
  if (!object.is_object()) return false;
  const Json* body = &object;
  if (const auto f = object.find("function"); f != object.end() && f->is_object()) body = &*f;
  const auto name = body->find("name");
  if (name == body->end() || !name->is_string()) return false;
  call->name = name->get<std::string>();
  if (std::find(names.begin(), names.end(), call->name) == names.end()) return false;
  auto arguments = body->find("arguments");
  if (arguments == body->end()) arguments = body->find("parameters");
  if (arguments == body->end() || arguments->is_null()) {
    call->arguments = "{}";
  } else if (arguments->is_object()) {
    call->arguments = arguments->dump(-1, ' ', false, Json::error_handler_t::replace);
  } else if (arguments->is_string()) {
    call->arguments = arguments->get<std::string>();
    if (EndOfJson(call->arguments, SkipBlanks(call->arguments, 0)) == kBad ||
        !Json::accept(call->arguments)) {
      return false;
    }
  } else {
    return false;
  }
  return true;
}

// The calls of one JSON value: an object or a list of them.
bool ParseCalls(std::string_view text, const std::vector<std::string>& names,
                std::vector<ToolCall>* calls) {
  try {
    const Json value = Json::parse(text, nullptr, false);
    if (value.is_discarded() || (!value.is_array() && !value.is_object())) return false;
    if (value.is_object()) {
      ToolCall call;
      if (!ReadCall(value, names, &call)) return false;
      calls->push_back(std::move(call));
      return true;
    }
    for (const Json& element : value) {
      ToolCall call;
      if (!ReadCall(element, names, &call)) return false;
      calls->push_back(std::move(call));
    }
    return !value.empty();
  } catch (const Json::exception&) {
    return false;
  }
}

}  // namespace

std::vector<ToolCallEvent> ToolCallReader::Push(std::string_view text) {
  if (options_.names.empty()) {
    EmitText(text);
    return std::exchange(out_, {});
  }
  held_ += text;
  Step(false);
  return std::exchange(out_, {});
}

std::vector<ToolCallEvent> ToolCallReader::Finish() {
  Step(true);
  // Blanks at the end belong to the text, unless only calls came.
  if (calls_ == 0) EmitText(held_);
  held_.clear();
  return std::exchange(out_, {});
}

void ToolCallReader::Step(bool at_end) {
  while (shape_ != Shape::kNone || FindCandidate(at_end)) {
    switch (Judge(at_end)) {
      case Verdict::kMore:
        return;
      case Verdict::kCalls:
        EmitCalls();
        break;
      case Verdict::kText:
        GiveUp();
        break;
    }
  }
}

// Emits what is text for certain and stops before the first place where a call may begin; false
// when there is none yet. What is held then is blanks, or the beginning of a tag.
bool ToolCallReader::FindCandidate(bool at_end) {
  bool line_start = line_start_;
  size_t blanks = 0;  // where the blanks before `i` begin
  for (size_t i = 0; i < held_.size(); ++i) {
    const std::string_view rest = std::string_view(held_).substr(i);
    Shape shape = Shape::kNone;
    if (i >= skip_) {
      const bool tag = rest.starts_with(kOpenTag) || (!at_end && kOpenTag.starts_with(rest));
      const bool fence = rest.starts_with(kFence) || (!at_end && kFence.starts_with(rest));
      if (tag) shape = Shape::kTagged;
      if (line_start && fence) shape = Shape::kFenced;
      if (line_start && (rest[0] == '{' || rest[0] == '[')) shape = Shape::kBare;
    }
    if (shape != Shape::kNone) {
      EmitText(std::string_view(held_).substr(0, blanks));
      held_.erase(0, blanks);
      skip_ = 0;
      shape_ = shape;
      return true;
    }
    if (held_[i] == '\n') {
      line_start = true;
    } else if (held_[i] != ' ' && held_[i] != '\t' && held_[i] != '\r') {
      line_start = false;
      blanks = i + 1;
    }
  }
  EmitText(std::string_view(held_).substr(0, blanks));
  skip_ -= std::min(skip_, blanks);
  held_.erase(0, blanks);
  return false;
}

ToolCallReader::Verdict ToolCallReader::Judge(bool at_end) {
  found_.clear();
  consumed_ = 0;
  const Verdict v = shape_ == Shape::kTagged ? JudgeTagged(at_end) : JudgeUntilEnd(at_end);
  if (v == Verdict::kMore && (at_end || (held_.size() > kMaxUnsure && !IsSure()))) {
    return Verdict::kText;
  }
  return v;
}

ToolCallReader::Verdict ToolCallReader::JudgeTagged(bool at_end) {
  const std::string_view s = held_;
  size_t at = SkipBlanks(s, 0);
  if (!s.substr(at).starts_with(kOpenTag)) {
    return kOpenTag.starts_with(s.substr(at)) ? Verdict::kMore : Verdict::kText;
  }
  at += kOpenTag.size();
  if (const Verdict v = ReadCalls(&at, at_end); v != Verdict::kCalls) return v;
  const size_t close = SkipBlanks(s, at);
  const std::string_view rest = s.substr(close);
  if (rest.starts_with(kCloseTag)) {
    consumed_ = close + kCloseTag.size();
    return Verdict::kCalls;
  }
  if (!at_end && kCloseTag.starts_with(rest)) return Verdict::kMore;
  consumed_ = at;  // the end tag lacks
  return Verdict::kCalls;
}

// Bare and fenced calls: nothing but calls, fences and blanks up to the end of the message.
ToolCallReader::Verdict ToolCallReader::JudgeUntilEnd(bool at_end) {
  const std::string_view s = held_;
  bool fenced = false;
  for (size_t at = SkipBlanks(s, 0); at < s.size(); at = SkipBlanks(s, at)) {
    const std::string_view rest = s.substr(at);
    if (rest.starts_with(kFence)) {
      at += kFence.size();
      if (!fenced) {  // the language's name, up to the line's end
        const size_t line = s.find('\n', at);
        if (line == std::string_view::npos) return at_end ? Verdict::kText : Verdict::kMore;
        const std::string_view language = s.substr(at, s.find_last_not_of(kBlanks, line) + 1 - at);
        if (language != "json" && language != "tool_call" && !language.empty()) {
          return Verdict::kText;
        }
        at = line;
      }
      fenced = !fenced;
    } else if (kFence.starts_with(rest) && !at_end) {
      return Verdict::kMore;
    } else if ((rest[0] == ',' || rest[0] == ';') && !found_.empty()) {
      ++at;
    } else {
      if (const Verdict v = ReadCalls(&at, at_end); v != Verdict::kCalls) return v;
    }
  }
  if (!at_end) return Verdict::kMore;
  consumed_ = s.size();
  return found_.empty() ? Verdict::kText : Verdict::kCalls;
}

ToolCallReader::Verdict ToolCallReader::ReadCalls(size_t* at, bool at_end) {
  const std::string_view s = held_;
  *at = SkipBlanks(s, *at);
  if (*at >= s.size()) return at_end ? Verdict::kText : Verdict::kMore;
  if ((s[*at] != '{' && s[*at] != '[') || !MayBeCall(s, *at)) return Verdict::kText;
  const size_t end = EndOfJson(s, *at);
  if (end == kBad) return Verdict::kText;
  if (end == kOpen) return at_end ? Verdict::kText : Verdict::kMore;
  if (!ParseCalls(s.substr(*at, end - *at), options_.names, &found_)) return Verdict::kText;
  if (static_cast<int>(found_.size()) + calls_ > kMaxCalls) return Verdict::kText;
  *at = end;
  return Verdict::kCalls;
}

// Whether the name of a tool was seen where a call has it.
bool ToolCallReader::IsSure() const {
  const std::string_view s = held_;
  static constexpr std::string_view kName = "\"name\"";
  const size_t key = s.find(kName);
  if (key == std::string_view::npos) return false;
  size_t at = SkipBlanks(s, key + kName.size());
  if (at >= s.size() || s[at] != ':') return false;
  at = SkipBlanks(s, at + 1);
  for (const std::string& name : options_.names) {
    if (s.substr(at).starts_with('"' + name + '"')) return true;
  }
  return false;
}

void ToolCallReader::EmitText(std::string_view text) {
  if (text.empty()) return;
  const size_t last = text.find_last_not_of(" \t\r");
  if (last != std::string_view::npos) line_start_ = text[last] == '\n';
  if (!out_.empty() && out_.back().kind == ToolCallEvent::Kind::kText) {
    out_.back().text += text;
    return;
  }
  ToolCallEvent event;
  event.text = text;
  out_.push_back(std::move(event));
}

void ToolCallReader::EmitCalls() {
  for (ToolCall& call : found_) {
    if (options_.parallel == ParallelCalls::kOne && calls_ > 0) break;
    ToolCallEvent event;
    event.kind = ToolCallEvent::Kind::kCall;
    event.index = calls_++;
    event.call = std::move(call);
    event.call.id = options_.new_id(event.index);
    out_.push_back(std::move(event));
  }
  found_.clear();
  held_.erase(0, consumed_);
  shape_ = Shape::kNone;
  line_start_ = true;
}

// What is held is no call: its first sign of one is text, the rest is looked at again.
void ToolCallReader::GiveUp() {
  skip_ = SkipBlanks(held_, 0) + 1;
  shape_ = Shape::kNone;
}

}  // namespace holdfast

#include "sessions/history.h"

#include <algorithm>

namespace holdfast {
namespace {

constexpr std::string_view kBlanks = " \t\r\n";

// Bytes [begin, end) of a text, ascending: those that count.
using Parts = std::vector<std::pair<size_t, size_t>>;

size_t SkipBlanks(std::string_view text, size_t at) {
  return std::min(text.find_first_not_of(kBlanks, at), text.size());
}

void CutTrailingBlanks(std::string_view text, Parts* parts) {
  while (!parts->empty()) {
    auto& [begin, end] = parts->back();
    while (end > begin && kBlanks.find(text[end - 1]) != std::string_view::npos) --end;
    if (end > begin) return;
    parts->pop_back();
  }
}

// The line may have lost its end where a client's text blocks were joined, so it is read pair by
// pair.
Parts WithoutAttribution(std::string_view text) {
  constexpr std::string_view kMark = "x-anthropic-billing-header:";
  constexpr std::string_view kName = "abcdefghijklmnopqrstuvwxyz_";
  Parts parts;
  size_t begin = 0, at = text.find(kMark);
  if (at != std::string_view::npos && (at == 0 || text[at - 1] == '\n')) {
    at += kMark.size();
    while (at < text.size()) {
      const size_t equals = text.find_first_not_of(kName, text.find_first_not_of(' ', at));
      if (equals == std::string_view::npos || text[equals] != '=') break;
      parts.push_back({begin, equals});
      begin = std::min(text.find_first_of("; \r\n", equals), text.size());
      at = begin < text.size() && text[begin] == ';' ? begin + 1 : text.size();
    }
  }
  parts.push_back({begin, text.size()});
  return parts;
}

Parts WithoutReminders(std::string_view text) {
  constexpr std::string_view kOpen = "<system-reminder>", kClose = "</system-reminder>";
  Parts parts;
  size_t begin = 0;
  for (size_t at; (at = text.find(kOpen, begin)) != std::string_view::npos;) {
    const size_t close = text.find(kClose, at);
    if (close == std::string_view::npos) break;
    parts.push_back({begin, at});
    begin = SkipBlanks(text, close + kClose.size());
  }
  const bool cut_last = begin == text.size() && !parts.empty();
  parts.push_back({begin, text.size()});
  if (cut_last) CutTrailingBlanks(text, &parts);
  return parts;
}

// A template may have opened the reasoning itself: then only its end is there, on its own line.
Parts WithoutReasoning(std::string_view text) {
  constexpr std::string_view kOpen = "<think>", kClose = "</think>";
  size_t begin = SkipBlanks(text, 0);
  const bool opened = text.substr(begin).starts_with(kOpen);
  const size_t close = text.find(kClose);
  if (close != std::string_view::npos) {
    const size_t after = close + kClose.size();
    const bool whole_line = after == text.size() || text[after] == '\n';
    if (opened || (whole_line && text.substr(0, close).find(kOpen) == std::string_view::npos)) {
      begin = SkipBlanks(text, after);
    }
  }
  Parts parts = {{begin, text.size()}};
  CutTrailingBlanks(text, &parts);
  return parts;
}

Parts CountingParts(std::string_view role, std::string_view text) {
  if (role == "system") return WithoutAttribution(text);
  if (role == "assistant") return WithoutReasoning(text);
  return WithoutReminders(text);
}

std::string Join(std::string_view text, const Parts& parts) {
  std::string out;
  for (const auto& [begin, end] : parts) out += text.substr(begin, end - begin);
  return out;
}

// The field that differs, or nullptr when `stored` stands for `sent`.
const char* DifferingField(const ItemIdentity& stored, const ItemIdentity& sent) {
  if (stored.role != sent.role) return "role";
  if (stored.call_id != sent.call_id) {
    return stored.role == "assistant" ? "tool_calls" : "tool_call_id";
  }
  // Calls are named by their ids; their text and arguments may have been rewritten.
  if (stored.role == "assistant" && !stored.call_id.empty()) return nullptr;
  return stored.content == sent.content ? nullptr : "content";
}

}  // namespace

std::string CountingText(std::string_view role, std::string_view text) {
  return Join(text, CountingParts(role, text));
}

ItemIdentity IdentityOf(const ChatMessage& message) {
  ItemIdentity id;
  id.role = message.role;
  if (message.role == "assistant") {
    for (const ToolCall& call : message.tool_calls) {
      if (!id.call_id.empty()) id.call_id += '\n';
      id.call_id += call.id;
    }
  } else {
    id.call_id = message.tool_call_id;
  }
  id.content = Hasher("item-content-1").Text(CountingText(id.role, message.text)).Finish();
  return id;
}

bool StandsFor(const ItemIdentity& stored, const ItemIdentity& sent) {
  return DifferingField(stored, sent) == nullptr;
}

int History::Newest() const {
  auto n = static_cast<int>(messages.size());
  while (n > 0 && messages[n - 1].role != "assistant") --n;
  return n;
}

HistoryMatch MatchHistory(std::span<const StoredItem> stored,
                          std::span<const ItemIdentity> messages) {
  HistoryMatch out;
  const size_t common = std::min(stored.size(), messages.size());
  const char* field = nullptr;
  for (size_t i = 0; i < common; ++i) {
    field = DifferingField(stored[i].identity, messages[i]);
    if (field != nullptr) break;
    out.matched = static_cast<int>(i) + 1;
    if (stored[i].sampled) out.resume = out.matched;
  }
  if (static_cast<size_t>(out.matched) == stored.size()) return out;
  Miss miss;
  miss.reason = field != nullptr ? "message_changed" : "history_shorter";
  miss.message = out.matched;
  if (field != nullptr) miss.field = field;
  miss.at_token = out.matched > 0 ? stored[out.matched - 1].end : 0;
  out.miss = std::move(miss);
  return out;
}

Digest LineageRoot(const Digest& context) { return Hasher("lineage-1").Add(context).Finish(); }

Digest LineageNext(const Digest& before, const ItemIdentity& item) {
  const bool by_calls = item.role == "assistant" && !item.call_id.empty();
  return Hasher("lineage-1")
      .Add(before)
      .Text(item.role)
      .Text(item.call_id)
      .Add(by_calls ? Digest{} : item.content)
      .Finish();
}

int64_t FirstDifference(std::string_view a, std::string_view b) {
  if (a == b) return -1;
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

int64_t FirstDifference(std::string_view role, std::string_view stored, std::string_view sent) {
  const Parts parts = CountingParts(role, sent);
  int64_t left = FirstDifference(CountingText(role, stored), Join(sent, parts));
  if (left < 0) return left;
  for (const auto& [begin, end] : parts) {
    const auto size = static_cast<int64_t>(end - begin);
    if (left < size) return static_cast<int64_t>(begin) + left;
    left -= size;
  }
  return static_cast<int64_t>(sent.size());
}

std::string DifferingCall(const ItemIdentity& stored, const ChatMessage& sent) {
  std::string_view ids = stored.call_id;
  for (const ToolCall& call : sent.tool_calls) {
    const std::string_view id = ids.substr(0, ids.find('\n'));
    if (id != call.id || ids.empty()) return call.id.empty() ? call.name : call.id;
    ids.remove_prefix(std::min(id.size() + 1, ids.size()));
  }
  return std::string(ids.substr(0, ids.find('\n')));
}

}  // namespace holdfast

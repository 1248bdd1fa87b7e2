#include "sessions/history.h"

#include <algorithm>

namespace holdfast {
namespace {

std::string_view WithoutTrailingBlanks(std::string_view text) {
  const size_t last = text.find_last_not_of(" \t\r\n");
  return last == std::string_view::npos ? std::string_view() : text.substr(0, last + 1);
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

ItemIdentity IdentityOf(const ChatMessage& message) {
  ItemIdentity id;
  id.role = message.role;
  if (message.role == "assistant") {
    for (const ToolCall& call : message.tool_calls) {
      if (!id.call_id.empty()) id.call_id += '\n';
      id.call_id += call.id;
    }
    id.content = Hasher("item-content-1").Text(WithoutTrailingBlanks(message.text)).Finish();
  } else {
    id.call_id = message.tool_call_id;
    id.content = Hasher("item-content-1").Text(message.text).Finish();
  }
  return id;
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

}  // namespace holdfast

#include "sessions/history.h"

#include <algorithm>

#include "engine/text/tool_list.h"

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

// As they say the same, however they are written: keys in order, no blanks.
std::string SameArguments(const std::string& arguments) {
  const auto list = CanonicalTools("[{\"function\":" + arguments + "}]");
  return list.ok() && list->size() == 1 ? list->front().json : arguments;
}

std::vector<std::string_view> Ids(std::string_view joined) {
  std::vector<std::string_view> out;
  for (size_t at = 0, end = 0; !joined.empty() && end != std::string_view::npos; at = end + 1) {
    end = joined.find('\n', at);
    out.push_back(joined.substr(at, end - at));
  }
  return out;
}

// The calls of an assistant's message.
std::vector<std::string_view> CallsOf(const ItemIdentity& m) {
  return Ids(m.role == "assistant" ? std::string_view(m.call_id) : std::string_view());
}

// Of a conversation as the log has it and as it was sent, up to the messages that are compared.
struct BothCalls {
  CallNumbers stored, sent;
};

bool SameCalls(const ItemIdentity& stored, const ItemIdentity& sent, const BothCalls& calls) {
  if (stored.role == "assistant") {
    if (stored.call_id == sent.call_id) return true;
    const size_t count = CallsOf(stored).size();
    return count > 0 && count == CallsOf(sent).size() && stored.content == sent.content;
  }
  const int64_t before = calls.stored.Of(stored.call_id), now = calls.sent.Of(sent.call_id);
  return before < 0 && now < 0 ? stored.call_id == sent.call_id : before == now;
}

// The field that differs, or nullptr when `stored` stands for `sent`.
const char* DifferingField(const ItemIdentity& stored, const ItemIdentity& sent,
                           const BothCalls& calls) {
  if (stored.role != sent.role) return "role";
  if (!SameCalls(stored, sent, calls)) {
    return stored.role == "assistant" ? "tool_calls" : "tool_call_id";
  }
  // Of calls with the same ids the text and the arguments may have been rewritten.
  if (stored.role == "assistant" && !stored.call_id.empty()) return nullptr;
  return stored.content == sent.content ? nullptr : "content";
}

Digest ContentOf(std::string_view role, std::string_view text, std::span<const ToolCall> calls) {
  Hasher content("item-content-1");
  content.Text(CountingText(role, text));
  for (const ToolCall& call : calls) content.Text(call.name).Text(SameArguments(call.arguments));
  return content.Finish();
}

int NewestOf(std::span<const ItemIdentity> messages) {
  auto n = static_cast<int>(messages.size());
  while (n > 0 && messages[n - 1].role != "assistant") --n;
  return n;
}

}  // namespace

std::string CountingText(std::string_view role, std::string_view text) {
  return Join(text, CountingParts(role, text));
}

std::string CallIdsOf(const ChatMessage& message) {
  if (message.role != "assistant") return message.tool_call_id;
  std::string ids;
  for (const ToolCall& call : message.tool_calls) {
    if (!ids.empty()) ids += '\n';
    ids += call.id;
  }
  return ids;
}

ItemIdentity IdentityOf(const ChatMessage& message) {
  ItemIdentity id;
  id.role = message.role;
  id.call_id = CallIdsOf(message);
  id.content = ContentOf(id.role, message.text, message.tool_calls);
  return id;
}

bool StandsFor(const ItemIdentity& stored, const ItemIdentity& sent) {
  return DifferingField(stored, sent, {}) == nullptr;
}

bool Counts(const ItemIdentity& message) {
  static const Digest kNothing = ContentOf("user", "", {});
  return message.role != "user" || message.content != kNothing;
}

void CallNumbers::Add(const ItemIdentity& message) {
  for (const std::string_view id : CallsOf(message)) {
    if (!id.empty()) last_[std::string(id)] = static_cast<int64_t>(ids_.size());
    ids_.emplace_back(id);
  }
}

int64_t CallNumbers::Of(std::string_view id) const {
  const auto it = last_.find(id);
  return it == last_.end() ? -1 : it->second;
}

std::string WithCallIds(std::string raw_json, std::string_view stored, std::string_view sent) {
  const auto ours = Ids(stored), theirs = Ids(sent);
  const auto plain = [](unsigned char c) {
    return c == '\n' || (c >= ' ' && c != '"' && c != '\\');
  };
  if (ours.size() != theirs.size() || !std::all_of(sent.begin(), sent.end(), plain)) {
    return raw_json;
  }
  size_t at = 0;
  for (size_t i = 0; i < ours.size(); ++i) {
    // "id" or "tool_call_id": quotes inside of strings have a mark before them.
    const std::string mine = "id\":\"" + std::string(ours[i]) + "\"";
    at = raw_json.find(mine, at);
    if (at == std::string::npos) break;
    const std::string other = "id\":\"" + std::string(theirs[i]) + "\"";
    raw_json.replace(at, mine.size(), other);
    at += other.size();
  }
  return raw_json;
}

int History::Newest() const { return NewestOf(identities); }

void History::Follow(std::span<const StoredItem> stored, const HistoryMatch& match) {
  History out;
  BothCalls calls;
  const auto add = [&](int message, ItemIdentity identity) {
    if (message >= 0) calls.sent.Add(identities[message]);
    calls.stored.Add(identity);
    ChatMessage taken;
    taken.role = identity.role;
    if (message >= 0) taken = std::move(messages[message]);
    out.Add(std::move(taken), std::move(identity));
  };
  for (int i = 0; i < match.matched; ++i) {
    const int message = match.messages[i];
    ItemIdentity identity = stored[i].identity;
    if (message >= 0) identity.content = identities[message].content;
    add(message, std::move(identity));
  }
  for (int i = match.sent; i < static_cast<int>(messages.size()); ++i) {
    ItemIdentity identity = identities[i];
    const int64_t call = calls.sent.Of(identity.call_id);
    if (identity.role != "assistant" && call >= 0) identity.call_id = calls.stored.IdOf(call);
    add(i, std::move(identity));
  }
  *this = std::move(out);
}

int HistoryMatch::SentAs(int i) const {
  if (i >= matched) return sent + i - matched;
  while (i < matched && messages[i] < 0) ++i;
  return i < matched ? messages[i] : sent;
}

HistoryMatch MatchHistory(std::span<const StoredItem> stored,
                          std::span<const ItemIdentity> messages, HistoryMode mode) {
  HistoryMatch out;
  const size_t newest = mode == HistoryMode::kAsSent ? 0 : NewestOf(messages);
  BothCalls calls;
  const char* field = nullptr;
  // From one pair to the next: what stands between them does not count.
  for (size_t i = 0, j = 0; i < stored.size() && j < messages.size();) {
    const ItemIdentity &item = stored[i].identity, &message = messages[j];
    const char* differs = DifferingField(item, message, calls);
    if (differs == nullptr) {
      out.messages.resize(i, -1);
      out.messages.push_back(static_cast<int>(j));
      out.matched = static_cast<int>(++i);
      out.sent = static_cast<int>(++j);
      if (stored[i - 1].sampled) out.resume = out.matched;
      out.renamed |= stored[i - 1].sampled && item.call_id != message.call_id;
      calls.stored.Add(item);
      calls.sent.Add(message);
      field = nullptr;
      continue;
    }
    if (field == nullptr) field = differs;
    if (j >= newest || (Counts(message) && Counts(item))) break;
    ++(Counts(message) ? i : j);
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
  if (!Counts(item)) return before;
  const bool by_calls = item.role == "assistant" && !item.call_id.empty();
  return Hasher("lineage-1")
      .Add(before)
      .Text(item.role)
      .Text(item.call_id)
      .Add(by_calls ? Digest{} : item.content)
      .Finish();
}

void HistoryName::Add(const ItemIdentity& item, CallNumbers* calls) {
  by_ids = LineageNext(by_ids, item);
  const int64_t answers = item.role == "assistant" ? -1 : calls->Of(item.call_id);
  if (const size_t made = CallsOf(item).size(); made > 0 || answers >= 0) {
    by_calls = Hasher("lineage-calls-1")
                   .Add(by_calls)
                   .Text(item.role)
                   .U64(made > 0 ? made : static_cast<uint64_t>(answers))
                   .Add(item.content)
                   .Finish();
  } else {
    by_calls = LineageNext(by_calls, item);
  }
  calls->Add(item);
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

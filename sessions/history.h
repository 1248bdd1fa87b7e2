// Matching what a client sends to what is stored: pure functions, no I/O, with a table test.
//
// A client sends the whole conversation again each turn, and not byte for byte: tool arguments are
// serialised anew, trailing blanks go, keys change places. What must be equal for a stored item to
// stand for a message is, in this order: the role; the tool-call ids (of an assistant's calls, or
// of the call that a tool result answers); then, where there are no calls, the content.
//
// Of the content, what clients change behind everybody's back does not count (see CountingText):
// attribution lines, reminders, reasoning. The item stands as it was computed.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/hash.h"
#include "sessions/turn.h"

namespace holdfast {

// What of a message's text tells it from another. Left out are
//   of a system message: the values of an attribution line, as in
//     "x-anthropic-billing-header: cc_version=2.1; cch=1a2b3;", which are other ones each time
//   of a user's message or a tool's result: blocks "<system-reminder>...</system-reminder>" with
//     the blanks behind them, which are moved to the newest message, or dropped
//   of an assistant's message: the reasoning in front, "<think>...</think>", and blanks around it
std::string CountingText(std::string_view role, std::string_view text);

// A message reduced to what is compared.
struct ItemIdentity {
  std::string role;
  std::string call_id;  // tool: the id it answers; assistant: its calls' ids, a newline between
  Digest content;       // of its CountingText
  bool operator==(const ItemIdentity&) const = default;
};
ItemIdentity IdentityOf(const ChatMessage& message);
// Whether the stored item is the message that was sent.
bool StandsFor(const ItemIdentity& stored, const ItemIdentity& sent);

// Messages with their identities, one each. A stored item's is the one that it has: it may know
// calls that the message does not.
struct History {
  std::vector<ChatMessage> messages;
  std::vector<ItemIdentity> identities;

  void Add(ChatMessage message, ItemIdentity identity) {
    messages.push_back(std::move(message));
    identities.push_back(std::move(identity));
  }
  // The messages before this one are of earlier turns: an assistant has answered them.
  int Newest() const;
};

// One item of a stored lineage, oldest first.
struct StoredItem {
  ItemIdentity identity;
  bool sampled = false;  // our own output: its tokens are used again
  int64_t end = 0;       // tokens of the lineage up to the item's end
};

struct HistoryMatch {
  int matched = 0;           // messages 0 .. matched-1 are the items 0 .. matched-1
  int resume = 0;            // of them, up to and including the last sampled one
  std::optional<Miss> miss;  // why `matched` is less than the number of stored items
};

HistoryMatch MatchHistory(std::span<const StoredItem> stored,
                          std::span<const ItemIdentity> messages);

// The name of a whole history: a chain over identities that begins with the digest of what else
// decides the tokens (template, tools, tokenizer). Finds anonymous sessions by one look-up.
Digest LineageRoot(const Digest& context);
Digest LineageNext(const Digest& before, const ItemIdentity& item);

// The first byte at which the two differ; -1 when they are equal.
int64_t FirstDifference(std::string_view a, std::string_view b);
// The same of what counts in two messages' texts, as a byte of `sent`.
int64_t FirstDifference(std::string_view role, std::string_view stored, std::string_view sent);
// The id, or else the name, of the first call in which an assistant's messages differ; "" = none.
std::string DifferingCall(const ItemIdentity& stored, const ChatMessage& sent);

}  // namespace holdfast

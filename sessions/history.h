// Matching what a client sends to what is stored: pure functions, no I/O, with a table test.
//
// A client sends the whole conversation again each turn, and not byte for byte: tool arguments are
// serialised anew, trailing blanks go, keys change places. What must be equal for a stored item to
// stand for a message is, in this order: the role; the tool-call ids (of an assistant's calls, or
// of the call that a tool result answers); then, where there are no calls, the content.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/hash.h"
#include "sessions/turn.h"

namespace holdfast {

// A message reduced to what is compared.
struct ItemIdentity {
  std::string role;
  std::string call_id;  // tool: the id it answers; assistant: its calls' ids, a newline between
  Digest content;       // of the text, without trailing blanks where an assistant said it
  bool operator==(const ItemIdentity&) const = default;
};
ItemIdentity IdentityOf(const ChatMessage& message);

// Messages with their identities, one each. A stored item's is the one that it has: it may know
// calls that the message does not.
struct History {
  std::vector<ChatMessage> messages;
  std::vector<ItemIdentity> identities;

  void Add(ChatMessage message, ItemIdentity identity) {
    messages.push_back(std::move(message));
    identities.push_back(std::move(identity));
  }
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

}  // namespace holdfast

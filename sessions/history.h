// Matching what a client sends to what is stored: pure functions, no I/O, with a table test.
//
// A client sends the whole conversation again each turn, and not byte for byte: tool arguments are
// serialised anew, trailing blanks go, keys change places. What must be equal for a stored item to
// stand for a message is, in this order: the role; the calls (those of an assistant, or the one
// that a tool result answers); then, where there are no calls, the content.
//
// Calls are the same by their ids; where a client gives them ids of its own, by their names and
// arguments, and the text beside them. A result answers the same call where the ids that it and the
// item name mean the same one, counted from the first of each conversation (CallNumbers).
//
// Of the content, what clients change behind everybody's back does not count (see CountingText):
// attribution lines, reminders, reasoning. The item stands as it was computed. So does a user's
// message of which nothing counts, whether an earlier turn's is sent again or not.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
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
  Digest content;       // of its CountingText, with names and arguments of an assistant's calls
  bool operator==(const ItemIdentity&) const = default;
};
ItemIdentity IdentityOf(const ChatMessage& message);
// Whether the stored item is the message that was sent; both an assistant's.
bool StandsFor(const ItemIdentity& stored, const ItemIdentity& sent);
// False for a user's message that is reminders alone, or nothing.
bool Counts(const ItemIdentity& message);

// Which call of a conversation an id means: the last one of that id among the messages so far.
class CallNumbers {
 public:
  void Add(const ItemIdentity& message);
  int64_t Of(std::string_view id) const;  // from 0; -1 = none
  const std::string& IdOf(int64_t number) const { return ids_[number]; }

 private:
  std::vector<std::string> ids_;
  std::map<std::string, int64_t, std::less<>> last_;
};

// A stored message's JSON with the ids `sent`, one each, in the place of its own ones. As it is
// where their numbers differ, or where an id does not stand in JSON as it is.
std::string WithCallIds(std::string raw_json, std::string_view stored, std::string_view sent);
// ItemIdentity::call_id.
std::string CallIdsOf(const ChatMessage& message);

struct StoredItem;
struct HistoryMatch;

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
  // Brings the messages in step with the items that they match: message i is item i. Those that do
  // not count go where the log has none, and come, without their texts, where it has one. Calls
  // get the ids that the log has for them; the messages' own texts stay.
  void Follow(std::span<const StoredItem> stored, const HistoryMatch& match);
};

// One item of a stored lineage, oldest first.
struct StoredItem {
  ItemIdentity identity;
  bool sampled = false;  // our own output: its tokens are used again
  int64_t end = 0;       // tokens of the lineage up to the item's end
};

struct HistoryMatch {
  int matched = 0;           // items 0 .. matched-1 stand
  int resume = 0;            // of them, up to and including the last sampled one
  int sent = 0;              // messages 0 .. sent-1 are those items, or do not count
  std::vector<int> messages; // which one each of those items is; -1 = it was not sent again
  bool renamed = false;      // some calls of sampled ones have other ids
  std::optional<Miss> miss;  // why `matched` is less than the number of stored items

  // Which message as it was sent is message `i` of the history in step (History::Follow).
  int SentAs(int i) const;
};

// With kAsSent all messages count.
HistoryMatch MatchHistory(std::span<const StoredItem> stored,
                          std::span<const ItemIdentity> messages, HistoryMode mode);

// The name of a whole history: a chain over identities that begins with the digest of what else
// decides the tokens (template, tools, tokenizer). Finds anonymous sessions by one look-up.
Digest LineageRoot(const Digest& context);
Digest LineageNext(const Digest& before, const ItemIdentity& item);

// That name, and another one which stays the same where a client gives its calls other ids. Both
// are equal until a call is made.
struct HistoryName {
  Digest by_ids, by_calls;

  explicit HistoryName(const Digest& root = {}) : by_ids(root), by_calls(root) {}
  void Add(const ItemIdentity& item, CallNumbers* calls);
};

// The first byte at which the two differ; -1 when they are equal.
int64_t FirstDifference(std::string_view a, std::string_view b);
// The same of what counts in two messages' texts, as a byte of `sent`.
int64_t FirstDifference(std::string_view role, std::string_view stored, std::string_view sent);
// The id, or else the name, of the first call in which an assistant's messages differ; "" = none.
std::string DifferingCall(const ItemIdentity& stored, const ChatMessage& sent);

}  // namespace holdfast

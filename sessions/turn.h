// A turn: one request of a client and the answer to it, as the keeper sees them.
//
//   Keeper::Begin -> Turn (admitted) -> decode elsewhere -> Keeper::Commit, or Keeper::Abort
//
//            Begin               Commit
//   (none) --------> admitted ----------> committed
//                       |  ^ same history and request again: same branch, same seed
//                       v  |
//                     aborted  (Abort, a dropped Turn, or a process that died: found at start)
//
// The head of the branch has moved if and only if the turn is committed. Plain values; a Turn
// belongs to one thread at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/hash.h"
#include "engine/kv/timeline.h"
#include "engine/model/sampler.h"
#include "stitcher/stitcher.h"

namespace holdfast {

struct ToolCall {
  std::string id, name, arguments;  // arguments: JSON text as the client sees it
};

// Bytes [begin, end) of a message's text that become these tokens whatever stands around them (a
// segment that the client named).
struct TokenSpan {
  size_t begin = 0, end = 0;
  std::vector<TokenId> tokens;
};

// One message of a history, as the API read it. `raw_json` is the message as the template sees it
// (one JSON object); nothing here parses it but engine/text.
struct ChatMessage {
  std::string role;                  // system, developer, user, assistant, tool
  std::string text;                  // content, parts joined
  std::string tool_call_id;          // of a tool result
  std::vector<ToolCall> tool_calls;  // of an assistant message
  std::string raw_json;
  std::vector<TokenSpan> spans;      // ascending, disjoint; not kept with the item
};

enum class OnBusy : uint8_t { kFork, kQueue, kReject };
enum class HistoryMode : uint8_t { kAsSampled, kAsSent };
// What is durable when Commit returns: the turn; the turn, but within 2 s only (a power cut before
// may take it, and then all that came after it; a later turn of another class makes it durable at
// once); the turn and its KV; nothing, where the store is degraded.
enum class Durability : uint8_t { kTurn, kLazy, kKv, kNone };

// Which conversation a request belongs to. `id` that begins with "sess_" must exist (kNotFound);
// any other is the client's own and is made on first use; "" = anonymous, matched by history.
struct SessionRef {
  std::string id;
  std::string branch;  // "" = the branch whose history matches best; when appending, the default
};

// The head of a branch as a client has seen it: where so many turns were committed on it. Written
// "BRANCH:TURNS" ("main:3").
struct HeadTag {
  std::string branch;
  int64_t generation = 0;
  std::string Text() const { return branch + ":" + std::to_string(generation); }
  static std::optional<HeadTag> Parse(std::string_view text);  // nullopt: not in that form
};

// Why less than the whole history could be used again.
struct Miss {
  // "message_changed", "history_shorter" (a regenerate, or a rewind by the client),
  // "tools_changed", "template_unstable" (an earlier message renders differently now),
  // "history_as_sent", "model_changed", "busy_head".
  std::string reason;
  int message = -1;        // index of the first message that differs
  std::string field;       // "role", "content", "tool_calls", "tool_call_id", "tools", ...
  std::string name;        // which call (its id, or else its name) or tool; or ""
  std::string change;      // of that tool: "added", "removed", "changed"; or ""
  int64_t at_char = -1;    // first differing byte of the sent `content`, where that is known
  int64_t at_token = 0;    // tokens before it stay as they were
};

// Known when decoding begins.
struct TurnStart {
  std::string session_id, branch, turn_id;
  int64_t generation = 0;            // of the branch as the turn begins; not known where `replayed`
  std::string external_id;           // the client's own id of the session, or ""
  int64_t prompt_tokens = 0;
  int64_t kept_tokens = 0;           // of the prompt, taken from the log as they were
  StitchReport stitch;               // tokens from warm, pool, store, computed; restore ms
  std::optional<Miss> miss;
  bool new_session = false;
  bool retry = false;                // of an unfinished turn: same seed, same tokens
  bool replayed = false;             // a committed turn, served from the log
  HistoryMode history = HistoryMode::kAsSampled;
};

// The whole story of a turn (the `keeper` object of responses).
struct TurnReport {
  TurnStart start;
  bool committed = false, durable = false;  // as CommitResult's
  std::optional<bool> durable_kv;
  int64_t generated = 0;
  double queue_ms = 0, restore_ms = 0, prefill_ms = 0, decode_ms = 0, commit_ms = 0;
};

// What a client says of its branch's future: advice to retention, never a promise.
struct RetentionHints {
  int64_t ttl_s = 0;               // `cache_control.ttl`: it comes again within it; 0 = unsaid
  std::optional<bool> pin;         // stays so until it is said otherwise
  int64_t wake_at_ms = 0;          // when the next turn comes (Unix time); 0 = unsaid
};

struct TurnRequest {
  std::string tenant;              // from the authenticated caller
  SessionRef session;
  std::string idempotency_key;     // "" = none
  // The turn goes on at this head or is refused (kConflict): "head_moved" where the head, or the
  // history, is another, "busy_head" while a turn runs on it, whatever `on_busy` says.
  std::optional<HeadTag> if_head;
  OnBusy on_busy = OnBusy::kFork;
  HistoryMode history = HistoryMode::kAsSampled;
  Durability durability = Durability::kTurn;
  std::span<const ChatMessage> messages;  // borrowed during Begin
  bool append = false;             // `messages` only adds to what the branch holds
  std::string tools_json;          // "" = none
  std::string template_kwargs_json;
  // Over everything else that decides the answer (sampling, seed, limits, stops, format, choice).
  Digest params_digest;
  std::string sampling_json;       // kept with the nodes, opaque
  std::optional<uint64_t> seed;
  std::optional<uint64_t> turn_seed;  // of a replay: the turn's own, instead of one made of `seed`
  int64_t max_tokens = 0;          // 0 = as many as fit
  RetentionHints hints;
  ReuseOptions reuse;              // how much of the KV may be approximate
};

// How long the parts of a turn took.
struct TurnTiming {
  double queue_ms = 0, restore_ms = 0, prefill_ms = 0, decode_ms = 0;
};

struct GeneratedToken {
  TokenId token = 0;
  uint64_t digest = 0;             // of the logits; 0 for forced tokens
  bool forced = false;
};

// What came of a turn. The keeper drops generated tokens that `timeline` no longer has (cut by a
// stop string).
struct TurnOutcome {
  std::optional<Timeline> timeline;       // as the engine gave it back
  std::vector<GeneratedToken> generated;
  ChatMessage message;                    // what the client got: text, tool calls, raw_json
  std::string response;                   // opaque; given again by a replay
  std::string finish;                     // "stop", "length", ...; for the log
  TurnTiming timing;                      // for the log
};

struct CommitResult {
  Status status;                   // not ok: the store is degraded and nothing is kept
  bool committed = false;          // the head has moved
  bool durable = false;            // and no power cut takes that back
  // Of Durability::kKv: whether all whole pages of the branch are on disk as well.
  std::optional<bool> durable_kv;
  double commit_ms = 0;
};

// An admitted turn: holds the lease of its head. Dropping it aborts it. Must not outlive its
// keeper.
class Turn {
 public:
  ~Turn();
  const TurnStart& start() const;
  uint64_t seed() const;                     // turn seed (DESIGN law 8)
  std::span<const TokenId> prompt() const;   // the whole context, generation prompt included
  int64_t max_tokens() const;                // of the request, else what fits
  // The timeline to submit; its last row at least is pending. Once.
  Timeline TakeTimeline();
  // start().stitch at the end of the prefill, which found `reused` tokens in the pool: what came
  // from where.
  StitchReport Settled(int64_t reused) const;
  // Set: the turn is committed already, this is its TurnOutcome::response. Nothing is to be decoded
  // and no timeline is there; the tokens are those of the log.
  const std::optional<std::string>& replay() const;
  // How whoever decodes it ends it when somebody else cancels it (Keeper::CancelTurn): called once,
  // on another thread, at once where that came first. Until the turn has ended.
  void OnCancel(std::function<void()> stop);
  std::span<const TokenId> replayed_tokens() const;

  struct Impl;
  explicit Turn(std::unique_ptr<Impl> impl);
  Impl& impl() { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace holdfast

// The session keeper: durable conversations over SQLite, and the timelines that are warm.
//
// Truth is the token log (DESIGN: tokens are the truth, KV is a cache). A session is a tree of
// immutable nodes; a branch is a named point (node, count) in it; its head moves only in the
// transaction that commits a turn. History that a client sends is matched item by item (tool-call
// id, then content), and the tokens that were sampled are used again, never a re-rendering.
//
// A turn: Begin (match, tokenise what is new, take the head's lease, write the admitted row) ->
// decode elsewhere -> Commit or Abort. Dropping a Turn aborts it. Begin and Commit block on SQLite;
// never call them from the model thread. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/store/database.h"
#include "stitcher/stitcher.h"

namespace holdfast {

struct ToolCall {
  std::string id, name, arguments;  // arguments: JSON text as the client sees it
};

// One message of a history, as the API read it. `raw_json` is the message as the template sees it;
// nothing here parses it but engine/text.
struct ChatMessage {
  std::string role;                  // system, developer, user, assistant, tool
  std::string text;                  // content, parts joined
  std::string tool_call_id;          // of a tool result
  std::vector<ToolCall> tool_calls;  // of an assistant message
  std::string raw_json;
};

enum class OnBusy : uint8_t { kFork, kQueue, kReject };
enum class HistoryMode : uint8_t { kAsSampled, kAsSent };

// Which conversation a request belongs to. `id` that begins with "sess_" must exist (kNotFound);
// any other is the client's own and is made on first use; "" = anonymous, matched by history.
struct SessionRef {
  std::string id;
  std::string branch;  // "" = the branch whose history matches best
};

// Why less than the whole history could be used again.
struct Miss {
  std::string reason;      // "new_session", "message_changed", "tools_changed", "template_unstable", ...
  int message = -1;        // index of the first message that differs
  std::string field;       // "content", "role", "tool_calls", ...
  int64_t at_token = 0;
};

// Known when decoding begins.
struct TurnStart {
  std::string session_id, branch, turn_id;
  int64_t prompt_tokens = 0;
  StitchReport stitch;     // tokens from pool, disk, computed; restore ms
  std::optional<Miss> miss;
  bool retry = false;      // the same request as an unfinished turn: same seed, same tokens
};

// The whole story of a turn (the `keeper` object of responses).
struct TurnReport {
  TurnStart start;
  bool durable = false;
  int64_t generated = 0;
  double queue_ms = 0, restore_ms = 0, prefill_ms = 0, decode_ms = 0, commit_ms = 0;
};

struct KeeperStats {
  uint64_t sessions = 0, turns_committed = 0, turns_aborted = 0, retries = 0;
  uint64_t resident_timelines = 0;
  bool degraded = false;
};

class Keeper;  // completed by its implementer: see the class below

}  // namespace holdfast

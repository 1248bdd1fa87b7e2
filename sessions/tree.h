// What the session endpoints show: sessions, branches, items, snapshots and events as plain values.
//
// A session is a tree of immutable nodes of tokens. A point in it is (node, count); a branch is a
// named point that moves when a turn is committed; a snapshot is a labelled point that never moves.
// An item is one message with the tokens that it became.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/list_order.h"
#include "engine/base/status.h"
#include "engine/base/types.h"
#include "sessions/edits.h"
#include "stitcher/recipe.h"

namespace holdfast {

struct SessionInfo {
  std::string id;               // "sess_..."
  std::string external_id;      // the client's own, or ""
  bool anonymous = false;
  std::string model;
  std::string default_branch;
  std::string meta_json;        // as given at creation, or ""
  int64_t created_ms = 0, updated_ms = 0;  // Unix time
  int64_t ttl_s = 0;            // 0 = for ever; counted from the last turn
  int64_t branches = 0, turns = 0;         // turns: committed ones
  int64_t tokens = 0, items = 0, generation = 0;  // of the default branch
};

struct BranchInfo {
  std::string session_id, name;
  int64_t ordinal = 0;          // never reused in its session
  std::string parent;           // the branch that it left, or ""
  int64_t parent_tokens = 0;    // where it left it
  int64_t tokens = 0, items = 0;
  int64_t generation = 0;       // turns committed on it
  int64_t created_ms = 0, updated_ms = 0;
  bool is_default = false, busy = false, resident = false;
  std::string state;            // HeadStateName
  std::string turn;             // the id of the one that runs on it, or ""
};

// Where the tokens of a branch are. From the first on whose page is nowhere, all are missing; so is
// the last one, which the next turn feeds in any case.
struct ResidencyInfo {
  std::string session_id, branch, state;
  int64_t tokens = 0;
  struct Tier {
    int64_t tokens = 0, bytes = 0;
  };
  Tier pool, disk, missing;
  // Estimates, once rates are measured in this process: until all is there by loading what is
  // quicker loaded and computing the rest; and by computing everything.
  std::optional<double> restore_ms, prefill_ms;
};

struct ProvenanceInfo {
  std::string session_id, branch;
  int64_t tokens = 0;
  Provenance spans;             // of all tokens
  std::vector<RecipeSource> sources;
  double expected_kl = 0, kl_bound = 0;
  ReusePolicy policy = ReusePolicy::kExact;  // of the turn that spliced
  bool hardened = false;        // was approximate once, and was computed in full since
  std::optional<ShadowKl> measured;  // of the last answer, where its policy was verify: its KL
};

struct PrefetchRequest {
  std::string branch;           // "" = the default one
  int64_t wake_at_ms = 0;       // 0 = now
  std::optional<bool> pin;      // keep it to the last, or no longer
};
struct PrefetchInfo {
  ResidencyInfo before;
  int64_t pages = 0, tokens = 0, bytes = 0;  // that this call has begun to load
};

struct ItemInfo {
  int64_t index = 0;            // in the branch, from 0
  std::string role, call_id, raw_json;
  std::string turn_id;
  int64_t first = 0, count = 0; // tokens in the branch: first .. first+count-1
  int64_t header = 0, trailer = 0;  // of them, before and after the content
  bool sampled = false;         // our own output
};

struct SnapshotInfo {
  std::string id, label;        // "snap_..."
  std::string branch;           // where it was taken
  int64_t tokens = 0, items = 0, created_ms = 0;
  bool pinned = false;          // its pages leave the disk last
};
enum class SnapshotPin : uint8_t { kOff, kOn };

// A session as a tree, at one moment: where branches leave each other, and what each has alone.
struct TreeInfo {
  struct Branch {
    BranchInfo info;
    int64_t parent_items = 0;   // items of its parent's that it begins with
    std::vector<ItemInfo> items;  // behind them; raw_json is empty
  };
  std::string session_id, default_branch;
  std::vector<Branch> branches;  // by ordinal: parents before their children
  std::vector<SnapshotInfo> snapshots;
};

struct EventInfo {
  int64_t seq = 0, at_ms = 0;
  std::string kind;             // "session_created", "turn_committed", "turn_aborted",
                                // "branch_created", "snapshot_created", "snapshot_deleted",
                                // "default_changed", "session_imported", "hardened",
                                // "verified", "kv_not_durable"
  std::string branch, turn_id, detail;
};

// One page of a list; `next` is the `after` of the following page, "" at the end.
template <typename T>
struct Listed {
  std::vector<T> rows;
  std::string next;
};
struct ListRange {
  std::string after;            // a position (`next` of the page before); "" = from the beginning
  int limit = 20;               // 1..1000
  ListOrder order = ListOrder::kAscending;
};

// What `range.after` names; for none, what lies before every position in that order. kInvalid: a
// limit out of range, or not a position.
Result<int64_t> PositionOf(const ListRange& range);

// A page of a list whose rows are at the positions 0 to count - 1.
struct ListPage {
  std::vector<int64_t> positions;
  std::string next;             // as Listed's
};
Result<ListPage> PageOf(const ListRange& range, int64_t count);

inline constexpr int64_t kMaxTtlSeconds = int64_t{100} * 366 * 86400;  // so that sums of times fit

struct CreateSession {
  std::string external_id;      // "" = none; kConflict when the tenant has it already
  std::string meta_json;
  int64_t ttl_s = 0;
};

// Where a new branch begins: at the end of item `at_item` - 1 (so that it holds `at_item` items),
// or after `at_token` tokens, or at the snapshot, or, with none of them, at the head.
// A branch that ends inside an item is good for looking and replaying; the next turn keeps only
// whole items of it, and so do edits.
//
// With edits it has the history that follows from them: it leaves `from` after the longest
// beginning that stands (`parent_tokens`), and what comes behind is tokenised anew, as if a chat
// had sent that history.
struct MakeBranch {
  std::string from;             // a branch; "" = the default one
  std::optional<int64_t> at_item, at_token;
  std::string snapshot;
  std::string name;             // "" = chosen here; kConflict when it is taken
  enum class Default : uint8_t { kKeep, kMove } default_branch = Default::kKeep;
  std::vector<ItemEdit> edits;  // of the items up to there
  // kThisModel: what another model has said is tokenised anew by this one.
  enum class Tokens : uint8_t { kAsRecorded, kThisModel } tokens = Tokens::kAsRecorded;
};

}  // namespace holdfast

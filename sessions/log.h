// The token log: rows of the sessions' tables as plain values, and all SQL that reads a session's
// tree or writes turns. Functions run inside the closures of Database::Read and Database::Write.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/store/database.h"
#include "sessions/head_table.h"
#include "sessions/history.h"
#include "sessions/prompt.h"
#include "sessions/schema.h"
#include "sessions/tree.h"

namespace holdfast {

// `count` tokens of node `node`; node 0 is the root, before every token.
struct Point {
  int64_t node = 0, count = 0;
  bool operator==(const Point&) const = default;
};

struct SessionRow {
  int64_t sid = 0;
  std::string id, external_id, model, meta;
  bool anonymous = false;
  Digest model_digest;
  int64_t default_branch = 0;
  uint64_t seed = 0;
  int64_t next_ordinal = 0, ttl_s = 0, created_ms = 0, updated_ms = 0;
};

struct BranchRow {
  int64_t id = 0;
  std::string name, parent_name;
  int64_t ordinal = 0, generation = 0, tokens = 0, items = 0, parent_tokens = 0;
  Point head;
  Digest head_hash;
  int64_t created_ms = 0, updated_ms = 0;
  HeadMemory memory;
};

inline BranchUse UseOf(const BranchRow& b) {
  return {b.name, b.parent_name, b.tokens, b.parent_tokens, b.updated_ms};
}

struct NodeRow {  // without its blobs
  int64_t id = 0;
  Point parent;
  NodeKind kind = NodeKind::kInput;
  Digest template_digest, model_digest;
  std::string turn;
};

struct ItemRow {  // without its texts
  int64_t id = 0, node = 0, first = 0, count = 0, header = 0, trailer = 0;
  ItemIdentity identity;
};

// Everything of a session but tokens and texts, at one moment.
struct SessionTree {
  SessionRow session;
  std::vector<BranchRow> branches;  // by ordinal
  std::map<int64_t, NodeRow> nodes;
  std::map<int64_t, std::vector<ItemRow>> items;  // by node, ascending
  const BranchRow* FindBranch(std::string_view name) const;
  const BranchRow* BranchById(int64_t id) const;
};

// The way from the root to a point.
struct Lineage {
  Point head;
  int64_t tokens = 0;
  struct Step {
    int64_t node = 0, first = 0, count = 0;  // tokens first .. first+count-1 of the lineage
  };
  std::vector<Step> steps;
  std::vector<StoredItem> items;        // whole ones; an item that the head cuts is left out
  std::vector<const ItemRow*> rows;     // beside `items`
  std::vector<Point> item_points;       // the point at the end of each item
  Digest template_digest, model_digest; // of its last node; zero at the root
  // Point after `tokens` tokens.
  Point At(int64_t tokens) const;
};
Lineage LineageOf(const SessionTree& tree, Point head);
// Names its history: BranchRow::head_hash. `context`: LineageContext's (context.h).
Digest HashOf(const Lineage& lineage, const Digest& context);

// Where a session is looked for. Expired ones are not found.
struct SessionKey {
  std::string_view tenant, id;  // "sess_..." or the client's own
  int64_t now_ms = 0;
};
// kNotFound.
Result<SessionRow> FindSession(Reader& reader, const SessionKey& key);
struct SessionName {
  std::string tenant, id;
};
// Of all tenants, in the order in which they were made, expired ones too.
Result<std::vector<SessionName>> AllSessions(Reader& reader);
Result<SessionTree> LoadTree(Reader& reader, const SessionRow& session);
Result<std::vector<TokenId>> LoadTokens(Reader& reader, const Lineage& lineage);

struct ItemTexts {
  std::string content, raw;
};
Result<ItemTexts> LoadItemTexts(Reader& reader, int64_t item);

// Among the tenant's anonymous sessions: the one with a branch whose whole head has that name; else
// one that has such a history inside (branch 0), by ids or else by calls.
struct AnonymousHit {
  SessionRow session;
  int64_t branch = 0;
};
Result<std::optional<AnonymousHit>> FindAnonymous(Reader& reader, const SessionKey& tenant,
                                                  const HistoryName& name);

struct TurnRow {
  int64_t n = 0, sid = 0, branch = 0;
  std::string id, session_id;
  Digest request_digest, input_digest;
  Point parent;
  TurnStatus status = TurnStatus::kAdmitted;
  uint64_t seed = 0;
  int64_t prompt_tokens = 0, output = 0;
  std::string response;
};
Result<std::optional<TurnRow>> FindTurnByKey(Reader& reader, std::string_view tenant,
                                             std::string_view idempotency_key);
// The latest aborted turn that began from `parent` with this input.
Result<std::optional<TurnRow>> FindAborted(Reader& reader, int64_t sid, Point parent,
                                           const Digest& input_digest);
// The latest aborted first turn of an anonymous session with this request.
Result<std::optional<TurnRow>> FindAbortedFirst(Reader& reader, std::string_view tenant,
                                                const Digest& request_digest);

struct NewSession {
  int64_t sid = 0;  // never one that was used since the process began
  std::string id, tenant, external_id, model, meta;
  bool anonymous = false;
  Digest model_digest, root_hash;
  uint64_t seed = 0;
  int64_t ttl_s = 0, now_ms = 0, main_branch = 0;
};
// With its branch "main" at the root. kConflict when the external id is there.
Status InsertSession(Txn& txn, const NewSession& session);

struct NewBranch {
  int64_t id = 0, sid = 0;
  std::string name;  // "" = "b" and its ordinal
  Point head;
  Digest head_hash;
  int64_t tokens = 0, items = 0, now_ms = 0;
  std::string parent_name;
  int64_t parent_tokens = 0;  // where it left that one
};
// Sets name and ordinal. kConflict when the name is taken or the session is gone.
Status InsertBranch(Txn& txn, NewBranch* branch, int64_t* ordinal);

struct NewNode {
  int64_t sid = 0;
  Point parent;
  NodeKind kind = NodeKind::kInput;
  NodeStatus status = NodeStatus::kCommitted;
  std::string turn, sampling;
  std::span<const TokenId> tokens;
  std::span<const TokenOrigin> origins;
  std::span<const uint64_t> digests;
  uint64_t seed = 0;
  Digest template_digest, model_digest;
  std::optional<Digest> lineage_hash;  // of a committed output: HistoryName::by_ids
  std::optional<Digest> calls_hash;    // by_calls, where it is another
  int64_t basis = 0;
};
Result<int64_t> InsertNode(Txn& txn, const NewNode& node);

struct NewItem {
  int64_t first = 0, count = 0, header = 0, trailer = 0;
  ItemIdentity identity;
  std::string content, raw;
};
Status InsertItem(Txn& txn, int64_t node, const NewItem& item);

struct NewEvent {
  int64_t sid = 0, at_ms = 0;
  std::string_view kind, branch, turn, detail;
};
Status InsertEvent(Txn& txn, const NewEvent& event);
// Makes `branch` the session's default one, and tells it.
Status MoveDefault(Txn& txn, int64_t branch, NewEvent event);

// A span of T as SQLite stores it.
template <typename T>
std::span<const std::byte> BlobOf(std::span<const T> values) {
  return std::as_bytes(values);
}

}  // namespace holdfast

#include "sessions/schema.h"

namespace holdfast {
namespace {

constexpr char kVersion1[] = R"sql(
CREATE TABLE session(
  sid INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,               -- 'sess_...'
  tenant TEXT NOT NULL,
  external_id TEXT,                      -- the client's own, unique per tenant
  anonymous INTEGER NOT NULL,
  model TEXT NOT NULL,
  model_digest BLOB NOT NULL,
  default_branch INTEGER,
  seed INTEGER NOT NULL,
  next_ordinal INTEGER NOT NULL,         -- of the next branch; never reused
  ttl_s INTEGER NOT NULL,
  expires_ms INTEGER,
  meta TEXT NOT NULL,
  created_ms INTEGER NOT NULL,
  updated_ms INTEGER NOT NULL);
CREATE UNIQUE INDEX session_external ON session(tenant, external_id)
  WHERE external_id IS NOT NULL;
CREATE INDEX session_expiry ON session(expires_ms) WHERE expires_ms IS NOT NULL;
CREATE INDEX session_tenant ON session(tenant, sid);

CREATE TABLE node(                       -- immutable
  id INTEGER PRIMARY KEY,
  sid INTEGER NOT NULL REFERENCES session(sid) ON DELETE CASCADE,
  parent INTEGER REFERENCES node(id),    -- NULL = the root
  parent_count INTEGER NOT NULL,         -- tokens of the parent that come before this node
  kind INTEGER NOT NULL,                 -- NodeKind
  status INTEGER NOT NULL,               -- NodeStatus
  turn TEXT NOT NULL,
  tokens BLOB NOT NULL,
  origins BLOB NOT NULL,
  digests BLOB NOT NULL,
  sampling TEXT NOT NULL,
  seed INTEGER NOT NULL,
  template_digest BLOB NOT NULL,         -- template, tokenizer, tools and template arguments
  model_digest BLOB NOT NULL,
  lineage_hash BLOB);                    -- of a committed output: names the whole history up to it
CREATE INDEX node_lineage ON node(lineage_hash) WHERE lineage_hash IS NOT NULL;
CREATE INDEX node_session ON node(sid);
CREATE INDEX node_parent ON node(parent);

CREATE TABLE item(
  id INTEGER PRIMARY KEY,
  node INTEGER NOT NULL REFERENCES node(id) ON DELETE CASCADE,
  first INTEGER NOT NULL,                -- tokens of the node: first .. first+count-1
  count INTEGER NOT NULL,
  header INTEGER NOT NULL,               -- of them before and after the content
  trailer INTEGER NOT NULL,
  role TEXT NOT NULL,
  call_id TEXT NOT NULL,
  content_hash BLOB NOT NULL,
  content TEXT NOT NULL,
  raw TEXT NOT NULL);                    -- JSON as the template sees it
CREATE INDEX item_node ON item(node, first);

CREATE TABLE branch(
  id INTEGER PRIMARY KEY,
  sid INTEGER NOT NULL REFERENCES session(sid) ON DELETE CASCADE,
  name TEXT NOT NULL,
  ordinal INTEGER NOT NULL,
  node INTEGER REFERENCES node(id),      -- the head is the point (node, count); NULL = the root
  count INTEGER NOT NULL,
  generation INTEGER NOT NULL,           -- turns committed
  head_hash BLOB NOT NULL,               -- of the lineage's items
  tokens INTEGER NOT NULL,
  items INTEGER NOT NULL,
  parent_name TEXT NOT NULL,             -- where it left another branch
  parent_tokens INTEGER NOT NULL,
  created_ms INTEGER NOT NULL,
  updated_ms INTEGER NOT NULL,
  UNIQUE(sid, name));
CREATE INDEX branch_head ON branch(head_hash);
CREATE INDEX branch_node ON branch(node);

CREATE TABLE turn(
  n INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,               -- 'turn_...'
  sid INTEGER NOT NULL REFERENCES session(sid) ON DELETE CASCADE,
  branch INTEGER NOT NULL REFERENCES branch(id) ON DELETE CASCADE,
  tenant TEXT NOT NULL,
  idempotency_key TEXT,
  request_digest BLOB NOT NULL,          -- of the whole request
  input_digest BLOB NOT NULL,            -- of its parameters and new tokens: what makes a retry
  parent INTEGER REFERENCES node(id),    -- the head that it began from
  parent_count INTEGER NOT NULL,
  status INTEGER NOT NULL,               -- TurnStatus
  seed INTEGER NOT NULL,
  sampling TEXT NOT NULL,
  prompt_tokens INTEGER NOT NULL,
  output INTEGER REFERENCES node(id),
  finish TEXT NOT NULL,
  response BLOB NOT NULL,                -- for a replay of a committed turn
  created_ms INTEGER NOT NULL,
  ended_ms INTEGER);
CREATE UNIQUE INDEX turn_key ON turn(tenant, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX turn_session ON turn(sid, n);
CREATE INDEX turn_branch ON turn(branch);
CREATE INDEX turn_parent ON turn(parent);
CREATE INDEX turn_output ON turn(output);
CREATE INDEX turn_aborted ON turn(tenant, request_digest) WHERE status = 3;
CREATE INDEX turn_open ON turn(status) WHERE status < 2;

CREATE TABLE snapshot(
  n INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,               -- 'snap_...'
  sid INTEGER NOT NULL REFERENCES session(sid) ON DELETE CASCADE,
  label TEXT NOT NULL,
  branch TEXT NOT NULL,
  node INTEGER REFERENCES node(id),
  count INTEGER NOT NULL,
  tokens INTEGER NOT NULL,
  items INTEGER NOT NULL,
  created_ms INTEGER NOT NULL);
CREATE INDEX snapshot_session ON snapshot(sid);
CREATE INDEX snapshot_node ON snapshot(node);

CREATE TABLE tail(                       -- partial pages in the page store
  key BLOB NOT NULL,
  sid INTEGER NOT NULL REFERENCES session(sid) ON DELETE CASCADE,
  branch INTEGER,                        -- NULL: of a snapshot
  PRIMARY KEY(sid, key)) WITHOUT ROWID;

CREATE TABLE event(                      -- append-only
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  sid INTEGER NOT NULL REFERENCES session(sid) ON DELETE CASCADE,
  at_ms INTEGER NOT NULL,
  kind TEXT NOT NULL,
  branch TEXT NOT NULL,
  turn TEXT NOT NULL,
  detail TEXT NOT NULL);
CREATE INDEX event_session ON event(sid, seq);
)sql";

// What a replay needs to name what has changed since. Nodes of version 1 have no basis, and their
// digests are of another kind (they are not compared).
constexpr char kVersion2[] = R"sql(
CREATE TABLE basis(                      -- see sessions/basis.h; one row per combination
  id INTEGER PRIMARY KEY,
  digest BLOB NOT NULL UNIQUE,
  weights BLOB NOT NULL,
  fp BLOB NOT NULL,
  numerics BLOB NOT NULL,
  operations TEXT NOT NULL,
  chat_template BLOB NOT NULL,
  tokenizer BLOB NOT NULL,
  kv TEXT NOT NULL);
ALTER TABLE node ADD COLUMN basis INTEGER REFERENCES basis(id);

CREATE TABLE context(                    -- what node.template_digest is over, beside the basis
  sid INTEGER NOT NULL REFERENCES session(sid) ON DELETE CASCADE,
  digest BLOB NOT NULL,
  tools TEXT NOT NULL,
  template_kwargs TEXT NOT NULL,
  PRIMARY KEY(sid, digest)) WITHOUT ROWID;

ALTER TABLE turn ADD COLUMN queue_us INTEGER NOT NULL DEFAULT 0;
ALTER TABLE turn ADD COLUMN restore_us INTEGER NOT NULL DEFAULT 0;
ALTER TABLE turn ADD COLUMN prefill_us INTEGER NOT NULL DEFAULT 0;
ALTER TABLE turn ADD COLUMN decode_us INTEGER NOT NULL DEFAULT 0;
)sql";

// What clients said of a branch's future (sessions/retention.h).
constexpr char kVersion3[] = R"sql(
ALTER TABLE branch ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
ALTER TABLE branch ADD COLUMN keep_until_ms INTEGER NOT NULL DEFAULT 0;  -- 0 = it has no ttl
ALTER TABLE branch ADD COLUMN wake_ms INTEGER NOT NULL DEFAULT 0;        -- 0 = nobody said
CREATE INDEX branch_wake ON branch(wake_ms) WHERE wake_ms > 0;
)sql";

constexpr char kVersion4[] = R"sql(
ALTER TABLE snapshot ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
)sql";

// What has been deleted since a gc ran last (collect.cc), and what tools took (head_table.h).
constexpr char kVersion5[] = R"sql(
CREATE TABLE gc(                         -- one row
  id INTEGER PRIMARY KEY CHECK(id = 1),
  done_ms INTEGER NOT NULL,              -- when one ended last, or the first process began; 0 = now
  deletions INTEGER NOT NULL);           -- of sessions and segments that none has seen to yet
INSERT INTO gc SELECT 1, 0, EXISTS(SELECT 1 FROM sqlite_sequence WHERE name = 'event');
CREATE TRIGGER gc_session AFTER DELETE ON session BEGIN
  UPDATE gc SET deletions = deletions + 1;
END;

CREATE TABLE tool_pause(
  tool BLOB PRIMARY KEY NOT NULL,        -- a hash of tenant and name: it outlives the sessions
  pauses BLOB NOT NULL) WITHOUT ROWID;   -- ms as f64, oldest first
)sql";

// HistoryName::by_calls (sessions/history.h), where it is another than lineage_hash.
constexpr char kVersion6[] = R"sql(
ALTER TABLE node ADD COLUMN calls_hash BLOB;
CREATE INDEX node_calls ON node(calls_hash) WHERE calls_hash IS NOT NULL;
)sql";

constexpr char kSegmentGc1[] = R"sql(
CREATE TRIGGER gc_segment AFTER DELETE ON segment BEGIN
  UPDATE gc SET deletions = deletions + 1;
END;
)sql";

}  // namespace

std::vector<Migration> SegmentGcMigrations() { return {{"sessions/gc", 1, kSegmentGc1}}; }

std::vector<Migration> SessionMigrations() {
  return {{"sessions", 1, kVersion1},
          {"sessions", 2, kVersion2},
          {"sessions", 3, kVersion3},
          {"sessions", 4, kVersion4},
          {"sessions", 5, kVersion5},
          {"sessions", 6, kVersion6}};
}

}  // namespace holdfast

#include "sessions/log.h"

#include <algorithm>
#include <bit>

namespace holdfast {
namespace {

static_assert(std::endian::native == std::endian::little, "blobs are little endian");

constexpr char kSessionColumns[] =
    "s.sid, s.id, s.external_id, s.anonymous, s.model, s.model_digest, s.default_branch, s.seed, "
    "s.next_ordinal, s.ttl_s, s.meta, s.created_ms, s.updated_ms";
constexpr char kLive[] = "(s.expires_ms IS NULL OR s.expires_ms > ?)";

SessionRow ReadSession(Rows& rows) {
  SessionRow s;
  s.sid = rows.Int(0);
  s.id = rows.Text(1);
  if (!rows.IsNull(2)) s.external_id = rows.Text(2);
  s.anonymous = rows.Int(3) != 0;
  s.model = rows.Text(4);
  s.model_digest = rows.DigestAt(5);
  s.default_branch = rows.IsNull(6) ? 0 : rows.Int(6);
  s.seed = static_cast<uint64_t>(rows.Int(7));
  s.next_ordinal = rows.Int(8);
  s.ttl_s = rows.Int(9);
  s.meta = rows.Text(10);
  s.created_ms = rows.Int(11);
  s.updated_ms = rows.Int(12);
  return s;
}

Point ReadPoint(Rows& rows, int column) {
  if (rows.IsNull(column)) return {};
  return {rows.Int(column), rows.Int(column + 1)};
}

SqlValue NodeOrNull(const Point& p) { return p.node == 0 ? SqlValue() : SqlValue(p.node); }

constexpr char kTurnColumns[] =
    "t.n, t.sid, t.branch, t.id, s.id, t.request_digest, t.input_digest, t.parent, "
    "t.parent_count, t.status, t.seed, t.prompt_tokens, t.output, t.response";

Result<std::optional<TurnRow>> ReadTurn(Rows rows) {
  if (!rows.Next()) {
    if (!rows.status().ok()) return rows.status();
    return std::optional<TurnRow>();
  }
  TurnRow t;
  t.n = rows.Int(0);
  t.sid = rows.Int(1);
  t.branch = rows.Int(2);
  t.id = rows.Text(3);
  t.session_id = rows.Text(4);
  t.request_digest = rows.DigestAt(5);
  t.input_digest = rows.DigestAt(6);
  t.parent = ReadPoint(rows, 7);
  t.status = static_cast<TurnStatus>(rows.Int(9));
  t.seed = static_cast<uint64_t>(rows.Int(10));
  t.prompt_tokens = rows.Int(11);
  t.output = rows.IsNull(12) ? 0 : rows.Int(12);
  const auto response = rows.Blob(13);
  t.response.assign(reinterpret_cast<const char*>(response.data()), response.size());
  if (!rows.status().ok()) return rows.status();
  return std::optional<TurnRow>(std::move(t));
}

Status LoadBranches(Reader& reader, SessionTree* tree) {
  Rows rows = reader.Query(
      "SELECT id, name, ordinal, node, count, generation, head_hash, tokens, items, parent_name, "
      "parent_tokens, created_ms, updated_ms, wake_ms, keep_until_ms, pinned "
      "FROM branch WHERE sid = ? ORDER BY ordinal",
      tree->session.sid);
  while (rows.Next()) {
    BranchRow b;
    b.id = rows.Int(0);
    b.name = rows.Text(1);
    b.ordinal = rows.Int(2);
    b.head = ReadPoint(rows, 3);
    b.generation = rows.Int(5);
    b.head_hash = rows.DigestAt(6);
    b.tokens = rows.Int(7);
    b.items = rows.Int(8);
    b.parent_name = rows.Text(9);
    b.parent_tokens = rows.Int(10);
    b.created_ms = rows.Int(11);
    b.updated_ms = rows.Int(12);
    b.memory = {rows.Int(13), rows.Int(14), rows.Int(15) != 0};
    tree->branches.push_back(std::move(b));
  }
  return rows.status();
}

Status LoadNodes(Reader& reader, SessionTree* tree) {
  Rows rows = reader.Query(
      "SELECT id, parent, parent_count, kind, template_digest, model_digest, turn FROM node "
      "WHERE sid = ? AND status = ?",
      tree->session.sid, NodeStatus::kCommitted);
  while (rows.Next()) {
    NodeRow n;
    n.id = rows.Int(0);
    n.parent = ReadPoint(rows, 1);
    n.kind = static_cast<NodeKind>(rows.Int(3));
    n.template_digest = rows.DigestAt(4);
    n.model_digest = rows.DigestAt(5);
    n.turn = rows.Text(6);
    tree->nodes.emplace(n.id, std::move(n));
  }
  return rows.status();
}

Status LoadItems(Reader& reader, SessionTree* tree) {
  Rows rows = reader.Query(
      "SELECT i.id, i.node, i.first, i.count, i.header, i.trailer, i.role, i.call_id, "
      "i.content_hash FROM item i JOIN node n ON n.id = i.node WHERE n.sid = ? AND n.status = ? "
      "ORDER BY i.node, i.id",
      tree->session.sid, NodeStatus::kCommitted);
  while (rows.Next()) {
    ItemRow i;
    i.id = rows.Int(0);
    i.node = rows.Int(1);
    i.first = rows.Int(2);
    i.count = rows.Int(3);
    i.header = rows.Int(4);
    i.trailer = rows.Int(5);
    i.identity.role = rows.Text(6);
    i.identity.call_id = rows.Text(7);
    i.identity.content = rows.DigestAt(8);
    tree->items[i.node].push_back(std::move(i));
  }
  return rows.status();
}

}  // namespace

const BranchRow* SessionTree::FindBranch(std::string_view name) const {
  for (const BranchRow& b : branches) {
    if (b.name == name) return &b;
  }
  return nullptr;
}

const BranchRow* SessionTree::BranchById(int64_t id) const {
  for (const BranchRow& b : branches) {
    if (b.id == id) return &b;
  }
  return nullptr;
}

Point Lineage::At(int64_t at) const {
  for (const Step& s : steps) {
    if (at <= s.first + s.count && at > s.first) return {s.node, at - s.first};
  }
  return {};
}

Lineage LineageOf(const SessionTree& tree, Point head) {
  Lineage out;
  out.head = head;
  for (Point p = head; p.node != 0;) {
    const auto it = tree.nodes.find(p.node);
    if (it == tree.nodes.end()) break;
    out.steps.push_back({p.node, 0, p.count});
    p = it->second.parent;
  }
  std::reverse(out.steps.begin(), out.steps.end());
  for (Lineage::Step& step : out.steps) {
    step.first = out.tokens;
    out.tokens += step.count;
    const NodeRow& node = tree.nodes.at(step.node);
    const auto items = tree.items.find(step.node);
    if (items == tree.items.end()) continue;
    for (const ItemRow& row : items->second) {
      if (row.first + row.count > step.count) break;
      out.items.push_back(
          {row.identity, node.kind == NodeKind::kOutput, step.first + row.first + row.count});
      out.rows.push_back(&row);
      out.item_points.push_back({step.node, row.first + row.count});
    }
  }
  if (!out.steps.empty()) {
    const NodeRow& last = tree.nodes.at(out.steps.back().node);
    out.template_digest = last.template_digest;
    out.model_digest = last.model_digest;
  }
  return out;
}

Digest HashOf(const Lineage& lineage, const Digest& context) {
  Digest hash = LineageRoot(context);
  for (const StoredItem& item : lineage.items) hash = LineageNext(hash, item.identity);
  return hash;
}

Result<SessionRow> FindSession(Reader& reader, const SessionKey& key) {
  const bool ours = key.id.starts_with("sess_");
  const std::string sql = std::string("SELECT ") + kSessionColumns + " FROM session s WHERE " +
                          (ours ? "s.id" : "s.external_id") + " = ? AND s.tenant = ? AND " + kLive;
  Rows rows = reader.Query(sql, key.id, key.tenant, key.now_ms);
  if (rows.Next()) {
    SessionRow row = ReadSession(rows);
    if (rows.status().ok()) return row;
  }
  if (!rows.status().ok()) return rows.status();
  return Status::NotFound("session '" + std::string(key.id) + "' does not exist");
}

Result<std::vector<SessionName>> AllSessions(Reader& reader) {
  std::vector<SessionName> names;
  Rows rows = reader.Query(
      "SELECT tenant, id FROM session WHERE expires_ms IS NOT 0 ORDER BY sid");
  while (rows.Next()) names.push_back({std::string(rows.Text(0)), std::string(rows.Text(1))});
  if (!rows.status().ok()) return rows.status();
  return names;
}

Result<SessionTree> LoadTree(Reader& reader, const SessionRow& session) {
  SessionTree tree;
  tree.session = session;
  HOLDFAST_RETURN_IF_ERROR(LoadBranches(reader, &tree));
  HOLDFAST_RETURN_IF_ERROR(LoadNodes(reader, &tree));
  HOLDFAST_RETURN_IF_ERROR(LoadItems(reader, &tree));
  return tree;
}

Result<std::vector<TokenId>> LoadTokens(Reader& reader, const Lineage& lineage) {
  std::vector<TokenId> out;
  out.reserve(lineage.tokens);
  for (const Lineage::Step& step : lineage.steps) {
    Rows rows = reader.Query("SELECT tokens FROM node WHERE id = ?", step.node);
    if (!rows.Next()) {
      if (!rows.status().ok()) return rows.status();
      return Status::Conflict("node " + std::to_string(step.node) + " is gone");
    }
    std::vector<TokenId> tokens = rows.Array<TokenId>(0);
    if (!rows.status().ok()) return rows.status();
    if (static_cast<int64_t>(tokens.size()) < step.count) {
      return Status::Corrupt("node " + std::to_string(step.node) + " holds " +
                             std::to_string(tokens.size()) + " tokens, not " +
                             std::to_string(step.count));
    }
    out.insert(out.end(), tokens.begin(), tokens.begin() + step.count);
  }
  return out;
}

Result<ItemTexts> LoadItemTexts(Reader& reader, int64_t item) {
  Rows rows = reader.Query("SELECT content, raw FROM item WHERE id = ?", item);
  if (!rows.Next()) {
    if (!rows.status().ok()) return rows.status();
    return Status::Conflict("item " + std::to_string(item) + " is gone");
  }
  return ItemTexts{std::string(rows.Text(0)), std::string(rows.Text(1))};
}

Result<std::optional<AnonymousHit>> FindAnonymous(Reader& reader, const SessionKey& tenant,
                                                  const HistoryName& name) {
  const std::string select = std::string("SELECT ") + kSessionColumns;
  const std::string mine = std::string(" AND s.tenant = ? AND s.anonymous = 1 AND ") + kLive;
  const std::string heads = select + ", b.id FROM branch b JOIN session s ON s.sid = b.sid "
                            "WHERE b.head_hash = ?" + mine + " ORDER BY b.updated_ms DESC LIMIT 1";
  const std::string inside = select + ", 0 FROM node n JOIN session s ON s.sid = n.sid WHERE n.";
  const std::string newest = " = ?" + mine + " ORDER BY n.id DESC LIMIT 1";
  std::vector<std::pair<std::string, Digest>> queries = {
      {heads, name.by_ids}, {inside + "lineage_hash" + newest, name.by_ids}};
  if (name.by_calls != name.by_ids) {
    queries.push_back({inside + "calls_hash" + newest, name.by_calls});
  }
  for (const auto& [sql, hash] : queries) {
    Rows rows = reader.Query(sql, hash, tenant.tenant, tenant.now_ms);
    if (rows.Next()) {
      AnonymousHit hit{ReadSession(rows), rows.Int(13)};
      if (rows.status().ok()) return std::optional<AnonymousHit>(std::move(hit));
    }
    if (!rows.status().ok()) return rows.status();
  }
  return std::optional<AnonymousHit>();
}

Result<std::optional<TurnRow>> FindTurnByKey(Reader& reader, std::string_view tenant,
                                             std::string_view idempotency_key) {
  return ReadTurn(reader.Query(std::string("SELECT ") + kTurnColumns +
                                   " FROM turn t JOIN session s ON s.sid = t.sid WHERE "
                                   "t.tenant = ? AND t.idempotency_key = ?",
                               tenant, idempotency_key));
}

Result<std::optional<TurnRow>> FindAborted(Reader& reader, int64_t sid, Point parent,
                                           const Digest& input_digest) {
  return ReadTurn(reader.Query(std::string("SELECT ") + kTurnColumns +
                                   " FROM turn t JOIN session s ON s.sid = t.sid WHERE "
                                   "t.sid = ? AND t.parent IS ? AND t.parent_count = ? AND "
                                   "t.input_digest = ? AND t.status = ? ORDER BY t.n DESC LIMIT 1",
                               sid, NodeOrNull(parent), parent.count, input_digest,
                               TurnStatus::kAborted));
}

Result<std::optional<TurnRow>> FindAbortedFirst(Reader& reader, std::string_view tenant,
                                                const Digest& request_digest) {
  return ReadTurn(reader.Query(std::string("SELECT ") + kTurnColumns +
                                   " FROM turn t JOIN session s ON s.sid = t.sid WHERE "
                                   "t.tenant = ? AND t.request_digest = ? AND t.status = 3 AND "
                                   "t.parent IS NULL AND s.anonymous = 1 ORDER BY t.n DESC LIMIT 1",
                               tenant, request_digest));
}

Status InsertSession(Txn& txn, const NewSession& s) {
  const SqlValue external = s.external_id.empty() ? SqlValue() : SqlValue(s.external_id);
  const SqlValue expires = s.ttl_s > 0 ? SqlValue(s.now_ms + s.ttl_s * 1000) : SqlValue();
  HOLDFAST_RETURN_IF_ERROR(txn.Run(
      "INSERT INTO session(sid, id, tenant, external_id, anonymous, model, model_digest, "
      "default_branch, seed, next_ordinal, ttl_s, expires_ms, meta, created_ms, updated_ms) "
      "VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?, ?, ?)",
      s.sid, s.id, s.tenant, external, s.anonymous, s.model, s.model_digest, s.main_branch, s.seed,
      s.ttl_s, expires, s.meta, s.now_ms, s.now_ms));
  HOLDFAST_RETURN_IF_ERROR(txn.Run(
      "INSERT INTO branch(id, sid, name, ordinal, node, count, generation, head_hash, tokens, "
      "items, parent_name, parent_tokens, created_ms, updated_ms) "
      "VALUES(?, ?, 'main', 0, NULL, 0, 0, ?, 0, 0, '', 0, ?, ?)",
      s.main_branch, s.sid, s.root_hash, s.now_ms, s.now_ms));
  return InsertEvent(txn, {s.sid, s.now_ms, "session_created", "main", "", ""});
}

namespace {

// "b" and the ordinal, and where a client has taken that name, more behind it.
Status ChooseName(Txn& txn, int64_t ordinal, NewBranch* b) {
  const std::string first = "b" + std::to_string(ordinal);
  b->name = first;
  for (int64_t more = 2;; ++more) {
    Rows rows = txn.Query("SELECT 1 FROM branch WHERE sid = ? AND name = ?", b->sid, b->name);
    if (!rows.Next()) return rows.status();
    b->name = first + "-" + std::to_string(more);
  }
}

}  // namespace

Status InsertBranch(Txn& txn, NewBranch* b, int64_t* ordinal) {
  {
    Rows rows = txn.Query("SELECT next_ordinal FROM session WHERE sid = ?", b->sid);
    if (!rows.Next()) {
      HOLDFAST_RETURN_IF_ERROR(rows.status());
      return Status::Conflict("the session was deleted");
    }
    *ordinal = rows.Int(0);
  }
  HOLDFAST_RETURN_IF_ERROR(
      txn.Run("UPDATE session SET next_ordinal = next_ordinal + 1 WHERE sid = ?", b->sid));
  if (b->name.empty()) HOLDFAST_RETURN_IF_ERROR(ChooseName(txn, *ordinal, b));
  HOLDFAST_RETURN_IF_ERROR(txn.Run(
      "INSERT INTO branch(id, sid, name, ordinal, node, count, generation, head_hash, tokens, "
      "items, parent_name, parent_tokens, created_ms, updated_ms) "
      "VALUES(?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?)",
      b->id, b->sid, b->name, *ordinal, NodeOrNull(b->head), b->head.count, b->head_hash, b->tokens,
      b->items, b->parent_name, b->parent_tokens, b->now_ms, b->now_ms));
  return InsertEvent(txn, {b->sid, b->now_ms, "branch_created", b->name, "", b->parent_name});
}

Result<int64_t> InsertNode(Txn& txn, const NewNode& n) {
  HOLDFAST_RETURN_IF_ERROR(txn.Run(
      "INSERT INTO node(sid, parent, parent_count, kind, status, turn, tokens, origins, digests, "
      "sampling, seed, template_digest, model_digest, lineage_hash, calls_hash, basis) "
      "VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
      n.sid, NodeOrNull(n.parent), n.parent.count, n.kind, n.status, n.turn, BlobOf(n.tokens),
      BlobOf(n.origins), BlobOf(n.digests), n.sampling, n.seed, n.template_digest, n.model_digest,
      n.lineage_hash, n.calls_hash, n.basis == 0 ? SqlValue() : SqlValue(n.basis)));
  return txn.last_insert_id();
}

Status InsertItem(Txn& txn, int64_t node, const NewItem& i) {
  return txn.Run(
      "INSERT INTO item(node, first, count, header, trailer, role, call_id, content_hash, content, "
      "raw) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
      node, i.first, i.count, i.header, i.trailer, i.identity.role, i.identity.call_id,
      i.identity.content, i.content, i.raw);
}

Status InsertEvent(Txn& txn, const NewEvent& e) {
  return txn.Run("INSERT INTO event(sid, at_ms, kind, branch, turn, detail) "
                 "VALUES(?, ?, ?, ?, ?, ?)",
                 e.sid, e.at_ms, e.kind, e.branch, e.turn, e.detail);
}

Status MoveDefault(Txn& txn, int64_t branch, NewEvent event) {
  HOLDFAST_RETURN_IF_ERROR(
      txn.Run("UPDATE session SET default_branch = ? WHERE sid = ?", branch, event.sid));
  event.kind = "default_changed";
  return InsertEvent(txn, event);
}

}  // namespace holdfast

// The keeper's view of sessions for their endpoints: create, list, show, snapshot, delete. Branches
// are made in branch.cc.

#include <algorithm>
#include <charconv>
#include <utility>

#include "sessions/keeper_impl.h"

namespace holdfast {
namespace {

constexpr int kMaxListed = 1000;
constexpr int64_t kMaxPosition = int64_t{1} << 62;
constexpr size_t kMaxNameBytes = 256;  // of a branch, a label, an external id
constexpr size_t kMaxMetaBytes = 16384;

constexpr char kInfoSql[] =
    "SELECT s.id, s.external_id, s.anonymous, s.model, d.name, s.meta, s.created_ms, s.updated_ms, "
    "s.ttl_s, (SELECT COUNT(*) FROM branch b WHERE b.sid = s.sid), "
    "(SELECT COUNT(*) FROM turn t WHERE t.sid = s.sid AND t.status = 2), d.tokens, d.items, s.sid "
    "FROM session s LEFT JOIN branch d ON d.id = s.default_branch ";

SessionInfo ReadInfo(Rows& rows) {
  SessionInfo info;
  info.id = rows.Text(0);
  if (!rows.IsNull(1)) info.external_id = rows.Text(1);
  info.anonymous = rows.Int(2) != 0;
  info.model = rows.Text(3);
  if (!rows.IsNull(4)) info.default_branch = rows.Text(4);
  info.meta_json = rows.Text(5);
  info.created_ms = rows.Int(6);
  info.updated_ms = rows.Int(7);
  info.ttl_s = rows.Int(8);
  info.branches = rows.Int(9);
  info.turns = rows.Int(10);
  if (!rows.IsNull(11)) info.tokens = rows.Int(11);
  if (!rows.IsNull(12)) info.items = rows.Int(12);
  return info;
}

Status NotThere(const SessionRow& session) {
  return Status::NotFound("session '" + session.id + "' does not exist");
}

}  // namespace

Result<int64_t> PositionOf(const ListRange& range) {
  if (range.limit < 1 || range.limit > kMaxListed) {
    return Status::Invalid("limit: must be 1 to " + std::to_string(kMaxListed));
  }
  if (range.after.empty()) return int64_t{-1};
  int64_t v = 0;
  const char* end = range.after.data() + range.after.size();
  const auto [at, error] = std::from_chars(range.after.data(), end, v);
  if (error != std::errc() || at != end || v < 0 || v > kMaxPosition) {
    return Status::Invalid("after: not a position");
  }
  return v;
}

Status CheckName(std::string_view what, std::string_view name) {
  if (name.size() <= kMaxNameBytes) return Status();
  return Status::Invalid(std::string(what) + ": more than " + std::to_string(kMaxNameBytes) +
                         " bytes");
}

BranchInfo InfoOf(const Keeper::Impl& k, const SessionTree& tree, const BranchRow& b) {
  BranchInfo info;
  info.session_id = tree.session.id;
  info.name = b.name;
  info.ordinal = b.ordinal;
  info.parent = b.parent_name;
  info.parent_tokens = b.parent_tokens;
  info.tokens = b.tokens;
  info.items = b.items;
  info.generation = b.generation;
  info.created_ms = b.created_ms;
  info.updated_ms = b.updated_ms;
  info.is_default = b.id == tree.session.default_branch;
  info.busy = k.leases.IsBusy(b.id);
  info.resident = k.warm.IsWarm(b.id);
  info.state = StateOf(k, tree, b);
  return info;
}

Result<const BranchRow*> PickBranch(const SessionTree& tree, std::string_view name) {
  const BranchRow* b =
      name.empty() ? tree.BranchById(tree.session.default_branch) : tree.FindBranch(name);
  if (b == nullptr) {
    return Status::NotFound("branch '" + std::string(name) + "' does not exist");
  }
  return b;
}

// A head that the table does not know has had no turn in this process.
std::string StateOf(const Keeper::Impl& k, const SessionTree& tree, const BranchRow& b) {
  if (const auto known = k.heads.StateOf(b.id)) return std::string(HeadStateName(*known));
  const bool superseded =
      std::any_of(tree.branches.begin(), tree.branches.end(),
                  [&](const BranchRow& by) { return IsSuperseded(UseOf(b), UseOf(by)); });
  return std::string(HeadStateName(superseded ? HeadState::kSuperseded : HeadState::kCold));
}

Result<SessionInfo> Keeper::Create(std::string_view tenant, const CreateSession& request) {
  if (request.external_id.starts_with("sess_")) {
    return Status::Invalid("session id: those that begin with 'sess_' are given by the server");
  }
  HOLDFAST_RETURN_IF_ERROR(CheckName("session id", request.external_id));
  if (request.meta_json.size() > kMaxMetaBytes) {
    return Status::Invalid("meta: more than " + std::to_string(kMaxMetaBytes) + " bytes");
  }
  if (request.ttl_s < 0 || request.ttl_s > kMaxTtlSeconds) {
    return Status::Invalid("ttl: must be 0 to " + std::to_string(kMaxTtlSeconds) + " seconds");
  }
  if (impl_->shut) return Status::Unavailable("shutting down");
  NewSession s;
  s.id = impl_->NewId("sess_");
  s.tenant = tenant;
  s.external_id = request.external_id;
  s.model = impl_->options.model_name;
  s.meta = request.meta_json;
  s.model_digest = impl_->options.model_digest;
  s.root_hash = LineageRoot(Digest{});
  s.seed = impl_->RandomU64();
  s.ttl_s = request.ttl_s;
  s.now_ms = impl_->NowMs();
  s.main_branch = impl_->next_branch++;
  s.sid = impl_->next_sid++;
  Status made = impl_->options.db->Write(
      [&](Txn& txn) -> Status {
        HOLDFAST_RETURN_IF_ERROR(impl_->quotas.CheckNewSession(txn, tenant, s.now_ms));
        return InsertSession(txn, s);
      },
      WriteClass::kTurn);
  if (made.code() == Code::kConflict) {
    return Status::Conflict("session '" + request.external_id + "' is there already");
  }
  HOLDFAST_RETURN_IF_ERROR(std::move(made));
  ++impl_->sessions;
  return Get(tenant, s.id);
}

Result<Listed<SessionInfo>> Keeper::List(std::string_view tenant, const ListRange& range) {
  HOLDFAST_ASSIGN_OR_RETURN(const int64_t after, PositionOf(range));
  Listed<SessionInfo> out;
  HOLDFAST_RETURN_IF_ERROR(impl_->options.db->Read([&](Reader& reader) {
    Rows rows = reader.Query(std::string(kInfoSql) +
                                 "WHERE s.tenant = ? AND s.sid > ? AND "
                                 "(s.expires_ms IS NULL OR s.expires_ms > ?) "
                                 "ORDER BY s.sid LIMIT ?",
                             tenant, after, impl_->NowMs(), range.limit + 1);
    int64_t last = 0;
    while (rows.Next()) {
      if (static_cast<int>(out.rows.size()) == range.limit) {
        out.next = std::to_string(last);
        break;
      }
      out.rows.push_back(ReadInfo(rows));
      last = rows.Int(13);
    }
    return rows.status();
  }));
  return out;
}

Result<SessionInfo> Keeper::Get(std::string_view tenant, std::string_view id) {
  SessionInfo info;
  HOLDFAST_RETURN_IF_ERROR(impl_->options.db->Read([&](Reader& reader) -> Status {
    HOLDFAST_ASSIGN_OR_RETURN(const SessionRow session,
                              FindSession(reader, {tenant, id, impl_->NowMs()}));
    Rows rows = reader.Query(std::string(kInfoSql) + "WHERE s.sid = ?", session.sid);
    if (rows.Next()) info = ReadInfo(rows);
    return rows.status();
  }));
  return info;
}

Status Keeper::Delete(std::string_view tenant, std::string_view id) {
  SessionRow session;
  HOLDFAST_RETURN_IF_ERROR(impl_->options.db->Read([&](Reader& reader) -> Status {
    HOLDFAST_ASSIGN_OR_RETURN(session, FindSession(reader, {tenant, id, impl_->NowMs()}));
    return Status();
  }));
  return impl_->DeleteSession(session, Impl::Deletion::kAnyway);
}

// Of a session that is closed: nothing gives it life again from here on.
Result<Keeper::Impl::Doomed> Keeper::Impl::LookAtDoomed(const SessionRow& session,
                                                        Deletion deletion) {
  Doomed doomed;
  HOLDFAST_RETURN_IF_ERROR(options.db->Read([&](Reader& reader) -> Status {
    Rows row = reader.Query("SELECT expires_ms FROM session WHERE sid = ?", session.sid);
    if (!row.Next()) return row.status().ok() ? NotThere(session) : row.status();
    if (deletion == Deletion::kIfExpired && (row.IsNull(0) || row.Int(0) > NowMs())) {
      return Status::Conflict("session '" + session.id + "' has not expired any more");
    }
    doomed.was_whole = row.IsNull(0) || row.Int(0) != 0;
    Rows rows = reader.Query("SELECT key FROM tail WHERE sid = ?", session.sid);
    while (rows.Next()) doomed.tails.push_back(rows.DigestAt(0));
    return rows.status();
  }));
  return doomed;
}

Status Keeper::Impl::DeleteSession(const SessionRow& session, Deletion deletion) {
  if (!leases.CloseSession(session.sid)) {
    return Status::Conflict("busy_head: a turn runs in session '" + session.id + "'");
  }
  const Result<Doomed> doomed = LookAtDoomed(session, deletion);
  Status s = doomed.status();
  if (s.ok()) {
    warm.Drop(session.sid);
    heads.Close(session.sid);
    s = options.db->Write(
        [&](Txn& txn) -> Status {
          HOLDFAST_RETURN_IF_ERROR(txn.Run("DELETE FROM session WHERE sid = ?", session.sid));
          return txn.changes() == 1 ? Status() : NotThere(session);
        },
        WriteClass::kTurn);
  }
  if (!s.ok()) {
    if (s.code() != Code::kNotFound) leases.ReopenSession(session.sid);
    return s;
  }
  warm.ForgetTails(doomed->tails);
  if (options.segments != nullptr) options.segments->Forget(session.sid);
  quotas.Deleted();
  if (doomed->was_whole) --sessions;
  return Status();
}

Result<std::vector<BranchInfo>> Keeper::Branches(std::string_view tenant, std::string_view id) {
  std::vector<BranchInfo> out;
  HOLDFAST_RETURN_IF_ERROR(WithTree(*impl_, tenant, id, [&](Reader&, const SessionTree& tree) {
    for (const BranchRow& b : tree.branches) out.push_back(InfoOf(*impl_, tree, b));
    return Status();
  }));
  return out;
}

Result<Listed<ItemInfo>> Keeper::Items(std::string_view tenant, std::string_view id,
                                       std::string_view branch, const ListRange& range) {
  HOLDFAST_ASSIGN_OR_RETURN(const int64_t after, PositionOf(range));
  Listed<ItemInfo> out;
  HOLDFAST_RETURN_IF_ERROR(
      WithTree(*impl_, tenant, id, [&](Reader& reader, const SessionTree& tree) -> Status {
        HOLDFAST_ASSIGN_OR_RETURN(const BranchRow* b, PickBranch(tree, branch));
        const Lineage lineage = LineageOf(tree, b->head);
        const int64_t count = static_cast<int64_t>(lineage.items.size());
        const int64_t end = std::min(count, after + 1 + range.limit);
        for (int64_t i = after + 1; i < end; ++i) {
          const ItemRow& row = *lineage.rows[i];
          HOLDFAST_ASSIGN_OR_RETURN(ItemTexts texts, LoadItemTexts(reader, row.id));
          ItemInfo info;
          info.index = i;
          info.role = row.identity.role;
          info.call_id = row.identity.call_id;
          info.raw_json = std::move(texts.raw);
          info.turn_id = tree.nodes.at(row.node).turn;
          info.first = lineage.items[i].end - row.count;
          info.count = row.count;
          info.header = row.header;
          info.trailer = row.trailer;
          info.sampled = lineage.items[i].sampled;
          out.rows.push_back(std::move(info));
        }
        if (end < count) out.next = std::to_string(end - 1);
        return Status();
      }));
  return out;
}

Result<std::vector<TokenId>> Keeper::Tokens(std::string_view tenant, std::string_view id,
                                            std::string_view branch) {
  std::vector<TokenId> out;
  HOLDFAST_RETURN_IF_ERROR(
      WithTree(*impl_, tenant, id, [&](Reader& reader, const SessionTree& tree) -> Status {
        HOLDFAST_ASSIGN_OR_RETURN(const BranchRow* b, PickBranch(tree, branch));
        HOLDFAST_ASSIGN_OR_RETURN(out, LoadTokens(reader, LineageOf(tree, b->head)));
        return Status();
      }));
  return out;
}

Result<Recording> Keeper::Recorded(std::string_view tenant, std::string_view id,
                                   std::string_view branch) {
  Recording out;
  HOLDFAST_RETURN_IF_ERROR(
      WithTree(*impl_, tenant, id, [&](Reader& reader, const SessionTree& tree) -> Status {
        HOLDFAST_ASSIGN_OR_RETURN(const BranchRow* b, PickBranch(tree, branch));
        HOLDFAST_ASSIGN_OR_RETURN(out, LoadRecording(reader, tree, *b));
        return Status();
      }));
  HOLDFAST_RETURN_IF_ERROR(CompareWithTemplate(*impl_->renderer, impl_->options.basis, &out));
  return out;
}

Result<SnapshotInfo> Keeper::Snapshot(std::string_view tenant, std::string_view id,
                                      std::string_view branch, std::string_view label) {
  HOLDFAST_RETURN_IF_ERROR(CheckName("label", label));
  if (impl_->shut) return Status::Unavailable("shutting down");
  SnapshotInfo info;
  info.id = impl_->NewId("snap_");
  info.label = label;
  info.created_ms = impl_->NowMs();
  Point head;
  int64_t sid = 0, branch_id = 0;
  HOLDFAST_RETURN_IF_ERROR(
      WithTree(*impl_, tenant, id, [&](Reader&, const SessionTree& tree) -> Status {
        HOLDFAST_ASSIGN_OR_RETURN(const BranchRow* b, PickBranch(tree, branch));
        info.branch = b->name;
        info.tokens = b->tokens;
        info.items = b->items;
        head = b->head;
        sid = tree.session.sid;
        branch_id = b->id;
        return Status();
      }));
  Status s = impl_->options.db->Write(
      [&](Txn& txn) -> Status {
        HOLDFAST_RETURN_IF_ERROR(txn.Run(
            "INSERT INTO snapshot(id, sid, label, branch, node, count, tokens, items, created_ms) "
            "VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)",
            info.id, sid, info.label, info.branch,
            head.node == 0 ? SqlValue() : SqlValue(head.node), head.count, info.tokens, info.items,
            info.created_ms));
        return InsertEvent(
            txn, {sid, info.created_ms, "snapshot_created", info.branch, "", info.id});
      },
      WriteClass::kTurn);
  if (s.code() == Code::kConflict) return Status::NotFound("the session was deleted");
  HOLDFAST_RETURN_IF_ERROR(std::move(s));
  // Without it a restore computes a few tokens more, to the same bits.
  impl_->warm.WriteSnapshotTail(sid, branch_id);
  return info;
}

Result<std::vector<SnapshotInfo>> Keeper::Snapshots(std::string_view tenant, std::string_view id) {
  std::vector<SnapshotInfo> out;
  HOLDFAST_RETURN_IF_ERROR(impl_->options.db->Read([&](Reader& reader) -> Status {
    HOLDFAST_ASSIGN_OR_RETURN(const SessionRow session,
                              FindSession(reader, {tenant, id, impl_->NowMs()}));
    Rows rows = reader.Query(
        "SELECT id, label, branch, tokens, items, created_ms FROM snapshot WHERE sid = ? "
        "ORDER BY n",
        session.sid);
    while (rows.Next()) {
      SnapshotInfo info;
      info.id = rows.Text(0);
      info.label = rows.Text(1);
      info.branch = rows.Text(2);
      info.tokens = rows.Int(3);
      info.items = rows.Int(4);
      info.created_ms = rows.Int(5);
      out.push_back(std::move(info));
    }
    return rows.status();
  }));
  return out;
}

Result<Listed<EventInfo>> Keeper::Events(std::string_view tenant, std::string_view id,
                                         const ListRange& range) {
  HOLDFAST_ASSIGN_OR_RETURN(const int64_t after, PositionOf(range));
  Listed<EventInfo> out;
  HOLDFAST_RETURN_IF_ERROR(impl_->options.db->Read([&](Reader& reader) -> Status {
    HOLDFAST_ASSIGN_OR_RETURN(const SessionRow session,
                              FindSession(reader, {tenant, id, impl_->NowMs()}));
    Rows rows = reader.Query(
        "SELECT seq, at_ms, kind, branch, turn, detail FROM event WHERE sid = ? AND seq > ? "
        "ORDER BY seq LIMIT ?",
        session.sid, after, range.limit + 1);
    while (rows.Next()) {
      if (static_cast<int>(out.rows.size()) == range.limit) {
        out.next = std::to_string(out.rows.back().seq);
        break;
      }
      EventInfo e;
      e.seq = rows.Int(0);
      e.at_ms = rows.Int(1);
      e.kind = rows.Text(2);
      e.branch = rows.Text(3);
      e.turn_id = rows.Text(4);
      e.detail = rows.Text(5);
      out.rows.push_back(std::move(e));
    }
    return rows.status();
  }));
  return out;
}

uint64_t Keeper::WaitForChange(uint64_t seen, int ms) const {
  return impl_->options.db->WaitForCommit(seen, std::chrono::milliseconds(ms));
}

}  // namespace holdfast

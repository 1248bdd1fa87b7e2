// The keeper's view of sessions for their endpoints: create, list, show, cancel, delete. Branches
// are made in branch.cc, snapshots in snapshot.cc.

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
constexpr size_t kMaxTreeItems = 1 << 16;  // in one answer
constexpr int kEndTurnsMs = 10'000;          // that a cancelled turn has to end
constexpr int kAskAgainMs = 50;

constexpr char kInfoSql[] =
    "SELECT s.id, s.external_id, s.anonymous, s.model, d.name, s.meta, s.created_ms, s.updated_ms, "
    "s.ttl_s, (SELECT COUNT(*) FROM branch b WHERE b.sid = s.sid), "
    "(SELECT COUNT(*) FROM turn t WHERE t.sid = s.sid AND t.status = 2), d.tokens, d.items, s.sid, "
    "d.generation "
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
  if (!rows.IsNull(14)) info.generation = rows.Int(14);
  return info;
}

Status NotThere(const SessionRow& session) {
  return Status::NotFound("session '" + session.id + "' does not exist");
}

// `range` with a position in the place of a session's id.
Result<ListRange> Numbered(Reader& reader, std::string_view tenant, ListRange range) {
  if (!range.after.starts_with("sess_")) return range;
  Rows rows = reader.Query("SELECT sid FROM session WHERE id = ? AND tenant = ?", range.after,
                           tenant);
  if (!rows.Next()) {
    if (!rows.status().ok()) return rows.status();
    return Status::Invalid("after: session '" + range.after + "' does not exist");
  }
  range.after = std::to_string(rows.Int(0));
  return range;
}

// Without its message.
ItemInfo ItemAt(const SessionTree& tree, const Lineage& lineage, int64_t i) {
  const ItemRow& row = *lineage.rows[i];
  ItemInfo info;
  info.index = i;
  info.role = row.identity.role;
  info.call_id = row.identity.call_id;
  info.turn_id = tree.nodes.at(row.node).turn;
  info.first = lineage.items[i].end - row.count;
  info.count = row.count;
  info.header = row.header;
  info.trailer = row.trailer;
  info.sampled = lineage.items[i].sampled;
  return info;
}

}  // namespace

Result<int64_t> PositionOf(const ListRange& range) {
  if (range.limit < 1 || range.limit > kMaxListed) {
    return Status::Invalid("limit: must be 1 to " + std::to_string(kMaxListed));
  }
  if (range.after.empty()) return range.order == ListOrder::kAscending ? -1 : kMaxPosition;
  int64_t v = 0;
  const char* end = range.after.data() + range.after.size();
  const auto [at, error] = std::from_chars(range.after.data(), end, v);
  if (error != std::errc() || at != end || v < 0 || v > kMaxPosition) {
    return Status::Invalid("after: not a position");
  }
  return v;
}

Result<ListPage> PageOf(const ListRange& range, int64_t count) {
  HOLDFAST_ASSIGN_OR_RETURN(const int64_t after, PositionOf(range));
  const bool up = range.order == ListOrder::kAscending;
  ListPage page;
  for (int64_t at = up ? after + 1 : std::min(after, count) - 1; at >= 0 && at < count;
       at += up ? 1 : -1) {
    if (static_cast<int>(page.positions.size()) == range.limit) {
      page.next = std::to_string(page.positions.back());
      break;
    }
    page.positions.push_back(at);
  }
  return page;
}

Status CheckName(std::string_view what, std::string_view name) {
  if (name.size() <= kMaxNameBytes) return Status();
  return Status::Invalid(std::string(what) + ": more than " + std::to_string(kMaxNameBytes) +
                         " bytes");
}

Status CheckBranchName(std::string_view what, std::string_view name) {
  HOLDFAST_RETURN_IF_ERROR(CheckName(what, name));
  const bool good = std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return c >= ' ' && c != 127 && c != '"' && c != '\\';
  });
  if (good) return Status();
  return Status::Invalid(std::string(what) +
                         ": must be without control characters, quotes and backslashes");
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
  info.turn = k.running.On(b.id);
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
  Listed<SessionInfo> out;
  HOLDFAST_RETURN_IF_ERROR(impl_->options.db->Read([&](Reader& reader) -> Status {
    HOLDFAST_ASSIGN_OR_RETURN(const ListRange numbered, Numbered(reader, tenant, range));
    HOLDFAST_ASSIGN_OR_RETURN(const int64_t after, PositionOf(numbered));
    const bool up = range.order == ListOrder::kAscending;
    Rows rows = reader.Query(std::string(kInfoSql) + "WHERE s.tenant = ? AND s.sid " +
                                 (up ? ">" : "<") +
                                 " ? AND (s.expires_ms IS NULL OR s.expires_ms > ?) "
                                 "ORDER BY s.sid " +
                                 (up ? "" : "DESC ") + "LIMIT ?",
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

Status Keeper::Delete(std::string_view tenant, std::string_view id, Running running) {
  SessionRow session;
  HOLDFAST_RETURN_IF_ERROR(impl_->options.db->Read([&](Reader& reader) -> Status {
    HOLDFAST_ASSIGN_OR_RETURN(session, FindSession(reader, {tenant, id, impl_->NowMs()}));
    return Status();
  }));
  if (running == Running::kCancel) HOLDFAST_RETURN_IF_ERROR(impl_->EndTurns(session));
  return impl_->DeleteSession(session, Impl::Deletion::kAnyway);
}

// Nothing begins from here on, who waits gives up, and what runs is ended.
Status Keeper::Impl::EndTurns(const SessionRow& session) {
  leases.ShutSession(session.sid);
  for (int asked = 0; asked < kEndTurnsMs; asked += kAskAgainMs) {
    running.CancelAll(session.sid);  // also those that were still being prepared before
    caretaker.Poke();                // work of its own yields
    if (leases.AwaitFree(session.sid, kAskAgainMs)) return Status();
  }
  leases.ReopenSession(session.sid);
  return Status::Unavailable("a turn of session '" + session.id + "' has not ended yet");
}

Result<bool> Keeper::CancelTurn(std::string_view tenant, std::string_view id,
                                std::string_view turn) {
  int64_t sid = 0;
  const auto status_of = [&](Reader& reader) -> Result<TurnStatus> {
    HOLDFAST_ASSIGN_OR_RETURN(const SessionRow session,
                              FindSession(reader, {tenant, id, impl_->NowMs()}));
    sid = session.sid;
    Rows rows = reader.Query("SELECT status FROM turn WHERE id = ? AND sid = ?", turn, sid);
    if (rows.Next()) return static_cast<TurnStatus>(rows.Int(0));
    if (!rows.status().ok()) return rows.status();
    // One that asked for no durability may have left no row.
    if (impl_->running.IsOf(sid, turn)) return TurnStatus::kRunning;
    return Status::NotFound("turn '" + std::string(turn) + "' does not exist");
  };
  TurnStatus status = TurnStatus::kAborted;
  const auto look = [&] {
    return impl_->options.db->Read([&](Reader& reader) -> Status {
      HOLDFAST_ASSIGN_OR_RETURN(status, status_of(reader));
      return Status();
    });
  };
  HOLDFAST_RETURN_IF_ERROR(look());
  if (status == TurnStatus::kCommitted || status == TurnStatus::kAborted) {
    return status == TurnStatus::kAborted;
  }
  if (!impl_->running.Cancel(sid, turn, kEndTurnsMs)) {
    return Status::Unavailable("turn '" + std::string(turn) + "' has not ended yet");
  }
  const Status ended = look();
  if (ended.code() == Code::kNotFound) return true;  // it never had a row
  HOLDFAST_RETURN_IF_ERROR(ended);
  return status != TurnStatus::kCommitted;
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
  Listed<ItemInfo> out;
  HOLDFAST_RETURN_IF_ERROR(
      WithTree(*impl_, tenant, id, [&](Reader& reader, const SessionTree& tree) -> Status {
        HOLDFAST_ASSIGN_OR_RETURN(const BranchRow* b, PickBranch(tree, branch));
        const Lineage lineage = LineageOf(tree, b->head);
        HOLDFAST_ASSIGN_OR_RETURN(ListPage page,
                                  PageOf(range, static_cast<int64_t>(lineage.items.size())));
        for (const int64_t i : page.positions) {
          HOLDFAST_ASSIGN_OR_RETURN(ItemTexts texts,
                                    LoadItemTexts(reader, lineage.rows[i]->id));
          out.rows.push_back(ItemAt(tree, lineage, i));
          out.rows.back().raw_json = std::move(texts.raw);
        }
        out.next = std::move(page.next);
        return Status();
      }));
  return out;
}

Result<TreeInfo> Keeper::Tree(std::string_view tenant, std::string_view id) {
  TreeInfo out;
  size_t items = 0;
  HOLDFAST_RETURN_IF_ERROR(WithTree(
      *impl_, tenant, id, [&](Reader& reader, const SessionTree& tree) -> Status {
        out.session_id = tree.session.id;
        for (const BranchRow& b : tree.branches) {
          TreeInfo::Branch& branch = out.branches.emplace_back();
          branch.info = InfoOf(*impl_, tree, b);
          if (branch.info.is_default) out.default_branch = b.name;
          const Lineage lineage = LineageOf(tree, b.head);
          for (int64_t i = 0; i < static_cast<int64_t>(lineage.items.size()); ++i) {
            if (lineage.items[i].end <= b.parent_tokens) {
              ++branch.parent_items;
            } else {
              branch.items.push_back(ItemAt(tree, lineage, i));
            }
          }
          items += branch.items.size();
        }
        if (items > kMaxTreeItems) {
          return Status::Invalid("more than " + std::to_string(kMaxTreeItems) +
                                 " items: list the branches and the items of each");
        }
        HOLDFAST_ASSIGN_OR_RETURN(out.snapshots, LoadSnapshots(reader, tree.session.sid));
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

Result<Listed<EventInfo>> Keeper::Events(std::string_view tenant, std::string_view id,
                                         const ListRange& range) {
  HOLDFAST_ASSIGN_OR_RETURN(const int64_t after, PositionOf(range));
  Listed<EventInfo> out;
  HOLDFAST_RETURN_IF_ERROR(impl_->options.db->Read([&](Reader& reader) -> Status {
    HOLDFAST_ASSIGN_OR_RETURN(const SessionRow session,
                              FindSession(reader, {tenant, id, impl_->NowMs()}));
    const bool up = range.order == ListOrder::kAscending;
    Rows rows = reader.Query(
        std::string("SELECT seq, at_ms, kind, branch, turn, detail FROM event WHERE sid = ? AND ") +
            (up ? "seq > ? ORDER BY seq LIMIT ?" : "seq < ? ORDER BY seq DESC LIMIT ?"),
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

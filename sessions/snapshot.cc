// Snapshots: labelled points of a session that never move.
//
// A snapshot holds no bytes of its own but the partial page behind its whole ones: those are found
// by its tokens, like a branch's. Pinned ones are put at the end of the line that pages leave the
// disk by (caretaker.cc), as pinned heads are.

#include <algorithm>
#include <utility>

#include "sessions/bundle_scan.h"
#include "sessions/keeper_impl.h"
#include "stitcher/segment.h"

namespace holdfast {
namespace {

constexpr char kSnapshotSql[] =
    "SELECT n, id, label, branch, node, count, tokens, items, created_ms, pinned FROM snapshot ";

SnapshotRow ReadSnapshot(Rows& rows) {
  SnapshotRow s;
  s.n = rows.Int(0);
  s.info.id = rows.Text(1);
  s.info.label = rows.Text(2);
  s.info.branch = rows.Text(3);
  if (!rows.IsNull(4)) s.point = {rows.Int(4), rows.Int(5)};
  s.info.tokens = rows.Int(6);
  s.info.items = rows.Int(7);
  s.info.created_ms = rows.Int(8);
  s.info.pinned = rows.Int(9) != 0;
  return s;
}

Status NoSnapshot(std::string_view snapshot) {
  return Status::NotFound("snapshot '" + std::string(snapshot) + "' does not exist");
}

// The partial pages that snapshots of the session have left behind `tokens` or a beginning of them.
Result<std::vector<PageKey>> TailsOf(Keeper::Impl& k, Reader& reader, const HeadId& session,
                                     std::span<const TokenId> tokens) {
  const PageKey root = RootKey(k.options.fp, TenantScope(session.tenant), Digest{});
  const std::vector<PageKey> pages = KeysAfter(root, tokens);
  const PageKey& end = pages.empty() ? root : pages.back();
  const auto rest = tokens.subspan(pages.size() * kPageTokens);
  std::vector<PageKey> candidates;
  for (size_t rows = 1; rows <= rest.size(); ++rows) {
    candidates.push_back(TailKey(end, rest.first(rows), Digest{}));
  }
  std::vector<PageKey> out;
  Rows rows =
      reader.Query("SELECT key FROM tail WHERE sid = ? AND branch IS NULL", session.sid);
  while (rows.Next()) {
    const PageKey key = rows.DigestAt(0);
    if (std::find(candidates.begin(), candidates.end(), key) != candidates.end()) {
      out.push_back(key);
    }
  }
  if (!rows.status().ok()) return rows.status();
  return out;
}

}  // namespace

Result<std::vector<SnapshotInfo>> LoadSnapshots(Reader& reader, int64_t sid) {
  std::vector<SnapshotInfo> out;
  Rows rows = reader.Query(std::string(kSnapshotSql) + "WHERE sid = ? ORDER BY n", sid);
  while (rows.Next()) out.push_back(ReadSnapshot(rows).info);
  if (!rows.status().ok()) return rows.status();
  return out;
}

Result<SnapshotRow> FindSnapshot(Reader& reader, int64_t sid, std::string_view snapshot) {
  Rows rows = reader.Query(std::string(kSnapshotSql) + "WHERE id = ? AND sid = ?", snapshot, sid);
  if (rows.Next()) {
    SnapshotRow row = ReadSnapshot(rows);
    if (rows.status().ok()) return row;
  }
  if (!rows.status().ok()) return rows.status();
  return NoSnapshot(snapshot);
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
    HOLDFAST_ASSIGN_OR_RETURN(out, LoadSnapshots(reader, session.sid));
    return Status();
  }));
  return out;
}

Result<SnapshotInfo> Keeper::GetSnapshot(std::string_view tenant, std::string_view id,
                                         std::string_view snapshot) {
  SnapshotInfo info;
  HOLDFAST_RETURN_IF_ERROR(impl_->options.db->Read([&](Reader& reader) -> Status {
    HOLDFAST_ASSIGN_OR_RETURN(const SessionRow session,
                              FindSession(reader, {tenant, id, impl_->NowMs()}));
    HOLDFAST_ASSIGN_OR_RETURN(SnapshotRow row, FindSnapshot(reader, session.sid, snapshot));
    info = std::move(row.info);
    return Status();
  }));
  return info;
}

Result<SnapshotInfo> Keeper::PinSnapshot(std::string_view tenant, std::string_view id,
                                         std::string_view snapshot, SnapshotPin pin) {
  HOLDFAST_ASSIGN_OR_RETURN(SnapshotInfo info, GetSnapshot(tenant, id, snapshot));
  info.pinned = pin == SnapshotPin::kOn;
  Status written = impl_->options.db->Write(
      [&](Txn& txn) -> Status {
        HOLDFAST_RETURN_IF_ERROR(
            txn.Run("UPDATE snapshot SET pinned = ? WHERE id = ?", info.pinned, info.id));
        return txn.changes() == 1 ? Status() : NoSnapshot(snapshot);
      },
      WriteClass::kTurn);
  HOLDFAST_RETURN_IF_ERROR(std::move(written));
  return info;
}

Status Keeper::DeleteSnapshot(std::string_view tenant, std::string_view id,
                              std::string_view snapshot) {
  SnapshotRow row;
  HeadId session;
  std::vector<PageKey> tails;
  HOLDFAST_RETURN_IF_ERROR(
      WithTree(*impl_, tenant, id, [&](Reader& reader, const SessionTree& tree) -> Status {
        session = {tree.session.sid, 0, std::string(tenant), tree.session.id};
        HOLDFAST_ASSIGN_OR_RETURN(row, FindSnapshot(reader, session.sid, snapshot));
        HOLDFAST_ASSIGN_OR_RETURN(const std::vector<Point> heads, HeadsOf(reader, tree));
        // One that another snapshot or a branch ends with stays.
        if (std::count(heads.begin(), heads.end(), row.point) > 1) return Status();
        HOLDFAST_ASSIGN_OR_RETURN(const std::vector<TokenId> tokens,
                                  LoadTokens(reader, LineageOf(tree, row.point)));
        HOLDFAST_ASSIGN_OR_RETURN(tails, TailsOf(*impl_, reader, session, tokens));
        return Status();
      }));
  Status deleted = impl_->options.db->Write(
      [&](Txn& txn) -> Status {
        HOLDFAST_RETURN_IF_ERROR(txn.Run("DELETE FROM snapshot WHERE n = ?", row.n));
        if (txn.changes() == 0) return NoSnapshot(snapshot);
        for (const PageKey& key : tails) {
          HOLDFAST_RETURN_IF_ERROR(
              txn.Run("DELETE FROM tail WHERE sid = ? AND key = ?", session.sid, key));
        }
        return InsertEvent(txn, {session.sid, impl_->NowMs(), "snapshot_deleted", row.info.branch,
                                 "", row.info.id});
      },
      WriteClass::kTurn);
  HOLDFAST_RETURN_IF_ERROR(std::move(deleted));
  impl_->warm.ForgetTails(tails);
  return Status();
}

Result<Recording> Keeper::RecordedAt(std::string_view tenant, std::string_view id,
                                     std::string_view snapshot) {
  Recording out;
  HOLDFAST_RETURN_IF_ERROR(
      WithTree(*impl_, tenant, id, [&](Reader& reader, const SessionTree& tree) -> Status {
        HOLDFAST_ASSIGN_OR_RETURN(const SnapshotRow row,
                                  FindSnapshot(reader, tree.session.sid, snapshot));
        BranchRow ends;  // as the branch was then
        ends.name = row.info.branch;
        ends.head = row.point;
        HOLDFAST_ASSIGN_OR_RETURN(out, LoadRecording(reader, tree, ends));
        return Status();
      }));
  HOLDFAST_RETURN_IF_ERROR(CompareWithTemplate(*impl_->renderer, impl_->options.basis, &out));
  return out;
}

}  // namespace holdfast

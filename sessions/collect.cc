// Keeper::Collect: what nobody needs any more goes, and what was deleted leaves no byte behind.
//
//   1 sessions whose time has ended go, as Delete would let them go
//   2 pages go that no session, snapshot or segment names. What runs, and what is learnt meanwhile,
//     is safe: only pages that the store had before the rows were read can go
//   3 the page files' holes and the database's log and pages are cleared of what is left there
//
// Table `gc` counts deletions (by triggers, whoever deletes), so that a gc without need is none and
// a process that dies forgets none. In the background (Caretaker) it stops when a turn comes and
// begins anew later: names of pages are hashes over all the tokens before them, and those of ten
// thousand sessions are read in seconds.
#include <algorithm>
#include <unordered_set>

#include "sessions/bundle_scan.h"
#include "sessions/keeper_impl.h"
#include "stitcher/segment.h"

namespace holdfast {
namespace {

using Keys = std::unordered_set<PageKey, DigestHash>;

constexpr std::chrono::seconds kWaitForReaders{5};
// A session's pages are looked for under the last so many kinds of KV that it was computed with.
constexpr int kMaxFingerprints = 16;

Result<std::vector<Digest>> FingerprintsOf(Reader& reader, int64_t sid, const Digest& own) {
  std::vector<Digest> all = {own};
  Rows rows = reader.Query(
      "SELECT b.fp FROM node n JOIN basis b ON b.id = n.basis WHERE n.sid = ? "
      "GROUP BY b.fp ORDER BY MAX(b.id) DESC LIMIT ?",
      sid, kMaxFingerprints);
  while (rows.Next()) all.push_back(rows.DigestAt(0));
  if (!rows.status().ok()) return rows.status();
  if (std::count(all.begin() + 1, all.end(), own) > 0) all.erase(all.begin());
  return all;
}

Status AddPagesOf(Reader& reader, const SessionKey& key, const Digest& own, Keys* keys) {
  const Result<SessionRow> row = FindSession(reader, key);
  if (row.status().code() == Code::kNotFound) return Status();  // expired, or deleted meanwhile
  if (!row.ok()) return row.status();
  HOLDFAST_ASSIGN_OR_RETURN(const SessionTree tree, LoadTree(reader, *row));
  HOLDFAST_ASSIGN_OR_RETURN(const std::vector<Point> heads, HeadsOf(reader, tree));
  HOLDFAST_ASSIGN_OR_RETURN(const std::vector<Digest> fps, FingerprintsOf(reader, row->sid, own));
  const TenantScope scope{std::string(key.tenant)};
  for (const Point& head : heads) {
    HOLDFAST_ASSIGN_OR_RETURN(const std::vector<TokenId> tokens,
                              LoadTokens(reader, LineageOf(tree, head)));
    for (const Digest& fp : fps) {
      const std::vector<PageKey> pages = KeysAfter(RootKey(fp, scope, Digest{}), tokens);
      keys->insert(pages.begin(), pages.end());
    }
  }
  return Status();
}

}  // namespace

Result<int64_t> Keeper::Impl::DeleteExpired() {
  int64_t deleted = 0, last = -1;
  while (true) {
    HOLDFAST_ASSIGN_OR_RETURN(const std::vector<SessionRow> expired, Expired(NowMs(), last, 64));
    if (expired.empty()) return deleted;
    last = expired.back().sid;
    for (const SessionRow& s : expired) {
      const Status gone = DeleteSession(s, Deletion::kIfExpired);
      deleted += gone.ok();  // one that a turn runs on stays, and so does one that lives on
      if (!gone.ok() && gone.code() != Code::kConflict && gone.code() != Code::kNotFound) {
        return gone;
      }
    }
  }
}

Result<KeepPage> Keeper::Impl::PagesInUse(const Stop& stop) {
  const auto keys = std::make_shared<Keys>();
  std::vector<SessionName> names;
  HOLDFAST_RETURN_IF_ERROR(options.db->Read([&](Reader& reader) -> Status {
    Rows tails = reader.Query("SELECT key FROM tail WHERE length(key) = 32");
    while (tails.Next()) keys->insert(tails.DigestAt(0));
    if (!tails.status().ok()) return tails.status();
    HOLDFAST_ASSIGN_OR_RETURN(names, AllSessions(reader));
    return Status();
  }));
  for (const SessionName& name : names) {
    if (stop()) return Status::Cancelled("gc: a turn came");
    const Status read = options.db->Read([&](Reader& reader) {
      return AddPagesOf(reader, {name.tenant, name.id, NowMs()}, options.fp, keys.get());
    });
    // What can't be read names no pages: damaged rows are fsck's to tell of.
    if (!read.ok() && read.code() != Code::kCorrupt) return read;
  }
  if (options.segments != nullptr) {
    HOLDFAST_RETURN_IF_ERROR(options.segments->AddPages(keys.get()));
  }
  return KeepPage([keys](const PageKey& key) { return keys->contains(key); });
}

Result<Keeper::Impl::GcRow> Keeper::Impl::ReadGcRow() {
  GcRow row;
  HOLDFAST_RETURN_IF_ERROR(options.db->Read([&](Reader& reader) {
    Rows rows = reader.Query("SELECT done_ms, deletions FROM gc");
    if (rows.Next()) row = {rows.Int(0), rows.Int(1)};
    return rows.status();
  }));
  return row;
}

Result<Collected> Keeper::Impl::Collect(const Stop& stop,
                                        std::chrono::milliseconds wait_for_readers) {
  std::lock_guard lock(collect_mu);
  Collected out;
  HOLDFAST_ASSIGN_OR_RETURN(out.sessions, DeleteExpired());
  HOLDFAST_ASSIGN_OR_RETURN(const GcRow before, ReadGcRow());
  // Pages of what was deleted may still be on their way to the store.
  if (options.sync_pages) options.sync_pages().IgnoreError();
  if (options.store != nullptr) {
    HOLDFAST_ASSIGN_OR_RETURN(out.pages,
                              options.store->Collect([&] { return PagesInUse(stop); }));
  }
  collected_pages += out.pages.pages;
  const Status shredded = options.db->Shred(wait_for_readers);
  if (!shredded.ok() && shredded.code() != Code::kUnavailable) return shredded;
  out.shredded = shredded.ok();
  ++collections;
  if (!out.shredded) return out;
  HOLDFAST_RETURN_IF_ERROR(options.db->Write(
      [&](Txn& txn) {
        return txn.Run("UPDATE gc SET done_ms = ?, deletions = MAX(deletions - ?, 0)", NowMs(),
                       before.deletions);
      },
      WriteClass::kBackground));
  return out;
}

Result<int64_t> Keeper::DeleteExpired() { return impl_->DeleteExpired(); }

Result<Collected> Keeper::Collect() {
  return impl_->Collect([] { return false; }, kWaitForReaders);
}

Result<KeepPage> Keeper::PagesInUse() {
  return impl_->PagesInUse([] { return false; });
}

}  // namespace holdfast

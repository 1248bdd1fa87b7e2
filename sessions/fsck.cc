// Keeper::CheckLog and Keeper::Collect: the whole token log against its rules (log_check.h), and
// what nobody needs any more.
#include <functional>
#include <unordered_set>
#include <utility>

#include "sessions/bundle_scan.h"
#include "sessions/keeper_impl.h"
#include "sessions/log_check.h"

namespace holdfast {
namespace {

constexpr size_t kMaxNamed = 20;  // damaged rows that a report names

struct Checked {
  LogReport* report;
  std::string session;

  void Note(LogReport::Kind* kind, const Status& status) const {
    ++kind->rows;
    if (status.ok()) return;
    ++kind->damaged;
    if (report->what.size() < kMaxNamed) {
      report->what.push_back("session " + session + ": " + status.message());
    }
  }
};

// One session at one moment.
Status CheckSession(Reader& reader, const SessionRow& row, LogCheck* log, const Checked& out) {
  LogReport& r = *out.report;
  RowNumbers numbers;
  HOLDFAST_RETURN_IF_ERROR(LoadNumbers(reader, row.sid, &numbers));
  int64_t turns = 0;
  Status own;  // of the session and what its nodes rest on: the first that is wrong
  const auto check_own = [&](const Status& status) {
    if (own.ok()) own = status;
  };
  check_own(ForEachBasisAndContext(reader, numbers, row.sid, [&](auto& v) {
    if constexpr (requires { v.kv; }) check_own(log->Basis(v));
    if constexpr (requires { v.tools; }) check_own(log->Context(v));
    return Status();
  }));
  for (const int64_t id : numbers.node_ids) {
    Status read = ForEachNumbered<BundleNode>(reader, numbers, "id = ?", id, [&](auto& node) {
      out.Note(&r.nodes, log->Node(node));
      return Status();
    });
    if (read.ok()) {
      read = ForEachNumbered<BundleItem>(reader, numbers, "node = ? ORDER BY id", id,
                                         [&](auto& item) {
                                           out.Note(&r.items, log->Item(item));
                                           return Status();
                                         });
    }
    if (!read.ok()) out.Note(&r.nodes, read);  // a column of another type or length
  }
  const auto small = [&](auto& v) {
    using Row = std::remove_cvref_t<decltype(v)>;
    if constexpr (std::same_as<Row, BundleBranch>) out.Note(&r.branches, log->Branch(v));
    if constexpr (std::same_as<Row, BundleTurn>) out.Note(&r.turns, log->Turn(v));
    if constexpr (std::same_as<Row, BundleSnapshot>) out.Note(&r.snapshots, log->Snapshot(v));
    if constexpr (std::same_as<Row, BundleEvent>) out.Note(&r.events, log->Event(v));
    turns += std::same_as<Row, BundleTurn>;
    return Status();
  };
  check_own(ForEachSmallRow(reader, numbers, row.sid, small));
  check_own(log->Finish(SessionSection(row, numbers, turns)));
  out.Note(&r.sessions, own);
  return Status();
}

Result<std::vector<std::pair<std::string, std::string>>> AllSessions(Reader& reader) {
  std::vector<std::pair<std::string, std::string>> ids;  // tenant, id
  Rows rows = reader.Query(
      "SELECT tenant, id FROM session WHERE expires_ms IS NOT 0 ORDER BY sid");
  while (rows.Next()) ids.emplace_back(rows.Text(0), rows.Text(1));
  if (!rows.status().ok()) return rows.status();
  return ids;
}

// What SQLite says of its own pages and references.
Status CheckDatabase(Database& db, LogReport* report) {
  return db.Read([&](Reader& reader) -> Status {
    Rows rows = reader.Query("PRAGMA integrity_check(20)");
    while (rows.Next()) {
      if (rows.Text(0) == "ok") continue;
      ++report->database_damaged;
      report->what.push_back("database: " + std::string(rows.Text(0)));
    }
    if (!rows.status().ok()) return rows.status();
    Rows references = reader.Query("PRAGMA foreign_key_check");
    while (references.Next()) {
      ++report->database_damaged;
      report->what.push_back("database: a row of " + std::string(references.Text(0)) +
                             " refers to nothing");
      if (report->what.size() >= kMaxNamed) break;
    }
    return references.status();
  });
}

void AddKeys(const Digest& fp, const TenantScope& scope, std::span<const TokenId> tokens,
             std::unordered_set<PageKey, DigestHash>* keys) {
  PageKey key = RootKey(fp, scope, Digest{});
  for (size_t at = 0; at + kPageTokens <= tokens.size(); at += kPageTokens) {
    key = NextKey(key, tokens.subspan(at, kPageTokens), Digest{});
    keys->insert(key);
  }
}

}  // namespace

Result<LogReport> Keeper::CheckLog() {
  LogReport report;
  HOLDFAST_RETURN_IF_ERROR(CheckDatabase(*impl_->options.db, &report));
  std::vector<std::pair<std::string, std::string>> ids;
  HOLDFAST_RETURN_IF_ERROR(impl_->options.db->Read([&](Reader& reader) -> Status {
    HOLDFAST_ASSIGN_OR_RETURN(ids, AllSessions(reader));
    return Status();
  }));
  for (const auto& [tenant, id] : ids) {
    const Status read = impl_->options.db->Read([&](Reader& reader) -> Status {
      const Result<SessionRow> row = FindSession(reader, {tenant, id, 0});
      if (row.status().code() == Code::kNotFound) return Status();  // deleted meanwhile
      const Checked out{&report, id};
      if (!row.ok()) {
        out.Note(&report.sessions, row.status());
        return Status();
      }
      LogCheck log(impl_->options.model_digest,
                   static_cast<int64_t>(impl_->options.tokenizer->vocab_size()));
      return CheckSession(reader, *row, &log, out);
    });
    if (!read.ok()) return read;
  }
  return report;
}

Result<int64_t> Keeper::DeleteExpired() {
  int64_t deleted = 0, last = -1;
  while (true) {
    HOLDFAST_ASSIGN_OR_RETURN(const std::vector<SessionRow> expired,
                              impl_->Expired(impl_->NowMs(), last, 64));
    if (expired.empty()) return deleted;
    last = expired.back().sid;
    for (const SessionRow& s : expired) {
      const Status gone = impl_->DeleteSession(s, Impl::Deletion::kIfExpired);
      deleted += gone.ok();  // one that a turn runs on stays, and so does one that lives on
      if (!gone.ok() && gone.code() != Code::kConflict && gone.code() != Code::kNotFound) {
        return gone;
      }
    }
  }
}

Result<std::function<bool(const PageKey&)>> Keeper::PagesInUse() {
  auto keys = std::make_shared<std::unordered_set<PageKey, DigestHash>>();
  std::vector<std::pair<std::string, std::string>> ids;
  HOLDFAST_RETURN_IF_ERROR(impl_->options.db->Read([&](Reader& reader) -> Status {
    Rows tails = reader.Query("SELECT key FROM tail");
    while (tails.Next()) keys->insert(tails.DigestAt(0));
    if (!tails.status().ok()) return tails.status();
    HOLDFAST_ASSIGN_OR_RETURN(ids, AllSessions(reader));
    return Status();
  }));
  for (const auto& [tenant, id] : ids) {
    const TenantScope scope(tenant);
    const Status read = impl_->options.db->Read([&](Reader& reader) -> Status {
      const Result<SessionRow> row = FindSession(reader, {scope.tenant(), id, impl_->NowMs()});
      if (row.status().code() == Code::kNotFound) return Status();
      if (!row.ok()) return row.status();
      HOLDFAST_ASSIGN_OR_RETURN(const SessionTree tree, LoadTree(reader, *row));
      HOLDFAST_ASSIGN_OR_RETURN(const std::vector<Point> heads, HeadsOf(reader, tree));
      for (const Point& head : heads) {
        const Lineage lineage = LineageOf(tree, head);
        if (lineage.model_digest != impl_->options.model_digest) continue;
        HOLDFAST_ASSIGN_OR_RETURN(const std::vector<TokenId> tokens, LoadTokens(reader, lineage));
        AddKeys(impl_->options.fp, scope, tokens, keys.get());
      }
      return Status();
    });
    if (!read.ok()) return read;
  }
  if (impl_->options.segments != nullptr) impl_->options.segments->AddPages(keys.get());
  return std::function<bool(const PageKey&)>(
      [keys](const PageKey& key) { return keys->contains(key); });
}

}  // namespace holdfast

// Keeper::CheckLog: the whole token log against its rules (log_check.h).
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

// Partial pages that the session has in the page store. That one is not there is no damage.
Status CheckTails(Reader& reader, int64_t sid, const RowNumbers& numbers, const Checked& out) {
  Rows rows = reader.Query("SELECT key, branch FROM tail WHERE sid = ?", sid);
  while (rows.Next()) {
    Status sound;
    if (rows.Blob(0).size() != PageKey().bytes.size()) {
      sound = Status::Corrupt("a partial page is named by no key");
    } else if (!rows.IsNull(1) && !numbers.branches.contains(rows.Int(1))) {
      sound = Status::Corrupt("a partial page is of a branch that is not there");
    }
    out.Note(&out.report->tails, sound);
  }
  return rows.status();
}

Status CheckAllSegments(Reader& reader, LogReport* report) {
  HOLDFAST_ASSIGN_OR_RETURN(const SegmentCheck check, SegmentStore::Check(reader));
  report->segments = {check.segments, check.damaged_segments};
  report->variants = {check.variants, check.damaged_variants};
  const auto note = [&](int64_t damaged, const char* of) {
    if (damaged > 0) {
      report->what.push_back("segments: " + std::to_string(damaged) + " rows of " + of +
                             " are not what they must be");
    }
  };
  note(check.damaged_segments, "segments");
  note(check.damaged_variants, "variants");
  return Status();
}

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
    const Result<Recipe> recipe = GetRecipe(reader, id);
    if (recipe.status().code() == Code::kNotFound) continue;  // what was made of it is exact
    const auto policy = [&] { return static_cast<int64_t>(recipe->reuse.policy); };
    out.Note(&r.recipes, recipe.ok() ? log->Recipe({policy()}) : recipe.status());
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
  HOLDFAST_RETURN_IF_ERROR(CheckTails(reader, row.sid, numbers, out));
  check_own(log->Finish(SessionSection(row, numbers, turns)));
  out.Note(&r.sessions, own);
  return Status();
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

}  // namespace

Result<LogReport> Keeper::CheckLog() {
  LogReport report;
  HOLDFAST_RETURN_IF_ERROR(CheckDatabase(*impl_->options.db, &report));
  std::vector<SessionName> names;
  HOLDFAST_RETURN_IF_ERROR(impl_->options.db->Read([&](Reader& reader) -> Status {
    HOLDFAST_ASSIGN_OR_RETURN(names, AllSessions(reader));
    return CheckAllSegments(reader, &report);
  }));
  for (const auto& [tenant, id] : names) {
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

}  // namespace holdfast

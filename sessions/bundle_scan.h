// Inside sessions: the rows of one session as a bundle numbers them, read from the database. Shared
// by export and fsck. Functions run inside the closure of a Database::Read.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "sessions/bundle_rows.h"
#include "sessions/log.h"

namespace holdfast {

// Ids of a session's nodes and branches and of the bases they name, and their numbers (from 1,
// ascending by id).
struct RowNumbers {
  std::vector<int64_t> node_ids, branch_ids, basis_ids;
  std::unordered_map<int64_t, int64_t> nodes, branches, bases;

  // From the ids.
  void NumberAll() {
    Number(node_ids, &nodes);
    Number(branch_ids, &branches);
    Number(basis_ids, &bases);
  }
  // -1 for an id that is not of the session.
  int64_t Branch(int64_t id) const { return NumberOf(branches, id); }
  void operator()(NodeRef& v) const { v.n = NumberOf(nodes, v.n); }
  void operator()(BranchRef& v) const { v.n = NumberOf(branches, v.n); }
  void operator()(BasisRef& v) const { v.n = NumberOf(bases, v.n); }

 private:
  using Numbers = std::unordered_map<int64_t, int64_t>;
  static void Number(const std::vector<int64_t>& ids, Numbers* numbers) {
    for (size_t i = 0; i < ids.size(); ++i) {
      numbers->emplace(ids[i], static_cast<int64_t>(i) + 1);
    }
  }
  static int64_t NumberOf(const Numbers& numbers, int64_t id) {
    if (id == 0) return 0;
    const auto it = numbers.find(id);
    return it == numbers.end() ? -1 : it->second;
  }
};

inline Status LoadNumbers(Reader& reader, int64_t sid, RowNumbers* out) {
  const auto load = [&](const char* sql, std::vector<int64_t>* ids) {
    Rows rows = reader.Query(sql, sid);
    while (rows.Next()) ids->push_back(rows.Int(0));
    return rows.status();
  };
  HOLDFAST_RETURN_IF_ERROR(load("SELECT id FROM node WHERE sid = ? ORDER BY id", &out->node_ids));
  HOLDFAST_RETURN_IF_ERROR(
      load("SELECT id FROM branch WHERE sid = ? ORDER BY id", &out->branch_ids));
  HOLDFAST_RETURN_IF_ERROR(
      load("SELECT DISTINCT basis FROM node WHERE sid = ? AND basis IS NOT NULL ORDER BY basis",
           &out->basis_ids));
  out->NumberAll();
  return Status();
}

// Calls `f(row)` for each numbered row that `where` (with one argument) selects.
template <typename Row, typename F>
Status ForEachNumbered(Reader& reader, const RowNumbers& numbers, const std::string& where,
                       int64_t argument, const F& f) {
  return ForEachRow<Row>(reader, where, argument, [&](Row& row) {
    MapRefs(row, numbers);
    return f(row);
  });
}

// The bases that nodes name, then contexts: `f` takes either.
template <typename F>
Status ForEachBasisAndContext(Reader& reader, const RowNumbers& numbers, int64_t sid, const F& f) {
  for (const int64_t id : numbers.basis_ids) {
    HOLDFAST_RETURN_IF_ERROR(ForEachRow<BundleBasis>(reader, "id = ?", id, f));
  }
  return ForEachRow<BundleContext>(reader, "sid = ? ORDER BY digest", sid, f);
}

// Branches, turns, snapshots, events, in this order: `f` takes any of them.
template <typename F>
Status ForEachSmallRow(Reader& reader, const RowNumbers& numbers, int64_t sid, const F& f) {
  HOLDFAST_RETURN_IF_ERROR(
      ForEachNumbered<BundleBranch>(reader, numbers, "sid = ? ORDER BY id", sid, f));
  HOLDFAST_RETURN_IF_ERROR(
      ForEachNumbered<BundleTurn>(reader, numbers, "sid = ? ORDER BY n", sid, f));
  HOLDFAST_RETURN_IF_ERROR(
      ForEachNumbered<BundleSnapshot>(reader, numbers, "sid = ? ORDER BY n", sid, f));
  return ForEachNumbered<BundleEvent>(reader, numbers, "sid = ? ORDER BY seq", sid, f);
}

// The points whose pages a session needs: the heads of its branches, and its snapshots.
Result<std::vector<Point>> HeadsOf(Reader& reader, const SessionTree& tree);

// What the session's own row says, as a bundle's first section; counts of rows included.
BundleSession SessionSection(const SessionRow& row, const RowNumbers& numbers, int64_t turns);

}  // namespace holdfast

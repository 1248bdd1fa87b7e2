// Inside sessions: the rows of one session as a bundle numbers them, read from the database. Shared
// by export and fsck. Functions run inside the closure of a Database::Read.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "sessions/bundle_rows.h"
#include "sessions/log.h"

namespace holdfast {

// Ids of a session's nodes and branches, and their numbers (from 1, ascending by id).
struct RowNumbers {
  std::vector<int64_t> node_ids, branch_ids;
  std::unordered_map<int64_t, int64_t> nodes, branches;

  // -1 for an id that is not of the session.
  int64_t Node(int64_t id) const { return NumberOf(nodes, id); }
  int64_t Branch(int64_t id) const { return NumberOf(branches, id); }

 private:
  static int64_t NumberOf(const std::unordered_map<int64_t, int64_t>& numbers, int64_t id) {
    if (id == 0) return 0;
    const auto it = numbers.find(id);
    return it == numbers.end() ? -1 : it->second;
  }
};

inline Status LoadNumbers(Reader& reader, int64_t sid, RowNumbers* out) {
  const auto load = [&](const char* sql, std::vector<int64_t>* ids, auto* numbers) {
    Rows rows = reader.Query(sql, sid);
    while (rows.Next()) {
      ids->push_back(rows.Int(0));
      numbers->emplace(ids->back(), static_cast<int64_t>(ids->size()));
    }
    return rows.status();
  };
  HOLDFAST_RETURN_IF_ERROR(
      load("SELECT id FROM node WHERE sid = ? ORDER BY id", &out->node_ids, &out->nodes));
  return load("SELECT id FROM branch WHERE sid = ? ORDER BY id", &out->branch_ids, &out->branches);
}

// Calls `f(row)` for each numbered row that `where` (with one argument) selects.
template <typename Row, typename F>
Status ForEachNumbered(Reader& reader, const RowNumbers& numbers, const std::string& where,
                       int64_t argument, const F& f) {
  return ForEachRow<Row>(reader, where, argument, [&](Row& row) {
    MapRefs(row, [&](int64_t id) { return numbers.Node(id); },
            [&](int64_t id) { return numbers.Branch(id); });
    return f(row);
  });
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

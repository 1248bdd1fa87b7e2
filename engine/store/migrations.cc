#include "engine/store/migrations.h"

#include <map>

namespace holdfast {

Result<std::vector<Migration>> PendingMigrations(std::span<const Migration> all,
                                                 std::span<const OwnerVersion> have) {
  std::map<std::string, int> latest, reached;
  for (const OwnerVersion& h : have) reached[h.owner] = h.version;
  std::vector<Migration> pending;
  for (const Migration& m : all) {
    int& last = latest[m.owner];
    if (m.version != last + 1) {
      return Status::Invalid("migrations of '" + m.owner + "' must run 1, 2, 3...: " +
                             std::to_string(m.version) + " follows " + std::to_string(last));
    }
    last = m.version;
    if (m.version > reached[m.owner]) pending.push_back(m);
  }
  // Tables of an owner that this program lacks altogether do not concern it.
  for (const auto& [owner, version] : latest) {
    if (reached[owner] > version) {
      return Status::Conflict("the database was written by a newer version of Holdfast: tables of "
                              "'" + owner + "' are at version " + std::to_string(reached[owner]) +
                              ", this program knows " + std::to_string(version));
    }
  }
  return pending;
}

Status Migrate(SqlConnection* connection, std::span<const Migration> all) {
  HOLDFAST_RETURN_IF_ERROR(connection->Execute("BEGIN IMMEDIATE"));
  Status status = [&]() -> Status {
    HOLDFAST_RETURN_IF_ERROR(connection->Execute(
        "CREATE TABLE IF NOT EXISTS schema_version("
        "owner TEXT PRIMARY KEY NOT NULL, version INTEGER NOT NULL) WITHOUT ROWID;"
        "CREATE TABLE IF NOT EXISTS store_probe(id INTEGER PRIMARY KEY, count INTEGER NOT NULL);"));
    Txn txn(connection);
    std::vector<OwnerVersion> have;
    {
      Rows rows = txn.Query("SELECT owner, version FROM schema_version");
      while (rows.Next()) {
        have.push_back({std::string(rows.Text(0)), static_cast<int>(rows.Int(1))});
      }
      HOLDFAST_RETURN_IF_ERROR(rows.status());
    }
    HOLDFAST_ASSIGN_OR_RETURN(std::vector<Migration> pending, PendingMigrations(all, have));
    for (const Migration& m : pending) {
      HOLDFAST_RETURN_IF_ERROR(connection->Execute(m.sql));
      HOLDFAST_RETURN_IF_ERROR(
          txn.Run("INSERT OR REPLACE INTO schema_version VALUES(?, ?)", m.owner, m.version));
    }
    return connection->Execute("COMMIT");
  }();
  if (!status.ok() && !connection->autocommit()) {
    connection->Execute("ROLLBACK").IgnoreError();
  }
  return status;
}

}  // namespace holdfast

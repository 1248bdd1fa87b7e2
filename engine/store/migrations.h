// Inside engine/store: brings the tables of a database up to the versions of this program.
#pragma once

#include <span>

#include "engine/base/status.h"
#include "engine/store/database.h"
#include "engine/store/sql_connection.h"

namespace holdfast {

// The migrations that are still to run, in the order given, when `have` says which version each
// owner has reached (0 = none). kConflict: an owner is at a version that is not among them.
// kInvalid: the versions of an owner do not run 1, 2, 3... Pure.
struct OwnerVersion {
  std::string owner;
  int version = 0;
};
Result<std::vector<Migration>> PendingMigrations(std::span<const Migration> all,
                                                 std::span<const OwnerVersion> have);

// Runs what is pending in one transaction: all of it or nothing.
Status Migrate(SqlConnection* connection, std::span<const Migration> all);

}  // namespace holdfast

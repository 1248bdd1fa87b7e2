// Inside engine/store: one SQLite connection, its prepared statements and the calls that Database
// needs beside SQL. sql_connection.cc is the only file that includes sqlite3.h.
//
// Not thread-safe: one thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/base/status.h"
#include "engine/store/database.h"

struct sqlite3;
struct sqlite3_stmt;

namespace holdfast {

struct SqlStatement {
  SqlConnection* connection = nullptr;
  sqlite3_stmt* handle = nullptr;
  std::string sql;
};

inline constexpr uint64_t kWalFrameBytes = 4096 + 24;  // of the log: a page and its header

struct SqlConnection {
  enum class Role { kWriter, kReader };
  static constexpr size_t kMaxCachedStatements = 256;

  static Result<std::unique_ptr<SqlConnection>> Open(const std::string& path, Role role,
                                                     const std::string& vfs);
  SqlConnection() = default;
  ~SqlConnection();
  SqlConnection(const SqlConnection&) = delete;
  SqlConnection& operator=(const SqlConnection&) = delete;

  // Runs the statements of `sql`, which may be several, ignoring rows.
  Status Execute(const std::string& sql);

  // How the values that are bound live: until the statement is reset, or for the call only.
  enum class Lifetime { kOutlivesStatement, kCopied };
  Result<SqlStatement*> Acquire(std::string_view sql, std::span<const SqlValue> values,
                                Lifetime lifetime);
  void Release(SqlStatement* statement);  // back into the cache

  enum class Step { kRow, kDone };
  Result<Step> Advance(SqlStatement* statement);

  // False inside a transaction that SQLite has not ended by itself.
  bool autocommit() const;
  int64_t last_insert_id() const;
  int64_t changes() const;

  // The first error since ClearStoreError that says that the store, not the SQL, is unwell.
  Status store_error() const {
    return store_error_code_ == Code::kOk ? Status() : Status(store_error_code_, store_error_);
  }
  void ClearStoreError() { store_error_code_ = Code::kOk; }

  // Whether a commit syncs the log (kFull, at first), or leaves that to a later one or to SyncLog.
  // Outside of transactions only.
  enum class CommitSync { kFull, kNone };
  Status SetCommitSync(CommitSync sync);
  Status SyncLog();
  // Writes all frames from number `frame` (0 = the first) on again, as they are, and syncs the log:
  // after a sync that failed the system may hold them for written. Outside of transactions only.
  Status RewriteLog(int frame);

  // Commits that wrote something, and the frames that the log holds since it last started over, as
  // of the last of them.
  uint64_t log_commits() const { return log_commits_; }
  int wal_frames() const { return wal_frames_; }
  Result<uint64_t> WalSize();
  // Appends zeros to the WAL until it is `size` bytes long, and syncs it. Zeros end a log, so
  // recovery stops there. Outside of transactions only.
  Status ExtendWal(uint64_t size);
  // Passive: copies what readers allow. True when every frame was copied.
  Result<bool> Checkpoint();
  // As that, and leaves the log's file without a byte; false while a reader holds it.
  Result<bool> EmptyLog();
  // Makes zeros of the parts of the database file that hold no row: secure_delete does so with what
  // is deleted, but where rows move between pages SQLite leaves copies of them behind. The log must
  // be empty.
  Status ClearUnused();

  Status BackupTo(const std::string& path);

 private:
  Status Error(int rc, std::string_view where);
  Result<std::vector<uint32_t>> RootPages();
  Status Configure(Role role);
  static int NoteCommit(void* connection, sqlite3*, const char*, int frames);
  void Bind(SqlStatement* statement, std::span<const SqlValue> values, Lifetime lifetime);

  sqlite3* db_ = nullptr;
  std::string path_;
  Code store_error_code_ = Code::kOk;
  std::string store_error_;
  CommitSync commit_sync_ = CommitSync::kFull;
  uint64_t log_commits_ = 0;
  int wal_frames_ = 0;
  size_t cached_ = 0;
  std::unordered_map<std::string, std::vector<std::unique_ptr<SqlStatement>>> idle_;
};

}  // namespace holdfast

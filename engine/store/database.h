// Database: Holdfast's truth, one SQLite file. Whatever cannot be computed again lives here.
//
// One writer connection on one thread runs every write, commits it and, when idle, checkpoints;
// a few read-only connections serve reads in parallel and never checkpoint. WAL, synchronous=FULL,
// no mmap, foreign keys on, secure_delete on. The WAL is extended ahead of need and truncated by
// Shred alone, because syncing a growing file costs 20-30 times what syncing a rewrite does.
//
//   Status s = db->Write([&](Txn& txn) -> Status {
//     HOLDFAST_RETURN_IF_ERROR(txn.Run("INSERT INTO item(node, role) VALUES(?, ?)", node, "user"));
//     return Status();
//   }, WriteClass::kTurn);
//   s = db->Read([&](Reader& reader) -> Status {
//     Rows rows = reader.Query("SELECT id, meta FROM session WHERE tenant = ?", tenant);
//     while (rows.Next()) Use(rows.Int(0), rows.Text(1));
//     return rows.status();
//   });
//
// Work is a closure that runs exactly once, on the writer's thread, inside a savepoint of its own:
// an error that it returns undoes its own writes and nobody else's. Several pieces of work share
// one transaction, so that many turns cost one sync (group commit). Write returns ok only after the
// commit is on the disk. Work must be quick and do no I/O of its own; it must not call Write or
// Submit, nor use ON CONFLICT ROLLBACK or transaction statements.
//
// Lazy work (WriteClass::kLazy) is committed to the log without a sync: everybody sees it at once,
// and a process that dies loses none of it, but a power cut may take the last of it. It is synced
// by the next commit of another class, after lazy_delay at the latest, sooner where there is much,
// and when the database is closed. The log is read up to where it is whole: so what a cut takes is
// the newest commits, each whole, and nothing that was acknowledged as durable stands behind them.
//
// Degraded: a commit that fails for the sake of the store (disk full, I/O error) makes the store
// degraded. Writes then get kExhausted at once, without running; reads go on. A probe every 2 s
// writes and syncs; when it succeeds the store is well again. A write whose commit failed is gone
// for this process; after a crash before the next commit it may be there in whole. Lazy work that a
// failed sync leaves in doubt is written to the log once more before the store is well.
//
//   well --commit or sync fails--> degraded --probe commits--> well
//
// Tables belong to the folders that know what their rows mean: these hand their migrations to Open.
//
// Thread-safe. Destroying the Database finishes the queued work first.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "engine/base/hash.h"
#include "engine/base/status.h"

namespace holdfast {

struct SqlConnection;  // a sqlite3* and its statements; database.cc
struct SqlStatement;

// A value to bind: a view, valid as long as what it was made of. Integers of any width (64-bit
// unsigned ones keep their bits), floating point, text, blobs, digests (32-byte blobs), nullptr,
// optionals of these. Arrays: std::as_bytes(std::span(tokens)).
class SqlValue {
 public:
  enum class Kind : uint8_t { kNull, kInt, kReal, kText, kBlob };

  SqlValue() = default;
  SqlValue(std::nullptr_t) {}  // NOLINT: conversions are the point
  template <typename T>
    requires std::is_integral_v<T> || std::is_enum_v<T>
  SqlValue(T v) : kind_(Kind::kInt), int_(static_cast<int64_t>(v)) {}  // NOLINT
  SqlValue(double v) : kind_(Kind::kReal), real_(v) {}                 // NOLINT
  SqlValue(std::string_view v)                                         // NOLINT
      : kind_(Kind::kText), bytes_(std::as_bytes(std::span(v.data(), v.size()))) {}
  SqlValue(const std::string& v) : SqlValue(std::string_view(v)) {}                 // NOLINT
  SqlValue(const char* v) : SqlValue(std::string_view(v)) {}                        // NOLINT
  SqlValue(std::span<const std::byte> v) : kind_(Kind::kBlob), bytes_(v) {}         // NOLINT
  SqlValue(const Digest& v) : SqlValue(std::as_bytes(std::span(v.bytes))) {}        // NOLINT
  template <typename T>
  SqlValue(const std::optional<T>& v) : SqlValue(v ? SqlValue(*v) : SqlValue()) {}  // NOLINT

  Kind kind() const { return kind_; }
  int64_t as_int() const { return int_; }
  double as_real() const { return real_; }
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  Kind kind_ = Kind::kNull;
  int64_t int_ = 0;
  double real_ = 0;
  std::span<const std::byte> bytes_;
};

// The rows of a query, one at a time. Lives inside the closure that asked; a second query may run
// while it is open, even with the same text. Views are valid until the next call of Next().
// A column of the wrong type or length makes the status kCorrupt, and Next() false from then on.
class Rows {
 public:
  Rows(Rows&& other) noexcept;
  Rows& operator=(Rows&& other) noexcept;
  ~Rows();

  // True when there is a row to look at; false at the end, and after an error: see status().
  bool Next();
  const Status& status() const { return status_; }

  bool IsNull(int column) const;
  int64_t Int(int column) const;
  double Real(int column) const;
  std::string_view Text(int column) const;
  std::span<const std::byte> Blob(int column) const;
  Digest DigestAt(int column);  // a blob of exactly 32 bytes
  // A blob that holds an array of T (u32 tokens, say), copied out.
  template <typename T>
  std::vector<T> Array(int column) {
    static_assert(std::is_trivially_copyable_v<T>);
    const std::span<const std::byte> blob = Blob(column);
    std::vector<T> out(blob.size() / sizeof(T));
    if (blob.size() % sizeof(T) != 0) {
      BadColumn(column, "array");
      return {};
    }
    if (!blob.empty()) std::memcpy(out.data(), blob.data(), blob.size());
    return out;
  }

 private:
  friend class Reader;
  explicit Rows(Status status) : status_(std::move(status)) {}
  explicit Rows(SqlStatement* statement) : statement_(statement) {}
  void BadColumn(int column, const char* wanted);
  void Close();

  SqlStatement* statement_ = nullptr;  // on loan from its connection's cache
  Status status_;
};

// One consistent view of the database: all queries of a closure see the same state.
class Reader {
 public:
  explicit Reader(SqlConnection* connection) : connection_(connection) {}
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  // Prepares (or takes from the cache) and binds; errors come out of Rows::status().
  template <typename... A>
  Rows Query(std::string_view sql, const A&... args) {
    const std::array<SqlValue, sizeof...(A)> values{SqlValue(args)...};
    return QueryValues(sql, values);
  }
  Rows QueryValues(std::string_view sql, std::span<const SqlValue> values);

 protected:
  SqlConnection* connection_;
};

// A reader that may write.
class Txn : public Reader {
 public:
  using Reader::Reader;
  // Runs one statement to its end. kConflict: a constraint (unique, foreign key, check) forbids it.
  // kExhausted: disk full. kIo, kCorrupt: as they say. kInvalid: the SQL is wrong.
  template <typename... A>
  Status Run(std::string_view sql, const A&... args) {
    const std::array<SqlValue, sizeof...(A)> values{SqlValue(args)...};
    return RunValues(sql, values);
  }
  Status RunValues(std::string_view sql, std::span<const SqlValue> values);
  int64_t last_insert_id() const;
  int64_t changes() const;  // rows that the last Run changed
};

// One step forward of the tables of one owner. Versions of an owner run 1, 2, 3...; a released one
// is never edited. `sql` may hold several statements.
struct Migration {
  std::string owner;  // the folder: "sessions", "memory"
  int version = 0;
  std::string sql;
};

// What a write may wait for. Turn commits go before all other work, lazy ones in line with them;
// other work is committed in transactions of at most 5 ms, so that a turn waits no longer for it.
enum class WriteClass : uint8_t { kTurn, kBackground, kLazy };

struct DatabaseStats {
  uint64_t writes = 0;         // pieces of work committed
  uint64_t failed_writes = 0;  // undone by their own error, by a failed commit, or refused
  uint64_t commits = 0;        // transactions; fewer than writes where commits were shared
  uint64_t commit_failures = 0;
  uint64_t checkpoints = 0;
  uint64_t wal_bytes = 0;  // size of the WAL file
  uint64_t queued = 0;
  uint64_t unsynced = 0;   // pieces of lazy work that were acknowledged and are not yet synced
  double writing_ms = 0;   // that the writer's thread has been busy for now; 0 = it waits for work
};

class Database {
 public:
  struct Options {
    std::string path;
    std::vector<Migration> migrations;
    int readers = 3;               // read-only connections; a read waits when all are in use
    size_t queue_capacity = 1024;  // pieces of work that may wait
    std::string vfs;               // name of an sqlite3_vfs; empty = the default one (tests)
    std::chrono::milliseconds probe_interval{2000};
    // After which lazy work is synced: half of the 2 s that it may be lost for are the disk's.
    std::chrono::milliseconds lazy_delay{1000};
  };
  // More lazy work is synced at once: pieces, and bytes of the log.
  static constexpr uint64_t kMaxUnsynced = 64;
  static constexpr uint64_t kMaxUnsyncedBytes = 1 << 20;

  // Opens or makes the database and runs the migrations that it lacks, all in one transaction.
  // kConflict: it was written by a newer version. kCorrupt: not a database, or damaged.
  static Result<std::unique_ptr<Database>> Open(Options options);
  ~Database();
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  // Queues `work` (waiting for room), then waits until it is committed or undone.
  Status Write(std::function<Status(Txn&)> work, WriteClass write_class);

  // Queues `work` and returns; `done` is called once, on the writer's thread, after the commit or
  // the failure. kExhausted when the queue is full or the store degraded: no call then.
  Status Submit(std::function<Status(Txn&)> work, WriteClass write_class,
                std::function<void(const Status&)> done);

  // Makes all that was acknowledged durable: waits for a sync where lazy work has had none.
  Status Flush();

  // Runs `work` on the calling thread over one of the read-only connections.
  Status Read(const std::function<Status(Reader&)>& work);

  // How many transactions have been committed; waits, for at most `most`, until that is no longer
  // `seen`. What a read saw after this call is at least as new.
  uint64_t WaitForCommit(uint64_t seen, std::chrono::milliseconds most) const;

  bool degraded() const;
  std::string degraded_reason() const;  // empty when well
  DatabaseStats stats() const;

  // Leaves no byte of what was deleted in the database's files: empties the log, and clears what
  // secure_delete has missed. kUnavailable: a read that began before has held the log for all of
  // `most`; what is in the log is still there.
  Status Shred(std::chrono::milliseconds most);

  // Copies the database, as it is at one moment, into a new file. kConflict when `path` exists.
  Status BackupTo(const std::string& path);

 private:
  struct Impl;
  explicit Database(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace holdfast

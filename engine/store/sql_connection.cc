#include "engine/store/sql_connection.h"

#include <sqlite3.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>
#include <utility>

namespace holdfast {

namespace {

constexpr size_t kMaxCheckedSql = 80;  // of a statement's text in a message
constexpr uint64_t kWalHeaderBytes = 32;
constexpr int kBusyMs = 5000;

Code CodeOf(int rc) {
  switch (rc & 0xff) {
    case SQLITE_CONSTRAINT: return Code::kConflict;
    case SQLITE_FULL: return Code::kExhausted;
    case SQLITE_BUSY:
    case SQLITE_LOCKED: return Code::kUnavailable;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB: return Code::kCorrupt;
    case SQLITE_INTERRUPT: return Code::kCancelled;
    case SQLITE_ERROR:
    case SQLITE_MISUSE:
    case SQLITE_MISMATCH:
    case SQLITE_RANGE:
    case SQLITE_TOOBIG: return Code::kInvalid;
    default: return Code::kIo;
  }
}

bool IsStoreError(int rc) {
  switch (rc & 0xff) {
    case SQLITE_FULL:
    case SQLITE_IOERR:
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
    case SQLITE_PERM:
    case SQLITE_PROTOCOL:
    case SQLITE_NOMEM: return true;
    default: return false;
  }
}

sqlite3_file* WalFile(sqlite3* db) {
  sqlite3_file* file = nullptr;
  if (sqlite3_file_control(db, "main", SQLITE_FCNTL_JOURNAL_POINTER, &file) != SQLITE_OK) {
    return nullptr;
  }
  return file != nullptr && file->pMethods != nullptr ? file : nullptr;
}

uint32_t U16(std::span<const uint8_t> bytes, size_t at) { return bytes[at] << 8 | bytes[at + 1]; }
uint32_t U32(std::span<const uint8_t> bytes, size_t at) {
  return U16(bytes, at) << 16 | U16(bytes, at + 2);
}

// A page of a b-tree (sqlite.org/fileformat2.html, 1.6): header, pointers to cells, bytes of
// nobody, then cells and free blocks between them.
class TreePage {
 public:
  // False when the bytes are not such a page.
  bool Read(std::span<const uint8_t> bytes, uint32_t number) {
    bytes_ = bytes;
    header_ = number == 1 ? 100 : 0;  // behind the file's own
    const int type = bytes[header_];
    inner_ = type == 2 || type == 5;
    if (!inner_ && type != 10 && type != 13) return false;
    cells_ = U16(bytes, header_ + 3);
    pointers_ = header_ + (inner_ ? 12 : 8);
    const uint32_t content = U16(bytes, header_ + 5);
    content_ = content == 0 ? 65536 : content;
    return pointers_ + 2 * cells_ <= content_ && content_ <= bytes.size();
  }
  // Calls f(begin, end) for each part that holds nothing; false when the free blocks make no sense.
  template <typename F>
  bool ForEachUnused(const F& f) const {
    f(pointers_ + 2 * cells_, content_);
    for (size_t at = U16(bytes_, header_ + 1); at != 0;) {
      if (at < content_ || at + 4 > bytes_.size()) return false;
      const size_t next = U16(bytes_, at), end = at + U16(bytes_, at + 2);
      if (end < at + 4 || end > bytes_.size() || (next != 0 && next < end)) return false;
      f(at + 4, end);
      at = next;
    }
    return true;
  }
  // Adds the pages below it; false when a cell lies nowhere.
  bool AddChildren(std::vector<uint32_t>* pages) const {
    if (!inner_) return true;
    pages->push_back(U32(bytes_, header_ + 8));
    for (size_t i = 0; i < cells_; ++i) {
      const size_t cell = U16(bytes_, pointers_ + 2 * i);
      if (cell < content_ || cell + 4 > bytes_.size()) return false;
      pages->push_back(U32(bytes_, cell));
    }
    return true;
  }

 private:
  std::span<const uint8_t> bytes_;
  size_t header_ = 0, cells_ = 0, pointers_ = 0, content_ = 0;
  bool inner_ = false;
};

}  // namespace

Result<std::unique_ptr<SqlConnection>> SqlConnection::Open(const std::string& path, Role role,
                                                           const std::string& vfs) {
  auto connection = std::make_unique<SqlConnection>();
  connection->path_ = path;
  const int flags = (role == Role::kWriter ? SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE
                                           : SQLITE_OPEN_READONLY) |
                    SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE;
  const int rc = sqlite3_open_v2(path.c_str(), &connection->db_, flags,
                                 vfs.empty() ? nullptr : vfs.c_str());
  if (rc != SQLITE_OK) return connection->Error(rc, "open");
  HOLDFAST_RETURN_IF_ERROR(connection->Configure(role));
  return connection;
}

Status SqlConnection::Configure(Role role) {
  sqlite3_busy_timeout(db_, kBusyMs);
  HOLDFAST_RETURN_IF_ERROR(Execute(
      "PRAGMA mmap_size=0; PRAGMA cache_size=-8192; PRAGMA temp_store=MEMORY;"
      "PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON; PRAGMA foreign_keys=ON;"));
  if (role == Role::kReader) {
    sqlite3_db_config(db_, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, nullptr);
    HOLDFAST_RETURN_IF_ERROR(Execute("PRAGMA query_only=ON; PRAGMA wal_autocheckpoint=0;"));
  } else {
    HOLDFAST_RETURN_IF_ERROR(Execute("PRAGMA journal_mode=WAL;"));
    HOLDFAST_RETURN_IF_ERROR(Execute(
        "PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0; PRAGMA journal_size_limit=-1;"
        "PRAGMA secure_delete=ON;"));
    sqlite3_wal_hook(db_, NoteCommit, this);
  }
  int persist = 1;
  sqlite3_file_control(db_, "main", SQLITE_FCNTL_PERSIST_WAL, &persist);
  // The log's file is there only once the database has been looked at.
  return Execute("SELECT count(*) FROM sqlite_schema;");
}

// The WAL hook runs after each commit; it only notes how far the log has come.
int SqlConnection::NoteCommit(void* connection, sqlite3*, const char*, int frames) {
  auto* self = static_cast<SqlConnection*>(connection);
  ++self->log_commits_;
  self->wal_frames_ = frames;
  return SQLITE_OK;
}

SqlConnection::~SqlConnection() {
  for (auto& [sql, statements] : idle_) {
    for (auto& statement : statements) sqlite3_finalize(statement->handle);
  }
  sqlite3_close_v2(db_);
}

Status SqlConnection::Error(int rc, std::string_view where) {
  std::string text = "database " + path_ + ": " + std::string(where) + ": ";
  text += db_ != nullptr ? sqlite3_errmsg(db_) : sqlite3_errstr(rc);
  text += " (" + std::to_string(rc) + ")";
  if (IsStoreError(rc) && store_error_code_ == Code::kOk) {
    store_error_code_ = CodeOf(rc);
    store_error_ = text;
  }
  return Status(CodeOf(rc), std::move(text));
}

Status SqlConnection::Execute(const std::string& sql) {
  const int rc = sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, nullptr);
  if (rc == SQLITE_OK) return Status();
  return Error(rc, std::string_view(sql).substr(0, kMaxCheckedSql));
}

void SqlConnection::Bind(SqlStatement* statement, std::span<const SqlValue> values,
                         Lifetime lifetime) {
  const sqlite3_destructor_type keep =
      lifetime == Lifetime::kCopied ? SQLITE_TRANSIENT : SQLITE_STATIC;
  for (size_t i = 0; i < values.size(); ++i) {
    const SqlValue& v = values[i];
    const int at = static_cast<int>(i) + 1;
    // An empty view may have a null pointer, which SQLite would take for NULL.
    const void* data = v.bytes().empty() ? static_cast<const void*>("") : v.bytes().data();
    switch (v.kind()) {
      case SqlValue::Kind::kNull: sqlite3_bind_null(statement->handle, at); break;
      case SqlValue::Kind::kInt: sqlite3_bind_int64(statement->handle, at, v.as_int()); break;
      case SqlValue::Kind::kReal: sqlite3_bind_double(statement->handle, at, v.as_real()); break;
      case SqlValue::Kind::kText:
        sqlite3_bind_text64(statement->handle, at, static_cast<const char*>(data),
                            v.bytes().size(), keep, SQLITE_UTF8);
        break;
      case SqlValue::Kind::kBlob:
        sqlite3_bind_blob64(statement->handle, at, data, v.bytes().size(), keep);
        break;
    }
  }
}

Result<SqlStatement*> SqlConnection::Acquire(std::string_view sql,
                                             std::span<const SqlValue> values, Lifetime lifetime) {
  std::unique_ptr<SqlStatement> statement;
  std::string text(sql);
  auto found = idle_.find(text);
  if (found != idle_.end() && !found->second.empty()) {
    statement = std::move(found->second.back());
    found->second.pop_back();
    --cached_;
  } else {
    statement = std::make_unique<SqlStatement>();
    statement->connection = this;
    const char* rest = nullptr;
    const int rc =
        sqlite3_prepare_v3(db_, text.data(), static_cast<int>(text.size()),
                           SQLITE_PREPARE_PERSISTENT, &statement->handle, &rest);
    if (rc != SQLITE_OK) return Error(rc, sql.substr(0, kMaxCheckedSql));
    statement->sql = std::move(text);
  }
  const int wanted = sqlite3_bind_parameter_count(statement->handle);
  if (statement->handle == nullptr || static_cast<size_t>(wanted) != values.size()) {
    sqlite3_finalize(statement->handle);
    return Status::Invalid("database " + path_ + ": '" +
                           std::string(sql.substr(0, kMaxCheckedSql)) + "' takes " +
                           std::to_string(wanted) + " values, got " +
                           std::to_string(values.size()));
  }
  Bind(statement.get(), values, lifetime);
  return statement.release();
}

void SqlConnection::Release(SqlStatement* statement) {
  std::unique_ptr<SqlStatement> owned(statement);
  sqlite3_reset(owned->handle);  // repeats the error that the last step returned
  sqlite3_clear_bindings(owned->handle);
  if (cached_ >= kMaxCachedStatements) {
    sqlite3_finalize(owned->handle);
    return;
  }
  ++cached_;
  idle_[owned->sql].push_back(std::move(owned));
}

Result<SqlConnection::Step> SqlConnection::Advance(SqlStatement* statement) {
  const int rc = sqlite3_step(statement->handle);
  if (rc == SQLITE_ROW) return Step::kRow;
  if (rc == SQLITE_DONE) return Step::kDone;
  return Error(rc, std::string_view(statement->sql).substr(0, kMaxCheckedSql));
}

bool SqlConnection::autocommit() const { return sqlite3_get_autocommit(db_) != 0; }
int64_t SqlConnection::last_insert_id() const { return sqlite3_last_insert_rowid(db_); }
int64_t SqlConnection::changes() const { return sqlite3_changes64(db_); }

Result<uint64_t> SqlConnection::WalSize() {
  sqlite3_file* file = WalFile(db_);
  if (file == nullptr) return Status::Io("database " + path_ + ": no write-ahead log");
  sqlite3_int64 size = 0;
  const int rc = file->pMethods->xFileSize(file, &size);
  if (rc != SQLITE_OK) return Error(rc, "size of the log");
  return static_cast<uint64_t>(size);
}

Status SqlConnection::ExtendWal(uint64_t size) {
  static constexpr std::array<std::byte, 65536> kZeros{};
  HOLDFAST_ASSIGN_OR_RETURN(uint64_t at, WalSize());
  if (at >= size) return Status();
  // It may have been cut off just now: a power cut that leaves the first frames of the old log and
  // zeros in place of the others would bring old pages back beside new ones.
  HOLDFAST_RETURN_IF_ERROR(SyncLog());
  sqlite3_file* file = WalFile(db_);
  while (at < size) {
    const uint64_t step = std::min<uint64_t>(kZeros.size(), size - at);
    const int rc = file->pMethods->xWrite(file, kZeros.data(), static_cast<int>(step),
                                          static_cast<sqlite3_int64>(at));
    if (rc != SQLITE_OK) return Error(rc, "extending the log");
    at += step;
  }
  return SyncLog();
}

Status SqlConnection::SetCommitSync(CommitSync sync) {
  if (sync == commit_sync_) return Status();
  HOLDFAST_RETURN_IF_ERROR(Execute(sync == CommitSync::kFull ? "PRAGMA synchronous=FULL"
                                                             : "PRAGMA synchronous=NORMAL"));
  commit_sync_ = sync;
  return Status();
}

Status SqlConnection::SyncLog() {
  sqlite3_file* file = WalFile(db_);
  if (file == nullptr) return Status::Io("database " + path_ + ": no write-ahead log");
  const int rc = file->pMethods->xSync(file, SQLITE_SYNC_NORMAL);
  return rc == SQLITE_OK ? Status() : Error(rc, "syncing the log");
}

Status SqlConnection::RewriteLog(int frame) {
  sqlite3_file* file = WalFile(db_);
  if (file == nullptr) return Status::Io("database " + path_ + ": no write-ahead log");
  std::array<std::byte, kWalFrameBytes> bytes;
  uint64_t at = frame == 0 ? 0 : kWalHeaderBytes + static_cast<uint64_t>(frame) * kWalFrameBytes;
  const uint64_t end = kWalHeaderBytes + static_cast<uint64_t>(wal_frames_) * kWalFrameBytes;
  while (at < end) {
    const int step = static_cast<int>(std::min<uint64_t>(bytes.size(), end - at));
    const auto offset = static_cast<sqlite3_int64>(at);
    int rc = file->pMethods->xRead(file, bytes.data(), step, offset);
    if (rc == SQLITE_OK) rc = file->pMethods->xWrite(file, bytes.data(), step, offset);
    if (rc != SQLITE_OK) return Error(rc, "writing the log again");
    at += static_cast<uint64_t>(step);
  }
  return SyncLog();
}

Result<bool> SqlConnection::Checkpoint() {
  int in_log = 0, copied = 0;
  const int rc =
      sqlite3_wal_checkpoint_v2(db_, "main", SQLITE_CHECKPOINT_PASSIVE, &in_log, &copied);
  if (rc == SQLITE_BUSY) return false;
  if (rc != SQLITE_OK) return Error(rc, "checkpoint");
  return in_log == copied;
}

Result<bool> SqlConnection::EmptyLog() {
  sqlite3_busy_timeout(db_, 0);  // turns wait for this thread
  const int rc =
      sqlite3_wal_checkpoint_v2(db_, "main", SQLITE_CHECKPOINT_TRUNCATE, nullptr, nullptr);
  const Status status = rc == SQLITE_OK || rc == SQLITE_BUSY ? Status() : Error(rc, "checkpoint");
  sqlite3_busy_timeout(db_, kBusyMs);
  HOLDFAST_RETURN_IF_ERROR(status);
  if (rc == SQLITE_BUSY) return false;
  wal_frames_ = 0;
  return true;
}

Result<std::vector<uint32_t>> SqlConnection::RootPages() {
  std::vector<uint32_t> roots = {1};
  HOLDFAST_ASSIGN_OR_RETURN(
      SqlStatement * statement,
      Acquire("SELECT rootpage FROM sqlite_schema WHERE rootpage > 0", {}, Lifetime::kCopied));
  Result<Step> step = Step::kRow;
  while ((step = Advance(statement)).ok() && *step == Step::kRow) {
    roots.push_back(static_cast<uint32_t>(sqlite3_column_int64(statement->handle, 0)));
  }
  Release(statement);
  if (!step.ok()) return step.status();
  return roots;
}

// Written beside SQLite, into bytes that mean nothing to it: whoever reads the page meanwhile, or
// after a power cut in between, sees the same rows. Pages that SQLite remembers are forgotten, so
// that it can't write the old bytes again.
Status SqlConnection::ClearUnused() {
  HOLDFAST_ASSIGN_OR_RETURN(std::vector<uint32_t> to_visit, RootPages());
  sqlite3_db_release_memory(db_);
  sqlite3_file* file = nullptr;
  sqlite3_file_control(db_, "main", SQLITE_FCNTL_FILE_POINTER, &file);
  std::array<uint8_t, 100> head;
  int rc = file->pMethods->xRead(file, head.data(), head.size(), 0);
  if (rc != SQLITE_OK) return Error(rc, "reading the file's header");
  const uint32_t page_size = U16(head, 16) == 1 ? 65536 : U16(head, 16), pages = U32(head, 28);
  const size_t usable = page_size - head[20];
  std::vector<uint8_t> bytes(page_size);
  std::vector<bool> seen(pages + 1);
  bool sound = true;
  const std::vector<uint8_t> zeros(page_size);
  while (!to_visit.empty() && sound && rc == SQLITE_OK) {
    const uint32_t number = to_visit.back();
    to_visit.pop_back();
    sound = number >= 1 && number <= pages && !seen[number];
    if (!sound) break;
    seen[number] = true;
    const auto at = static_cast<sqlite3_int64>(number - 1) * page_size;
    rc = file->pMethods->xRead(file, bytes.data(), static_cast<int>(page_size), at);
    if (rc != SQLITE_OK) break;
    const std::span<const uint8_t> page = std::span(bytes).first(usable);
    TreePage tree;
    sound = tree.Read(page, number) && tree.AddChildren(&to_visit) &&
            tree.ForEachUnused([&](size_t begin, size_t end) {
              if (rc != SQLITE_OK || begin == end ||
                  std::memcmp(page.data() + begin, zeros.data(), end - begin) == 0) {
                return;
              }
              rc = file->pMethods->xWrite(file, zeros.data(), static_cast<int>(end - begin),
                                          at + static_cast<sqlite3_int64>(begin));
            });
  }
  if (rc == SQLITE_OK) rc = file->pMethods->xSync(file, SQLITE_SYNC_NORMAL);
  if (rc != SQLITE_OK) return Error(rc, "clearing what no row uses");
  return sound ? Status() : Status::Corrupt("database " + path_ + ": its trees are damaged");
}

Status SqlConnection::BackupTo(const std::string& path) {
  sqlite3* target = nullptr;
  int rc = sqlite3_open_v2(path.c_str(), &target, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE,
                           nullptr);
  Status status;
  if (rc == SQLITE_OK) {
    sqlite3_backup* backup = sqlite3_backup_init(target, "main", db_, "main");
    if (backup != nullptr) {
      rc = sqlite3_backup_step(backup, -1);
      const int finish = sqlite3_backup_finish(backup);
      if (rc == SQLITE_DONE) rc = finish;
    } else {
      rc = sqlite3_errcode(target);
    }
  }
  if (rc != SQLITE_OK) {
    status = Status(CodeOf(rc), "backup to " + path + ": " + sqlite3_errmsg(target));
  }
  sqlite3_close_v2(target);
  return status;
}

// ---- Rows, Reader, Txn -------------------------------------------------------------------------

Rows::Rows(Rows&& other) noexcept
    : statement_(std::exchange(other.statement_, nullptr)), status_(std::move(other.status_)) {}

Rows& Rows::operator=(Rows&& other) noexcept {
  if (this != &other) {
    Close();
    statement_ = std::exchange(other.statement_, nullptr);
    status_ = std::move(other.status_);
  }
  return *this;
}

Rows::~Rows() { Close(); }

void Rows::Close() {
  if (statement_ != nullptr) statement_->connection->Release(statement_);
  statement_ = nullptr;
}

bool Rows::Next() {
  if (statement_ == nullptr || !status_.ok()) return false;
  Result<SqlConnection::Step> step = statement_->connection->Advance(statement_);
  if (step.ok() && *step == SqlConnection::Step::kRow) return true;
  if (!step.ok()) status_ = step.status();
  Close();
  return false;
}

void Rows::BadColumn(int column, const char* wanted) {
  if (!status_.ok()) return;
  status_ = Status::Corrupt("database: column " + std::to_string(column) + " of '" +
                            statement_->sql.substr(0, kMaxCheckedSql) + "' is not a " + wanted);
}

bool Rows::IsNull(int column) const {
  return sqlite3_column_type(statement_->handle, column) == SQLITE_NULL;
}
int64_t Rows::Int(int column) const { return sqlite3_column_int64(statement_->handle, column); }
double Rows::Real(int column) const { return sqlite3_column_double(statement_->handle, column); }

std::string_view Rows::Text(int column) const {
  const unsigned char* text = sqlite3_column_text(statement_->handle, column);
  if (text == nullptr) return {};
  return {reinterpret_cast<const char*>(text),
          static_cast<size_t>(sqlite3_column_bytes(statement_->handle, column))};
}

std::span<const std::byte> Rows::Blob(int column) const {
  const void* data = sqlite3_column_blob(statement_->handle, column);
  if (data == nullptr) return {};
  return {static_cast<const std::byte*>(data),
          static_cast<size_t>(sqlite3_column_bytes(statement_->handle, column))};
}

Digest Rows::DigestAt(int column) {
  const std::span<const std::byte> blob = Blob(column);
  Digest digest;
  if (blob.size() != digest.bytes.size()) {
    BadColumn(column, "digest");
    return digest;
  }
  std::memcpy(digest.bytes.data(), blob.data(), blob.size());
  return digest;
}

Rows Reader::QueryValues(std::string_view sql, std::span<const SqlValue> values) {
  Result<SqlStatement*> statement =
      connection_->Acquire(sql, values, SqlConnection::Lifetime::kCopied);
  if (!statement.ok()) return Rows(statement.status());
  return Rows(*statement);
}

Status Txn::RunValues(std::string_view sql, std::span<const SqlValue> values) {
  HOLDFAST_ASSIGN_OR_RETURN(
      SqlStatement * statement,
      connection_->Acquire(sql, values, SqlConnection::Lifetime::kOutlivesStatement));
  Result<SqlConnection::Step> step = SqlConnection::Step::kRow;
  while (step.ok() && *step == SqlConnection::Step::kRow) {
    step = connection_->Advance(statement);
  }
  const Status status = step.status();
  connection_->Release(statement);
  return status;
}

int64_t Txn::last_insert_id() const { return connection_->last_insert_id(); }
int64_t Txn::changes() const { return connection_->changes(); }

}  // namespace holdfast

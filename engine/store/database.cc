// The writer's thread takes work from two queues (turns first), runs as much of it as belongs
// together in one transaction, commits, and tells the callers. Between transactions it extends the
// log, syncs what lazy commits have left, and shreds where it is asked to; when it is idle it
// checkpoints.
//
// Rejected: SQLite's own checkpoint at 1000 pages (it would run inside a turn's commit); one
// transaction per piece of work (a sync each); a mutex around one connection (readers would wait
// for syncs).
#include "engine/store/database.h"

#include <fcntl.h>
#include <unistd.h>

#include <cassert>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <mutex>
#include <thread>

#include "engine/store/migrations.h"
#include "engine/store/sql_connection.h"

namespace holdfast {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr size_t kMaxGroup = 64;                  // pieces of work in one transaction
constexpr milliseconds kMaxBackgroundTime{5};     // of one transaction of background work
constexpr uint64_t kWalRoom = 16 << 20;           // of a log before commits, and after a shred
constexpr uint64_t kWalHeadroom = 1 << 20;        // it is extended when less is left
constexpr uint64_t kWalStep = 4 << 20;            // by this much: some commit waits for it
constexpr int kCheckpointFrames = 256;            // worth a checkpoint after a short pause
constexpr milliseconds kShortPause{50};
constexpr milliseconds kLongPause{5000};          // after which any frame is worth it
constexpr int kForceCheckpointFrames = 16384;     // 64 MiB: no pause is waited for
constexpr milliseconds kShredPause{10};           // while a reader holds the log

// Proves that commits reach the disk.
constexpr char kProbeSql[] =
    "INSERT INTO store_probe VALUES(1, 1) ON CONFLICT(id) DO UPDATE SET count = count + 1";

struct Work {
  std::function<Status(Txn&)> run;
  std::function<void(const Status&)> done;
  WriteClass write_class = WriteClass::kTurn;
};

// Where a caller waits for what the writer's thread makes of its wish.
class Outcome {
 public:
  void Set(const Status& status) {
    std::lock_guard lock(mu_);
    status_ = status;
    ready_.notify_one();
  }
  Status Wait() {
    std::unique_lock lock(mu_);
    ready_.wait(lock, [&] { return status_.has_value(); });
    return std::move(*status_);
  }

 private:
  std::mutex mu_;
  std::condition_variable ready_;
  std::optional<Status> status_;
};

struct ShredWish {
  Clock::time_point until;
  std::shared_ptr<Outcome> outcome;
};

// Lazy commits since the last sync.
struct Unsynced {
  uint64_t works = 0;
  int frame = 0;            // of the log, where they begin
  Clock::time_point since;
};

}  // namespace

struct Database::Impl {
  Options options;
  std::unique_ptr<SqlConnection> writer;  // the writer's thread alone, once it runs

  mutable std::mutex mu;
  std::condition_variable work_ready, work_room, committed;
  std::deque<Work> queues[2];  // of turns, lazy or not, in their order; of other work
  std::vector<ShredWish> shreds;
  Clock::time_point next_shred;
  bool closing = false;
  bool degraded = false;
  std::string degraded_reason;
  Clock::time_point next_probe;
  std::optional<Clock::time_point> busy_since;  // the writer's thread
  DatabaseStats stats;

  std::mutex readers_mu;
  std::condition_variable reader_free;
  std::vector<std::unique_ptr<SqlConnection>> idle_readers;

  bool log_checkpointed = true;  // the writer's thread alone, as are the next three
  Unsynced unsynced;
  Clock::time_point last_commit;
  Clock::time_point next_upkeep;  // not before: upkeep that failed is not tried in a loop

  std::thread thread;

  std::deque<Work>& queue(WriteClass c) { return queues[c == WriteClass::kBackground]; }
  size_t QueuedLocked() const { return queues[0].size() + queues[1].size(); }
  Status DegradedLocked() const {
    return Status::Exhausted("the store is degraded: " + degraded_reason);
  }

  Status Enqueue(Work work, bool wait_for_room);
  void Run();
  bool WaitForWork();
  std::optional<Work> Take(WriteClass write_class, size_t taken, Clock::time_point started);
  void RunTransaction(WriteClass write_class);
  Status RunOne(const Work& work);
  Status Commit();
  void NoteCommit(WriteClass write_class, uint64_t commits, int frames, size_t works);
  void NoteSynced();
  bool SyncIsDue() const;
  void SyncLazy();
  void Finish(std::vector<Work>* group, const std::vector<Status>& results, const Status& commit);
  void Degrade(std::string reason);
  void Probe();
  void RefuseQueued();
  Status KeepHeadroom();
  Status ExtendLog(uint64_t least);
  void Upkeep();
  void Shred();
  Result<bool> TryShred();
  Clock::time_point NextWakeLocked() const;
};

// ---- the callers' side -------------------------------------------------------------------------

Status Database::Impl::Enqueue(Work work, bool wait_for_room) {
  std::unique_lock lock(mu);
  assert(std::this_thread::get_id() != thread.get_id() && "a write from inside a write");
  if (wait_for_room) {
    work_room.wait(lock, [&] {
      return closing || degraded || QueuedLocked() < options.queue_capacity;
    });
  }
  if (closing) return Status::Unavailable("the database is closing");
  if (degraded) {
    ++stats.failed_writes;
    return DegradedLocked();
  }
  if (QueuedLocked() >= options.queue_capacity) {
    ++stats.failed_writes;
    return Status::Exhausted("the database's queue is full");
  }
  queue(work.write_class).push_back(std::move(work));
  work_ready.notify_one();
  return Status();
}

Status Database::Write(std::function<Status(Txn&)> work, WriteClass write_class) {
  const auto outcome = std::make_shared<Outcome>();  // outlives whichever side is done first
  auto done = [outcome](const Status& s) { outcome->Set(s); };
  HOLDFAST_RETURN_IF_ERROR(impl_->Enqueue({std::move(work), std::move(done), write_class}, true));
  return outcome->Wait();
}

Status Database::Submit(std::function<Status(Txn&)> work, WriteClass write_class,
                        std::function<void(const Status&)> done) {
  return impl_->Enqueue({std::move(work), std::move(done), write_class}, false);
}

Status Database::Flush() {
  if (stats().unsynced == 0) return Status();
  return Write([](Txn& txn) { return txn.Run(kProbeSql); }, WriteClass::kTurn);
}

Status Database::Shred(milliseconds most) {
  const auto outcome = std::make_shared<Outcome>();
  {
    std::lock_guard lock(impl_->mu);
    if (impl_->closing) return Status::Unavailable("the database is closing");
    impl_->shreds.push_back({Clock::now() + most, outcome});
  }
  impl_->work_ready.notify_one();
  return outcome->Wait();
}

Status Database::Read(const std::function<Status(Reader&)>& work) {
  std::unique_ptr<SqlConnection> connection;
  {
    std::unique_lock lock(impl_->readers_mu);
    impl_->reader_free.wait(lock, [&] { return !impl_->idle_readers.empty(); });
    connection = std::move(impl_->idle_readers.back());
    impl_->idle_readers.pop_back();
  }
  Status status = connection->Execute("BEGIN");
  if (status.ok()) {
    Reader reader(connection.get());
    status = work(reader);
    // An I/O error may have ended the transaction under the work, whether that saw it or not.
    Status end = connection->autocommit() ? connection->store_error()
                                          : connection->Execute("COMMIT");
    if (!end.ok()) connection->Execute("ROLLBACK").IgnoreError();
    if (status.ok()) status = std::move(end);
    connection->ClearStoreError();
  }
  {
    std::lock_guard lock(impl_->readers_mu);
    impl_->idle_readers.push_back(std::move(connection));
  }
  impl_->reader_free.notify_one();
  return status;
}

uint64_t Database::WaitForCommit(uint64_t seen, milliseconds most) const {
  std::unique_lock lock(impl_->mu);
  impl_->committed.wait_for(lock, most, [&] { return impl_->stats.commits != seen; });
  return impl_->stats.commits;
}

bool Database::degraded() const {
  std::lock_guard lock(impl_->mu);
  return impl_->degraded;
}

std::string Database::degraded_reason() const {
  std::lock_guard lock(impl_->mu);
  return impl_->degraded_reason;
}

DatabaseStats Database::stats() const {
  std::lock_guard lock(impl_->mu);
  DatabaseStats s = impl_->stats;
  s.queued = impl_->QueuedLocked();
  if (impl_->busy_since) {
    const std::chrono::duration<double, std::milli> busy = Clock::now() - *impl_->busy_since;
    s.writing_ms = busy.count();
  }
  return s;
}

Status Database::BackupTo(const std::string& path) {
  if (::access(path.c_str(), F_OK) == 0) {
    return Status::Conflict("backup: " + path + " exists already");
  }
  HOLDFAST_ASSIGN_OR_RETURN(
      std::unique_ptr<SqlConnection> source,
      SqlConnection::Open(impl_->options.path, SqlConnection::Role::kReader, impl_->options.vfs));
  const std::string partial = path + ".partial";
  ::unlink(partial.c_str());
  Status status = source->BackupTo(partial);
  if (status.ok() && std::rename(partial.c_str(), path.c_str()) != 0) {
    status = Status::Io("backup: cannot rename " + partial + " to " + path);
  }
  if (!status.ok()) ::unlink(partial.c_str());
  return status;
}

// ---- the writer's thread -----------------------------------------------------------------------

Clock::time_point Database::Impl::NextWakeLocked() const {
  Clock::time_point wake = shreds.empty() ? Clock::time_point::max() : next_shred;
  if (degraded) return std::min(wake, next_probe);
  if (unsynced.works > 0) wake = std::min(wake, unsynced.since + options.lazy_delay);
  if (log_checkpointed) return wake;
  const auto pause = writer->wal_frames() >= kCheckpointFrames ? kShortPause : kLongPause;
  return std::min(wake, std::max(last_commit + pause, next_upkeep));
}

// Returns when there is work to run or upkeep to do; false when all is done and the end has come.
bool Database::Impl::WaitForWork() {
  std::unique_lock lock(mu);
  busy_since.reset();
  // Who begins to wait for a shred wakes this thread, which then wakes itself until it is done.
  const size_t shreds_before = shreds.size();
  auto ready = [&] {
    return closing || QueuedLocked() > 0 || shreds.size() != shreds_before;
  };
  const Clock::time_point wake = NextWakeLocked();
  if (wake == Clock::time_point::max()) {
    work_ready.wait(lock, ready);
  } else {
    work_ready.wait_until(lock, wake, ready);
  }
  busy_since = Clock::now();
  return !(closing && QueuedLocked() == 0);
}

void Database::Impl::Run() {
  while (WaitForWork()) {
    WriteClass next = WriteClass::kTurn;
    bool refuse = false, any = false, probe = false;
    {
      std::lock_guard lock(mu);
      refuse = degraded;
      probe = degraded && Clock::now() >= next_probe;
      any = QueuedLocked() > 0;
      const std::deque<Work>& turns = queue(WriteClass::kTurn);
      next = turns.empty() ? WriteClass::kBackground : turns.front().write_class;
    }
    if (probe) {
      Probe();
    } else if (refuse) {
      RefuseQueued();
    } else if (any) {
      RunTransaction(next);
    }
    if (SyncIsDue()) SyncLazy();
    if (!degraded) Upkeep();
    Shred();
  }
  if (unsynced.works > 0) SyncLazy();
  std::lock_guard lock(mu);
  for (const ShredWish& s : shreds) s.outcome->Set(Status::Unavailable("the database is closing"));
}

std::optional<Work> Database::Impl::Take(WriteClass write_class, size_t taken,
                                         Clock::time_point started) {
  std::optional<Work> work;
  {
    std::lock_guard lock(mu);
    std::deque<Work>& from = queue(write_class);
    if (from.empty() || taken >= kMaxGroup) return std::nullopt;
    // Behind a turn lazy work may share its sync; behind lazy work a turn has one of its own.
    if (write_class == WriteClass::kLazy && from.front().write_class != write_class) {
      return std::nullopt;
    }
    if (write_class == WriteClass::kBackground && taken > 0 &&
        (!queue(WriteClass::kTurn).empty() || Clock::now() - started > kMaxBackgroundTime)) {
      return std::nullopt;
    }
    work = std::move(from.front());
    from.pop_front();
  }
  work_room.notify_one();
  return work;
}

Status Database::Impl::RunOne(const Work& work) {
  HOLDFAST_RETURN_IF_ERROR(writer->Execute("SAVEPOINT work"));
  Txn txn(writer.get());
  Status status = work.run(txn);
  if (status.ok()) return writer->Execute("RELEASE work");
  if (!writer->autocommit()) {
    HOLDFAST_RETURN_IF_ERROR(writer->Execute("ROLLBACK TO work"));
    HOLDFAST_RETURN_IF_ERROR(writer->Execute("RELEASE work"));
  }
  return status;
}

Status Database::Impl::Commit() {
  HOLDFAST_RETURN_IF_ERROR(writer->store_error());
  if (writer->autocommit()) return Status::Io("the transaction was rolled back by a statement");
  return writer->Execute("COMMIT");
}

void Database::Impl::RunTransaction(WriteClass write_class) {
  const Clock::time_point started = Clock::now();
  writer->ClearStoreError();
  using CommitSync = SqlConnection::CommitSync;
  Status commit = writer->SetCommitSync(write_class == WriteClass::kLazy ? CommitSync::kNone
                                                                         : CommitSync::kFull);
  if (commit.ok()) commit = writer->Execute("BEGIN IMMEDIATE");
  const uint64_t commits = writer->log_commits();
  const int frames = writer->wal_frames();
  std::vector<Work> group;
  std::vector<Status> results;
  while (std::optional<Work> work = Take(write_class, group.size(), started)) {
    results.push_back(commit.ok() ? RunOne(*work) : commit);
    group.push_back(std::move(*work));
    if (!commit.ok() || !writer->store_error().ok() || writer->autocommit()) break;
  }
  if (commit.ok()) commit = Commit();
  if (!commit.ok()) {
    if (!writer->autocommit()) writer->Execute("ROLLBACK").IgnoreError();
    Degrade(commit.message());
  } else {
    last_commit = Clock::now();
    NoteCommit(write_class, commits, frames, group.size());
    log_checkpointed = false;
  }
  Finish(&group, results, commit);
}

// What a committed transaction means for lazy work; `commits` and `frames` are of before it.
void Database::Impl::NoteCommit(WriteClass write_class, uint64_t commits, int frames,
                                size_t works) {
  if (writer->log_commits() == commits) return;  // it wrote nothing
  if (write_class != WriteClass::kLazy) return NoteSynced();
  if (unsynced.works == 0) {
    unsynced.frame = log_checkpointed ? 0 : frames;  // of a log that was copied it begins anew
    unsynced.since = last_commit;
  }
  unsynced.works += works;
  std::lock_guard lock(mu);
  stats.unsynced = unsynced.works;
}

void Database::Impl::NoteSynced() {
  unsynced = {};
  std::lock_guard lock(mu);
  stats.unsynced = 0;
}

bool Database::Impl::SyncIsDue() const {
  if (unsynced.works == 0 || degraded) return false;
  const auto frames = static_cast<uint64_t>(writer->wal_frames() - unsynced.frame);
  return unsynced.works >= kMaxUnsynced || frames * kWalFrameBytes >= kMaxUnsyncedBytes ||
         Clock::now() >= unsynced.since + options.lazy_delay;
}

void Database::Impl::SyncLazy() {
  writer->ClearStoreError();
  const Status synced = degraded ? writer->RewriteLog(unsynced.frame) : writer->SyncLog();
  if (synced.ok()) return NoteSynced();
  Degrade(synced.message());
}

void Database::Impl::Finish(std::vector<Work>* group, const std::vector<Status>& results,
                            const Status& commit) {
  {
    std::lock_guard lock(mu);
    ++(commit.ok() ? stats.commits : stats.commit_failures);
    for (const Status& r : results) ++(commit.ok() && r.ok() ? stats.writes : stats.failed_writes);
  }
  committed.notify_all();
  for (size_t i = 0; i < group->size(); ++i) {
    (*group)[i].done(results[i].ok() && !commit.ok() ? commit : results[i]);
  }
}

void Database::Impl::Degrade(std::string reason) {
  std::lock_guard lock(mu);
  degraded = true;
  degraded_reason = std::move(reason);
  next_probe = Clock::now() + options.probe_interval;
  work_room.notify_all();
}

void Database::Impl::RefuseQueued() {
  std::vector<Work> refused;
  Status status;
  {
    std::lock_guard lock(mu);
    for (auto& q : queues) {
      for (Work& w : q) refused.push_back(std::move(w));
      q.clear();
    }
    status = DegradedLocked();
    stats.failed_writes += refused.size();
  }
  work_room.notify_all();
  for (Work& w : refused) w.done(status);
}

// Proves that the store takes writes again: room ahead in the log, and a commit of its own.
void Database::Impl::Probe() {
  writer->ClearStoreError();
  Status status = writer->SetCommitSync(SqlConnection::CommitSync::kFull);
  if (status.ok() && unsynced.works > 0) status = writer->RewriteLog(unsynced.frame);
  if (status.ok()) status = KeepHeadroom();
  if (status.ok()) status = writer->Execute(kProbeSql);
  if (!status.ok()) {
    Degrade(status.message());
    return;
  }
  NoteSynced();
  std::lock_guard lock(mu);
  degraded = false;
  degraded_reason.clear();
  log_checkpointed = false;
  last_commit = Clock::now();
}

Status Database::Impl::KeepHeadroom() {
  HOLDFAST_ASSIGN_OR_RETURN(const uint64_t size, writer->WalSize());
  const uint64_t used = static_cast<uint64_t>(writer->wal_frames()) * kWalFrameBytes;
  return size < used + kWalHeadroom ? ExtendLog(used + kWalStep) : Status();
}

Status Database::Impl::ExtendLog(uint64_t least) {
  HOLDFAST_RETURN_IF_ERROR(writer->ExtendWal(least));
  HOLDFAST_ASSIGN_OR_RETURN(const uint64_t size, writer->WalSize());
  std::lock_guard lock(mu);
  stats.wal_bytes = size;
  return Status();
}

// Log and checkpoint, between transactions. What fails here harms no write that was acknowledged:
// it is tried again after a while.
void Database::Impl::Upkeep() {
  const Clock::time_point now = Clock::now();
  if (now < next_upkeep) return;
  bool idle = false;
  {
    std::lock_guard lock(mu);
    idle = QueuedLocked() == 0;
  }
  const int frames = writer->wal_frames();
  const auto pause = frames >= kCheckpointFrames ? kShortPause : kLongPause;
  Status status = KeepHeadroom();
  if (status.ok() && !log_checkpointed &&
      (frames >= kForceCheckpointFrames || (idle && now - last_commit >= pause))) {
    Result<bool> all = writer->Checkpoint();
    status = all.status();
    log_checkpointed = all.ok() && *all;
    if (log_checkpointed) NoteSynced();
    if (all.ok() && !*all) next_upkeep = now + kLongPause;  // a reader holds the log's end
    std::lock_guard lock(mu);
    if (all.ok()) ++stats.checkpoints;
  }
  if (!status.ok()) next_upkeep = now + options.probe_interval;
}

// Between transactions, where somebody waits for it.
void Database::Impl::Shred() {
  const Clock::time_point now = Clock::now();
  {
    std::lock_guard lock(mu);
    if (shreds.empty() || now < next_shred) return;
  }
  const Result<bool> done = TryShred();
  std::lock_guard lock(mu);
  next_shred = now + kShredPause;
  std::erase_if(shreds, [&](const ShredWish& s) {
    if (done.ok() && !*done && now < s.until) return false;
    s.outcome->Set(!done.ok() ? done.status()
                   : *done    ? Status()
                              : Status::Unavailable(
                                    "a read that goes on holds the database's log"));
    return true;
  });
}

// Turns wait meanwhile, some 1 ms for each MB of rows: in smaller steps a page that a turn changes
// in between would bring its old bytes back.
Result<bool> Database::Impl::TryShred() {
  if (degraded) {
    std::lock_guard lock(mu);
    return DegradedLocked();
  }
  HOLDFAST_ASSIGN_OR_RETURN(const bool empty, writer->EmptyLog());
  if (!empty) return false;
  log_checkpointed = true;
  NoteSynced();
  const Status cleared = writer->ClearUnused();
  HOLDFAST_RETURN_IF_ERROR(ExtendLog(kWalRoom));
  HOLDFAST_RETURN_IF_ERROR(cleared);
  return true;
}

// ---- opening and closing -----------------------------------------------------------------------

Database::Database(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<Database>> Database::Open(Options options) {
  auto impl = std::make_unique<Impl>();
  HOLDFAST_ASSIGN_OR_RETURN(
      impl->writer,
      SqlConnection::Open(options.path, SqlConnection::Role::kWriter, options.vfs));
  HOLDFAST_RETURN_IF_ERROR(Migrate(impl->writer.get(), options.migrations));
  // The log of the last process is copied now, so that commits begin at its start again, in space
  // that it has already. Where that fails, the pauses will see to it.
  const Result<bool> copied = impl->writer->Checkpoint();
  impl->log_checkpointed = copied.ok() && *copied;
  impl->last_commit = Clock::now();
  impl->options = std::move(options);
  HOLDFAST_RETURN_IF_ERROR(impl->ExtendLog(kWalRoom));
  for (int i = 0; i < impl->options.readers; ++i) {
    HOLDFAST_ASSIGN_OR_RETURN(
        std::unique_ptr<SqlConnection> reader,
        SqlConnection::Open(impl->options.path, SqlConnection::Role::kReader, impl->options.vfs));
    impl->idle_readers.push_back(std::move(reader));
  }
  Impl* raw = impl.get();
  std::lock_guard lock(raw->mu);  // Enqueue reads the thread's id
  impl->thread = std::thread([raw] { raw->Run(); });
  return std::unique_ptr<Database>(new Database(std::move(impl)));
}

Database::~Database() {
  if (impl_ == nullptr) return;
  {
    std::lock_guard lock(impl_->mu);
    impl_->closing = true;
  }
  impl_->work_ready.notify_all();
  impl_->work_room.notify_all();
  impl_->thread.join();
  impl_->idle_readers.clear();  // before the writer, which then checkpoints as the last one
  impl_->writer.reset();
}

}  // namespace holdfast

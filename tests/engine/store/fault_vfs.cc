#include "tests/engine/store/fault_vfs.h"

#include <sqlite3.h>
#include <unistd.h>

#include <atomic>
#include <cstring>

namespace holdfast::testing {

struct FaultVfs::State {
  sqlite3_vfs vfs{};
  sqlite3_vfs* real = nullptr;
  std::string name;
  std::atomic<int> operations{0}, faults{0}, syncs{0};
  std::atomic<int> fail_at{0};
  std::atomic<Fault> fault{Fault::kIoError};
  std::atomic<Repeat> repeat{Repeat::kOnce};
  DiskHook* hook = nullptr;

  bool Counts(DiskOp op) const {
    return op == DiskOp::kWrite || op == DiskOp::kSync || op == DiskOp::kTruncate;
  }
  // By our own count, else by the hook.
  DiskFault Before(const DiskEvent& event) {
    if (Counts(event.op)) {
      const int n = ++operations, at = fail_at;
      if (at > 0 && (repeat == Repeat::kOnce ? n == at : n >= at)) {
        ++faults;
        if (fault == Fault::kDiskFull) return DiskFault::kNoSpace;
        return event.op == DiskOp::kWrite ? DiskFault::kShort : DiskFault::kIo;
      }
    }
    return hook == nullptr ? DiskFault::kNone : hook->Before(event);
  }
  void After(const DiskEvent& event) {
    if (hook != nullptr) hook->After(event);
  }
};

namespace {

// A file of ours; the real one follows it in memory.
struct FaultFile {
  sqlite3_file base;
  FaultVfs::State* state;
  const char* path;  // SQLite's; null of a temporary file, which no hook sees
  bool is_new_log;   // its folder is synced at its first sync, as SQLite's own VFS does
  sqlite3_file* real() { return reinterpret_cast<sqlite3_file*>(this + 1); }
};

FaultFile* Mine(sqlite3_file* f) { return reinterpret_cast<FaultFile*>(f); }
sqlite3_file* Real(sqlite3_file* f) { return Mine(f)->real(); }
const sqlite3_io_methods* Methods(sqlite3_file* f) { return Real(f)->pMethods; }

int ErrorOf(DiskFault fault, int io_error) {
  return fault == DiskFault::kNoSpace ? SQLITE_FULL : io_error;
}

// Runs `call` unless it is due to fail.
template <typename Call>
int Hooked(FaultVfs::State* state, const DiskEvent& event, int io_error, Call call) {
  const DiskFault fault = state->Before(event);
  if (fault != DiskFault::kNone) return ErrorOf(fault, io_error);
  const int rc = call();
  if (rc == SQLITE_OK) state->After(event);
  return rc;
}

DiskEvent EventOf(sqlite3_file* f, DiskOp op, sqlite3_int64 at = 0, int size = 0) {
  return {.op = op, .path = Mine(f)->path, .offset = static_cast<uint64_t>(at),
          .length = static_cast<uint64_t>(size)};
}

int Read(sqlite3_file* f, void* out, int size, sqlite3_int64 at) {
  if (Mine(f)->path != nullptr) {
    const DiskFault fault = Mine(f)->state->Before(EventOf(f, DiskOp::kRead, at, size));
    if (fault != DiskFault::kNone) return SQLITE_IOERR_READ;
  }
  return Methods(f)->xRead(Real(f), out, size, at);
}

int Write(sqlite3_file* f, const void* data, int size, sqlite3_int64 at) {
  if (Mine(f)->path == nullptr) return Methods(f)->xWrite(Real(f), data, size, at);
  FaultVfs::State* state = Mine(f)->state;
  DiskEvent event = EventOf(f, DiskOp::kWrite, at, size);
  event.data = {static_cast<const std::byte*>(data), static_cast<size_t>(size)};
  const DiskFault fault = state->Before(event);
  // What a failing disk leaves behind: the first half.
  const int done = fault == DiskFault::kNone ? size : size / 2;
  int rc = done > 0 ? Methods(f)->xWrite(Real(f), data, done, at) : SQLITE_OK;
  if (rc == SQLITE_OK && done > 0) {
    event.data = event.data.first(static_cast<size_t>(done));
    event.length = static_cast<uint64_t>(done);
    state->After(event);
  }
  return fault == DiskFault::kNone ? rc : ErrorOf(fault, SQLITE_IOERR_WRITE);
}

std::string_view FolderOf(std::string_view path) { return path.substr(0, path.rfind('/')); }

// Counted, and not passed on: no test cuts the power for real, and a sync takes milliseconds.
int Sync(sqlite3_file* f, int) {
  if (Mine(f)->path == nullptr) return SQLITE_OK;
  FaultVfs::State* state = Mine(f)->state;
  ++state->syncs;
  auto done = [] { return SQLITE_OK; };
  int rc = Hooked(state, EventOf(f, DiskOp::kSync), SQLITE_IOERR_FSYNC, done);
  if (rc == SQLITE_OK && Mine(f)->is_new_log) {
    const DiskEvent folder{.op = DiskOp::kSyncFolder, .path = FolderOf(Mine(f)->path)};
    rc = Hooked(state, folder, SQLITE_IOERR_DIR_FSYNC, done);
    if (rc == SQLITE_OK) Mine(f)->is_new_log = false;
  }
  return rc;
}

int Truncate(sqlite3_file* f, sqlite3_int64 size) {
  auto cut = [&] { return Methods(f)->xTruncate(Real(f), size); };
  if (Mine(f)->path == nullptr) return cut();
  return Hooked(Mine(f)->state, EventOf(f, DiskOp::kTruncate, size), SQLITE_IOERR_TRUNCATE, cut);
}

const sqlite3_io_methods kMethods = {
    3,
    [](sqlite3_file* f) { return Methods(f)->xClose(Real(f)); },
    Read,
    Write,
    Truncate,
    Sync,
    [](sqlite3_file* f, sqlite3_int64* size) { return Methods(f)->xFileSize(Real(f), size); },
    [](sqlite3_file* f, int level) { return Methods(f)->xLock(Real(f), level); },
    [](sqlite3_file* f, int level) { return Methods(f)->xUnlock(Real(f), level); },
    [](sqlite3_file* f, int* out) { return Methods(f)->xCheckReservedLock(Real(f), out); },
    [](sqlite3_file* f, int op, void* arg) { return Methods(f)->xFileControl(Real(f), op, arg); },
    [](sqlite3_file* f) { return Methods(f)->xSectorSize(Real(f)); },
    [](sqlite3_file* f) { return Methods(f)->xDeviceCharacteristics(Real(f)); },
    [](sqlite3_file* f, int page, int size, int extend, void volatile** out) {
      return Methods(f)->xShmMap(Real(f), page, size, extend, out);
    },
    [](sqlite3_file* f, int offset, int n, int flags) {
      return Methods(f)->xShmLock(Real(f), offset, n, flags);
    },
    [](sqlite3_file* f) { Methods(f)->xShmBarrier(Real(f)); },
    [](sqlite3_file* f, int remove) { return Methods(f)->xShmUnmap(Real(f), remove); },
    [](sqlite3_file* f, sqlite3_int64 at, int size, void** out) {
      return Methods(f)->xFetch(Real(f), at, size, out);
    },
    [](sqlite3_file* f, sqlite3_int64 at, void* page) {
      return Methods(f)->xUnfetch(Real(f), at, page);
    },
};

int OpenFile(sqlite3_vfs* vfs, const char* name, sqlite3_file* file, int flags, int* out_flags) {
  auto* state = static_cast<FaultVfs::State*>(vfs->pAppData);
  FaultFile* mine = Mine(file);
  mine->state = state;
  mine->path = name;
  mine->base.pMethods = nullptr;
  auto open = [&] {
    return state->real->xOpen(state->real, name, mine->real(), flags, out_flags);
  };
  const bool makes = name != nullptr && (flags & SQLITE_OPEN_CREATE) != 0 &&
                     ::access(name, F_OK) != 0;
  mine->is_new_log = makes && (flags & (SQLITE_OPEN_WAL | SQLITE_OPEN_MAIN_JOURNAL)) != 0;
  const int rc = makes ? Hooked(state, {.op = DiskOp::kCreate, .path = name}, SQLITE_CANTOPEN, open)
                       : open();
  if (rc == SQLITE_OK) mine->base.pMethods = &kMethods;
  return rc;
}

int Delete(sqlite3_vfs* vfs, const char* name, int sync_folder) {
  auto* state = static_cast<FaultVfs::State*>(vfs->pAppData);
  int rc = Hooked(state, {.op = DiskOp::kRemove, .path = name}, SQLITE_IOERR_DELETE,
                  [&] { return state->real->xDelete(state->real, name, 0); });
  if (rc == SQLITE_OK && sync_folder != 0) {
    rc = Hooked(state, {.op = DiskOp::kSyncFolder, .path = FolderOf(name)}, SQLITE_IOERR_DIR_FSYNC,
                [] { return SQLITE_OK; });
  }
  return rc;
}

}  // namespace

FaultVfs::FaultVfs(DiskHook* hook) : state_(std::make_unique<State>()) {
  state_->hook = hook;
  static std::atomic<int> next{0};
  state_->real = sqlite3_vfs_find(nullptr);
  state_->name = "fault-" + std::to_string(next++);
  state_->vfs = *state_->real;  // all other calls go straight to the real one's functions
  state_->vfs.pNext = nullptr;
  state_->vfs.zName = state_->name.c_str();
  state_->vfs.szOsFile = static_cast<int>(sizeof(FaultFile)) + state_->real->szOsFile;
  state_->vfs.xOpen = OpenFile;
  state_->vfs.xDelete = Delete;
  // The unix VFS finds its own lock routines through pAppData: each call is made on the real one.
  state_->vfs.pAppData = state_.get();
  sqlite3_vfs_register(&state_->vfs, 0);
}

FaultVfs::~FaultVfs() { sqlite3_vfs_unregister(&state_->vfs); }

const std::string& FaultVfs::name() const { return state_->name; }
void FaultVfs::FailAt(int n, Fault fault, Repeat repeat) {
  state_->fault = fault;
  state_->repeat = repeat;
  state_->fail_at = state_->operations + n;
}
void FaultVfs::Heal() { state_->fail_at = 0; }
int FaultVfs::operations() const { return state_->operations; }
int FaultVfs::faults() const { return state_->faults; }
int FaultVfs::syncs() const { return state_->syncs; }

}  // namespace holdfast::testing

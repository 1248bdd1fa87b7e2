#include "tests/engine/store/fault_vfs.h"

#include <sqlite3.h>

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

  // SQLITE_OK, or the error of the operation that is due to fail.
  int Count(int io_error) {
    const int n = ++operations, at = fail_at;
    const bool fails = at > 0 && (repeat == Repeat::kOnce ? n == at : n >= at);
    if (!fails) return SQLITE_OK;
    ++faults;
    return fault == Fault::kDiskFull ? SQLITE_FULL : io_error;
  }
};

namespace {

// A file of ours; the real one follows it in memory.
struct FaultFile {
  sqlite3_file base;
  FaultVfs::State* state;
  sqlite3_file* real() { return reinterpret_cast<sqlite3_file*>(this + 1); }
};

FaultFile* Mine(sqlite3_file* f) { return reinterpret_cast<FaultFile*>(f); }
sqlite3_file* Real(sqlite3_file* f) { return Mine(f)->real(); }
const sqlite3_io_methods* Methods(sqlite3_file* f) { return Real(f)->pMethods; }

int Write(sqlite3_file* f, const void* data, int size, sqlite3_int64 at) {
  const int rc = Mine(f)->state->Count(SQLITE_IOERR_WRITE);
  if (rc == SQLITE_OK) return Methods(f)->xWrite(Real(f), data, size, at);
  // What a failing disk leaves behind: the first half.
  if (size > 1) Methods(f)->xWrite(Real(f), data, size / 2, at);
  return rc;
}

// Counted, and not passed on: no test here cuts the power, and a sync takes milliseconds.
int Sync(sqlite3_file* f, int) {
  ++Mine(f)->state->syncs;
  return Mine(f)->state->Count(SQLITE_IOERR_FSYNC);
}

int Truncate(sqlite3_file* f, sqlite3_int64 size) {
  const int rc = Mine(f)->state->Count(SQLITE_IOERR_TRUNCATE);
  return rc == SQLITE_OK ? Methods(f)->xTruncate(Real(f), size) : rc;
}

const sqlite3_io_methods kMethods = {
    3,
    [](sqlite3_file* f) { return Methods(f)->xClose(Real(f)); },
    [](sqlite3_file* f, void* out, int size, sqlite3_int64 at) {
      return Methods(f)->xRead(Real(f), out, size, at);
    },
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
  mine->base.pMethods = nullptr;
  const int rc = state->real->xOpen(state->real, name, mine->real(), flags, out_flags);
  if (rc == SQLITE_OK) mine->base.pMethods = &kMethods;
  return rc;
}

}  // namespace

FaultVfs::FaultVfs() : state_(std::make_unique<State>()) {
  static std::atomic<int> next{0};
  state_->real = sqlite3_vfs_find(nullptr);
  state_->name = "fault-" + std::to_string(next++);
  state_->vfs = *state_->real;  // all calls but xOpen go straight to the real one's functions
  state_->vfs.pNext = nullptr;
  state_->vfs.zName = state_->name.c_str();
  state_->vfs.szOsFile = static_cast<int>(sizeof(FaultFile)) + state_->real->szOsFile;
  state_->vfs.xOpen = OpenFile;
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

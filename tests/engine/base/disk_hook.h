// DiskHook: what a test does at every file operation of a data folder, whoever makes it: SQLite
// (FaultVfs), RocksDB (FaultIndexEnv) or our own page files (HookEnv). These pass operations on to
// the operating system, but for syncs, which take milliseconds: what a sync means is the hook's to
// say (PowerDisk).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace holdfast::testing {

enum class DiskOp : uint8_t {
  kCreate, kRead, kWrite, kSync, kTruncate, kPunch, kSyncFolder, kMakeFolder, kRemove, kRename,
};
inline constexpr int kDiskOps = 10;

struct DiskEvent {
  DiskOp op = DiskOp::kRead;
  std::string_view path;  // absolute
  std::string_view to = {};                  // kRename
  uint64_t offset = 0;                       // kRead, kWrite, kPunch; kTruncate: the new size
  uint64_t length = 0;                       // kRead, kWrite, kPunch
  std::span<const std::byte> data = {};      // kWrite
};

// kShort: the first half of a read or write is done, then it fails; of other operations: kIo.
enum class DiskFault : uint8_t { kNone, kIo, kNoSpace, kShort };

// Called on the thread that makes the operation, by several at once.
class DiskHook {
 public:
  virtual ~DiskHook() = default;
  // What becomes of it. It may also take its time (StallDisk), or not return.
  virtual DiskFault Before(const DiskEvent&) { return DiskFault::kNone; }
  // It is done; of a kShort write the half that is. Not called for operations that failed.
  virtual void After(const DiskEvent&) {}
};

}  // namespace holdfast::testing

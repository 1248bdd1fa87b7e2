// FaultEnv: an Env whose disk is in memory, fails on demand and forgets at a crash what was not
// synced. The clock stands still until it is moved.
//
// What a crash leaves: of each file the bytes as of its last Sync, plus any of the 512-byte sectors
// that were written since (chance decides, by seed); of each folder the names as of its last
// SyncDirectory, plus any of the changes since. A Sync that fails loses sectors for good, as a
// kernel does that marks pages clean after a failed write-back.
#pragma once

#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "engine/base/env.h"
#include "tests/engine/base/disk_model.h"

namespace holdfast::testing {

class FaultEnv : public Env {
 public:
  enum class Fault { kIoError, kNoSpace, kTornWrite };  // torn: part is written, then an I/O error
  enum class Repeat { kOnce, kFromThenOn };

  explicit FaultEnv(uint64_t seed = 1) : random_(seed) {}

  // The n-th changing operation from now on (1 = the next) fails. Changing: creating, writing,
  // syncing, punching, syncing a folder, removing, renaming.
  void FailAt(int n, Fault fault, Repeat repeat);
  void FailReadAt(int n);  // the n-th ReadAt from now on
  void Heal();
  int operations() const;
  int faults() const;

  // The machine loses power and comes back. Files that are open must not be used any more.
  void Crash();

  bool Exists(const std::string& path) const;
  // The bytes of a file, to be damaged; as synced, too.
  void Damage(const std::string& path, uint64_t offset, std::byte mask);
  void Truncate(const std::string& path, uint64_t size);
  uint64_t BytesThatAreNotZero(const std::string& path) const;
  void SetFreeBytes(uint64_t bytes);
  void Advance(int64_t nanos);

  Result<std::unique_ptr<File>> Open(const std::string& path, FileMode mode) override;
  Status MakeDirectory(const std::string& path) override;
  Status SyncDirectory(const std::string& path) override;
  Result<std::vector<std::string>> List(const std::string& path) override;
  Status Remove(const std::string& path) override;
  Status Rename(const std::string& from, const std::string& to) override;
  Result<uint64_t> FreeBytes(const std::string& path) override;
  int64_t SteadyNanos() override;
  int64_t WallMicros() override;
  Status FillRandom(std::span<std::byte> out) override;

 private:
  friend class FaultFile;
  using Inode = DiskModel::Inode;

  bool FailsLocked();
  Status ErrorLocked(const std::string& what) const;
  Status WriteLocked(Inode* inode, uint64_t offset,
                     std::span<const std::span<const std::byte>> parts);
  Status SyncLocked(Inode* inode);
  mutable std::mutex mu_;
  DiskModel disk_;
  std::mt19937_64 random_;
  int operations_ = 0, reads_ = 0, faults_ = 0;
  int fail_at_ = 0, fail_read_at_ = 0;
  Fault fault_ = Fault::kIoError;
  Repeat repeat_ = Repeat::kOnce;
  uint64_t free_bytes_ = uint64_t{1} << 40;
  int64_t nanos_ = 0;
};

}  // namespace holdfast::testing

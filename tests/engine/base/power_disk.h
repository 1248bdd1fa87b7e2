// PowerDisk: a DiskHook that knows what a power cut would leave of a folder. It follows all
// operations below the folder in memory (DiskModel); files that are there when it begins are
// durable. Thread-safe.
#pragma once

#include <mutex>
#include <string>
#include <string_view>

#include "tests/engine/base/disk_hook.h"
#include "tests/engine/base/disk_model.h"

namespace holdfast::testing {

class PowerDisk : public DiskHook {
 public:
  // Looks at all files of `folder`, but for SQLite's shared memory, RocksDB's messages and locks,
  // which no power cut leaves and nothing reads.
  explicit PowerDisk(std::string folder);

  void After(const DiskEvent& event) override;
  // Writes what a cut at this moment would leave into the folder `to`, which is made.
  void WriteAfterCut(uint64_t seed, const DiskModel::Chances& chances, const std::string& to) const;
  // As DiskModel's: a sync of the file fails, and what it would have written is there or lost.
  void FailSync(std::string_view path, uint64_t seed);
  uint64_t unsynced_sectors() const;

 private:
  const std::string folder_;
  mutable std::mutex mu_;
  DiskModel disk_;
};

}  // namespace holdfast::testing

// FaultVfs: an SQLite VFS over the default one whose n-th write, sync or truncation fails, and which
// may have a DiskHook that sees every operation. Lives as long as the databases that were opened by
// its name. Syncs are not passed on.
#pragma once

#include <memory>
#include <string>

#include "tests/engine/base/disk_hook.h"

namespace holdfast::testing {

class FaultVfs {
 public:
  enum class Fault { kIoError, kDiskFull };
  enum class Repeat { kOnce, kFromThenOn };

  explicit FaultVfs(DiskHook* hook = nullptr);
  ~FaultVfs();
  FaultVfs(const FaultVfs&) = delete;
  FaultVfs& operator=(const FaultVfs&) = delete;

  const std::string& name() const;
  // The n-th operation from now on (1 = the next) fails.
  void FailAt(int n, Fault fault, Repeat repeat);
  void Heal();
  int operations() const;  // writes, syncs and truncations since the beginning
  int faults() const;      // that were injected
  int syncs() const;

  struct State;

 private:
  std::unique_ptr<State> state_;
};

}  // namespace holdfast::testing

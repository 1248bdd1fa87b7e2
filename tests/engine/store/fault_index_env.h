// A rocksdb::Env over the operating system's whose n-th append or sync fails, and which may have a
// DiskHook that sees every operation but those on the log of messages. Syncs are not passed on.
#pragma once

#include <atomic>
#include <memory>

#include "tests/engine/base/disk_hook.h"

namespace rocksdb {
class Env;
}

namespace holdfast::testing {

class FaultIndexEnv {
 public:
  enum class Fault { kIoError, kNoSpace };

  explicit FaultIndexEnv(DiskHook* hook = nullptr);
  ~FaultIndexEnv();

  rocksdb::Env* env() const;
  void FailFrom(int n, Fault fault);  // the n-th from now on (1 = the next) and all after it
  void Heal();
  int operations() const;
  int faults() const;

  struct Counter {
    std::atomic<int> operations{0}, faults{0}, fail_from{0};
    std::atomic<Fault> fault{Fault::kIoError};
    DiskHook* hook = nullptr;
  };

 private:
  std::shared_ptr<Counter> counter_;
  std::unique_ptr<rocksdb::Env> env_;
};

}  // namespace holdfast::testing

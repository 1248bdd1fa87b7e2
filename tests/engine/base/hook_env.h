// HookEnv: the operating system's Env with a DiskHook at every file operation.
#pragma once

#include "engine/base/env.h"
#include "tests/engine/base/disk_hook.h"

namespace holdfast::testing {

class HookEnv : public RealEnv {
 public:
  explicit HookEnv(DiskHook* hook) : hook_(hook) {}

  Result<std::unique_ptr<File>> Open(const std::string& path, FileMode mode) override;
  Status MakeDirectory(const std::string& path) override;
  Status SyncDirectory(const std::string& path) override;
  Status Remove(const std::string& path) override;
  Status Rename(const std::string& from, const std::string& to) override;

 private:
  DiskHook* hook_;
};

}  // namespace holdfast::testing

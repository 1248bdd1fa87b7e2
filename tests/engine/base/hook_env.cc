#include "tests/engine/base/hook_env.h"

#include <filesystem>

namespace holdfast::testing {
namespace {

Status ErrorOf(DiskFault fault, const DiskEvent& event) {
  const std::string path(event.path);
  if (fault == DiskFault::kNoSpace) return Status::Exhausted(path + ": fault: no space");
  return Status::Io(path + ": fault");
}

// Runs `call` unless the hook lets it fail.
template <typename Call>
Status Hooked(DiskHook* hook, const DiskEvent& event, Call call) {
  const DiskFault fault = hook->Before(event);
  if (fault != DiskFault::kNone) return ErrorOf(fault, event);
  Status status = call();
  if (status.ok()) hook->After(event);
  return status;
}

class HookFile : public File {
 public:
  HookFile(DiskHook* hook, std::string path, std::unique_ptr<File> file)
      : hook_(hook), path_(std::move(path)), file_(std::move(file)) {}

  Status ReadAt(uint64_t offset, std::span<const std::span<std::byte>> parts) override {
    uint64_t length = 0;
    for (const auto& p : parts) length += p.size();
    const DiskEvent event{.op = DiskOp::kRead, .path = path_, .offset = offset, .length = length};
    const DiskFault fault = hook_->Before(event);
    if (fault == DiskFault::kShort) {
      file_->ReadAt(offset, parts.first(parts.size() / 2)).IgnoreError();
    }
    if (fault != DiskFault::kNone) return ErrorOf(fault, event);
    return file_->ReadAt(offset, parts);
  }
  Status WriteAt(uint64_t offset, std::span<const std::span<const std::byte>> parts) override {
    std::vector<std::byte> bytes;
    for (const auto& p : parts) bytes.insert(bytes.end(), p.begin(), p.end());
    std::span<const std::byte> data(bytes);
    DiskEvent event{.op = DiskOp::kWrite, .path = path_, .offset = offset, .length = data.size(),
                    .data = data};
    const DiskFault fault = hook_->Before(event);
    if (fault == DiskFault::kShort) data = data.first(data.size() / 2);
    if (fault == DiskFault::kNone || fault == DiskFault::kShort) {
      HOLDFAST_RETURN_IF_ERROR(file_->WriteAt(offset, {&data, 1}));
      event.length = data.size();
      event.data = data;
      hook_->After(event);
    }
    return fault == DiskFault::kNone ? Status() : ErrorOf(fault, event);
  }
  Status Sync() override {
    return Hooked(hook_, {.op = DiskOp::kSync, .path = path_}, [] { return Status(); });
  }
  Status PunchHole(uint64_t offset, uint64_t length) override {
    return Hooked(hook_,
                  {.op = DiskOp::kPunch, .path = path_, .offset = offset, .length = length},
                  [&] { return file_->PunchHole(offset, length); });
  }
  Result<uint64_t> Size() override { return file_->Size(); }

 private:
  DiskHook* hook_;
  const std::string path_;
  std::unique_ptr<File> file_;
};

}  // namespace

Result<std::unique_ptr<File>> HookEnv::Open(const std::string& path, FileMode mode) {
  Result<std::unique_ptr<File>> file = Status::Io(path + ": not opened");
  if (mode == FileMode::kCreate) {
    const Status created = Hooked(hook_, {.op = DiskOp::kCreate, .path = path}, [&] {
      file = RealEnv::Open(path, mode);
      return file.status();
    });
    HOLDFAST_RETURN_IF_ERROR(created);
  } else {
    file = RealEnv::Open(path, mode);
  }
  HOLDFAST_RETURN_IF_ERROR(file.status());
  return std::unique_ptr<File>(
      std::make_unique<HookFile>(hook_, path, std::move(file).value()));
}

Status HookEnv::MakeDirectory(const std::string& path) {
  if (std::filesystem::is_directory(path)) return Status();
  return Hooked(hook_, {.op = DiskOp::kMakeFolder, .path = path},
                [&] { return RealEnv::MakeDirectory(path); });
}

Status HookEnv::SyncDirectory(const std::string& path) {
  return Hooked(hook_, {.op = DiskOp::kSyncFolder, .path = path}, [] { return Status(); });
}

Status HookEnv::Remove(const std::string& path) {
  return Hooked(hook_, {.op = DiskOp::kRemove, .path = path},
                [&] { return RealEnv::Remove(path); });
}

Status HookEnv::Rename(const std::string& from, const std::string& to) {
  return Hooked(hook_, {.op = DiskOp::kRename, .path = from, .to = to},
                [&] { return RealEnv::Rename(from, to); });
}

}  // namespace holdfast::testing

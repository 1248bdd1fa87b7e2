#include "tests/engine/store/fault_index_env.h"

#include <rocksdb/env.h>
#include <rocksdb/file_system.h>

namespace holdfast::testing {

namespace {

using rocksdb::FileOptions;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;

using Counter = FaultIndexEnv::Counter;

IOStatus ErrorOf(bool no_space) {
  return no_space ? IOStatus::NoSpace("fault") : IOStatus::IOError("fault");
}

// By our own count, which is of appends and syncs, else by the hook.
DiskFault Before(Counter* counter, const DiskEvent& event) {
  if (event.op == DiskOp::kWrite || event.op == DiskOp::kSync) {
    const int n = ++counter->operations, from = counter->fail_from;
    if (from != 0 && n >= from) {
      ++counter->faults;
      const bool full = counter->fault == FaultIndexEnv::Fault::kNoSpace;
      return full ? DiskFault::kNoSpace : DiskFault::kIo;
    }
  }
  return counter->hook == nullptr ? DiskFault::kNone : counter->hook->Before(event);
}

// Runs `call` unless it is due to fail.
template <typename Call>
IOStatus Hooked(Counter* counter, const DiskEvent& event, Call call) {
  const DiskFault fault = Before(counter, event);
  if (fault != DiskFault::kNone) return ErrorOf(fault == DiskFault::kNoSpace);
  const IOStatus s = call();
  if (s.ok() && counter->hook != nullptr) counter->hook->After(event);
  return s;
}

class FaultWritable : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  FaultWritable(std::unique_ptr<rocksdb::FSWritableFile> file, std::string path,
                std::shared_ptr<Counter> counter)
      : FSWritableFileOwnerWrapper(std::move(file)), path_(std::move(path)),
        counter_(std::move(counter)) {}

  IOStatus Append(const rocksdb::Slice& data, const IOOptions& options,
                  IODebugContext* context) override {
    DiskEvent event{.op = DiskOp::kWrite, .path = path_, .offset = end_, .length = data.size(),
                    .data = std::as_bytes(std::span(data.data(), data.size()))};
    const DiskFault fault = Before(counter_.get(), event);
    if (fault != DiskFault::kNone && fault != DiskFault::kShort) {
      return ErrorOf(fault == DiskFault::kNoSpace);
    }
    if (fault == DiskFault::kShort) event.data = event.data.first(data.size() / 2);
    event.length = event.data.size();
    const IOStatus s = FSWritableFileOwnerWrapper::Append(
        rocksdb::Slice(data.data(), event.length), options, context);
    if (!s.ok()) return s;
    end_ += event.length;
    if (counter_->hook != nullptr) counter_->hook->After(event);
    return fault == DiskFault::kNone ? s : ErrorOf(false);
  }
  IOStatus Append(const rocksdb::Slice& data, const IOOptions& options,
                  const rocksdb::DataVerificationInfo&, IODebugContext* context) override {
    return Append(data, options, context);
  }
  IOStatus Truncate(uint64_t size, const IOOptions& options, IODebugContext* context) override {
    return Hooked(counter_.get(), {.op = DiskOp::kTruncate, .path = path_, .offset = size},
                  [&] { return FSWritableFileOwnerWrapper::Truncate(size, options, context); });
  }
  IOStatus Sync(const IOOptions&, IODebugContext*) override {
    return Hooked(counter_.get(), {.op = DiskOp::kSync, .path = path_},
                  [] { return IOStatus::OK(); });
  }
  IOStatus Fsync(const IOOptions& options, IODebugContext* context) override {
    return Sync(options, context);
  }
  IOStatus RangeSync(uint64_t, uint64_t, const IOOptions&, IODebugContext*) override {
    return IOStatus::OK();
  }

 private:
  const std::string path_;
  std::shared_ptr<Counter> counter_;
  uint64_t end_ = 0;
};

class FaultReadable : public rocksdb::FSRandomAccessFileOwnerWrapper {
 public:
  FaultReadable(std::unique_ptr<rocksdb::FSRandomAccessFile> file, std::string path,
                std::shared_ptr<Counter> counter)
      : FSRandomAccessFileOwnerWrapper(std::move(file)), path_(std::move(path)),
        counter_(std::move(counter)) {}
  IOStatus Read(uint64_t offset, size_t n, const IOOptions& options, rocksdb::Slice* result,
                char* scratch, IODebugContext* context) const override {
    return Hooked(counter_.get(),
                  {.op = DiskOp::kRead, .path = path_, .offset = offset, .length = n}, [&] {
                    return FSRandomAccessFileOwnerWrapper::Read(offset, n, options, result,
                                                                scratch, context);
                  });
  }

 private:
  const std::string path_;
  std::shared_ptr<Counter> counter_;
};

class FaultSequential : public rocksdb::FSSequentialFileOwnerWrapper {
 public:
  FaultSequential(std::unique_ptr<rocksdb::FSSequentialFile> file, std::string path,
                  std::shared_ptr<Counter> counter)
      : FSSequentialFileOwnerWrapper(std::move(file)), path_(std::move(path)),
        counter_(std::move(counter)) {}
  IOStatus Read(size_t n, const IOOptions& options, rocksdb::Slice* result, char* scratch,
                IODebugContext* context) override {
    return Hooked(counter_.get(), {.op = DiskOp::kRead, .path = path_, .length = n}, [&] {
      return FSSequentialFileOwnerWrapper::Read(n, options, result, scratch, context);
    });
  }

 private:
  const std::string path_;
  std::shared_ptr<Counter> counter_;
};

class FaultDirectory : public rocksdb::FSDirectoryWrapper {
 public:
  FaultDirectory(std::unique_ptr<rocksdb::FSDirectory>&& folder, std::string path,
                 std::shared_ptr<Counter> counter)
      : FSDirectoryWrapper(std::move(folder)), path_(std::move(path)),
        counter_(std::move(counter)) {}
  IOStatus Fsync(const IOOptions&, IODebugContext*) override {
    return Hooked(counter_.get(), {.op = DiskOp::kSyncFolder, .path = path_},
                  [] { return IOStatus::OK(); });
  }
  IOStatus FsyncWithDirOptions(const IOOptions& options, IODebugContext* context,
                               const rocksdb::DirFsyncOptions&) override {
    return Fsync(options, context);
  }

 private:
  const std::string path_;
  std::shared_ptr<Counter> counter_;
};

class FaultFileSystem : public rocksdb::FileSystemWrapper {
 public:
  explicit FaultFileSystem(std::shared_ptr<Counter> counter)
      : FileSystemWrapper(rocksdb::FileSystem::Default()), counter_(std::move(counter)) {}

  const char* Name() const override { return "FaultFileSystem"; }
  IOStatus NewWritableFile(const std::string& name, const FileOptions& options,
                           std::unique_ptr<rocksdb::FSWritableFile>* out,
                           IODebugContext* context) override {
    std::unique_ptr<rocksdb::FSWritableFile> file;
    const IOStatus s = Hooked(counter_.get(), {.op = DiskOp::kCreate, .path = name}, [&] {
      return FileSystemWrapper::NewWritableFile(name, options, &file, context);
    });
    if (s.ok()) *out = std::make_unique<FaultWritable>(std::move(file), name, counter_);
    return s;
  }
  // Not used with our options; a hook would miss what they write.
  IOStatus ReopenWritableFile(const std::string&, const FileOptions&,
                              std::unique_ptr<rocksdb::FSWritableFile>*,
                              IODebugContext*) override {
    return IOStatus::NotSupported("ReopenWritableFile");
  }
  IOStatus ReuseWritableFile(const std::string&, const std::string&, const FileOptions&,
                             std::unique_ptr<rocksdb::FSWritableFile>*, IODebugContext*) override {
    return IOStatus::NotSupported("ReuseWritableFile");
  }
  IOStatus NewRandomAccessFile(const std::string& name, const FileOptions& options,
                               std::unique_ptr<rocksdb::FSRandomAccessFile>* out,
                               IODebugContext* context) override {
    std::unique_ptr<rocksdb::FSRandomAccessFile> file;
    const IOStatus s = FileSystemWrapper::NewRandomAccessFile(name, options, &file, context);
    if (s.ok()) *out = std::make_unique<FaultReadable>(std::move(file), name, counter_);
    return s;
  }
  IOStatus NewSequentialFile(const std::string& name, const FileOptions& options,
                             std::unique_ptr<rocksdb::FSSequentialFile>* out,
                             IODebugContext* context) override {
    std::unique_ptr<rocksdb::FSSequentialFile> file;
    const IOStatus s = FileSystemWrapper::NewSequentialFile(name, options, &file, context);
    if (s.ok()) *out = std::make_unique<FaultSequential>(std::move(file), name, counter_);
    return s;
  }
  IOStatus NewDirectory(const std::string& name, const IOOptions& options,
                        std::unique_ptr<rocksdb::FSDirectory>* out,
                        IODebugContext* context) override {
    std::unique_ptr<rocksdb::FSDirectory> folder;
    const IOStatus s = FileSystemWrapper::NewDirectory(name, options, &folder, context);
    if (s.ok()) *out = std::make_unique<FaultDirectory>(std::move(folder), name, counter_);
    return s;
  }
  IOStatus CreateDirIfMissing(const std::string& name, const IOOptions& options,
                              IODebugContext* context) override {
    if (FileExists(name, options, context).ok()) return IOStatus::OK();
    return Hooked(counter_.get(), {.op = DiskOp::kMakeFolder, .path = name}, [&] {
      return FileSystemWrapper::CreateDirIfMissing(name, options, context);
    });
  }
  IOStatus DeleteFile(const std::string& name, const IOOptions& options,
                      IODebugContext* context) override {
    return Hooked(counter_.get(), {.op = DiskOp::kRemove, .path = name},
                  [&] { return FileSystemWrapper::DeleteFile(name, options, context); });
  }
  IOStatus RenameFile(const std::string& from, const std::string& to, const IOOptions& options,
                      IODebugContext* context) override {
    return Hooked(counter_.get(), {.op = DiskOp::kRename, .path = from, .to = to},
                  [&] { return FileSystemWrapper::RenameFile(from, to, options, context); });
  }

 private:
  std::shared_ptr<Counter> counter_;
};

}  // namespace

FaultIndexEnv::FaultIndexEnv(DiskHook* hook)
    : counter_(std::make_shared<Counter>()),
      env_(rocksdb::NewCompositeEnv(std::make_shared<FaultFileSystem>(counter_))) {
  counter_->hook = hook;
}

FaultIndexEnv::~FaultIndexEnv() = default;

rocksdb::Env* FaultIndexEnv::env() const { return env_.get(); }
void FaultIndexEnv::FailFrom(int n, Fault fault) {
  counter_->fault = fault;
  counter_->fail_from = counter_->operations + n;
}
void FaultIndexEnv::Heal() { counter_->fail_from = 0; }
int FaultIndexEnv::operations() const { return counter_->operations; }
int FaultIndexEnv::faults() const { return counter_->faults; }

}  // namespace holdfast::testing

#include "tests/engine/store/fault_index_env.h"

#include <rocksdb/env.h>
#include <rocksdb/file_system.h>

namespace holdfast::testing {

namespace {

using rocksdb::FileOptions;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;

IOStatus Count(FaultIndexEnv::Counter* counter) {
  const int n = ++counter->operations, from = counter->fail_from;
  if (from == 0 || n < from) return IOStatus::OK();
  ++counter->faults;
  return counter->fault == FaultIndexEnv::Fault::kNoSpace ? IOStatus::NoSpace("fault")
                                                          : IOStatus::IOError("fault");
}

class FaultWritable : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  FaultWritable(std::unique_ptr<rocksdb::FSWritableFile> file,
                std::shared_ptr<FaultIndexEnv::Counter> counter)
      : FSWritableFileOwnerWrapper(std::move(file)), counter_(std::move(counter)) {}

  IOStatus Append(const rocksdb::Slice& data, const IOOptions& options,
                  IODebugContext* context) override {
    const IOStatus s = Count(counter_.get());
    return s.ok() ? FSWritableFileOwnerWrapper::Append(data, options, context) : s;
  }
  IOStatus Append(const rocksdb::Slice& data, const IOOptions& options,
                  const rocksdb::DataVerificationInfo&, IODebugContext* context) override {
    return Append(data, options, context);
  }
  IOStatus Sync(const IOOptions&, IODebugContext*) override { return Count(counter_.get()); }
  IOStatus Fsync(const IOOptions&, IODebugContext*) override { return Count(counter_.get()); }
  IOStatus RangeSync(uint64_t, uint64_t, const IOOptions&, IODebugContext*) override {
    return IOStatus::OK();
  }

 private:
  std::shared_ptr<FaultIndexEnv::Counter> counter_;
};

class FaultDirectory : public rocksdb::FSDirectoryWrapper {
 public:
  using FSDirectoryWrapper::FSDirectoryWrapper;
  IOStatus Fsync(const IOOptions&, IODebugContext*) override { return IOStatus::OK(); }
  IOStatus FsyncWithDirOptions(const IOOptions&, IODebugContext*,
                               const rocksdb::DirFsyncOptions&) override {
    return IOStatus::OK();
  }
};

class FaultFileSystem : public rocksdb::FileSystemWrapper {
 public:
  explicit FaultFileSystem(std::shared_ptr<FaultIndexEnv::Counter> counter)
      : FileSystemWrapper(rocksdb::FileSystem::Default()), counter_(std::move(counter)) {}

  const char* Name() const override { return "FaultFileSystem"; }
  IOStatus NewWritableFile(const std::string& name, const FileOptions& options,
                           std::unique_ptr<rocksdb::FSWritableFile>* out,
                           IODebugContext* context) override {
    std::unique_ptr<rocksdb::FSWritableFile> file;
    const IOStatus s = FileSystemWrapper::NewWritableFile(name, options, &file, context);
    if (s.ok()) *out = std::make_unique<FaultWritable>(std::move(file), counter_);
    return s;
  }
  IOStatus NewDirectory(const std::string& name, const IOOptions& options,
                        std::unique_ptr<rocksdb::FSDirectory>* out,
                        IODebugContext* context) override {
    std::unique_ptr<rocksdb::FSDirectory> directory;
    const IOStatus s = FileSystemWrapper::NewDirectory(name, options, &directory, context);
    if (s.ok()) *out = std::make_unique<FaultDirectory>(std::move(directory));
    return s;
  }

 private:
  std::shared_ptr<FaultIndexEnv::Counter> counter_;
};

}  // namespace

FaultIndexEnv::FaultIndexEnv()
    : counter_(std::make_shared<Counter>()),
      env_(rocksdb::NewCompositeEnv(std::make_shared<FaultFileSystem>(counter_))) {}

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

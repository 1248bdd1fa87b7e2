#include "tests/engine/base/fault_env.h"

#include <algorithm>
#include <cstring>

namespace holdfast::testing {

class FaultFile : public File {
 public:
  FaultFile(FaultEnv* env, std::shared_ptr<FaultEnv::Inode> inode)
      : env_(env), inode_(std::move(inode)) {}

  Status ReadAt(uint64_t offset, std::span<const std::span<std::byte>> parts) override {
    std::lock_guard lock(env_->mu_);
    if (++env_->reads_ == env_->fail_read_at_) {
      ++env_->faults_;
      return Status::Io("fault: read");
    }
    for (const std::span<std::byte>& part : parts) {
      if (offset + part.size() > inode_->data.size()) return Status::Corrupt("the file ends");
      std::memcpy(part.data(), inode_->data.data() + offset, part.size());
      offset += part.size();
    }
    return Status();
  }
  Status WriteAt(uint64_t offset, std::span<const std::span<const std::byte>> parts) override {
    std::lock_guard lock(env_->mu_);
    return env_->WriteLocked(inode_.get(), offset, parts);
  }
  Status Sync() override {
    std::lock_guard lock(env_->mu_);
    return env_->SyncLocked(inode_.get());
  }
  Status PunchHole(uint64_t offset, uint64_t length) override {
    std::lock_guard lock(env_->mu_);
    if (env_->FailsLocked()) return env_->ErrorLocked("punch hole");
    DiskModel::Zero(inode_.get(), offset, length);
    return Status();
  }
  Result<uint64_t> Size() override {
    std::lock_guard lock(env_->mu_);
    return static_cast<uint64_t>(inode_->data.size());
  }

 private:
  FaultEnv* env_;
  std::shared_ptr<FaultEnv::Inode> inode_;
};

void FaultEnv::FailAt(int n, Fault fault, Repeat repeat) {
  std::lock_guard lock(mu_);
  fail_at_ = operations_ + n;
  fault_ = fault;
  repeat_ = repeat;
}

void FaultEnv::FailReadAt(int n) {
  std::lock_guard lock(mu_);
  fail_read_at_ = reads_ + n;
}

void FaultEnv::Heal() {
  std::lock_guard lock(mu_);
  fail_at_ = fail_read_at_ = 0;
}

int FaultEnv::operations() const {
  std::lock_guard lock(mu_);
  return operations_;
}

int FaultEnv::faults() const {
  std::lock_guard lock(mu_);
  return faults_;
}

bool FaultEnv::FailsLocked() {
  ++operations_;
  if (fail_at_ == 0 || operations_ < fail_at_) return false;
  if (operations_ > fail_at_ && repeat_ == Repeat::kOnce) return false;
  ++faults_;
  return true;
}

Status FaultEnv::ErrorLocked(const std::string& what) const {
  if (fault_ == Fault::kNoSpace) return Status::Exhausted("fault: " + what + ": no space");
  return Status::Io("fault: " + what);
}

Status FaultEnv::WriteLocked(Inode* inode, uint64_t offset,
                             std::span<const std::span<const std::byte>> parts) {
  std::vector<std::byte> bytes;
  for (const auto& part : parts) bytes.insert(bytes.end(), part.begin(), part.end());
  Status status;
  if (FailsLocked()) {
    status = ErrorLocked("write");
    bytes.resize(fault_ == Fault::kTornWrite ? random_() % (bytes.size() + 1) : 0);
  }
  DiskModel::Write(inode, offset, bytes);
  return status;
}

Status FaultEnv::SyncLocked(Inode* inode) {
  if (!FailsLocked()) {
    DiskModel::Sync(inode);
    return Status();
  }
  DiskModel::FailSync(inode, random_);
  return ErrorLocked("sync");
}

void FaultEnv::Crash() {
  std::lock_guard lock(mu_);
  fail_at_ = fail_read_at_ = 0;
  disk_.PowerCut(random_, {});
}

bool FaultEnv::Exists(const std::string& path) const {
  std::lock_guard lock(mu_);
  return disk_.names.contains(path);
}

void FaultEnv::Damage(const std::string& path, uint64_t offset, std::byte mask) {
  std::lock_guard lock(mu_);
  Inode& inode = *disk_.names.at(path);
  inode.data.at(offset) ^= mask;
  if (offset < inode.durable.size()) inode.durable[offset] ^= mask;
}

void FaultEnv::Truncate(const std::string& path, uint64_t size) {
  std::lock_guard lock(mu_);
  Inode& inode = *disk_.names.at(path);
  inode.data.resize(size);
  inode.durable.resize(size);
}

uint64_t FaultEnv::BytesThatAreNotZero(const std::string& path) const {
  std::lock_guard lock(mu_);
  const std::vector<std::byte>& data = disk_.names.at(path)->data;
  return static_cast<uint64_t>(
      std::count_if(data.begin(), data.end(), [](std::byte b) { return b != std::byte{0}; }));
}

void FaultEnv::SetFreeBytes(uint64_t bytes) {
  std::lock_guard lock(mu_);
  free_bytes_ = bytes;
}

void FaultEnv::Advance(int64_t nanos) {
  std::lock_guard lock(mu_);
  nanos_ += nanos;
}

Result<std::unique_ptr<File>> FaultEnv::Open(const std::string& path, FileMode mode) {
  std::lock_guard lock(mu_);
  const auto it = disk_.names.find(path);
  std::shared_ptr<Inode> inode;
  if (mode == FileMode::kCreate) {
    if (FailsLocked()) return ErrorLocked("create " + path);
    if (it != disk_.names.end()) return Status::Io(path + ": exists");
    inode = disk_.names[path] = std::make_shared<Inode>();
  } else {
    if (it == disk_.names.end()) return Status::NotFound(path + ": no such file");
    inode = it->second;
  }
  return std::unique_ptr<File>(std::make_unique<FaultFile>(this, std::move(inode)));
}

Status FaultEnv::MakeDirectory(const std::string&) { return Status(); }

Status FaultEnv::SyncDirectory(const std::string& path) {
  std::lock_guard lock(mu_);
  if (FailsLocked()) return ErrorLocked("sync folder " + path);
  disk_.SyncFolder(path);
  return Status();
}

Result<std::vector<std::string>> FaultEnv::List(const std::string& path) {
  std::lock_guard lock(mu_);
  std::vector<std::string> names;
  for (const auto& [name, inode] : disk_.names) {
    if (DiskModel::FolderOf(name) == path) names.push_back(name.substr(path.size() + 1));
  }
  return names;
}

Status FaultEnv::Remove(const std::string& path) {
  std::lock_guard lock(mu_);
  if (FailsLocked()) return ErrorLocked("remove " + path);
  return disk_.names.erase(path) == 1 ? Status() : Status::NotFound(path + ": no such file");
}

Status FaultEnv::Rename(const std::string& from, const std::string& to) {
  std::lock_guard lock(mu_);
  if (FailsLocked()) return ErrorLocked("rename " + from);
  return disk_.Rename(from, to) ? Status() : Status::NotFound(from + ": no such file");
}

Result<uint64_t> FaultEnv::FreeBytes(const std::string&) {
  std::lock_guard lock(mu_);
  return free_bytes_;
}

int64_t FaultEnv::SteadyNanos() {
  std::lock_guard lock(mu_);
  return nanos_;
}

int64_t FaultEnv::WallMicros() { return SteadyNanos() / 1000; }

Status FaultEnv::FillRandom(std::span<std::byte> out) {
  std::lock_guard lock(mu_);
  for (std::byte& b : out) b = static_cast<std::byte>(random_());
  return Status();
}

}  // namespace holdfast::testing

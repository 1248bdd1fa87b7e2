#include "tests/engine/base/fault_env.h"

#include <algorithm>
#include <cstring>

namespace holdfast::testing {

namespace {

std::string FolderOf(const std::string& path) { return path.substr(0, path.rfind('/')); }

}  // namespace

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
    const size_t end = std::min<size_t>(offset + length, inode_->data.size());
    for (size_t at = offset; at < end; ++at) {
      inode_->data[at] = std::byte{0};
      inode_->dirty.insert(at / FaultEnv::kSector);
    }
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
  if (bytes.empty()) return status;
  const size_t end = offset + bytes.size();
  if (inode->data.size() < end) inode->data.resize(end);
  std::memcpy(inode->data.data() + offset, bytes.data(), bytes.size());
  for (size_t s = offset / kSector; s <= (end - 1) / kSector; ++s) inode->dirty.insert(s);
  return status;
}

Status FaultEnv::SyncLocked(Inode* inode) {
  const bool fails = FailsLocked();
  inode->durable.resize(inode->data.size());
  for (const size_t sector : inode->dirty) {
    const size_t at = sector * kSector, end = std::min(at + kSector, inode->data.size());
    if (at >= end || (fails && Coin())) continue;
    std::memcpy(inode->durable.data() + at, inode->data.data() + at, end - at);
  }
  inode->dirty.clear();
  return fails ? ErrorLocked("sync") : Status();
}

void FaultEnv::Crash() {
  std::lock_guard lock(mu_);
  fail_at_ = fail_read_at_ = 0;
  std::set<std::string> all;
  for (const auto& [name, inode] : names_) all.insert(name);
  for (const auto& [name, inode] : durable_names_) all.insert(name);
  std::map<std::string, std::shared_ptr<Inode>> after;
  for (const std::string& name : all) {
    const auto& from = Coin() ? names_ : durable_names_;
    const auto it = from.find(name);
    if (it == from.end()) continue;
    auto inode = std::make_shared<Inode>();
    inode->durable = it->second->durable;
    for (const size_t sector : it->second->dirty) {
      const std::vector<std::byte>& data = it->second->data;
      const size_t at = sector * kSector, end = std::min(at + kSector, data.size());
      if (at >= end || Coin()) continue;
      if (inode->durable.size() < end) inode->durable.resize(end);
      std::memcpy(inode->durable.data() + at, data.data() + at, end - at);
    }
    inode->data = inode->durable;
    after[name] = std::move(inode);
  }
  names_ = durable_names_ = std::move(after);
}

bool FaultEnv::Exists(const std::string& path) const {
  std::lock_guard lock(mu_);
  return names_.contains(path);
}

void FaultEnv::Damage(const std::string& path, uint64_t offset, std::byte mask) {
  std::lock_guard lock(mu_);
  Inode& inode = *names_.at(path);
  inode.data.at(offset) ^= mask;
  if (offset < inode.durable.size()) inode.durable[offset] ^= mask;
}

void FaultEnv::Truncate(const std::string& path, uint64_t size) {
  std::lock_guard lock(mu_);
  Inode& inode = *names_.at(path);
  inode.data.resize(size);
  inode.durable.resize(size);
}

uint64_t FaultEnv::BytesThatAreNotZero(const std::string& path) const {
  std::lock_guard lock(mu_);
  const std::vector<std::byte>& data = names_.at(path)->data;
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
  const auto it = names_.find(path);
  std::shared_ptr<Inode> inode;
  if (mode == FileMode::kCreate) {
    if (FailsLocked()) return ErrorLocked("create " + path);
    if (it != names_.end()) return Status::Io(path + ": exists");
    inode = names_[path] = std::make_shared<Inode>();
  } else {
    if (it == names_.end()) return Status::NotFound(path + ": no such file");
    inode = it->second;
  }
  return std::unique_ptr<File>(std::make_unique<FaultFile>(this, std::move(inode)));
}

Status FaultEnv::MakeDirectory(const std::string&) { return Status(); }

Status FaultEnv::SyncDirectory(const std::string& path) {
  std::lock_guard lock(mu_);
  if (FailsLocked()) return ErrorLocked("sync folder " + path);
  std::erase_if(durable_names_, [&](const auto& item) { return FolderOf(item.first) == path; });
  for (const auto& [name, inode] : names_) {
    if (FolderOf(name) == path) durable_names_[name] = inode;
  }
  return Status();
}

Result<std::vector<std::string>> FaultEnv::List(const std::string& path) {
  std::lock_guard lock(mu_);
  std::vector<std::string> names;
  for (const auto& [name, inode] : names_) {
    if (FolderOf(name) == path) names.push_back(name.substr(path.size() + 1));
  }
  return names;
}

Status FaultEnv::Remove(const std::string& path) {
  std::lock_guard lock(mu_);
  if (FailsLocked()) return ErrorLocked("remove " + path);
  return names_.erase(path) == 1 ? Status() : Status::NotFound(path + ": no such file");
}

Status FaultEnv::Rename(const std::string& from, const std::string& to) {
  std::lock_guard lock(mu_);
  if (FailsLocked()) return ErrorLocked("rename " + from);
  const auto it = names_.find(from);
  if (it == names_.end()) return Status::NotFound(from + ": no such file");
  names_[to] = it->second;
  names_.erase(from);
  return Status();
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

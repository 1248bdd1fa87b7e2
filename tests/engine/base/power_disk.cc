#include "tests/engine/base/power_disk.h"

#include <filesystem>
#include <fstream>

namespace holdfast::testing {
namespace {

bool IsOfNoAccount(const std::string& name) {
  return name.ends_with("-shm") || name.ends_with("/lock") || name.ends_with("/LOCK") ||
         name.find("/LOG") != std::string::npos;
}

}  // namespace

PowerDisk::PowerDisk(std::string folder) : folder_(std::move(folder)) {
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_)) {
    const std::string path = entry.path().string();
    if (IsOfNoAccount(path)) continue;
    auto inode = std::make_shared<DiskModel::Inode>();
    inode->folder = entry.is_directory();
    if (!inode->folder) {
      inode->data.resize(entry.file_size());
      std::ifstream(path, std::ios::binary)
          .read(reinterpret_cast<char*>(inode->data.data()),
                static_cast<std::streamsize>(inode->data.size()));
      inode->durable = inode->data;
    }
    disk_.names[path] = disk_.durable_names[path] = std::move(inode);
  }
}

void PowerDisk::After(const DiskEvent& e) {
  if (!e.path.starts_with(folder_) || e.op == DiskOp::kRead) return;
  std::lock_guard lock(mu_);
  switch (e.op) {
    case DiskOp::kCreate:
    case DiskOp::kMakeFolder: {
      auto inode = std::make_shared<DiskModel::Inode>();
      inode->folder = e.op == DiskOp::kMakeFolder;
      disk_.names[std::string(e.path)] = std::move(inode);
      return;
    }
    case DiskOp::kSyncFolder: disk_.SyncFolder(e.path); return;
    case DiskOp::kRename: disk_.Rename(e.path, e.to); return;
    default: break;
  }
  const auto it = disk_.names.find(e.path);
  if (it == disk_.names.end()) return;  // removed while it was open
  DiskModel::Inode* inode = it->second.get();
  switch (e.op) {
    case DiskOp::kWrite: DiskModel::Write(inode, e.offset, e.data); break;
    case DiskOp::kSync: DiskModel::Sync(inode); break;
    case DiskOp::kTruncate: DiskModel::Resize(inode, e.offset); break;
    case DiskOp::kPunch: DiskModel::Zero(inode, e.offset, e.length); break;
    case DiskOp::kRemove: disk_.names.erase(it); break;
    default: break;
  }
}

void PowerDisk::WriteAfterCut(uint64_t seed, const DiskModel::Chances& chances,
                              const std::string& to) const {
  std::mt19937_64 random(seed);
  DiskModel::Names after;
  {
    std::lock_guard lock(mu_);
    after = disk_.AfterPowerCut(random, chances);
  }
  std::filesystem::create_directories(to);
  for (const auto& [name, inode] : after) {
    const std::string path = to + name.substr(folder_.size());
    if (inode->folder) {
      std::filesystem::create_directories(path);
      continue;
    }
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(inode->durable.data()),
               static_cast<std::streamsize>(inode->durable.size()));
  }
}

void PowerDisk::FailSync(std::string_view path, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::lock_guard lock(mu_);
  const auto it = disk_.names.find(path);
  if (it != disk_.names.end()) DiskModel::FailSync(it->second.get(), random);
}

uint64_t PowerDisk::unsynced_sectors() const {
  std::lock_guard lock(mu_);
  uint64_t sum = 0;
  for (const auto& [name, inode] : disk_.names) sum += inode->dirty.size();
  return sum;
}

}  // namespace holdfast::testing

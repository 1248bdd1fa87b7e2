#include "tests/engine/base/disk_model.h"

#include <algorithm>
#include <cstring>

namespace holdfast::testing {
namespace {

bool Chance(std::mt19937_64& random, double p) {
  return static_cast<double>(random() >> 11) * 0x1p-53 < p;
}

void MakeDirty(DiskModel::Inode* inode, uint64_t begin, uint64_t end) {
  if (begin == end) return;
  for (size_t s = begin / DiskModel::kSector; s <= (end - 1) / DiskModel::kSector; ++s) {
    inode->dirty.insert(s);
  }
}

// Copies one sector of what was written; false when the file ends before it.
bool Keep(const DiskModel::Inode& from, size_t sector, DiskModel::Inode* to) {
  const size_t at = sector * DiskModel::kSector;
  const size_t end = std::min(at + DiskModel::kSector, from.data.size());
  if (at >= end) return false;
  if (to->durable.size() < end) to->durable.resize(end);
  std::memcpy(to->durable.data() + at, from.data.data() + at, end - at);
  return true;
}

}  // namespace

std::string DiskModel::FolderOf(std::string_view path) {
  return std::string(path.substr(0, path.rfind('/')));
}

void DiskModel::Write(Inode* inode, uint64_t offset, std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  const size_t end = offset + bytes.size();
  if (inode->data.size() < end) inode->data.resize(end);
  std::memcpy(inode->data.data() + offset, bytes.data(), bytes.size());
  MakeDirty(inode, offset, end);
}

void DiskModel::Zero(Inode* inode, uint64_t offset, uint64_t length) {
  const uint64_t end = std::min<uint64_t>(offset + length, inode->data.size());
  if (offset >= end) return;
  std::memset(inode->data.data() + offset, 0, end - offset);
  MakeDirty(inode, offset, end);
}

void DiskModel::Resize(Inode* inode, uint64_t size) {
  const uint64_t before = inode->data.size();
  inode->data.resize(size);
  if (size > before) MakeDirty(inode, before, size);
}

void DiskModel::Sync(Inode* inode) {
  inode->durable.resize(inode->data.size());
  for (const size_t sector : inode->dirty) Keep(*inode, sector, inode);
  inode->dirty.clear();
}

void DiskModel::FailSync(Inode* inode, std::mt19937_64& random) {
  inode->durable.resize(inode->data.size());
  for (const size_t sector : inode->dirty) {
    if (Chance(random, 0.5)) Keep(*inode, sector, inode);
  }
  inode->dirty.clear();
}

void DiskModel::SyncFolder(std::string_view path) {
  std::erase_if(durable_names, [&](const auto& item) { return FolderOf(item.first) == path; });
  for (const auto& [name, inode] : names) {
    if (FolderOf(name) == path) durable_names[name] = inode;
  }
}

bool DiskModel::Rename(std::string_view from, std::string_view to) {
  const auto it = names.find(from);
  if (it == names.end()) return false;
  names[std::string(to)] = it->second;
  names.erase(it);
  return true;
}

DiskModel::Names DiskModel::AfterPowerCut(std::mt19937_64& random, const Chances& c) const {
  std::set<std::string> all;
  for (const auto& [name, inode] : names) all.insert(name);
  for (const auto& [name, inode] : durable_names) all.insert(name);
  Names after;
  std::set<std::string> lost;  // folders
  for (const std::string& name : all) {  // a folder comes before what is in it
    const Names& from = Chance(random, c.keep_names) ? names : durable_names;
    const auto it = from.find(name);
    const bool with_folder = lost.contains(FolderOf(name));
    if (it == from.end() || with_folder) {
      lost.insert(name);
      continue;
    }
    const Inode& before = *it->second;
    auto inode = std::make_shared<Inode>();
    inode->folder = before.folder;
    inode->durable = before.durable;
    size_t last = SIZE_MAX;
    bool keep = false;
    for (const size_t sector : before.dirty) {
      const size_t unit = sector * kSector / c.sector;
      if (unit != last) keep = Chance(random, c.keep_data);
      last = unit;
      if (keep) Keep(before, sector, inode.get());
    }
    inode->data = inode->durable;
    after[name] = std::move(inode);
  }
  return after;
}

void DiskModel::PowerCut(std::mt19937_64& random, const Chances& chances) {
  names = durable_names = AfterPowerCut(random, chances);
}

}  // namespace holdfast::testing

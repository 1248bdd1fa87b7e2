// DiskModel: what a disk holds, what of it is durable, and what a power cut leaves.
//
// A cut leaves of each file the bytes as of its last sync, plus any of the sectors that were
// written since; of each folder the names as of its last sync, plus any of the changes since. A
// name goes with the folders above it. Chance decides. Files are in memory. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <span>
#include <string>
#include <vector>

namespace holdfast::testing {

struct DiskModel {
  static constexpr size_t kSector = 512;
  struct Inode {
    std::vector<std::byte> data, durable;
    std::set<size_t> dirty;  // sectors of data that durable lacks
    bool folder = false;
  };
  using Names = std::map<std::string, std::shared_ptr<Inode>, std::less<>>;
  struct Chances {
    size_t sector = kSector;   // what the disk writes whole: a multiple of kSector
    double keep_data = 0.5;    // that a sector which was not synced is there
    double keep_names = 0.5;   // that a change of a folder is
  };

  Names names, durable_names;

  static std::string FolderOf(std::string_view path);
  static void Write(Inode* inode, uint64_t offset, std::span<const std::byte> bytes);
  static void Zero(Inode* inode, uint64_t offset, uint64_t length);
  static void Resize(Inode* inode, uint64_t size);
  static void Sync(Inode* inode);
  // What was written since the last sync is durable or lost for good, as of a kernel that marks
  // pages clean after a failed write-back.
  static void FailSync(Inode* inode, std::mt19937_64& random);

  void SyncFolder(std::string_view path);
  bool Rename(std::string_view from, std::string_view to);  // false: there is no `from`
  // The names and durable bytes that a cut now would leave; nothing here changes.
  Names AfterPowerCut(std::mt19937_64& random, const Chances& chances) const;
  void PowerCut(std::mt19937_64& random, const Chances& chances);
};

}  // namespace holdfast::testing

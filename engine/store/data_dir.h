// DataDir: the folder that holds everything (database, page files, index), held by one process.
//
//   DATA/lock            flock'ed while a process holds the folder; says which process
//   DATA/version         "holdfast-data 1\n"
//   DATA/holdfast.db     SQLite (database.h)
//   DATA/pages/          page files and their index (file_page_store.h)
//   DATA/cards/          models' cards (api/card_json.h)
//
// The lock goes with the process, however that ends. Not thread-safe; move-only owner.
#pragma once

#include <string>
#include <string_view>

#include "engine/base/status.h"

namespace holdfast {

class DataDir {
 public:
  enum class Mode { kOpen, kCreate };  // kCreate: made (0700) where it is absent
  static constexpr int kVersion = 1;

  // kConflict: another process holds it ("data folder X is locked by process P"), or a newer
  // version of Holdfast made it. kNotFound: absent and Mode::kOpen. kIo: not writable, and why.
  static Result<DataDir> Open(const std::string& path, Mode mode);

  DataDir(DataDir&& other) noexcept;
  DataDir& operator=(DataDir&& other) noexcept;
  ~DataDir();  // releases the lock

  const std::string& path() const { return path_; }
  std::string database_path() const { return path_ + "/holdfast.db"; }
  std::string pages_path() const { return path_ + "/pages"; }
  std::string PathOf(std::string_view name) const { return path_ + "/" + std::string(name); }

 private:
  DataDir(std::string path, int lock_fd) : path_(std::move(path)), lock_fd_(lock_fd) {}
  std::string path_;
  int lock_fd_ = -1;
};

}  // namespace holdfast

// Inside engine/store: the page files pages-000001.hf, ...: places are handed out one after another
// in the newest file, written by any number of threads, and given back as holes. A file that holds
// nothing alive any more is unlinked; a place is never handed out twice.
//
// A file whose sync failed is never appended to again, and what it took since the last good sync
// must be forgotten by the caller: the kernel may have dropped it without saying so twice.
//
// Thread-safe; no I/O under mu_, but at opening and recovery: a disk that stalls in the making of a
// file holds up those who write, and nobody who reads or asks.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "engine/base/env.h"
#include "engine/base/status.h"
#include "engine/store/page_index.h"

namespace holdfast {

class PageFiles {
 public:
  struct Options {
    Env* env = nullptr;
    std::string path;
    uint64_t max_file_bytes = uint64_t{1} << 30;
  };
  struct Usage {
    uint32_t file = 0;
    uint64_t bytes = 0;  // up to its end
    uint64_t live = 0;   // of them, in places that are held
    bool active = false;
  };

  static Result<std::unique_ptr<PageFiles>> Open(Options options);

  // A place for `length` bytes (a multiple of 4096), held by the caller.
  Result<PagePlace> Reserve(uint64_t length);
  Status Write(const PagePlace& place, std::span<const std::span<const std::byte>> parts);
  Status Read(const PagePlace& place, std::span<const std::span<std::byte>> parts);

  // Makes finished writes durable, new files' names first. Files for which that fails are spoiled;
  // the status is that of the first.
  Status Sync();
  // The next Sync makes this file durable too, and its name: a process before this one wrote it.
  void MarkUnsynced(uint32_t file);
  // Whether a sync of this file has failed.
  bool Spoiled(uint32_t file) const;

  // False when the place was not there when the files were opened. Retain counts it as held.
  bool Holds(const PagePlace& place) const;
  void Retain(const PagePlace& place);
  enum class Space { kPunch, kLeave };  // kLeave: an index may still name the place
  void Release(const PagePlace& place, Space space);
  // Makes zeros of the file's bytes up to `usage.bytes` that lie in none of the places that are
  // held (by offset), as holes where the file system can; the next Sync makes that durable.
  Status Clear(const Usage& usage, std::span<const PagePlace> held);
  // New files get numbers above this one, which an index has seen (recovery).
  void SkipNumbers(uint32_t seen);
  // Unlinks the files that hold nothing (recovery).
  void RemoveDead();

  std::vector<Usage> usage() const;

 private:
  struct Slot {
    std::shared_ptr<File> file;  // readers go on with an unlinked file
    uint64_t end = 0, live = 0;
    uint64_t size_at_open = 0;
    bool spoiled = false;
  };

  explicit PageFiles(Options options) : options_(std::move(options)) {}
  std::string PathOf(uint32_t file) const;
  std::optional<PagePlace> ReserveLocked(uint64_t length);
  Status AddFile();
  bool IsDeadLocked(uint32_t number, const Slot& slot) const;
  std::map<uint32_t, Slot>::iterator ForgetLocked(std::map<uint32_t, Slot>::iterator it);
  void Unlink(uint32_t number);
  std::shared_ptr<File> FileOf(uint32_t number) const;

  const Options options_;
  std::mutex add_mu_;  // taken before mu_: one file is made at a time
  mutable std::mutex mu_;
  std::map<uint32_t, Slot> slots_;
  uint32_t active_ = 0;  // 0: none yet
  uint32_t last_number_ = 0;
  std::set<uint32_t> unsynced_;  // written since their last sync
  std::set<uint32_t> unnamed_;   // made since the folder's last sync
};

}  // namespace holdfast

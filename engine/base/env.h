// Env: the outside world as the storage code sees it: files, the clock, randomness. RealEnv is the
// operating system; tests have one whose disk is a map that fails, tears and forgets on demand.
//
// Errors: kExhausted = no space (ENOSPC, EDQUOT, EFBIG); kNotFound = no such file; kIo = anything
// else; each message names the path, the call and the reason. A short read or write is never a
// success: calls go on until all bytes are through, or fail.
//
// Thread-safe, files too. An Env outlives the files that it opened.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/base/status.h"

namespace holdfast {

// An open file, read and written at given offsets.
class File {
 public:
  virtual ~File() = default;

  // Fills all of `parts`, in order, from the bytes at `offset` on. kCorrupt: the file ends before.
  virtual Status ReadAt(uint64_t offset, std::span<const std::span<std::byte>> parts) = 0;
  // Writes all of `parts`, in order, at `offset`; the file grows where needed. After an error any
  // part of it may have been written.
  virtual Status WriteAt(uint64_t offset, std::span<const std::span<const std::byte>> parts) = 0;
  // Makes what was written durable (data and size). After an error nothing is known about writes
  // since the last good Sync: a second Sync proves nothing.
  virtual Status Sync() = 0;
  // Gives the bytes' space back; they read as zeros. kUnavailable: the file system cannot.
  virtual Status PunchHole(uint64_t offset, uint64_t length) = 0;
  virtual Result<uint64_t> Size() = 0;
};

enum class FileMode : uint8_t {
  kRead,
  kReadWrite,  // must exist
  kCreate,     // must not exist; read and write
};

class Env {
 public:
  virtual ~Env() = default;

  virtual Result<std::unique_ptr<File>> Open(const std::string& path, FileMode mode) = 0;
  virtual Status MakeDirectory(const std::string& path) = 0;  // ok when it is there
  // Makes names that were created, renamed or removed in the folder durable.
  virtual Status SyncDirectory(const std::string& path) = 0;
  virtual Result<std::vector<std::string>> List(const std::string& path) = 0;  // names, sorted
  virtual Status Remove(const std::string& path) = 0;
  virtual Status Rename(const std::string& from, const std::string& to) = 0;  // replaces `to`
  virtual Result<uint64_t> FreeBytes(const std::string& path) = 0;

  virtual int64_t SteadyNanos() = 0;  // for durations; never jumps
  virtual int64_t WallMicros() = 0;   // since 1970, UTC; for display and retention only
  virtual Status FillRandom(std::span<std::byte> out) = 0;  // fit for keys and identifiers
};

// The operating system's.
class RealEnv : public Env {
 public:
  Result<std::unique_ptr<File>> Open(const std::string& path, FileMode mode) override;
  Status MakeDirectory(const std::string& path) override;
  Status SyncDirectory(const std::string& path) override;
  Result<std::vector<std::string>> List(const std::string& path) override;
  Status Remove(const std::string& path) override;
  Status Rename(const std::string& from, const std::string& to) override;
  Result<uint64_t> FreeBytes(const std::string& path) override;
  int64_t SteadyNanos() override;
  int64_t WallMicros() override;
  Status FillRandom(std::span<std::byte> out) override;
};

}  // namespace holdfast

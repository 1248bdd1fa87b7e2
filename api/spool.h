// Spool: bytes of unknown length that must be read twice, on disk. The file has no name from its
// first moment on, so that nothing is left of it however the process ends.
//
// One thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "engine/base/env.h"

namespace holdfast {

class Spool {
 public:
  // In `folder`; refuses to leave less than `min_free_bytes` on its disk.
  static Result<std::unique_ptr<Spool>> Make(const std::string& folder, uint64_t min_free_bytes);

  // "insufficient_storage: ..." (kExhausted) when the disk is too full for it.
  Status Append(std::string_view piece);
  Status Finish() { return Flush(); }  // what was appended is in the file from here on

  File* file() { return file_.get(); }
  uint64_t size() const { return size_; }

 private:
  Spool(std::string folder, uint64_t min_free_bytes)
      : folder_(std::move(folder)), min_free_bytes_(min_free_bytes) {}
  Status Flush();

  const std::string folder_;
  const uint64_t min_free_bytes_;
  RealEnv env_;
  std::unique_ptr<File> file_;
  std::string waiting_;  // small pieces are written together
  uint64_t size_ = 0;    // of what is in the file
};

}  // namespace holdfast

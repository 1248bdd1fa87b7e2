// What the disk under a folder gives, measured in the run whose figures are compared with it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "engine/base/env.h"

namespace holdfast {

// Rewrites 12 KiB of a file of its own in the folder, and syncs: what the commit of a small
// transaction can't do without. One thread at a time.
class RewriteProbe {
 public:
  static constexpr size_t kBytes = 12 << 10;
  static Result<RewriteProbe> Open(const std::string& folder);
  Result<double> Ms();

 private:
  explicit RewriteProbe(std::unique_ptr<File> file) : file_(std::move(file)) {}
  std::unique_ptr<File> file_;
};

// Bytes per second of reading the folder's own files (not those of folders in it) one after the
// other, 8 MiB at a time, past the page cache (O_DIRECT; where the file system has no such thing,
// after DropPageCache). kNotFound: there is nothing to read.
Result<double> RawReadRate(const std::string& folder);

// The next reads of the folder's own files come from the disk.
Status DropPageCache(const std::string& folder);

// What this process has written since it began.
struct WrittenBytes {
  uint64_t to_disk = 0;   // that the system has to write for it; pages changed twice before that
                          // happens count once
  uint64_t by_calls = 0;  // in write calls of all kinds
};
Result<WrittenBytes> WrittenSoFar();
// From the text of /proc/self/io; kIo when it lacks a number.
Result<WrittenBytes> ParseProcessIo(std::string_view text);

}  // namespace holdfast

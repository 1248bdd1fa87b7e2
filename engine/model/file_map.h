// A whole file, mapped for reading. Pages are read when they are touched and count as memory of
// this process until Drop gives them back. The file must not shrink while it is mapped: the
// operating system then ends the process at the next touch (SIGBUS), as with every mapping.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "engine/base/status.h"

namespace holdfast {

class FileMap {
 public:
  // kNotFound, kIo, or kInvalid for what is no regular file or is empty.
  static Result<std::unique_ptr<FileMap>> Open(const std::string& path);
  ~FileMap();
  FileMap(const FileMap&) = delete;
  FileMap& operator=(const FileMap&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  // Gives back the pages that lie wholly inside `part` of bytes(). Any thread; the bytes may be
  // touched again (and are then read again).
  void Drop(std::span<const std::byte> part) const;

 private:
  FileMap(const std::byte* data, size_t size) : data_(data), size_(size) {}
  const std::byte* data_;
  size_t size_;
};

}  // namespace holdfast

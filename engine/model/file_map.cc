#include "engine/model/file_map.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

namespace holdfast {
namespace {

Status FileError(const std::string& path, int error) {
  const std::string message = path + ": " + std::strerror(error);
  if (error == ENOENT || error == ENOTDIR) return Status::NotFound(message);
  return Status::Io(message);
}

}  // namespace

Result<std::unique_ptr<FileMap>> FileMap::Open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // for pipes
  if (fd < 0) return FileError(path, errno);
  struct stat info;
  void* data = MAP_FAILED;
  int error = ::fstat(fd, &info) == 0 ? 0 : errno;
  const bool usable = error == 0 && S_ISREG(info.st_mode) && info.st_size > 0;
  if (usable) {
    data = ::mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) error = errno;
  }
  ::close(fd);
  if (error != 0) return FileError(path, error);
  if (!usable) return Status::Invalid(path + " is no regular file or is empty");
  return std::unique_ptr<FileMap>(
      new FileMap(static_cast<const std::byte*>(data), static_cast<size_t>(info.st_size)));
}

FileMap::~FileMap() { ::munmap(const_cast<std::byte*>(data_), size_); }

void FileMap::Drop(std::span<const std::byte> part) const {
  const uintptr_t page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(part.data()) + page - 1) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(part.data() + part.size()) / page * page;
  // Advice: if it fails, the pages stay until the mapping goes.
  if (begin < end) (void)::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace holdfast

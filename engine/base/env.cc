#include "engine/base/env.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>

namespace holdfast {

namespace {

constexpr size_t kMaxParts = 64;  // in one system call; IOV_MAX is 1024

Status SystemError(const std::string& path, const char* call, int error) {
  std::string text = path + ": " + call + ": " + std::strerror(error);
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG: return Status::Exhausted(std::move(text));
    case ENOENT: return Status::NotFound(std::move(text));
    case EOPNOTSUPP:
    case ENOSYS: return Status::Unavailable(std::move(text));
    default: return Status::Io(std::move(text));
  }
}

// What is left to transfer, as the iovecs of one call after the other.
class PartCursor {
 public:
  template <typename Byte>
  explicit PartCursor(std::span<const std::span<Byte>> parts) {
    parts_.reserve(parts.size());
    for (const std::span<Byte>& p : parts) {
      if (!p.empty()) parts_.push_back({const_cast<std::byte*>(p.data()), p.size()});
    }
  }
  bool done() const { return first_ == parts_.size(); }
  const iovec* data() const { return &parts_[first_]; }
  int count() const { return static_cast<int>(std::min(parts_.size() - first_, kMaxParts)); }
  void Advance(size_t bytes) {
    while (bytes > 0) {
      iovec& part = parts_[first_];
      const size_t step = std::min(bytes, part.iov_len);
      part.iov_base = static_cast<std::byte*>(part.iov_base) + step;
      part.iov_len -= step;
      bytes -= step;
      if (part.iov_len == 0) ++first_;
    }
  }

 private:
  std::vector<iovec> parts_;
  size_t first_ = 0;
};

class RealFile : public File {
 public:
  RealFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  ~RealFile() override { ::close(fd_); }

  Status ReadAt(uint64_t offset, std::span<const std::span<std::byte>> parts) override {
    PartCursor left(parts);
    while (!left.done()) {
      const ssize_t n = ::preadv(fd_, left.data(), left.count(), static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return SystemError(path_, "read", errno);
      if (n == 0) {
        return Status::Corrupt(path_ + ": read: the file ends at " + std::to_string(offset));
      }
      left.Advance(static_cast<size_t>(n));
      offset += static_cast<uint64_t>(n);
    }
    return Status();
  }

  Status WriteAt(uint64_t offset, std::span<const std::span<const std::byte>> parts) override {
    PartCursor left(parts);
    while (!left.done()) {
      const ssize_t n = ::pwritev(fd_, left.data(), left.count(), static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return SystemError(path_, "write", n == 0 ? ENOSPC : errno);
      left.Advance(static_cast<size_t>(n));
      offset += static_cast<uint64_t>(n);
    }
    return Status();
  }

  Status Sync() override {
    return ::fdatasync(fd_) == 0 ? Status() : SystemError(path_, "fdatasync", errno);
  }

  Status PunchHole(uint64_t offset, uint64_t length) override {
    const int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    int rc = -1;
    do {
      rc = ::fallocate(fd_, mode, static_cast<off_t>(offset), static_cast<off_t>(length));
    } while (rc != 0 && errno == EINTR);
    return rc == 0 ? Status() : SystemError(path_, "punch hole", errno);
  }

  Result<uint64_t> Size() override {
    struct stat info;
    if (::fstat(fd_, &info) != 0) return SystemError(path_, "stat", errno);
    return static_cast<uint64_t>(info.st_size);
  }

 private:
  const std::string path_;
  const int fd_;
};

}  // namespace

Result<std::unique_ptr<File>> RealEnv::Open(const std::string& path, FileMode mode) {
  int flags = O_CLOEXEC;
  switch (mode) {
    case FileMode::kRead: flags |= O_RDONLY; break;
    case FileMode::kReadWrite: flags |= O_RDWR; break;
    case FileMode::kCreate: flags |= O_RDWR | O_CREAT | O_EXCL; break;
  }
  const int fd = ::open(path.c_str(), flags, 0600);
  if (fd < 0) return SystemError(path, "open", errno);
  return std::unique_ptr<File>(std::make_unique<RealFile>(path, fd));
}

Status RealEnv::MakeDirectory(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) == 0 || errno == EEXIST) return Status();
  return SystemError(path, "mkdir", errno);
}

Status RealEnv::SyncDirectory(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return SystemError(path, "open", errno);
  const int rc = ::fsync(fd);
  const int error = errno;
  ::close(fd);
  return rc == 0 ? Status() : SystemError(path, "fsync", error);
}

Result<std::vector<std::string>> RealEnv::List(const std::string& path) {
  DIR* dir = ::opendir(path.c_str());
  if (dir == nullptr) return SystemError(path, "opendir", errno);
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* entry = ::readdir(dir)) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
    errno = 0;
  }
  const int error = errno;
  ::closedir(dir);
  if (error != 0) return SystemError(path, "readdir", error);
  std::sort(names.begin(), names.end());
  return names;
}

Status RealEnv::Remove(const std::string& path) {
  return ::unlink(path.c_str()) == 0 ? Status() : SystemError(path, "unlink", errno);
}

Status RealEnv::Rename(const std::string& from, const std::string& to) {
  return ::rename(from.c_str(), to.c_str()) == 0 ? Status() : SystemError(from, "rename", errno);
}

Result<uint64_t> RealEnv::FreeBytes(const std::string& path) {
  struct statvfs info;
  if (::statvfs(path.c_str(), &info) != 0) return SystemError(path, "statvfs", errno);
  return static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
}

int64_t RealEnv::SteadyNanos() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

int64_t RealEnv::WallMicros() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

Status RealEnv::FillRandom(std::span<std::byte> out) {
  while (!out.empty()) {
    const ssize_t n = ::getrandom(out.data(), out.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return SystemError("random bytes", "getrandom", errno);
    out = out.subspan(static_cast<size_t>(n));
  }
  return Status();
}

}  // namespace holdfast

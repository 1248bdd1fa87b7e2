#include "engine/store/data_dir.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace holdfast {

namespace {

constexpr std::string_view kVersionTag = "holdfast-data ";

Status SystemError(const std::string& what, int error) {
  const std::string text = "data folder: " + what + ": " + std::strerror(error);
  return error == ENOSPC || error == EDQUOT ? Status::Exhausted(text) : Status::Io(text);
}

// The first bytes of a small file; empty when it cannot be read.
std::string ReadSmallFile(int fd) {
  char buffer[64];
  const ssize_t n = ::pread(fd, buffer, sizeof(buffer), 0);
  return n > 0 ? std::string(buffer, static_cast<size_t>(n)) : std::string();
}

Status MakeDirectory(const std::string& path, DataDir::Mode mode) {
  struct stat info;
  if (::stat(path.c_str(), &info) == 0) {
    if (S_ISDIR(info.st_mode)) return Status();
    return Status::Io("data folder: " + path + " is not a folder");
  }
  if (errno != ENOENT) return SystemError(path, errno);
  if (mode == DataDir::Mode::kOpen) return Status::NotFound("data folder " + path + " is absent");
  // Parents too, as a fresh $XDG_DATA_HOME may lack them.
  for (size_t slash = path.find('/', 1); slash != std::string::npos;
       slash = path.find('/', slash + 1)) {
    const std::string parent = path.substr(0, slash);
    if (::mkdir(parent.c_str(), 0700) != 0 && errno != EEXIST) return SystemError(parent, errno);
  }
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return SystemError(path, errno);
  return Status();
}

Result<int> TakeLock(const std::string& path) {
  const std::string lock_path = path + "/lock";
  const int fd = ::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return SystemError(path + " is not writable", errno);
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    const int error = errno;
    std::string holder = ReadSmallFile(fd);
    ::close(fd);
    if (error != EWOULDBLOCK) return SystemError(lock_path, error);
    while (!holder.empty() && holder.back() == '\n') holder.pop_back();
    return Status::Conflict("data folder " + path + " is locked by process " +
                            (holder.empty() ? "?" : holder));
  }
  const std::string pid = std::to_string(::getpid()) + "\n";
  if (::ftruncate(fd, 0) != 0 || ::pwrite(fd, pid.data(), pid.size(), 0) < 0) {
    const int error = errno;
    ::close(fd);
    return SystemError(lock_path, error);
  }
  return fd;
}

Status WriteVersion(const std::string& path) {
  const std::string final_path = path + "/version", temp_path = final_path + ".new";
  const std::string text = std::string(kVersionTag) + std::to_string(DataDir::kVersion) + "\n";
  const int fd = ::open(temp_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) return SystemError(temp_path, errno);
  const ssize_t n = ::write(fd, text.data(), text.size());
  const bool good = n == static_cast<ssize_t>(text.size()) && ::fsync(fd) == 0;
  const int error = n >= 0 && errno == 0 ? ENOSPC : errno;
  ::close(fd);
  if (!good || ::rename(temp_path.c_str(), final_path.c_str()) != 0) {
    return SystemError(temp_path, good ? errno : error);
  }
  const int dir = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (dir < 0 || ::fsync(dir) != 0) {
    const int dir_error = errno;
    if (dir >= 0) ::close(dir);
    return SystemError(path, dir_error);
  }
  ::close(dir);
  return Status();
}

Status CheckVersion(const std::string& path) {
  const std::string version_path = path + "/version";
  const int fd = ::open(version_path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    return errno == ENOENT ? WriteVersion(path) : SystemError(version_path, errno);
  }
  const std::string text = ReadSmallFile(fd);
  ::close(fd);
  int version = 0;
  if (text.starts_with(kVersionTag)) version = std::atoi(text.c_str() + kVersionTag.size());
  if (version <= 0) return Status::Corrupt("data folder: " + version_path + " is not a version");
  if (version > DataDir::kVersion) {
    return Status::Conflict("data folder " + path + " was written by a newer version of Holdfast: "
                            "it is at version " + std::to_string(version) +
                            ", this program knows " + std::to_string(DataDir::kVersion));
  }
  return Status();
}

}  // namespace

Result<DataDir> DataDir::Open(const std::string& path, Mode mode) {
  HOLDFAST_RETURN_IF_ERROR(MakeDirectory(path, mode));
  HOLDFAST_ASSIGN_OR_RETURN(int fd, TakeLock(path));
  DataDir dir(path, fd);
  HOLDFAST_RETURN_IF_ERROR(CheckVersion(path));
  return dir;
}

DataDir::DataDir(DataDir&& other) noexcept
    : path_(std::move(other.path_)), lock_fd_(std::exchange(other.lock_fd_, -1)) {}

DataDir& DataDir::operator=(DataDir&& other) noexcept {
  if (this != &other) {
    if (lock_fd_ >= 0) ::close(lock_fd_);
    path_ = std::move(other.path_);
    lock_fd_ = std::exchange(other.lock_fd_, -1);
  }
  return *this;
}

DataDir::~DataDir() {
  if (lock_fd_ >= 0) ::close(lock_fd_);
}

}  // namespace holdfast

#include "api/bench/disk.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <vector>

namespace holdfast {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kReadBytes = size_t{8} << 20;
constexpr size_t kAlign = 4096;
constexpr std::array<std::byte, RewriteProbe::kBytes> kZeros{};

double SecondsSince(Clock::time_point t) {
  return std::chrono::duration<double>(Clock::now() - t).count();
}

Status SystemError(const std::string& path, const char* call) {
  return Status::Io("bench: " + path + ": " + call + ": " + std::strerror(errno));
}

// Opens each of the folder's own files with `flags`, hands it to `use`, closes it.
Status ForEachFile(const std::string& folder, int flags,
                   const std::function<Status(const std::string& path, int fd)>& use) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    if (!entry.is_regular_file()) continue;
    const std::string path = entry.path().string();
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | flags);
    if (fd < 0) return SystemError(path, "open");
    Status status = use(path, fd);
    ::close(fd);
    HOLDFAST_RETURN_IF_ERROR(std::move(status));
  }
  return error ? Status::Io("bench: " + folder + ": " + error.message()) : Status();
}

Result<uint64_t> ReadAll(const std::string& folder, int flags) {
  const std::unique_ptr<void, decltype(&std::free)> buffer(std::aligned_alloc(kAlign, kReadBytes),
                                                           &std::free);
  if (buffer == nullptr) return Status::Exhausted("bench: no memory to read into");
  uint64_t bytes = 0;
  HOLDFAST_RETURN_IF_ERROR(ForEachFile(folder, flags, [&](const std::string& path, int fd) {
    for (ssize_t n; (n = ::read(fd, buffer.get(), kReadBytes)) != 0;) {
      if (n < 0) return SystemError(path, "read");
      bytes += static_cast<uint64_t>(n);
    }
    return Status();
  }));
  return bytes;
}

}  // namespace

Result<RewriteProbe> RewriteProbe::Open(const std::string& folder) {
  RealEnv env;
  const std::string path = folder + "/rewrite-probe";
  HOLDFAST_ASSIGN_OR_RETURN(std::unique_ptr<File> file, env.Open(path, FileMode::kCreate));
  HOLDFAST_RETURN_IF_ERROR(env.Remove(path));
  RewriteProbe probe(std::move(file));
  HOLDFAST_RETURN_IF_ERROR(probe.Ms().status());  // the file grows here and never again
  return probe;
}

Result<double> RewriteProbe::Ms() {
  const std::span<const std::byte> part(kZeros);
  const auto start = Clock::now();
  HOLDFAST_RETURN_IF_ERROR(file_->WriteAt(0, {&part, 1}));
  HOLDFAST_RETURN_IF_ERROR(file_->Sync());
  return 1000 * SecondsSince(start);
}

Status DropPageCache(const std::string& folder) {
  return ForEachFile(folder, 0, [](const std::string& path, int fd) {
    if (::fdatasync(fd) != 0) return SystemError(path, "fdatasync");
    errno = ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    return errno == 0 ? Status() : SystemError(path, "fadvise");
  });
}

Result<double> RawReadRate(const std::string& folder) {
  auto start = Clock::now();
  auto bytes = ReadAll(folder, O_DIRECT);
  if (!bytes.ok()) {
    bytes.status().IgnoreError();
    HOLDFAST_RETURN_IF_ERROR(DropPageCache(folder));
    start = Clock::now();
    bytes = ReadAll(folder, 0);
  }
  HOLDFAST_RETURN_IF_ERROR(bytes.status());
  if (*bytes == 0) return Status::NotFound("bench: " + folder + ": no bytes to read");
  return static_cast<double>(*bytes) / SecondsSince(start);
}

Result<WrittenBytes> ParseProcessIo(std::string_view text) {
  WrittenBytes written;
  const struct {
    std::string_view name;
    uint64_t* value;
  } fields[] = {{"\nwrite_bytes: ", &written.to_disk}, {"\nwchar: ", &written.by_calls}};
  for (const auto& field : fields) {
    const size_t at = text.find(field.name);
    const std::string_view number =
        at == std::string_view::npos ? std::string_view() : text.substr(at + field.name.size());
    const char* end = number.data() + number.size();
    if (number.empty() || std::from_chars(number.data(), end, *field.value).ec != std::errc()) {
      return Status::Io("bench: /proc/self/io: no number in " + std::string(field.name.substr(1)));
    }
  }
  return written;
}

Result<WrittenBytes> WrittenSoFar() {
  std::ifstream in("/proc/self/io");
  std::ostringstream text;
  text << in.rdbuf();
  return ParseProcessIo(text.str());
}

}  // namespace holdfast

// A mapped file gives its memory back when it is told to, and can be read again.
#include "engine/model/file_map.h"

#include <fstream>
#include <string>

#include <doctest/doctest.h>

#include "tests/engine/base/temp_dir.h"

namespace holdfast {
namespace {

// Memory of this process that is pages of files, in KiB.
int64_t FileMemory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssFile:")) return std::stoll(line.substr(8));
  }
  return -1;
}

int Touch(std::span<const std::byte> bytes) {
  int sum = 0;
  for (size_t i = 0; i < bytes.size(); i += 512) sum += static_cast<int>(bytes[i]);
  return sum;
}

TEST_CASE("dropped pages are memory no more, and come back when touched") {
  constexpr int64_t kMiB = 32;
  testing::TempDir dir;
  std::string content(kMiB << 20, 'x');
  content.back() = 'z';
  std::ofstream(dir.File("f"), std::ios::binary) << content;
  const auto map = FileMap::Open(dir.File("f"));
  REQUIRE(map.ok());
  const std::span<const std::byte> bytes = (*map)->bytes();
  CHECK(bytes.size() == content.size());
  const int64_t before = FileMemory();
  const int sum = Touch(bytes);
  const int64_t touched = FileMemory();
  (*map)->Drop(bytes.subspan(100));  // unaligned: whole pages inside it go
  const int64_t dropped = FileMemory();
  // The kernel counts in batches: half of the size is far beyond their slack.
  CHECK(touched - before > kMiB * 512);
  CHECK(touched - dropped > kMiB * 512);
  CHECK(Touch(bytes) == sum);
  CHECK(bytes.back() == std::byte{'z'});
  (*map)->Drop(bytes.subspan(5, 10));  // less than a page: nothing to drop
}

}  // namespace
}  // namespace holdfast

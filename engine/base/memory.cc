#include "engine/base/memory.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string>

namespace holdfast {
namespace {

// A number in a file of one, 0 when there is none ("max").
size_t NumberIn(const char* path) {
  std::ifstream file(path);
  size_t number = 0;
  file >> number;
  return file ? number : 0;
}

}  // namespace

size_t AvailableMemory() {
  size_t available = 0;
  std::ifstream meminfo("/proc/meminfo");
  for (std::string word; meminfo >> word;) {
    if (word != "MemAvailable:") continue;
    meminfo >> available;
    available *= 1024;
    break;
  }
  const size_t limit = NumberIn("/sys/fs/cgroup/memory.max");
  const size_t used = NumberIn("/sys/fs/cgroup/memory.current");
  return limit > used ? std::min(available, limit - used) : available;
}

size_t ResidentMemory() {
  std::ifstream statm("/proc/self/statm");
  size_t all = 0, resident = 0;
  statm >> all >> resident;
  return resident * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace holdfast

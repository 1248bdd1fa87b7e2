#include "engine/base/background.h"

#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

namespace holdfast {
namespace {

constexpr int kNice = 10;  // a weight of 110 beside 1024

}  // namespace

void StandBack() {
  const auto self = static_cast<id_t>(::gettid());
  const int now = ::getpriority(PRIO_PROCESS, self);
  static_cast<void>(::setpriority(PRIO_PROCESS, self, now + kNice));
}

std::chrono::nanoseconds ThreadCpuTime() {
  timespec t{};
  static_cast<void>(::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t));
  return std::chrono::seconds(t.tv_sec) + std::chrono::nanoseconds(t.tv_nsec);
}

}  // namespace holdfast

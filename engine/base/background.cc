#include "engine/base/background.h"

#include <sys/resource.h>
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

}  // namespace holdfast

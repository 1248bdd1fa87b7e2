// Time that has passed, as reports give it.
#pragma once

#include <chrono>

namespace holdfast {

inline double MsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

}  // namespace holdfast

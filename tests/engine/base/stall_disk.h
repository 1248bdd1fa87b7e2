// StallDisk: a disk that stalls when a test says so, until the test lets it go on. What stalls is
// then done as if nothing had been: a test proves that something did not wait for it by having it
// happen before End.
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <initializer_list>
#include <mutex>
#include <string>

#include "tests/engine/base/disk_hook.h"

namespace holdfast::testing {

class StallDisk : public DiskHook {
 public:
  ~StallDisk() override { End(); }

  // From now on operations of these kinds, on paths with `part` in them, wait for End, or kMost: a
  // test whose code does wait for them fails then, and does not hang.
  void Begin(std::initializer_list<DiskOp> ops, std::string part);
  void End();
  // Whether one waits now; waits for that, for at most kMost.
  bool Stalls();
  // Whether one has waited for kMost: nobody was there to call End.
  bool gave_up() const;

  DiskFault Before(const DiskEvent& event) override;

  static constexpr std::chrono::seconds kMost{20};

 private:
  bool StallsLocked(const DiskEvent& event) const;

  mutable std::mutex mu_;
  std::condition_variable changed_;
  std::array<bool, kDiskOps> ops_{};
  std::string part_;
  int waiting_ = 0;
  bool gave_up_ = false;
};

}  // namespace holdfast::testing

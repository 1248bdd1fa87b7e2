#include "tests/engine/base/stall_disk.h"

namespace holdfast::testing {

void StallDisk::Begin(std::initializer_list<DiskOp> ops, std::string part) {
  std::lock_guard lock(mu_);
  for (const DiskOp op : ops) ops_[static_cast<size_t>(op)] = true;
  part_ = std::move(part);
}

void StallDisk::End() {
  std::lock_guard lock(mu_);
  ops_ = {};
  changed_.notify_all();
}

bool StallDisk::Stalls() {
  std::unique_lock lock(mu_);
  return changed_.wait_for(lock, kMost, [&] { return waiting_ > 0; });
}

bool StallDisk::gave_up() const {
  std::lock_guard lock(mu_);
  return gave_up_;
}

bool StallDisk::StallsLocked(const DiskEvent& event) const {
  return ops_[static_cast<size_t>(event.op)] &&
         event.path.find(part_) != std::string_view::npos;
}

DiskFault StallDisk::Before(const DiskEvent& event) {
  std::unique_lock lock(mu_);
  if (!StallsLocked(event)) return DiskFault::kNone;
  ++waiting_;
  changed_.notify_all();
  if (!changed_.wait_for(lock, kMost, [&] { return !StallsLocked(event); })) gave_up_ = true;
  --waiting_;
  return DiskFault::kNone;
}

}  // namespace holdfast::testing

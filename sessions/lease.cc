#include "sessions/lease.h"

#include <algorithm>
#include <chrono>

namespace holdfast {

HeadLeases::Lease& HeadLeases::Lease::operator=(Lease&& other) noexcept {
  if (this != &other) {
    Release();
    owner_ = other.owner_;
    branch_ = other.branch_;
    other.owner_ = nullptr;
  }
  return *this;
}

void HeadLeases::Lease::Release() {
  if (owner_ != nullptr) owner_->Return(branch_);
  owner_ = nullptr;
}

std::optional<HeadLeases::Lease> HeadLeases::TryTake(int64_t sid, int64_t branch) {
  std::lock_guard lock(mu_);
  if (closed_ || closed_sessions_.contains(sid)) return std::nullopt;
  Head& head = heads_[branch];
  if (head.held || !head.waiting.empty()) return std::nullopt;
  head.sid = sid;
  head.held = true;
  ++held_;
  return Lease(this, branch);
}

Result<HeadLeases::Lease> HeadLeases::Wait(int64_t sid, int64_t branch) {
  std::unique_lock lock(mu_);
  Head& head = heads_[branch];  // stays while somebody waits or holds
  head.sid = sid;
  if (static_cast<int>(head.waiting.size()) >= max_waiting_) {
    return Status::Exhausted(std::to_string(max_waiting_) + " turns wait for this branch already");
  }
  const uint64_t ticket = next_ticket_++;
  head.waiting.push_back(ticket);
  changed_.wait(lock, [&] {
    return closed_ || closed_sessions_.contains(sid) ||
           (!head.held && head.waiting.front() == ticket);
  });
  if (closed_ || closed_sessions_.contains(sid)) {
    std::erase(head.waiting, ticket);
    if (!head.held && head.waiting.empty()) heads_.erase(branch);
    changed_.notify_all();
    if (closed_) return Status::Unavailable("shutting down");
    return Status::NotFound("the session was deleted");
  }
  head.waiting.pop_front();
  head.held = true;
  ++held_;
  return Lease(this, branch);
}

void HeadLeases::Return(int64_t branch) {
  {
    std::lock_guard lock(mu_);
    const auto it = heads_.find(branch);
    if (it == heads_.end()) return;
    it->second.held = false;
    --held_;
    if (it->second.waiting.empty()) heads_.erase(it);
  }
  changed_.notify_all();
}

bool HeadLeases::IsBusy(int64_t branch) const {
  std::lock_guard lock(mu_);
  const auto it = heads_.find(branch);
  return it != heads_.end() && it->second.held;
}

void HeadLeases::Name(int64_t branch, int64_t sid) {
  std::lock_guard lock(mu_);
  if (const auto it = heads_.find(branch); it != heads_.end()) it->second.sid = sid;
}

bool HeadLeases::CloseSession(int64_t sid) {
  std::lock_guard lock(mu_);
  if (!IsFreeLocked(sid)) return false;
  closed_sessions_.insert(sid);
  return true;
}

void HeadLeases::ShutSession(int64_t sid) {
  {
    std::lock_guard lock(mu_);
    closed_sessions_.insert(sid);
  }
  changed_.notify_all();
}

bool HeadLeases::AwaitFree(int64_t sid, int ms) {
  std::unique_lock lock(mu_);
  return changed_.wait_for(lock, std::chrono::milliseconds(ms), [&] { return IsFreeLocked(sid); });
}

bool HeadLeases::IsFreeLocked(int64_t sid) const {
  return std::none_of(heads_.begin(), heads_.end(),
                      [sid](const auto& head) { return head.second.sid == sid; });
}

void HeadLeases::ReopenSession(int64_t sid) {
  std::lock_guard lock(mu_);
  closed_sessions_.erase(sid);
}

void HeadLeases::Close() {
  {
    std::lock_guard lock(mu_);
    closed_ = true;
  }
  changed_.notify_all();
}

int64_t HeadLeases::held() const {
  std::lock_guard lock(mu_);
  return held_;
}

}  // namespace holdfast

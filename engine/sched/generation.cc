#include <chrono>

#include "engine/engine.h"

namespace holdfast {

Generation::~Generation() {
  for (const Event& event : events_) {
    if (event.finish.has_value()) event.finish->status.IgnoreError();
  }
}

std::optional<Generation::Event> Generation::Next(int timeout_ms) {
  std::unique_lock lock(mu_);
  const auto ready = [&] { return !events_.empty() || drained_; };
  if (timeout_ms < 0) {
    changed_.wait(lock, ready);
  } else {
    changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), ready);
  }
  if (events_.empty()) return std::nullopt;
  std::optional<Event> event(std::move(events_.front()));
  events_.pop_front();
  if (event->finish.has_value()) {
    drained_ = true;
    changed_.notify_all();
  }
  const bool has_room_again = events_.size() == kSinkEvents / 2;
  lock.unlock();
  if (has_room_again && wake_) wake_();
  return event;
}

void Generation::Cancel() {
  cancelled_.store(true, std::memory_order_relaxed);
  if (wake_) wake_();
}

void Generation::Push(Event event) {
  {
    std::lock_guard lock(mu_);
    events_.push_back(std::move(event));
  }
  changed_.notify_one();
}

size_t Generation::waiting() {
  std::lock_guard lock(mu_);
  return events_.size();
}

}  // namespace holdfast

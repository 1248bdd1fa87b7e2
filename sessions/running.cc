#include "sessions/running.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

namespace holdfast {

void RunningTurns::Enter(const std::string& turn, Where where) {
  std::lock_guard lock(mu_);
  entries_[turn].where = where;
}

void RunningTurns::OnCancel(const std::string& turn, Stop stop) {
  {
    std::lock_guard lock(mu_);
    const auto it = entries_.find(turn);
    if (it == entries_.end()) return;  // it is served from the log
    if (!it->second.cancelled) {
      it->second.stop = std::move(stop);
      return;
    }
  }
  stop();
}

void RunningTurns::Leave(const std::string& turn, HeadLeases::Lease* lease) {
  Entries::node_type gone;  // what its `stop` holds is let go of outside the lock
  {
    std::lock_guard lock(mu_);
    gone = entries_.extract(turn);
    lease->Release();
  }
  left_.notify_all();
}

bool RunningTurns::Cancel(int64_t sid, std::string_view turn, int ms) {
  Stop stop;
  {
    std::lock_guard lock(mu_);
    if (!IsOfLocked(sid, turn)) return true;
    stop = Take(&entries_.find(turn)->second);
  }
  if (stop) stop();
  std::unique_lock lock(mu_);
  return left_.wait_for(lock, std::chrono::milliseconds(ms),
                        [&] { return !IsOfLocked(sid, turn); });
}

void RunningTurns::CancelAll(int64_t sid) {
  std::vector<Stop> stops;
  {
    std::lock_guard lock(mu_);
    for (auto& [turn, entry] : entries_) {
      if (entry.where.sid != sid) continue;
      if (Stop stop = Take(&entry)) stops.push_back(std::move(stop));
    }
  }
  for (const Stop& stop : stops) stop();
}

bool RunningTurns::IsOf(int64_t sid, std::string_view turn) const {
  std::lock_guard lock(mu_);
  return IsOfLocked(sid, turn);
}

std::string RunningTurns::On(int64_t branch) const {
  std::lock_guard lock(mu_);
  const auto it = std::find_if(entries_.begin(), entries_.end(), [branch](const auto& e) {
    return e.second.where.branch == branch;
  });
  return it == entries_.end() ? "" : it->first;
}

bool RunningTurns::IsOfLocked(int64_t sid, std::string_view turn) const {
  const auto it = entries_.find(turn);
  return it != entries_.end() && it->second.where.sid == sid;
}

RunningTurns::Stop RunningTurns::Take(Entry* entry) {
  entry->cancelled = true;
  return std::exchange(entry->stop, nullptr);
}

}  // namespace holdfast

// Turns that run, so that others than their clients can end them.
//
// Thread-safe; no I/O. What OnCancel was given is called outside the lock.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <string_view>

#include "sessions/lease.h"

namespace holdfast {

class RunningTurns {
 public:
  struct Where {
    int64_t sid = 0, branch = 0;
  };
  using Stop = std::function<void()>;

  void Enter(const std::string& turn, Where where);
  // How it is ended; at once where Cancel came first.
  void OnCancel(const std::string& turn, Stop stop);
  // Gives its head back in the same moment: who waited for its end finds that free.
  void Leave(const std::string& turn, HeadLeases::Lease* lease);

  // Waits until it has ended, for at most `ms`. True also where no such turn of the session runs.
  bool Cancel(int64_t sid, std::string_view turn, int ms);
  void CancelAll(int64_t sid);  // waits for nothing
  bool IsOf(int64_t sid, std::string_view turn) const;
  std::string On(int64_t branch) const;  // the turn that runs on it, or ""

 private:
  struct Entry {
    Where where;
    Stop stop;  // null: not yet known, or called
    bool cancelled = false;
  };
  using Entries = std::map<std::string, Entry, std::less<>>;
  bool IsOfLocked(int64_t sid, std::string_view turn) const;
  static Stop Take(Entry* entry);

  mutable std::mutex mu_;
  std::condition_variable left_;
  Entries entries_;
};

}  // namespace holdfast

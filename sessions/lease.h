// Leases of heads: at most one turn runs on a branch. Waiting is first come, first served; no I/O.
//
//   free --TryTake or Wait--> held --~Lease--> free (or straight to who waits longest)
//
// Thread-safe.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <set>

#include "engine/base/status.h"

namespace holdfast {

class HeadLeases {
 public:
  // Move-only. Gives the head back when it goes; must not outlive the HeadLeases.
  class Lease {
   public:
    Lease() = default;
    Lease(Lease&& other) noexcept : owner_(other.owner_), branch_(other.branch_) {
      other.owner_ = nullptr;
    }
    Lease& operator=(Lease&& other) noexcept;
    ~Lease() { Release(); }
    void Release();
    explicit operator bool() const { return owner_ != nullptr; }
    int64_t branch() const { return branch_; }

   private:
    friend class HeadLeases;
    Lease(HeadLeases* owner, int64_t branch) : owner_(owner), branch_(branch) {}
    HeadLeases* owner_ = nullptr;
    int64_t branch_ = 0;
  };

  explicit HeadLeases(int max_waiting) : max_waiting_(max_waiting) {}

  // Empty when the head is held, or others wait for it.
  std::optional<Lease> TryTake(int64_t sid, int64_t branch);
  // kExhausted: max_waiting wait already. kUnavailable: closed. kNotFound: the session is going
  // away.
  Result<Lease> Wait(int64_t sid, int64_t branch);
  bool IsBusy(int64_t branch) const;
  // Says which session a held head belongs to, where that was not known when it was taken.
  void Name(int64_t branch, int64_t sid);
  // Shuts a session for good; false when a turn of it runs or waits.
  bool CloseSession(int64_t sid);
  // Shuts it while turns run: nothing more is lent, who waits gives up. Then until the last has
  // ended, for at most `ms`; false: it has not.
  void ShutSession(int64_t sid);
  bool AwaitFree(int64_t sid, int ms);
  void ReopenSession(int64_t sid);  // the deletion failed
  void Close();                     // who waits gives up; nothing more is lent
  int64_t held() const;

 private:
  struct Head {
    int64_t sid = 0;
    bool held = false;
    std::deque<uint64_t> waiting;  // tickets
  };
  void Return(int64_t branch);
  bool IsFreeLocked(int64_t sid) const;

  const int max_waiting_;
  mutable std::mutex mu_;
  std::condition_variable changed_;
  std::map<int64_t, Head> heads_;
  std::set<int64_t> closed_sessions_;
  uint64_t next_ticket_ = 1;
  int64_t held_ = 0;
  bool closed_ = false;
};

}  // namespace holdfast

// HeadSaver: writes down what the page store lacks of warm heads, on a thread of its own, so that
// who wants their room waits for a disk no longer than it is worth.
//
// Save returns when all is written and synced. Else it gives up what is not begun, once the write
// under way has taken kPatienceMs (the disk stalls: the next who comes does not wait at all), or
// all of it a tenth of what computing it would, or kPatienceMs. Pages are a cache: what is given up
// costs a prefill, if it is not in the pool any more when it is wanted.
//
// Thread-safe; files are written with no lock held. What waits to be written belongs to calls of
// Save that have not returned, so that its bound is theirs.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "engine/kv/page_store.h"
#include "engine/store/database.h"

namespace holdfast {

class HeadSaver {
 public:
  enum class TailOwner : uint8_t { kBranch, kSnapshot };
  struct Record {
    PageHeader header;
    PageLease page;
  };
  // What the store lacks of a head, pinned, so that it can be written while the head is used.
  struct Unsaved {
    int64_t sid = 0, branch = 0;
    TailOwner owner = TailOwner::kBranch;
    std::vector<Record> pages;
    std::optional<Record> tail;
  };
  struct Stats {
    uint64_t tails = 0;     // written
    uint64_t given_up = 0;  // pages and tails that were not
  };
  enum class Wait : uint8_t { kWhileWorthIt, kToTheEnd };

  // `store` null: nothing is ever saved. All outlive the saver.
  HeadSaver(PagePool* pool, PageStore* store, Database* db);
  ~HeadSaver();

  // `compute_ms_per_token`: what it would cost to have the rows anew.
  void Save(std::vector<Unsaved> heads, double compute_ms_per_token, Wait wait);
  // Forgets tails in the page store.
  void ForgetTails(std::span<const PageKey> keys);
  Stats stats() const;

 private:
  using Clock = std::chrono::steady_clock;
  // One record to be written; of a head, its pages in order, then its tail.
  struct Step {
    int64_t sid = 0, branch = 0;
    TailOwner owner = TailOwner::kBranch;
    Record record;
  };
  struct Job {
    std::deque<Step> left;
    bool done = false;
  };

  void Run();
  void Advance(std::unique_lock<std::mutex>* lock, Job* job);
  Status Write(const Step& step);
  Status NoteTail(const Step& step);
  Status ForgetOlderTails(const Step& step);

  PagePool* const pool_;
  PageStore* const store_;
  Database* const db_;
  mutable std::mutex mu_;
  std::condition_variable wake_, moved_;
  std::deque<std::shared_ptr<Job>> jobs_;  // the first is being done
  Clock::time_point last_move_;            // when the write under way began
  bool stopping_ = false;
  Stats stats_;
  std::thread thread_;
};

}  // namespace holdfast

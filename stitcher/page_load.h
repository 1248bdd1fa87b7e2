// PageLoad: pages of one exact chain, or of a slice of it, on their way from the store into the
// pool.
//
//   kFront, until Take            from the front on: the first pages are of use without the later
//   kBack, or after Take          from the back on, while the prefill computes from the front. What
//                                 comes is cache in the pool, where Timeline::Reuse finds it. Both
//                                 meet at pages that the pool has already: these are left out
//
// A page is loaded whole or not at all (private slot, read, verify, seal), so that what is lost,
// late or damaged is computed, with the same bits.
//
// Thread-safe. Owns no thread: those of the stitcher call Step. Whoever drops it ends it, once the
// page that is being read has come. Pool and store outlive it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "engine/kv/page_store.h"
#include "engine/kv/pool.h"

namespace holdfast {

class PageLoad {
 public:
  enum class Order : uint8_t { kFront, kBack };
  struct Chain {
    TenantScope scope;
    Digest fp;
    PageKey parent;               // the key before block 0
    std::vector<TokenId> tokens;
    std::vector<PageKey> keys;    // of its blocks, from 0 on
    std::vector<int64_t> blocks;  // those to load, ascending
  };
  PageLoad(PagePool* pool, PageStore* store, Chain chain, Order order);

  // Loads the next page on the calling thread; the milliseconds that it took, nullopt when none is
  // left to begin.
  std::optional<double> Step();

  // Waits until every page has come or failed, for at most `ms`. Entry i is the page of blocks[i],
  // or why it is not here: the store's error, kExhausted (the pool is full), or kUnavailable: it
  // may still come. Once, and only where the order is kFront.
  std::vector<Result<PageLease>> Take(double ms);

  const std::vector<PageKey>& keys() const { return chain_.keys; }
  bool over() const;     // no page is on its way or will be
  int64_t late() const;  // pages that came while nobody waited

 private:
  std::optional<size_t> NextLocked();
  Result<PageLease> Load(int64_t block);

  PagePool* const pool_;
  PageStore* const store_;
  const Chain chain_;
  mutable std::mutex mu_;
  std::condition_variable came_;
  size_t front_ = 0, back_;   // blocks [front_, back_) are not begun
  size_t loading_ = 0;
  bool taken_;                // nobody waits: from the back on
  int64_t late_ = 0;
  std::vector<Result<PageLease>> pages_;  // beside chain_.blocks, until they are taken
};

// Reads the record of `header` into a page of the pool that nobody else sees yet.
Result<PageLease> ReadRecord(PagePool* pool, PageStore* store, const TenantScope& scope,
                             const PageHeader& header);

// Why a page is not here, as reports say it: "evicted", "slow_store", "pool_full", "io_error",
// "corrupt".
const char* FaultName(const Status& fault);

}  // namespace holdfast

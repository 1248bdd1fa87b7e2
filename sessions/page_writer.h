// Writes pages to the page store in the background as they are sealed: Put, then Sync, within a second.
//
// A page waits in a bounded queue under a lease; when the queue is full it is not written now (it is
// written when its head is let go, or computed again). One thread; a failed write degrades nothing.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#include "engine/base/queue.h"
#include "engine/engine.h"

namespace holdfast {

class PageWriter {
 public:
  // Pins at most this part of the pool.
  static constexpr uint64_t kPoolFraction = 8;
  static constexpr size_t kMaxQueued = 4096;
  static constexpr int kBatch = 64;  // pages before a Sync

  // Becomes the pool's seal observer. Both outlive the writer; no page is sealed after it is gone.
  PageWriter(PagePool* pool, PageStore* store, Digest fp);
  ~PageWriter();
  PageWriter(const PageWriter&) = delete;
  PageWriter& operator=(const PageWriter&) = delete;

  // Waits until what was sealed before is synced. The last failure since the Flush before, or ok.
  Status Flush();
  uint64_t dropped() const;

 private:
  static void Observe(void* context, SealedPage page);
  void Loop();
  void Write(const SealedPage& page);

  PagePool* const pool_;
  PageStore* const store_;
  const Digest fp_;
  BoundedQueue<SealedPage> queue_;
  mutable std::mutex mu_;
  std::condition_variable settled_;
  uint64_t accepted_ = 0, done_ = 0, dropped_ = 0;
  Status failure_;
  std::thread thread_;
};

}  // namespace holdfast

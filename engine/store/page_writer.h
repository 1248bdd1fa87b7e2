// PageWriter: carries sealed pages from the pool to a page store, in the background.
//
//   pool.SetSealObserver(&PageWriter::Observe, &writer);
//
// The model thread hands over a lease and goes on: the queue is bounded, and a page that finds it
// full is dropped and counted (it costs a prefill after a restart, nothing else). Two threads,
// which stand back where others want the cores, write what is queued and sync at least once per
// `sync_interval` while there is something to sync. A failed write is counted and the page given
// up: nothing here ever degrades a turn.
//
// While few pages wait and nobody for them, they are written one at a time, with a rest after each
// and after a sync (Options::rest): whoever decodes beside it loses a few percent of the cores, at
// every token the same. Where a quarter of the queue is full, or somebody flushes, both threads
// write without a pause.
//
// Thread-safe. Destroying the writer writes and syncs what is queued; nothing may be offered to it
// from then on, and pool and store must outlive it.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "engine/base/status.h"
#include "engine/kv/page_store.h"
#include "engine/kv/pool.h"

namespace holdfast {

struct PageWriterStats {
  uint64_t queued = 0;   // now
  uint64_t written = 0;  // handed to the store, which took them (or had them)
  uint64_t dropped = 0;  // found the queue full
  uint64_t failed = 0;   // the store refused them
  uint64_t syncs = 0, failed_syncs = 0;
};

class PageWriter {
 public:
  struct Options {
    Digest fp;                       // of the model whose pages these are
    std::vector<LayerGroup> groups;  // the pool's
    size_t queue_capacity = 256;     // pages, each of which keeps its lease meanwhile
    int threads = 2;
    int rest = 64;                   // after a page or a sync, in times of what it took of a core
    std::chrono::milliseconds sync_interval{1000};
    // Called by one of the threads when there is nothing to write, at most once per sync_interval:
    // the place for a step of compaction. May be empty.
    std::function<void()> when_idle;
  };

  PageWriter(PageStore* store, Options options);
  ~PageWriter();
  PageWriter(const PageWriter&) = delete;
  PageWriter& operator=(const PageWriter&) = delete;

  // For PagePool::SetSealObserver; `context` is the PageWriter.
  static void Observe(void* context, SealedPage page);
  // Queues a page; false when the queue is full. Never blocks on I/O.
  bool Offer(SealedPage page);

  // Writes `header` (kind kTail: a partial page, at demotion, snapshot or shutdown) on the calling
  // thread. Durable after the next Flush.
  Status WriteTail(const PageHeader& header,
                   std::span<const std::span<const std::byte>> payload);

  // Waits, for at most `most`, until all that was offered before is written or given up, and holds
  // no page any more.
  void Drain(std::chrono::milliseconds most);
  // Waits until all that was offered before is written, and syncs. The error is that of the sync,
  // or of the first write that failed since the last Flush.
  Status Flush();

  PageWriterStats stats() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace holdfast

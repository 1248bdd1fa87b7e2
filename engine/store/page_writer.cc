#include "engine/store/page_writer.h"

#include <algorithm>
#include <cassert>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include "engine/base/background.h"

namespace holdfast {

namespace {
using Clock = std::chrono::steady_clock;
constexpr size_t kHurryPart = 4;  // of the queue: from such a part on no page rests
}  // namespace

struct PageWriter::Impl {
  PageStore* store = nullptr;
  Options options;

  mutable std::mutex mu;
  std::condition_variable wake;   // work, or the end
  std::condition_variable ended;  // a page was written or given up
  std::deque<SealedPage> queue;      // the last one has number next_number - 1
  uint64_t next_number = 0;
  std::set<uint64_t> in_flight;      // numbers of the pages being written
  bool dirty = false;                  // written since the last sync began
  bool syncing = false;                // one thread at a time; the other goes on writing
  bool stopping = false;
  int flushing = 0;                    // who waits for what is queued
  Clock::time_point rest_until = Clock::now();
  Clock::time_point last_sync = Clock::now(), last_idle = Clock::now();
  Status first_failure;                // since the last Flush
  PageWriterStats stats;

  std::vector<std::thread> threads;

  void Run();
  // Whether a page with a number below `end` is still to be written.
  bool PendingLocked(uint64_t end) const {
    if (!in_flight.empty() && *in_flight.begin() < end) return true;
    return !queue.empty() && next_number - queue.size() < end;
  }
  void NoteFailureLocked(const Status& status) {
    if (first_failure.ok()) first_failure = status;
  }
  void ForgetFailureLocked() {
    first_failure.IgnoreError();
    first_failure = Status();
  }
  void RestLocked(std::chrono::nanoseconds took) {
    rest_until = std::max(rest_until, Clock::now() + options.rest * took);
  }
  Status WritePage(const SealedPage& page);
  bool HurryLocked() const {
    return stopping || flushing > 0 || queue.size() * kHurryPart >= options.queue_capacity;
  }
  bool WriteIsDueLocked() const {
    if (queue.empty()) return false;
    return HurryLocked() || (in_flight.empty() && Clock::now() >= rest_until);
  }
  bool SyncIsDueLocked() const;
  bool IdleIsDueLocked() const;
  std::optional<Clock::time_point> NextWakeLocked() const;
  Status Sync(std::unique_lock<std::mutex>* lock);
  void WriteNext(std::unique_lock<std::mutex>* lock);
};

PageWriter::PageWriter(PageStore* store, Options options) : impl_(std::make_unique<Impl>()) {
  impl_->store = store;
  impl_->options = std::move(options);
  for (int i = 0; i < impl_->options.threads; ++i) {
    impl_->threads.emplace_back([impl = impl_.get()] { impl->Run(); });
  }
}

PageWriter::~PageWriter() {
  Flush().IgnoreError();  // counted in the store's statistics; pages are a cache
  {
    std::lock_guard lock(impl_->mu);
    impl_->stopping = true;
  }
  impl_->wake.notify_all();
  for (std::thread& t : impl_->threads) t.join();
  impl_->ForgetFailureLocked();
}

void PageWriter::Observe(void* context, SealedPage page) {
  static_cast<void>(static_cast<PageWriter*>(context)->Offer(std::move(page)));
}

bool PageWriter::Offer(SealedPage page) {
  {
    std::lock_guard lock(impl_->mu);
    if (impl_->queue.size() >= impl_->options.queue_capacity) {
      ++impl_->stats.dropped;
      return false;  // the lease goes after the lock
    }
    impl_->queue.push_back(std::move(page));
    ++impl_->next_number;
  }
  impl_->wake.notify_one();
  return true;
}

Status PageWriter::WriteTail(const PageHeader& header,
                             std::span<const std::span<const std::byte>> payload) {
  assert(header.kind == PageKind::kTail);
  Status status = impl_->store->Put(header, payload);
  std::lock_guard lock(impl_->mu);
  ++(status.ok() ? impl_->stats.written : impl_->stats.failed);
  if (status.ok()) impl_->dirty = true;
  impl_->wake.notify_one();
  return status;
}

void PageWriter::Drain(std::chrono::milliseconds most) {
  std::unique_lock lock(impl_->mu);
  const uint64_t end = impl_->next_number;
  ++impl_->flushing;
  impl_->wake.notify_all();
  impl_->ended.wait_for(lock, most, [&] { return !impl_->PendingLocked(end); });
  --impl_->flushing;
}

Status PageWriter::Flush() {
  std::unique_lock lock(impl_->mu);
  const uint64_t end = impl_->next_number;
  ++impl_->flushing;
  impl_->wake.notify_all();
  impl_->ended.wait(lock, [&] { return !impl_->PendingLocked(end) && !impl_->syncing; });
  --impl_->flushing;
  Status failure = std::exchange(impl_->first_failure, Status());
  Status status = impl_->Sync(&lock);
  if (status.ok()) return failure;
  failure.IgnoreError();
  impl_->ForgetFailureLocked();
  return status;
}

PageWriterStats PageWriter::stats() const {
  std::lock_guard lock(impl_->mu);
  PageWriterStats stats = impl_->stats;
  stats.queued = impl_->queue.size();
  return stats;
}

// ---- the threads -------------------------------------------------------------------------------

Status PageWriter::Impl::WritePage(const SealedPage& page) {
  PageHeader header;
  header.kind = PageKind::kPage;
  header.fp = options.fp;
  header.key = page.lease.key();
  header.parent = page.parent;
  const std::span<const TokenId> tokens = page.lease.tokens();
  header.tokens.assign(tokens.begin(), tokens.end());
  std::vector<std::span<const std::byte>> payload;
  for (size_t g = 0; g < options.groups.size(); ++g) {
    payload.push_back({page.lease.payload(static_cast<int>(g)), options.groups[g].PayloadBytes()});
  }
  return store->Put(header, payload);
}

bool PageWriter::Impl::SyncIsDueLocked() const {
  return dirty && !syncing && Clock::now() - last_sync >= options.sync_interval;
}

bool PageWriter::Impl::IdleIsDueLocked() const {
  return options.when_idle && queue.empty() && !dirty &&
         Clock::now() - last_idle >= options.sync_interval;
}

std::optional<Clock::time_point> PageWriter::Impl::NextWakeLocked() const {
  std::optional<Clock::time_point> at;
  if (dirty) {
    at = (syncing ? Clock::now() : last_sync) + options.sync_interval;
  } else if (options.when_idle) {
    at = last_idle + options.sync_interval;
  }
  // Where a page is in flight its end says when the next is due.
  if (!queue.empty() && in_flight.empty()) at = std::min(at.value_or(rest_until), rest_until);
  return at;
}

// Lets go of the lock while it syncs.
Status PageWriter::Impl::Sync(std::unique_lock<std::mutex>* lock) {
  syncing = true;
  dirty = false;
  lock->unlock();
  const std::chrono::nanoseconds before = ThreadCpuTime();
  Status status = store->Sync();
  const std::chrono::nanoseconds took = ThreadCpuTime() - before;
  lock->lock();
  syncing = false;
  last_sync = Clock::now();
  RestLocked(took);
  ++(status.ok() ? stats.syncs : stats.failed_syncs);
  NoteFailureLocked(status);
  ended.notify_all();
  return status;
}

void PageWriter::Impl::WriteNext(std::unique_lock<std::mutex>* lock) {
  const uint64_t number = next_number - queue.size();
  SealedPage page = std::move(queue.front());
  queue.pop_front();
  in_flight.insert(number);
  lock->unlock();
  const std::chrono::nanoseconds before = ThreadCpuTime();
  Status status = WritePage(page);
  page.lease.Release();
  const std::chrono::nanoseconds took = ThreadCpuTime() - before;
  lock->lock();
  in_flight.erase(number);
  RestLocked(took);
  ++(status.ok() ? stats.written : stats.failed);
  if (status.ok()) dirty = true;
  NoteFailureLocked(status);
  ended.notify_all();
}

void PageWriter::Impl::Run() {
  StandBack();  // nobody waits for it
  std::unique_lock lock(mu);
  while (true) {
    if (SyncIsDueLocked()) {
      Sync(&lock).IgnoreError();  // kept as first_failure
    } else if (WriteIsDueLocked()) {
      WriteNext(&lock);
    } else if (stopping) {  // and nothing is queued: it would be due
      return;
    } else if (IdleIsDueLocked()) {
      last_idle = Clock::now();
      lock.unlock();
      options.when_idle();
      lock.lock();
    } else if (const auto at = NextWakeLocked()) {
      wake.wait_until(lock, *at);
    } else {
      wake.wait(lock);
    }
  }
}

}  // namespace holdfast

#include "sessions/page_writer.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

namespace holdfast {
namespace {

size_t QueueLength(const PagePool& pool) {
  const uint64_t part = pool.stats().slots_max / PageWriter::kPoolFraction;
  return static_cast<size_t>(std::clamp<uint64_t>(part, 1, PageWriter::kMaxQueued));
}

}  // namespace

PageWriter::PageWriter(PagePool* pool, PageStore* store, Digest fp)
    : pool_(pool), store_(store), fp_(fp), queue_(QueueLength(*pool)) {
  thread_ = std::thread([this] { Loop(); });
  pool_->SetSealObserver(&PageWriter::Observe, this);
}

PageWriter::~PageWriter() {
  queue_.Close();
  thread_.join();
}

void PageWriter::Observe(void* context, SealedPage page) {
  auto* self = static_cast<PageWriter*>(context);
  std::lock_guard lock(self->mu_);
  if (self->queue_.TryPush(std::move(page))) {
    ++self->accepted_;
  } else {
    ++self->dropped_;
  }
}

void PageWriter::Loop() {
  while (auto page = queue_.Pop()) {
    uint64_t written = 0;
    do {
      Write(*page);
      page.reset();  // its lease with it
      ++written;
    } while (written < kBatch && (page = queue_.TryPop()));
    Status synced = store_->Sync();
    {
      std::lock_guard lock(mu_);
      done_ += written;
      if (!synced.ok()) failure_ = std::move(synced);
    }
    settled_.notify_all();
  }
}

void PageWriter::Write(const SealedPage& page) {
  PageHeader header;
  header.fp = fp_;
  header.key = page.lease.key();
  header.parent = page.parent;
  const auto tokens = page.lease.tokens();
  header.tokens.assign(tokens.begin(), tokens.end());
  std::vector<std::span<const std::byte>> payload;
  const auto& groups = pool_->groups();
  for (size_t g = 0; g < groups.size(); ++g) {
    payload.emplace_back(page.lease.payload(static_cast<int>(g)), groups[g].PayloadBytes());
  }
  if (Status s = store_->Put(header, payload); !s.ok()) {
    std::lock_guard lock(mu_);
    failure_ = std::move(s);
  }
}

Status PageWriter::Flush() {
  std::unique_lock lock(mu_);
  const uint64_t goal = accepted_;
  settled_.wait(lock, [&] { return done_ >= goal; });
  return std::exchange(failure_, Status());
}

uint64_t PageWriter::dropped() const {
  std::lock_guard lock(mu_);
  return dropped_;
}

}  // namespace holdfast

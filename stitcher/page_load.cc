#include "stitcher/page_load.h"

#include <cassert>
#include <chrono>
#include <span>
#include <utility>

namespace holdfast {

PageLoad::PageLoad(PagePool* pool, PageStore* store, Chain chain, Order order)
    : pool_(pool),
      store_(store),
      chain_(std::move(chain)),
      back_(chain_.blocks.size()),
      taken_(order == Order::kBack) {
  if (taken_) return;
  pages_.reserve(back_);
  for (size_t i = 0; i < back_; ++i) {
    pages_.emplace_back(Status::Unavailable("the page is on its way from the store"));
  }
}

std::optional<size_t> PageLoad::NextLocked() {
  if (!taken_) return front_ < back_ ? std::optional(front_++) : std::nullopt;
  while (front_ < back_) {
    --back_;
    if (!pool_->Contains(chain_.keys[chain_.blocks[back_]])) return back_;
  }
  return std::nullopt;
}

std::optional<double> PageLoad::Step() {
  std::optional<size_t> next;
  {
    std::lock_guard lock(mu_);
    next = NextLocked();
    if (!next) return std::nullopt;
    ++loading_;
  }
  const auto start = std::chrono::steady_clock::now();
  Result<PageLease> page = Load(chain_.blocks[*next]);
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
  std::lock_guard lock(mu_);
  --loading_;
  if (!taken_) {
    pages_[*next] = std::move(page);
  } else {
    late_ += page.ok();
  }
  came_.notify_all();
  return took.count();
}

Result<PageLease> PageLoad::Load(int64_t block) {
  const auto tokens = std::span(chain_.tokens).subspan(block * kPageTokens, kPageTokens);
  PageHeader header;
  header.fp = chain_.fp;
  header.key = chain_.keys[block];
  header.parent = block > 0 ? chain_.keys[block - 1] : chain_.parent;
  header.tokens.assign(tokens.begin(), tokens.end());
  HOLDFAST_ASSIGN_OR_RETURN(PageLease page, ReadRecord(pool_, store_, chain_.scope, header));
  return pool_->Seal(std::move(page), header.key, header.parent, tokens, PageSource::kDisk);
}

std::vector<Result<PageLease>> PageLoad::Take(double ms) {
  std::unique_lock lock(mu_);
  came_.wait_for(lock, std::chrono::duration<double, std::milli>(ms),
                 [&] { return front_ == back_ && loading_ == 0; });
  assert(!taken_);
  taken_ = true;
  for (const Result<PageLease>& page : pages_) page.status().IgnoreError();  // it is computed then
  return std::exchange(pages_, {});
}

bool PageLoad::over() const {
  std::lock_guard lock(mu_);
  return front_ == back_ && loading_ == 0;
}

int64_t PageLoad::late() const {
  std::lock_guard lock(mu_);
  return late_;
}

Result<PageLease> ReadRecord(PagePool* pool, PageStore* store, const TenantScope& scope,
                             const PageHeader& header) {
  HOLDFAST_ASSIGN_OR_RETURN(PageLease page, pool->Allocate(scope));
  std::vector<std::span<std::byte>> payload;
  const auto& groups = pool->groups();
  for (size_t g = 0; g < groups.size(); ++g) {
    payload.emplace_back(page.payload(static_cast<int>(g)), groups[g].PayloadBytes());
  }
  HOLDFAST_RETURN_IF_ERROR(store->Get(header, payload));
  return page;
}

const char* FaultName(const Status& fault) {
  switch (fault.code()) {
    case Code::kOk:
    case Code::kNotFound: return "evicted";
    case Code::kExhausted: return "pool_full";
    case Code::kIo: return "io_error";
    case Code::kUnavailable: return "slow_store";
    default: return "corrupt";
  }
}

}  // namespace holdfast

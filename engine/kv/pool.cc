// One reserved range of addresses holds all slots, so a slot's address is arithmetic and payload()
// needs no lock. Slots below `next_fresh_` have been handed out or touched; the rest was never
// written and is zero. The toucher claims fresh slots in batches of kTouchBytes, writes to each 4
// KiB of them without the lock and puts them on the free list; an Allocate that outruns it takes a
// fresh slot and pays for the first touch itself rather than wait.

#include "engine/kv/pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cassert>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <string_view>
#include <thread>
#include <unordered_map>

namespace holdfast {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kSmallPage = 4096;
constexpr size_t kTouchBytes = size_t{4} << 20;  // claimed by the toucher at a time
constexpr uint32_t kNone = UINT32_MAX;

struct Tenant {
  std::string_view name;    // the key of its entry
  uint64_t slots = 0;       // in which its numbers lie; without any it is forgotten
  uint64_t leased = 0;      // of them, those with a lease
};

struct Slot {
  Tenant* tenant = nullptr; // whose numbers lie in it; null: never written, all zero
  uint32_t refs = 0;
  uint32_t older = kNone;   // neighbours in the list of cached pages
  uint32_t newer = kNone;
  // Set under the lock, read without it by holders. What follows is constant from then on.
  std::atomic<bool> sealed{false};
  PageSource source = PageSource::kComputed;
  PageKey key, parent;
  std::array<TokenId, kPageTokens> tokens{};
};

bool SameTokens(const Slot& slot, std::span<const TokenId> tokens) {
  return std::equal(slot.tokens.begin(), slot.tokens.end(), tokens.begin(), tokens.end());
}

}  // namespace

struct PagePool::Impl {
  std::vector<LayerGroup> groups;
  std::vector<size_t> group_offset;
  size_t stride = 0;

  void* mapping = nullptr;
  size_t mapping_bytes = 0;
  std::byte* base = nullptr;
  uint32_t slots_max = 0;
  std::unique_ptr<Slot[]> slots;

  mutable std::mutex mu;
  std::condition_variable grow;     // the toucher waits here
  std::condition_variable touched;  // an Allocate that found everything claimed waits here
  bool stopping = false;
  uint32_t next_fresh = 0;
  uint32_t touching = 0;            // claimed by the toucher
  std::vector<uint32_t> free;
  std::unordered_map<PageKey, uint32_t, DigestHash> index;  // sealed pages
  uint32_t oldest = kNone, newest = kNone;                  // cached pages
  PoolStats stats;
  std::unordered_map<std::string, Tenant> tenants;          // entries stay where they are
  void (*observe)(void*, SealedPage) = nullptr;
  void* observe_context = nullptr;
  std::thread toucher;

  std::byte* Address(uint32_t slot) const { return base + size_t{slot} * stride; }

  void Map(size_t max_bytes);
  void TouchAhead();
  bool WantsTouch() const;
  bool TakeSlot(std::unique_lock<std::mutex>& lock, uint32_t* slot);
  bool PassTo(const std::string& tenant, Slot* slot);
  void CountLeased(const Slot& slot, int change);
  void Pin(uint32_t slot);
  void Release(uint32_t slot);
  void PushNewest(uint32_t slot);
  void Unlink(uint32_t slot);
  void Evict(uint32_t slot);
};

void PagePool::Impl::Map(size_t max_bytes) {
  for (const LayerGroup& g : groups) {
    group_offset.push_back(stride);
    stride += g.SlotStride();
  }
  stride = ((stride / kSmallPage) | 1) * kSmallPage;
  const size_t count = std::min<size_t>(max_bytes / stride, kNone - 1);
  if (count == 0) return;
  mapping_bytes = count * stride + kHugePage;
  mapping = mmap(nullptr, mapping_bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) {
    mapping = nullptr;
    return;
  }
  const auto address = reinterpret_cast<uintptr_t>(mapping);
  base = reinterpret_cast<std::byte*>((address + kHugePage - 1) / kHugePage * kHugePage);
  // A kernel without huge pages refuses; small ones serve as well.
  (void)madvise(base, count * stride, MADV_HUGEPAGE);
  slots_max = static_cast<uint32_t>(count);
  slots = std::make_unique<Slot[]>(count);
  stats.slots_max = count;
}

bool PagePool::Impl::WantsTouch() const {
  return next_fresh < slots_max && free.size() * stride < kExtentBytes;
}

void PagePool::Impl::TouchAhead() {
  std::unique_lock lock(mu);
  for (;;) {
    grow.wait(lock, [&] { return stopping || WantsTouch(); });
    if (stopping) return;
    const uint32_t first = next_fresh;
    const auto batch = static_cast<uint32_t>(std::max<size_t>(1, kTouchBytes / stride));
    touching = std::min(batch, slots_max - first);
    next_fresh += touching;
    const uint32_t end = next_fresh;
    lock.unlock();
    for (std::byte* p = Address(first); p < Address(end); p += kSmallPage) {
      *const_cast<volatile std::byte*>(p) = std::byte{0};
    }
    lock.lock();
    for (uint32_t s = end; s-- > first;) free.push_back(s);
    touching = 0;
    touched.notify_all();
  }
}

bool PagePool::Impl::TakeSlot(std::unique_lock<std::mutex>& lock, uint32_t* slot) {
  for (;;) {
    if (!free.empty()) {
      *slot = free.back();
      free.pop_back();
      if (WantsTouch()) grow.notify_one();
      return true;
    }
    if (next_fresh < slots_max) {
      *slot = next_fresh++;
      grow.notify_one();
      return true;
    }
    if (touching > 0) {
      touched.wait(lock);
    } else if (oldest != kNone) {
      *slot = oldest;
      Evict(oldest);
      ++stats.evictions;
      free.pop_back();
      return true;
    } else {
      return false;
    }
  }
}

// From now on numbers of `name` lie in the slot; true when another tenant's lie there now.
bool PagePool::Impl::PassTo(const std::string& name, Slot* slot) {
  Tenant* const before = slot->tenant;
  if (before != nullptr && before->name == name) return false;
  const auto it = tenants.try_emplace(name).first;
  it->second.name = it->first;
  ++it->second.slots;
  slot->tenant = &it->second;
  if (before == nullptr) return false;
  if (--before->slots == 0) tenants.erase(tenants.find(std::string(before->name)));
  return true;
}

// A page has its first lease, or has lost its last one.
void PagePool::Impl::CountLeased(const Slot& slot, int change) {
  stats.leased += change;
  slot.tenant->leased += change;
}

void PagePool::Impl::Pin(uint32_t slot) {
  Slot& s = slots[slot];
  if (s.refs++ == 0) {
    Unlink(slot);
    CountLeased(s, 1);
  }
}

void PagePool::Impl::Release(uint32_t slot) {
  std::lock_guard lock(mu);
  Slot& s = slots[slot];
  assert(s.refs > 0);
  if (--s.refs > 0) return;
  CountLeased(s, -1);
  if (s.sealed.load(std::memory_order_relaxed)) {
    PushNewest(slot);
  } else {
    free.push_back(slot);
  }
}

void PagePool::Impl::PushNewest(uint32_t slot) {
  Slot& s = slots[slot];
  s.older = newest;
  s.newer = kNone;
  (newest == kNone ? oldest : slots[newest].newer) = slot;
  newest = slot;
  ++stats.cached;
}

void PagePool::Impl::Unlink(uint32_t slot) {
  Slot& s = slots[slot];
  (s.older == kNone ? oldest : slots[s.older].newer) = s.newer;
  (s.newer == kNone ? newest : slots[s.newer].older) = s.older;
  s.older = s.newer = kNone;
  --stats.cached;
}

// A cached page becomes a free slot.
void PagePool::Impl::Evict(uint32_t slot) {
  Unlink(slot);
  index.erase(slots[slot].key);
  slots[slot].sealed.store(false, std::memory_order_relaxed);
  free.push_back(slot);
}

PagePool::PagePool(std::vector<LayerGroup> groups, size_t max_bytes)
    : impl_(std::make_unique<Impl>()) {
  impl_->groups = std::move(groups);
  impl_->Map(max_bytes);
  impl_->toucher = std::thread([impl = impl_.get()] { impl->TouchAhead(); });
}

PagePool::~PagePool() {
  {
    std::lock_guard lock(impl_->mu);
    assert(impl_->stats.leased == 0 && "a lease outlives its pool");
    impl_->stopping = true;
  }
  impl_->grow.notify_one();
  impl_->toucher.join();
  if (impl_->mapping != nullptr) munmap(impl_->mapping, impl_->mapping_bytes);
}

const std::vector<LayerGroup>& PagePool::groups() const { return impl_->groups; }
size_t PagePool::page_bytes() const { return impl_->stride; }

Result<PageLease> PagePool::Allocate(const TenantScope& scope) {
  uint32_t slot = kNone;
  bool zero = false;
  {
    std::unique_lock lock(impl_->mu);
    if (!impl_->TakeSlot(lock, &slot)) {
      return Status::Exhausted("pool: all " + std::to_string(impl_->slots_max) +
                               " pages are in use");
    }
    Slot& s = impl_->slots[slot];
    zero = impl_->PassTo(scope.tenant(), &s);
    s.refs = 1;
    impl_->CountLeased(s, 1);
  }
  if (zero) std::memset(impl_->Address(slot), 0, impl_->stride);
  return PageLease(this, slot);
}

PageLease PagePool::Find(const PageKey& key, std::span<const TokenId> tokens) {
  std::lock_guard lock(impl_->mu);
  const auto it = impl_->index.find(key);
  if (it == impl_->index.end()) {
    ++impl_->stats.misses;
    return {};
  }
  if (!SameTokens(impl_->slots[it->second], tokens)) {
    ++impl_->stats.misses;
    ++impl_->stats.token_mismatches;
    return {};
  }
  ++impl_->stats.hits;
  impl_->Pin(it->second);
  return PageLease(this, it->second);
}

bool PagePool::Contains(const PageKey& key) const {
  std::lock_guard lock(impl_->mu);
  return impl_->index.contains(key);
}

PageLease PagePool::Seal(PageLease page, const PageKey& key, const PageKey& parent,
                         std::span<const TokenId> tokens, PageSource source) {
  assert(page && !page.sealed() && tokens.size() == kPageTokens);
  SealedPage sealed;
  {
    std::lock_guard lock(impl_->mu);
    const auto [it, fresh] = impl_->index.try_emplace(key, page.slot_);
    if (!fresh) {
      if (!SameTokens(impl_->slots[it->second], tokens)) {
        ++impl_->stats.token_mismatches;
        return page;
      }
      impl_->Pin(it->second);
      return PageLease(this, it->second);  // `page` goes when its lease does, after the lock
    }
    Slot& s = impl_->slots[page.slot_];
    s.key = key;
    s.parent = parent;
    s.source = source;
    std::copy(tokens.begin(), tokens.end(), s.tokens.begin());
    s.sealed.store(true, std::memory_order_release);
    if (source == PageSource::kComputed && impl_->observe != nullptr) {
      ++s.refs;
      sealed = {PageLease(this, page.slot_), parent};
    }
  }
  if (sealed.lease) impl_->observe(impl_->observe_context, std::move(sealed));
  return page;
}

void PagePool::SetSealObserver(void (*observe)(void*, SealedPage), void* context) {
  std::lock_guard lock(impl_->mu);
  impl_->observe = observe;
  impl_->observe_context = context;
}

int64_t PagePool::Renew(std::span<const PageKey> keys) {
  std::lock_guard lock(impl_->mu);
  int64_t there = 0;
  for (const PageKey& key : keys) {
    const auto it = impl_->index.find(key);
    there = it == impl_->index.end() ? 0 : there + 1;
    if (it == impl_->index.end() || impl_->slots[it->second].refs > 0) continue;
    impl_->Unlink(it->second);
    impl_->PushNewest(it->second);
  }
  return there;
}

void PagePool::DropCached() {
  std::lock_guard lock(impl_->mu);
  while (impl_->oldest != kNone) impl_->Evict(impl_->oldest);
}

PoolStats PagePool::stats() const {
  std::lock_guard lock(impl_->mu);
  PoolStats stats = impl_->stats;
  stats.slots = impl_->next_fresh - impl_->touching;
  return stats;
}

uint64_t PagePool::leased_by(const TenantScope& scope) const {
  std::lock_guard lock(impl_->mu);
  const auto it = impl_->tenants.find(scope.tenant());
  return it == impl_->tenants.end() ? 0 : it->second.leased;
}

void PagePool::CheckInvariants() const {
#ifndef NDEBUG
  std::lock_guard lock(impl_->mu);
  uint64_t leased = 0, cached = 0, sealed = 0, owned = 0;
  for (uint32_t i = 0; i < impl_->slots_max; ++i) {
    const Slot& s = impl_->slots[i];
    leased += s.refs > 0;
    owned += s.tenant != nullptr;
    if (!s.sealed.load(std::memory_order_relaxed)) continue;
    ++sealed;
    assert(impl_->index.at(s.key) == i);
  }
  for (uint32_t i = impl_->oldest; i != kNone; i = impl_->slots[i].newer) {
    assert(impl_->slots[i].refs == 0 && impl_->slots[i].sealed.load(std::memory_order_relaxed));
    assert(impl_->slots[i].newer != kNone || impl_->newest == i);
    ++cached;
  }
  assert(leased == impl_->stats.leased && cached == impl_->stats.cached);
  assert(sealed == impl_->index.size());
  for (const auto& [name, tenant] : impl_->tenants) {
    assert(tenant.name == name && tenant.slots > 0 && tenant.leased <= tenant.slots);
    leased -= tenant.leased;
    owned -= tenant.slots;
  }
  assert(leased == 0 && owned == 0);
  const uint64_t private_pages = impl_->stats.leased + cached - sealed;
  assert(impl_->free.size() + sealed + private_pages + impl_->touching == impl_->next_fresh);
#endif
}

PageLease::PageLease(PageLease&& other) noexcept : pool_(other.pool_), slot_(other.slot_) {
  other.pool_ = nullptr;
}

PageLease& PageLease::operator=(PageLease&& other) noexcept {
  if (this != &other) {
    Release();
    pool_ = other.pool_;
    slot_ = other.slot_;
    other.pool_ = nullptr;
  }
  return *this;
}

PageLease::~PageLease() { Release(); }

PageLease PageLease::Share() const {
  if (pool_ == nullptr) return {};
  std::lock_guard lock(pool_->impl_->mu);
  ++pool_->impl_->slots[slot_].refs;
  return PageLease(pool_, slot_);
}

void PageLease::Release() {
  if (pool_ == nullptr) return;
  pool_->impl_->Release(slot_);
  pool_ = nullptr;
}

std::byte* PageLease::payload(int group) const {
  return pool_->impl_->Address(slot_) + pool_->impl_->group_offset[group];
}

bool PageLease::sealed() const {
  return pool_->impl_->slots[slot_].sealed.load(std::memory_order_acquire);
}

const PageKey& PageLease::key() const {
  assert(sealed());
  return pool_->impl_->slots[slot_].key;
}

std::span<const TokenId> PageLease::tokens() const {
  assert(sealed());
  return pool_->impl_->slots[slot_].tokens;
}

PageSource PageLease::source() const { return pool_->impl_->slots[slot_].source; }

uint32_t PageLease::leases() const {
  std::lock_guard lock(pool_->impl_->mu);
  return pool_->impl_->slots[slot_].refs;
}

}  // namespace holdfast

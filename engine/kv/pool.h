// PagePool: the host memory that pages live in, and the index of the sealed ones.
//
// A page is private (one writer: the timeline that allocated it) until it is sealed; from then on
// it is immutable, found by key, and shared. A lease keeps a page where it is; a sealed page
// without leases stays as cache until its slot is needed, and goes in order of release, oldest
// first. Timelines release from their tail, so an ancestor never goes before its descendants.
// Whoever knows what pages are worth puts the line in order with Renew.
//
// Address space for `max_bytes` is reserved at once; a background thread touches it ahead of need
// (first touch costs 0.4-2.3 s per GiB), so that about one extent of kExtentBytes always lies
// ready. Slots are reused, never returned. A slot that passes from one tenant to another is zeroed
// first.
//
//            Allocate                Seal                  last lease released
//   free ---------------> private ---------> sealed, leased ------------------> sealed, cached
//     ^                      |                     ^  Find                           |   |
//     +---- last release ----+                     +---------------------------------+   |
//     +------------------------------- evicted by Allocate ------------------------------+
//
// Thread-safe: every call takes one lock for microseconds and does no I/O under it. Writing into a
// private page's payload is the business of its holders: a page with leases() == 1 has one writer,
// a page with more has none (timelines copy on write).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/types.h"
#include "engine/kv/key.h"
#include "engine/kv/layout.h"

namespace holdfast {

class PagePool;

inline constexpr size_t kExtentBytes = size_t{64} << 20;

// Where the KV of a page came from when it entered the pool.
enum class PageSource : uint8_t { kComputed, kDisk, kRemote };

// A pinned page. Move-only; Share() makes a second lease of the same page. Empty after a move.
// The pool must outlive its leases.
class PageLease {
 public:
  PageLease() = default;
  PageLease(PageLease&& other) noexcept;
  PageLease& operator=(PageLease&& other) noexcept;
  ~PageLease();

  explicit operator bool() const { return pool_ != nullptr; }
  PageLease Share() const;
  void Release();  // before the destructor does

  // The payload of layer group `group`, 4 KiB aligned. Writable only while !sealed().
  std::byte* payload(int group = 0) const;
  bool sealed() const;
  const PageKey& key() const;                 // sealed pages only
  std::span<const TokenId> tokens() const;    // sealed pages only; kPageTokens of them
  PageSource source() const;
  // Leases of this page, this one included. A holder that sees 1 is alone and stays so until it
  // shares.
  uint32_t leases() const;
  bool operator==(const PageLease& other) const {
    return pool_ == other.pool_ && slot_ == other.slot_;
  }

 private:
  friend class PagePool;
  PageLease(PagePool* pool, uint32_t slot) : pool_(pool), slot_(slot) {}
  PagePool* pool_ = nullptr;
  uint32_t slot_ = 0;
};

struct PoolStats {
  uint64_t slots = 0;          // that memory is there for, of slots_max
  uint64_t slots_max = 0;
  uint64_t leased = 0;         // pages with at least one lease
  uint64_t cached = 0;         // sealed pages without a lease
  uint64_t hits = 0, misses = 0;
  uint64_t evictions = 0;
  uint64_t token_mismatches = 0;  // keys that were equal while tokens were not: always 0
};

// Identity of a sealed page, for the background writer.
struct SealedPage {
  PageLease lease;
  PageKey parent;
};

class PagePool {
 public:
  // One payload per group and page. `max_bytes` bounds the slots' memory; a pool for which the
  // system has no address space has no slots (stats().slots_max == 0).
  PagePool(std::vector<LayerGroup> groups, size_t max_bytes);
  ~PagePool();
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  const std::vector<LayerGroup>& groups() const;
  size_t page_bytes() const;  // one slot, all groups

  // A private page for `scope`; evicts cached pages where it must. kExhausted when all are leased.
  // Its bytes are zero or an earlier page of the same tenant.
  Result<PageLease> Allocate(const TenantScope& scope);

  // The sealed page of that key, pinned; an empty lease when there is none. Compares `tokens`.
  PageLease Find(const PageKey& key, std::span<const TokenId> tokens);
  bool Contains(const PageKey& key) const;

  // Makes a private, full page immutable and findable. When the key is there already, the lease
  // returned is that page's and `page` is freed: equal keys mean equal bits. `parent` travels to
  // the page's record.
  PageLease Seal(PageLease page, const PageKey& key, const PageKey& parent,
                 std::span<const TokenId> tokens, PageSource source);

  // Called, without the lock held, with each page that Seal published and that was computed here.
  // Set once, before the first Seal; must return quickly (it feeds a bounded queue and may drop).
  void SetSealObserver(void (*observe)(void* context, SealedPage page), void* context);

  // Those of the pages that are cached go last from now on, in this order (so: tail first). Returns
  // how many of `keys`, from the last on, are in the pool without a gap, leased or cached.
  int64_t Renew(std::span<const PageKey> keys);

  // Drops every cached page (benchmarks and tests of the tiers below).
  void DropCached();
  PoolStats stats() const;
  uint64_t leased_by(const TenantScope& scope) const;  // of stats().leased, this tenant's
  // Asserts that lists, index and counts agree, in time of the number of slots (debug builds,
  // tests).
  void CheckInvariants() const;

 private:
  friend class PageLease;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace holdfast

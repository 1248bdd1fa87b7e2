// Timeline: token ids and, for each, where its KV is. What the model sees.
//
// Index = position. Each index is covered by exactly one run: a slice of a page computed elsewhere
// (exact or shifted), or a slot of this timeline's own pages, where row i lies in slot i mod 32. Own slots
// are filled in ascending order of index; `filled()` tells up to where everything is there. A
// page whose 32 rows this timeline computed itself is sealed under the chain key as soon as it is full;
// pages with holes at the seams of a splice stay private (partial) and are never keyed.
//
//   build: Timeline(pool, scope, fp) -> Splice(...)* and Extend(tokens) in order of index
//   fill:  NextRows(n) names the rows to compute next and their slots; Filled(n) after the step
//
// Taint: after the first shifted run every key of this timeline includes TaintAfter(...) of all such
// runs, so approximate KV can never answer an exact lookup. taint() is zero for an exact timeline.
//
// Ownership: holds leases of all its pages and releases them from the tail. Not thread-safe: one
// owner at a time (the model thread while it runs, its request otherwise).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/backend/backend.h"
#include "engine/base/status.h"
#include "engine/kv/key.h"
#include "engine/kv/pool.h"

namespace holdfast {

// How the KV of a token was made (DESIGN: provenance).
enum class KvOrigin : uint8_t { kExact, kShifted, kLink, kSelected, kFresh };

struct Run {
  PageLease page;
  int32_t first = 0;  // slot of the first token in the page
  int32_t count = 0;
  int32_t shift = 0;  // index here minus index where it was computed
  KvOrigin origin = KvOrigin::kFresh;
};

class Timeline {
 public:
  Timeline(PagePool* pool, TenantScope scope, Digest fp);
  Timeline(Timeline&&) noexcept;
  Timeline& operator=(Timeline&&) noexcept;
  ~Timeline();  // releases pages from the tail

  const TenantScope& scope() const { return scope_; }
  std::span<const TokenId> tokens() const { return tokens_; }
  int64_t size() const { return static_cast<int64_t>(tokens_.size()); }
  int64_t filled() const { return filled_; }  // indices 0 .. filled()-1 have their KV
  const Digest& taint() const { return taint_; }

  // Uses `count` tokens of a sealed page from slot `first` on at the indices that follow. Exact when
  // the run lies at home (whole page, index a multiple of 32, the chain's own next key, no taint before);
  // else shifted, with `shift` as in Run. `shift` other than 0 needs a model whose rotation is linear.
  // Only before the first own row is filled beyond it. kInvalid: out of the page, or negative home.
  Status Splice(PageLease page, int32_t first, int32_t count, int32_t shift);

  // Tokens whose KV this timeline computes itself. Pages come from the pool as rows are reached by
  // NextRows, so that a waiting request holds nothing.
  void Extend(std::span<const TokenId> tokens);

  // The next rows to compute (at most `max`), ascending; allocates their pages. kExhausted when the pool
  // has none: nothing is then lost, ask again later.
  struct Row {
    int64_t index;
    TokenId token;
    PageLease* page;  // of an own page; valid until the next non-const call
    int32_t slot;
  };
  Result<std::vector<Row>> NextRows(int64_t max);
  int64_t pending() const;  // rows not yet computed

  // The rows of the last NextRows up to `count` have their KV now; seals what became full.
  void Filled(int64_t count);

  // The runs over indices 0 .. end-1 as kernels read them, group `group`.
  void Views(int64_t end, int group, std::vector<KvRun>* out) const;

  // Another timeline over the same first `length` tokens (<= size()): shares sealed pages, copies
  // the filled rows of partial ones. kExhausted when the pool has no page for the copies.
  Result<Timeline> Fork(int64_t length) const;
  // Forgets the indices from `length` on.
  Status Truncate(int64_t length);

  // Chain keys of the sealed, exact pages from the start, as far as they go without a gap.
  std::vector<PageKey> ExactKeys() const;
  const std::vector<Run>& runs() const { return runs_; }
  // The partial page at the end, if rows of it are filled: its lease and the number of rows.
  struct Tail {
    PageLease page;  // empty when the timeline ends on a page boundary
    int32_t rows = 0;
  };
  Tail tail() const;

 private:
  struct Chain;  // key of the page before each block, and taint there
  PagePool* pool_;
  TenantScope scope_;
  Digest fp_;
  std::vector<TokenId> tokens_;
  std::vector<Run> runs_;
  int64_t filled_ = 0;
  Digest taint_;
};

}  // namespace holdfast

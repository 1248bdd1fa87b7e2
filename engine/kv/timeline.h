// Timeline: token ids and, for each, where its KV is. What the model sees.
//
// Index = position. Each index is covered by exactly one run: a slice of a page computed elsewhere
// (exact or shifted), or rows of this timeline's own pages, where row i lies in slot i mod 32. Own
// slots are filled in ascending order of index; `filled()` tells up to where everything is there. A
// page whose 32 rows this timeline computed itself is sealed under the chain key as soon as it is
// full; pages with holes at the seams of a splice stay private (partial) and are never keyed.
//
//   build: Timeline(pool, scope, fp) -> Splice(...)* and Extend(tokens) in order of index
//   fill:  NextRows(n) names the rows to compute next and their slots; Filled(n) after the step
//   draft: Extend(guess), NextRows, Filled for the rows whose tokens turned out right, one after
//          the other, and Truncate for the rest. A page is sealed by Filled alone, and Truncate
//          frees pages without a row that stays, so wrong guesses leave bytes beyond the filled
//          rows of a private page and nothing else
//
// Pages are copied on write: Fork and Truncate only share, and whoever writes next into a page that
// is sealed or has another holder gets a copy first (in NextRows). What lies in a page beyond the
// rows of a holder's runs is garbage to that holder.
//
// Taint: after the first shifted run every key of this timeline includes TaintAfter(...) of all
// such runs, so approximate KV can never answer an exact lookup. taint() is zero for an exact
// timeline.
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

// Never crosses a page boundary of the timeline: all its indices have the same index / 32.
struct Run {
  PageLease page;     // empty: own rows that NextRows has not reached yet
  int64_t begin = 0;  // index of the first token
  int32_t first = 0;  // slot of the first token in the page
  int32_t count = 0;
  int32_t shift = 0;  // index here minus index where it was computed
  KvOrigin origin = KvOrigin::kFresh;

  int64_t end() const { return begin + count; }
};

class Timeline {
 public:
  Timeline(PagePool* pool, TenantScope scope, Digest fp);
  Timeline(Timeline&&) noexcept = default;
  Timeline& operator=(Timeline&&) noexcept;
  ~Timeline();  // releases pages from the tail

  const TenantScope& scope() const { return scope_; }
  std::span<const TokenId> tokens() const { return tokens_; }
  int64_t size() const { return static_cast<int64_t>(tokens_.size()); }
  int64_t filled() const { return filled_; }  // indices 0 .. filled()-1 have their KV
  const Digest& taint() const { return taint_; }

  // Uses `count` tokens of a sealed page from slot `first` on at the indices that follow. No
  // approximation when the run lies at home: shift 0, and the page is the chain's own next (its key
  // says so, and the tokens before `first` in this block are the page's); such a run is kExact in
  // an exact timeline, kFresh in a tainted one. Else it is shifted, with `shift` as in Run (0 is
  // possible: the right place after other tokens); other than 0 it needs a model whose rotation is
  // linear. kInvalid: not sealed, out of the page, or a home (index - shift) that is negative or
  // not in slot `first`.
  Status Splice(PageLease page, int32_t first, int32_t count, int32_t shift);

  // Takes over a private page with the KV of `tokens` (1..31) in its first slots, as read from a
  // store under TailKey(chain_key, tokens, taint). kInvalid: the timeline doesn't end on a page
  // boundary, or the page is sealed or shared.
  Status AdoptTail(PageLease page, std::span<const TokenId> tokens);

  // Tokens whose KV this timeline computes itself. Pages come from the pool as rows are reached by
  // NextRows, so that a waiting request holds nothing.
  void Extend(std::span<const TokenId> tokens);

  // Takes pages of the pool in the place of pending rows: each block of 32 that lies wholly below
  // `end`, has no row filled, and is in the pool under the chain's key, also one with pending rows
  // before it. Returns the number of tokens.
  int64_t Reuse(int64_t end);

  // The next rows to compute (at most `max`, fewer when the pool runs out), ascending; allocates
  // their pages. kExhausted when the pool has none at all: nothing is then lost, ask again later.
  struct Row {
    int64_t index;
    TokenId token;
    PageLease* page;  // of an own page; valid until the next non-const call
    int32_t slot;
  };
  Result<std::vector<Row>> NextRows(int64_t max);
  int64_t pending() const { return pending_; }  // rows not yet computed
  // Key of the block that the next row lies in, zero while that block's tokens are not complete.
  // Timelines with equal keys here would compute the same page.
  PageKey NextBlockKey() const;

  // From now on no page that becomes full is sealed: what this timeline computes is its own alone,
  // and takes nobody's page in its place (replay, which judges stored pages by it).
  void KeepPrivate() { is_private_ = true; }

  // The next `count` rows of the last NextRows have their KV now; seals what became full.
  void Filled(int64_t count);

  // Replaces *out by the runs over indices 0 .. end-1 as kernels read them, group `group`.
  // Neighbours in one page are one run. Pages of all of them must be there (NextRows has reached
  // end-1).
  void Views(int64_t end, int group, std::vector<KvRun>* out) const;

  // Another timeline over the same first `length` tokens (<= size(), else kInvalid), sharing all
  // pages.
  Result<Timeline> Fork(int64_t length) const;
  // Forgets the indices from `length` on; kInvalid when length > size().
  Status Truncate(int64_t length);
  // Gives back the KV of all that tokens alone can make again, which is then pending: everything
  // after the last run that is not exact. Tokens stay.
  void ReleaseKv();

  // The chain's key after `blocks` whole blocks (0: the root); blocks <= size() / 32.
  const PageKey& chain_key(int64_t blocks) const;
  // Chain keys of the sealed, exact pages from the start, as far as they go without a gap.
  std::vector<PageKey> ExactKeys() const;
  const std::vector<Run>& runs() const { return runs_; }
  // The partial page at the end, if all its rows so far are in one page: what a store keeps as
  // kTail.
  struct Tail {
    PageLease page;                   // empty when there is none
    int32_t rows = 0;                 // filled rows, 1..31, from slot 0 on
    PageKey key, parent;              // key = TailKey(parent, tokens, taint)
    std::span<const TokenId> tokens;  // `rows` of them; borrowed from the timeline
  };
  Tail tail() const;

  // Asserts what this header promises, in time of the number of runs (debug builds).
  void CheckInvariants() const;

 private:
  struct Block {    // the chain after a block whose 32 tokens are known
    PageKey key;
    Digest taint;
  };

  void Append(Run run, std::span<const TokenId> tokens);
  size_t RunAt(int64_t index) const;
  Digest TaintBefore(int64_t block) const;
  bool AtHome(const PageLease& page, int32_t first, int32_t shift) const;
  bool IsOwnPrefix(const Run& run) const;
  Status MakeWritable(size_t r);
  Status CopyInto(const PageLease& source, PageLease* copy);
  void SkipThere();
  void FoldTaint(const Run& run);
  void RestoreTaint();
  void ReleasePages();

  PagePool* pool_;
  TenantScope scope_;
  Digest fp_;
  PageKey root_;
  std::vector<TokenId> tokens_;
  std::vector<Run> runs_;
  std::vector<Block> chain_;
  int64_t filled_ = 0;
  int64_t pending_ = 0;
  Digest taint_;
  bool is_private_ = false;
};

}  // namespace holdfast

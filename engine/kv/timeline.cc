// Runs are kept so that none crosses a block (32 indices of this timeline): a block's runs are then
// neighbours, the taint at a block's end is a fold over pieces that no later Truncate can change,
// and chain_[b] stays right for as long as block b is whole.
//
// A run is *own* while its rows are this timeline's to compute: its page is missing or private. A
// sealed page makes it a reader, whoever computed it.

#include "engine/kv/timeline.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <string>

namespace holdfast {
namespace {

constexpr int64_t kBlock = kPageTokens;

bool IsOwn(const Run& run) { return !run.page || !run.page.sealed(); }

}  // namespace

Timeline::Timeline(PagePool* pool, TenantScope scope, Digest fp)
    : pool_(pool), scope_(std::move(scope)), fp_(fp), root_(RootKey(fp, scope_, Digest{})) {}

Timeline& Timeline::operator=(Timeline&& other) noexcept {
  if (this == &other) return *this;
  ReleasePages();
  pool_ = other.pool_;
  scope_ = std::move(other.scope_);
  fp_ = other.fp_;
  root_ = other.root_;
  tokens_ = std::move(other.tokens_);
  runs_ = std::move(other.runs_);
  chain_ = std::move(other.chain_);
  filled_ = other.filled_;
  pending_ = other.pending_;
  taint_ = other.taint_;
  is_private_ = other.is_private_;
  return *this;
}

Timeline::~Timeline() { ReleasePages(); }

void Timeline::ReleasePages() {
  while (!runs_.empty()) runs_.pop_back();
}

size_t Timeline::RunAt(int64_t index) const {
  const auto after = std::upper_bound(runs_.begin(), runs_.end(), index,
                                      [](int64_t i, const Run& run) { return i < run.begin; });
  return static_cast<size_t>(after - runs_.begin()) - (after == runs_.begin() ? 0 : 1);
}

const PageKey& Timeline::chain_key(int64_t blocks) const {
  return blocks == 0 ? root_ : chain_[blocks - 1].key;
}

Digest Timeline::TaintBefore(int64_t block) const {
  return block == 0 ? Digest{} : chain_[block - 1].taint;
}

// Adds one run, which ends within its block, and extends the chain when the block is complete.
void Timeline::Append(Run run, std::span<const TokenId> tokens) {
  assert(run.count > 0 && run.begin == size());
  assert(run.begin / kBlock == (run.end() - 1) / kBlock);
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  FoldTaint(run);
  const bool there = run.page && run.page.sealed();
  if (!there) pending_ += run.count;
  if (there && filled_ == run.begin) filled_ = run.end();
  Run* last = runs_.empty() ? nullptr : &runs_.back();
  if (!there && !run.page && last != nullptr && IsOwn(*last) &&
      last->begin / kBlock == run.begin / kBlock) {
    last->count += run.count;
  } else {
    runs_.push_back(std::move(run));
  }
  if (size() % kBlock == 0) {
    const auto block = std::span(tokens_).last(kBlock);
    chain_.push_back({NextKey(chain_key(size() / kBlock - 1), block, taint_), taint_});
  }
}

void Timeline::FoldTaint(const Run& run) {
  if (run.origin != KvOrigin::kShifted) return;
  taint_ = TaintAfter(taint_, run.page.key(), run.first, run.count, run.shift);
}

// taint_ again from the chain and the runs of the last, incomplete block.
void Timeline::RestoreTaint() {
  taint_ = chain_.empty() ? Digest{} : chain_.back().taint;
  const int64_t begin = static_cast<int64_t>(chain_.size()) * kBlock;
  for (size_t r = RunAt(begin); r < runs_.size(); ++r) {
    if (runs_[r].begin >= begin) FoldTaint(runs_[r]);
  }
}

bool Timeline::AtHome(const PageLease& page, int32_t first, int32_t shift) const {
  if (shift != 0 || first != size() % kBlock) return false;
  const auto before = std::span(tokens_).last(first);
  if (!std::equal(before.begin(), before.end(), page.tokens().begin())) return false;
  const int64_t block = size() / kBlock;
  return NextKey(chain_key(block), page.tokens(), TaintBefore(block)) == page.key();
}

Status Timeline::Splice(PageLease page, int32_t first, int32_t count, int32_t shift) {
  if (!page || !page.sealed()) return Status::Invalid("splice: the page is not sealed");
  if (first < 0 || count <= 0 || count > kPageTokens - first) {
    return Status::Invalid("splice: slots " + std::to_string(first) + " + " +
                           std::to_string(count) + " are not in a page");
  }
  const int64_t home = size() - shift;
  if (home < 0 || home % kBlock != first) {
    return Status::Invalid("splice: index " + std::to_string(size()) + " less shift " +
                           std::to_string(shift) + " is not in slot " + std::to_string(first));
  }
  const KvOrigin own = taint_.IsZero() ? KvOrigin::kExact : KvOrigin::kFresh;
  const KvOrigin origin = AtHome(page, first, shift) ? own : KvOrigin::kShifted;
  const auto tokens = page.tokens();
  while (count > 0) {
    const auto n = static_cast<int32_t>(std::min<int64_t>(count, kBlock - size() % kBlock));
    Run run{page.Share(), size(), first, n, shift, origin};
    Append(std::move(run), tokens.subspan(first, n));
    first += n;
    count -= n;
  }
  CheckInvariants();
  return {};
}

Status Timeline::AdoptTail(PageLease page, std::span<const TokenId> tokens) {
  if (size() % kBlock != 0) return Status::Invalid("tail: the timeline ends inside a page");
  if (tokens.empty() || tokens.size() >= kBlock) return Status::Invalid("tail: not 1..31 tokens");
  if (!page || page.sealed() || page.leases() != 1) {
    return Status::Invalid("tail: the page is not private");
  }
  const auto count = static_cast<int32_t>(tokens.size());
  const bool all_there = filled_ == size();
  Append(Run{std::move(page), size(), 0, count, 0, KvOrigin::kFresh}, tokens);
  if (all_there) {
    filled_ = size();
    pending_ -= count;
  }
  CheckInvariants();
  return {};
}

void Timeline::Extend(std::span<const TokenId> tokens) {
  while (!tokens.empty()) {
    const auto slot = static_cast<int32_t>(size() % kBlock);
    const size_t n = std::min<size_t>(tokens.size(), kBlock - slot);
    Append(Run{{}, size(), slot, static_cast<int32_t>(n), 0, KvOrigin::kFresh}, tokens.first(n));
    tokens = tokens.subspan(n);
  }
  CheckInvariants();
}

// Moves filled_ over runs that are there.
void Timeline::SkipThere() {
  for (size_t r = RunAt(filled_); r < runs_.size() && !IsOwn(runs_[r]); ++r) {
    filled_ = runs_[r].end();
  }
}

int64_t Timeline::Reuse(int64_t end) {
  const int64_t before = pending_;
  for (size_t r = RunAt(filled_); r < runs_.size() && runs_[r].end() <= end; ++r) {
    Run& run = runs_[r];
    if (!IsOwn(run) || run.count != kBlock || run.begin < filled_) continue;
    const Block& block = chain_[run.begin / kBlock];
    if (!pool_->Contains(block.key)) continue;
    const auto tokens = std::span<const TokenId>(tokens_).subspan(run.begin, kBlock);
    PageLease page = pool_->Find(block.key, tokens);
    if (!page) continue;
    run.page = std::move(page);
    if (block.taint.IsZero()) run.origin = KvOrigin::kExact;
    pending_ -= kBlock;
  }
  SkipThere();
  CheckInvariants();
  return before - pending_;
}

PageKey Timeline::NextBlockKey() const {
  const auto block = static_cast<size_t>(filled_ / kBlock);
  return block < chain_.size() ? chain_[block].key : PageKey{};
}

// True when `run` holds what this timeline itself would have computed for the block up to its end.
bool Timeline::IsOwnPrefix(const Run& run) const {
  if (run.first != 0 || run.shift != 0 || run.begin % kBlock != 0) return false;
  const int64_t block = run.begin / kBlock;
  return NextKey(chain_key(block), run.page.tokens(), TaintBefore(block)) == run.page.key();
}

Status Timeline::CopyInto(const PageLease& source, PageLease* copy) {
  HOLDFAST_ASSIGN_OR_RETURN(*copy, pool_->Allocate(scope_));
  for (size_t g = 0; g < pool_->groups().size(); ++g) {
    const int group = static_cast<int>(g);
    std::memcpy(copy->payload(group), source.payload(group), pool_->groups()[g].PayloadBytes());
  }
  return {};
}

// Sees to it that own run `r` has a page that this timeline alone holds. May merge `r` into the run
// before it, which is then the own run; runs before that stay where they are.
Status Timeline::MakeWritable(size_t r) {
  Run& run = runs_[r];
  const int64_t block = run.begin / kBlock;
  size_t begin = r, end = r + 1;
  while (begin > 0 && runs_[begin - 1].begin / kBlock == block) --begin;
  while (end < runs_.size() && runs_[end].begin / kBlock == block) ++end;
  PageLease* own = nullptr;  // the block's own page, which several runs share at a seam
  uint32_t shares = 0;
  for (size_t i = begin; i < end; ++i) {
    if (!runs_[i].page || runs_[i].page.sealed()) continue;
    own = &runs_[i].page;
    ++shares;
  }
  if (own == nullptr) {
    // What is merged counts as filled, so that nothing before it may be pending.
    const bool merges =
        r == begin + 1 && runs_[begin].end() <= filled_ && IsOwnPrefix(runs_[begin]);
    Run* prefix = merges ? &runs_[begin] : nullptr;
    if (prefix == nullptr) {
      HOLDFAST_ASSIGN_OR_RETURN(run.page, pool_->Allocate(scope_));
      return {};
    }
    PageLease copy;
    HOLDFAST_RETURN_IF_ERROR(CopyInto(prefix->page, &copy));
    prefix->page = std::move(copy);
    prefix->count += run.count;
    prefix->origin = KvOrigin::kFresh;
    runs_.erase(runs_.begin() + static_cast<int64_t>(r));
    return {};
  }
  if (own->leases() != shares) {
    PageLease copy;
    HOLDFAST_RETURN_IF_ERROR(CopyInto(*own, &copy));
    for (size_t i = begin; i < end; ++i) {
      if (runs_[i].page && !runs_[i].page.sealed()) runs_[i].page = copy.Share();
    }
  }
  if (!run.page) run.page = own->Share();
  return {};
}

Result<std::vector<Timeline::Row>> Timeline::NextRows(int64_t max) {
  std::vector<Row> rows;
  const auto wanted = static_cast<size_t>(max);
  for (size_t r = RunAt(filled_); r < runs_.size() && rows.size() < wanted; ++r) {
    if (!IsOwn(runs_[r])) continue;
    const int64_t first = std::max(filled_, runs_[r].begin);
    if (Status s = MakeWritable(r); !s.ok()) {
      if (rows.empty()) return s;
      break;
    }
    if (r == runs_.size() || runs_[r].begin > first) --r;  // merged into the run before
    Run& run = runs_[r];
    const int64_t end = std::min(run.end(), first + max - static_cast<int64_t>(rows.size()));
    for (int64_t i = first; i < end; ++i) {
      rows.push_back({i, tokens_[i], &run.page, static_cast<int32_t>(i % kBlock)});
    }
  }
  CheckInvariants();
  return rows;
}

void Timeline::Filled(int64_t count) {
  assert(count <= pending_);
  while (count > 0) {
    Run& run = runs_[RunAt(filled_)];
    assert(IsOwn(run) && run.page);
    const int64_t n = std::min(count, run.end() - filled_);
    filled_ += n;
    pending_ -= n;
    count -= n;
    if (run.count == kBlock && filled_ == run.end() && !is_private_) {
      const int64_t block = run.begin / kBlock;
      const auto tokens = std::span<const TokenId>(tokens_).subspan(run.begin, kBlock);
      run.page = pool_->Seal(std::move(run.page), chain_[block].key, chain_key(block), tokens,
                             PageSource::kComputed);
    }
    SkipThere();
  }
  CheckInvariants();
}

void Timeline::Views(int64_t end, int group, std::vector<KvRun>* out) const {
  out->clear();
  out->reserve(runs_.size());
  for (const Run& run : runs_) {
    if (run.begin >= end) break;
    const auto count = static_cast<int32_t>(std::min(run.end(), end) - run.begin);
    const std::byte* page = run.page.payload(group);
    KvRun* last = out->empty() ? nullptr : &out->back();
    if (last != nullptr && last->page == page && last->shift == run.shift &&
        last->first + last->count == run.first) {
      last->count += count;
    } else {
      out->push_back({page, run.first, count, run.shift});
    }
  }
}

Result<Timeline> Timeline::Fork(int64_t length) const {
  if (length < 0 || length > size()) {
    return Status::Invalid("fork: length " + std::to_string(length) + " of " +
                           std::to_string(size()));
  }
  Timeline fork(pool_, scope_, fp_);
  fork.tokens_.assign(tokens_.begin(), tokens_.begin() + length);
  fork.chain_.assign(chain_.begin(), chain_.begin() + length / kBlock);
  for (const Run& run : runs_) {
    if (run.begin >= length) break;
    // A page without a filled row is of no use to the fork.
    const bool there = !IsOwn(run) || run.begin < filled_;
    const auto count = static_cast<int32_t>(std::min(run.end(), length) - run.begin);
    fork.runs_.push_back({there ? run.page.Share() : PageLease(), run.begin, run.first, count,
                          run.shift, run.origin});
    if (!IsOwn(run)) continue;
    fork.pending_ += std::max<int64_t>(0, run.begin + count - std::max(filled_, run.begin));
  }
  fork.filled_ = std::min(filled_, length);
  fork.is_private_ = is_private_;
  fork.RestoreTaint();
  fork.CheckInvariants();
  return fork;
}

Status Timeline::Truncate(int64_t length) {
  if (length < 0 || length > size()) {
    return Status::Invalid("truncate: length " + std::to_string(length) + " of " +
                           std::to_string(size()));
  }
  while (!runs_.empty() && runs_.back().end() > length) {
    Run& run = runs_.back();
    const int64_t keep = std::max<int64_t>(0, length - run.begin);
    if (IsOwn(run)) {
      const int64_t first = std::max(filled_, run.begin + keep);
      pending_ -= std::max<int64_t>(0, run.end() - first);
    }
    run.count = static_cast<int32_t>(keep);
    if (keep > 0) break;
    runs_.pop_back();
  }
  tokens_.resize(length);
  chain_.resize(length / kBlock);
  filled_ = std::min(filled_, length);
  RestoreTaint();
  CheckInvariants();
  return {};
}

void Timeline::ReleaseKv() {
  int64_t keep = 0;
  for (const Run& run : runs_) {
    if (run.origin != KvOrigin::kExact && run.origin != KvOrigin::kFresh) keep = run.end();
  }
  const std::vector<TokenId> rest(tokens_.begin() + keep, tokens_.end());
  Truncate(keep).IgnoreError();  // keep <= size()
  Extend(rest);
}

std::vector<PageKey> Timeline::ExactKeys() const {
  std::vector<PageKey> keys;
  for (const Run& run : runs_) {
    if (run.count != kBlock || IsOwn(run)) break;
    const Block& block = chain_[run.begin / kBlock];
    if (!block.taint.IsZero() || run.page.key() != block.key) break;
    keys.push_back(block.key);
  }
  return keys;
}

Timeline::Tail Timeline::tail() const {
  Tail tail;
  const int64_t block = filled_ / kBlock;
  if (filled_ % kBlock == 0) return tail;
  const Run& run = runs_[RunAt(block * kBlock)];
  const bool whole = run.begin == block * kBlock && run.end() >= filled_ && run.first == 0;
  if (!whole || (!IsOwn(run) && !IsOwnPrefix(run))) return tail;
  tail.page = run.page.Share();
  tail.rows = static_cast<int32_t>(filled_ - run.begin);
  tail.tokens = std::span<const TokenId>(tokens_).subspan(run.begin, tail.rows);
  tail.parent = chain_key(block);
  tail.key = TailKey(tail.parent, tail.tokens, TaintBefore(block));
  return tail;
}

void Timeline::CheckInvariants() const {
#ifndef NDEBUG
  int64_t index = 0, pending = 0;
  for (const Run& run : runs_) {
    assert(run.begin == index && run.count > 0);
    assert(run.begin / kBlock == (run.end() - 1) / kBlock);
    assert(run.first >= 0 && run.first + run.count <= kPageTokens);
    index = run.end();
    if (!IsOwn(run)) continue;
    assert(run.first == run.begin % kBlock && run.shift == 0);
    assert(run.page || run.begin >= filled_);
    pending += std::max<int64_t>(0, run.end() - std::max(filled_, run.begin));
  }
  assert(index == size() && pending == pending_ && filled_ <= size());
  assert(chain_.size() == tokens_.size() / kBlock);
  assert(filled_ == size() || IsOwn(runs_[RunAt(filled_)]));
#endif
}

}  // namespace holdfast

// AnchorIndex: where in a prompt stand tokens that some variant of a segment holds.
//
// Winnowing: a k-gram is kGram tokens; of every kWindow k-grams in a row the one with the smallest
// hash (the last of equals) is an anchor. Which one it is depends on the window's tokens alone, and
// a run of kGram + kWindow - 1 = kMinSegmentTokens tokens holds a whole window. So a prompt and a
// segment that share such a run have an anchor of it in common, wherever it stands and whatever
// precedes or follows: no separators, no alignment. About two anchors in 34 tokens are kept.
//
// Find looks up the prompt's anchors, compares tokens from there in both directions, and keeps what
// is kMinSegmentTokens long or more: a hash decides nothing.
//
// Bounds: one k-gram has at most kMaxPostings places in the index (the newest ones, of which
// kMaxPerSegment in one segment), so what is said above holds while no k-gram is more frequent;
// Find compares at most kMaxWorkPerToken tokens for each of the prompt's, and misses runs beyond.
// What is held in all is for the owner to bound: see bytes().
//
// One tenant's. Not thread-safe; Find is const and may run in several threads at once.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "stitcher/segment.h"
#include "stitcher/token_hash.h"

namespace holdfast {

class AnchorIndex {
 public:
  static constexpr int kGram = 32;
  static constexpr int kWindow = kMinSegmentTokens - kGram + 1;
  static constexpr size_t kMaxPostings = 32, kMaxPerSegment = 8;
  static constexpr int64_t kMaxWorkPerToken = 256;

  // Variants of one segment hold the same tokens, as far as each goes.
  void Add(std::shared_ptr<const Variant> variant);
  void Remove(const Variant& variant);  // by its row; nothing where it is not there

  // Ascending disjoint runs inside [begin, end), each kMinSegmentTokens long or more and as long as
  // its neighbours let it be. Where several segments hold the same tokens the longer run goes
  // first. Of several variants: the longest left context in common, then the lowest generation,
  // then the longest run, then the newest.
  std::vector<FoundRun> Find(std::span<const TokenId> tokens, int64_t begin, int64_t end) const;

  size_t bytes() const;  // of memory, about

 private:
  struct Entry {
    std::vector<std::shared_ptr<const Variant>> variants;  // one at least
    std::shared_ptr<const Variant> indexed;                // the longest one: its body has anchors
    uint64_t serial = 0;                                   // of its posting: the newest is greatest
  };
  struct Posting {
    const Entry* entry;
    int64_t at;  // in the body
  };
  struct Match {
    const Entry* entry;
    int64_t begin, end;  // in the prompt
    int64_t offset;      // of `begin` in the body
    FoundRun best;
  };
  // A prompt that is looked through.
  struct Prompt {
    std::span<const TokenId> tokens;  // up to `end`
    int64_t begin, end;
    TokenHashes hashes;
  };
  struct SameHash {
    size_t operator()(uint64_t h) const { return h; }
  };

  void Post(Entry* entry);
  void Unpost(const Entry* entry);
  std::vector<Match> Matches(const Prompt& prompt) const;
  static FoundRun Pick(const Prompt& prompt, const Match& of, int64_t begin, int64_t end);
  static int64_t SharedLeft(const Prompt& prompt, const Variant& v, int64_t begin, int64_t offset);

  std::map<SegmentId, Entry> entries_;
  std::unordered_multimap<uint64_t, Posting, SameHash> postings_;
  size_t tokens_ = 0;  // of all variants
  uint64_t serials_ = 0;
};

}  // namespace holdfast

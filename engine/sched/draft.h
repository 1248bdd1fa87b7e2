// Speculation: tokens that may come next, guessed from the sequence's own, and how many of them are
// worth a row. Pure; nothing here changes what a sequence says, since each draft is only kept where
// the sampler says the same token (Sequence).
//
// An agent says much that it has read: a file with one edit, a tool's output, a name. So the draft
// is what followed the last time that the tokens now at the end were there.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/base/types.h"
#include "engine/sched/pace.h"

namespace holdfast {

inline constexpr int64_t kDraftTokensMax = 16;

// Finds earlier occurrences of the end of a growing list of tokens. Memory: 8 to 20 bytes per
// token; Follow takes constant time per new token, Find at most kCandidates comparisons.
class DraftIndex {
 public:
  static constexpr int64_t kMatchLeast = 2, kMatchMost = 32, kCandidates = 256;

  struct Match {
    int64_t next = 0;    // index of the token that followed
    int64_t length = 0;  // tokens that agree, at most kMatchMost; 0 = no match
  };

  // Tokens seen so far are a prefix of `tokens`.
  void Follow(std::span<const TokenId> tokens);
  // The longest earlier occurrence of the end of `tokens`, as given to the last Follow; of equally
  // long ones the most recent.
  Match Find(std::span<const TokenId> tokens) const;

 private:
  size_t Bucket(TokenId a, TokenId b) const;
  void Insert(std::span<const TokenId> tokens, int64_t end);

  std::vector<int32_t> newest_;   // by hash of two tokens: index after them, 0 = none
  std::vector<int32_t> earlier_;  // by index: the index before it with the same hash
};

// `count` tokens that follow a match. They may run on into themselves: after "abab" come "abab...".
std::vector<TokenId> DraftFrom(std::span<const TokenId> tokens, const DraftIndex::Match& match,
                               int64_t count);

// How likely a draft token is right when those before it were, by the length of its match: what
// happened to the last ten or so of the sequence.
class Acceptance {
 public:
  double Rate(int64_t match_length) const { return Of(match_length).Rate(); }
  // Of a draft `accepted` tokens were right, and the next, if `refused`, was wrong.
  void Learn(int64_t match_length, int64_t accepted, bool refused);

 private:
  struct Record {
    double right, tried;
    double Rate() const { return right / tried; }
  };
  static size_t Class(int64_t match_length);
  const Record& Of(int64_t match_length) const { return records_[Class(match_length)]; }
  // Matches of 2-3, 4-7, 8 and more tokens; at first as if two had been tried.
  std::array<Record, 3> records_{{{0.8, 2}, {1.2, 2}, {1.6, 2}}};
};

// A pass as it is without the draft in question.
struct PassSoFar {
  int64_t rows = 0;
  double tokens = 0;  // that it will say, on average
};
// The number of draft rows, at most `most`, with which the pass says the most tokens per time; 0
// when they would not bring tokens at 1.15 times the pass's rate.
int64_t DraftLength(const PassSoFar& pass, double rate, int64_t most, const PassCost& cost);
// Tokens that `drafts` rows bring on average.
double DraftGain(double rate, int64_t drafts);

}  // namespace holdfast

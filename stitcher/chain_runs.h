// Runs of a prompt that chains computed before hold at another place: an edited history finds what
// follows the edit so, whole and across messages. Pure.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "stitcher/segment.h"

namespace holdfast {

// The beginning of an exact chain whose pages are there: `keys` of whole pages, `tokens` theirs
// (more may follow).
struct ExactChain {
  PageKey root;
  std::vector<TokenId> tokens;
  std::vector<PageKey> keys;
  std::span<const TokenId> paged() const {
    return std::span(tokens).first(keys.size() * kPageTokens);
  }
};

// Ascending disjoint runs behind the longest beginning that the prompt shares with a chain, as
// AnchorIndex::Find gives them. Each has an in-context variant of its own, a slice of one chain,
// whose whole left chain is known; row and segment are not set.
struct ChainRuns {
  int64_t shared = 0;  // the prompt's first tokens that a chain begins with
  std::vector<FoundRun> runs;
};
ChainRuns FindInChains(std::span<const ExactChain> chains, std::span<const TokenId> prompt);

}  // namespace holdfast

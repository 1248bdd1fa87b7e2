// Variants without pages: the tokens alone, as if an exact chain of them had been computed.
#pragma once

#include <memory>
#include <random>
#include <span>
#include <vector>

#include "stitcher/segment.h"
#include "stitcher/token_hash.h"

namespace holdfast {

inline std::vector<TokenId> RandomTokens(std::mt19937_64& rng, int64_t count, TokenId vocabulary) {
  std::vector<TokenId> out(static_cast<size_t>(count));
  for (TokenId& t : out) t = static_cast<TokenId>(rng() % static_cast<uint64_t>(vocabulary));
  return out;
}

// The slice [begin, end) of a chain of these tokens; `chain` reaches to the end of the last page.
inline Variant SliceOfTokens(std::span<const TokenId> chain, int64_t begin, int64_t end) {
  Variant v = SliceOfChain(chain, PageKey{}, begin, end);
  v.left = SuffixHashes(TokenHashes(chain), begin);
  return v;
}

// `body` after `left`, and so much of a page behind them as it takes.
inline Variant VariantAfter(std::span<const TokenId> left, std::span<const TokenId> body) {
  std::vector<TokenId> chain(left.begin(), left.end());
  chain.insert(chain.end(), body.begin(), body.end());
  const size_t end = chain.size();
  chain.resize((end + kPageTokens - 1) / kPageTokens * kPageTokens, 1);
  return SliceOfTokens(chain, static_cast<int64_t>(left.size()), static_cast<int64_t>(end));
}

inline std::shared_ptr<const Variant> Named(Variant v, int64_t row, uint8_t segment) {
  v.row = row;
  v.segment.digest.bytes.fill(segment);
  return std::make_shared<const Variant>(std::move(v));
}

}  // namespace holdfast

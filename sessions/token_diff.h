// How two lists of tokens differ: pure.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/base/types.h"

namespace holdfast {

// Tokens [a, a + a_count) of the first list stand where [b, b + b_count) of the second do. Equal:
// the counts are, and the tokens.
struct DiffHunk {
  enum class Kind : uint8_t { kEqual, kChanged } kind = Kind::kEqual;
  int64_t a = 0, a_count = 0, b = 0, b_count = 0;
  bool operator==(const DiffHunk&) const = default;
};

// Tables beyond this many cells are not made: what lies between the common beginning and the common
// end is then one change.
inline constexpr int64_t kDiffCells = 16 << 20;

// Equal and changed hunks in turn, ascending, that cover both lists; a longest common subsequence
// stays. Empty for two empty lists.
std::vector<DiffHunk> DiffTokens(std::span<const TokenId> a, std::span<const TokenId> b);

}  // namespace holdfast

#include "sessions/token_diff.h"

#include <algorithm>

namespace holdfast {
namespace {

void Append(DiffHunk::Kind kind, int64_t a_count, int64_t b_count, std::vector<DiffHunk>* out) {
  if (a_count == 0 && b_count == 0) return;
  if (!out->empty() && out->back().kind == kind) {
    out->back().a_count += a_count;
    out->back().b_count += b_count;
    return;
  }
  const DiffHunk last = out->empty() ? DiffHunk{} : out->back();
  out->push_back({kind, last.a + last.a_count, a_count, last.b + last.b_count, b_count});
}

// The classic table: length[i][j] of the longest common subsequence of a[i..] and b[j..].
void AppendByTable(std::span<const TokenId> a, std::span<const TokenId> b,
                   std::vector<DiffHunk>* out) {
  using Kind = DiffHunk::Kind;
  const size_t width = b.size() + 1;
  std::vector<int32_t> length((a.size() + 1) * width, 0);
  for (size_t i = a.size(); i-- > 0;) {
    for (size_t j = b.size(); j-- > 0;) {
      length[i * width + j] = a[i] == b[j] ? length[(i + 1) * width + j + 1] + 1
                                           : std::max(length[(i + 1) * width + j],
                                                      length[i * width + j + 1]);
    }
  }
  size_t i = 0, j = 0;
  while (i < a.size() && j < b.size()) {
    if (a[i] == b[j]) {
      Append(Kind::kEqual, 1, 1, out);
      ++i, ++j;
    } else if (length[(i + 1) * width + j] >= length[i * width + j + 1]) {
      Append(Kind::kChanged, 1, 0, out);
      ++i;
    } else {
      Append(Kind::kChanged, 0, 1, out);
      ++j;
    }
  }
  Append(Kind::kChanged, static_cast<int64_t>(a.size() - i), static_cast<int64_t>(b.size() - j),
         out);
}

}  // namespace

std::vector<DiffHunk> DiffTokens(std::span<const TokenId> a, std::span<const TokenId> b) {
  using Kind = DiffHunk::Kind;
  const int64_t begin = std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
  a = a.subspan(begin);
  b = b.subspan(begin);
  const int64_t end = std::mismatch(a.rbegin(), a.rend(), b.rbegin(), b.rend()).first - a.rbegin();
  a = a.first(a.size() - end);
  b = b.first(b.size() - end);
  std::vector<DiffHunk> out;
  Append(Kind::kEqual, begin, begin, &out);
  const auto cells = static_cast<int64_t>((a.size() + 1) * (b.size() + 1));
  if (cells > kDiffCells) {
    Append(Kind::kChanged, static_cast<int64_t>(a.size()), static_cast<int64_t>(b.size()), &out);
  } else {
    AppendByTable(a, b, &out);
  }
  Append(Kind::kEqual, end, end, &out);
  return out;
}

}  // namespace holdfast

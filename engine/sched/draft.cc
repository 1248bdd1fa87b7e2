// Matches are found as LZ77 finds them: a chain per pair of tokens from the newest occurrence to
// the oldest. A suffix automaton would find the longest match in constant time too, but takes ten
// times the memory and knows the first occurrence, not the last.
#include "engine/sched/draft.h"

#include <algorithm>
#include <bit>
#include <cassert>

namespace holdfast {
namespace {

constexpr double kForget = 0.9;       // per token tried
constexpr double kWorthwhile = 1.15;  // tokens per time of draft rows, over those without

}  // namespace

size_t DraftIndex::Bucket(TokenId a, TokenId b) const {
  const uint64_t pair = uint64_t{static_cast<uint32_t>(a)} << 32 | static_cast<uint32_t>(b);
  return (pair * 0x9E3779B97F4A7C15u >> 32) & (newest_.size() - 1);
}

void DraftIndex::Insert(std::span<const TokenId> tokens, int64_t end) {
  int32_t& newest = newest_[Bucket(tokens[end - 2], tokens[end - 1])];
  earlier_[end] = newest;
  newest = static_cast<int32_t>(end);
}

// `earlier_` covers the ends 0 .. size; an end is entered when the token after it is known.
void DraftIndex::Follow(std::span<const TokenId> tokens) {
  const auto size = static_cast<int64_t>(tokens.size());
  int64_t known = static_cast<int64_t>(earlier_.size());
  if (known >= size) return;
  earlier_.resize(tokens.size());
  if (newest_.size() < tokens.size()) {
    newest_.assign(std::bit_ceil(std::max<size_t>(2 * tokens.size(), 256)), 0);
    known = 0;
  }
  for (int64_t end = std::max(known, kMatchLeast); end < size; ++end) Insert(tokens, end);
}

DraftIndex::Match DraftIndex::Find(std::span<const TokenId> tokens) const {
  Match best;
  const auto size = static_cast<int64_t>(tokens.size());
  assert(static_cast<int64_t>(earlier_.size()) == size);
  if (size <= kMatchLeast) return best;
  int64_t end = newest_[Bucket(tokens[size - 2], tokens[size - 1])];
  for (int64_t i = 0; end != 0 && i < kCandidates && best.length < kMatchMost; ++i) {
    int64_t length = 0;
    const int64_t most = std::min(end, kMatchMost);
    while (length < most && tokens[end - 1 - length] == tokens[size - 1 - length]) ++length;
    if (length >= kMatchLeast && length > best.length) best = {end, length};
    end = earlier_[end];
  }
  return best;
}

std::vector<TokenId> DraftFrom(std::span<const TokenId> tokens, const DraftIndex::Match& match,
                               int64_t count) {
  std::vector<TokenId> draft;
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(match.next + i);
    draft.push_back(at < tokens.size() ? tokens[at] : draft[at - tokens.size()]);
  }
  return draft;
}

size_t Acceptance::Class(int64_t match_length) {
  return match_length < 4 ? 0 : match_length < 8 ? 1 : 2;
}

void Acceptance::Learn(int64_t match_length, int64_t accepted, bool refused) {
  Record& record = records_[Class(match_length)];
  const auto add = [&](double right) {
    record = {record.right * kForget + right, record.tried * kForget + 1};
  };
  for (int64_t i = 0; i < accepted; ++i) add(1);
  if (refused) add(0);
}

double DraftGain(double rate, int64_t drafts) {
  double gain = 0, all_right = 1;
  for (int64_t k = 0; k < drafts; ++k) gain += all_right *= rate;
  return gain;
}

int64_t DraftLength(const PassSoFar& pass, double rate, int64_t most, const PassCost& cost) {
  const double ms = cost.ms(pass.rows), needed = kWorthwhile * pass.tokens / ms;
  int64_t best = 0;
  double best_speed = 0;
  for (int64_t k = 1; k <= most; ++k) {
    const double gain = DraftGain(rate, k), with_ms = cost.ms(pass.rows + k);
    const double speed = (pass.tokens + gain) / with_ms;
    if (gain <= needed * (with_ms - ms) || speed <= best_speed) continue;
    best = k;
    best_speed = speed;
  }
  return best;
}

}  // namespace holdfast

// Matches are found as LZ77 finds them: a chain per pair of tokens from the newest occurrence to
// the oldest. A suffix automaton would find the longest match in constant time too, but takes ten
// times the memory and knows the first occurrence, not the last.
#include "engine/sched/draft.h"

#include <algorithm>
#include <bit>
#include <cassert>

namespace holdfast {
namespace {

constexpr double kFirstRowShare = 0.1;  // of the first row's time, for a row never measured
constexpr double kCostWeight = 0.25;    // of a new measurement
constexpr double kOutlier = 2;          // a pass that took longer than this was interrupted
constexpr double kForget = 0.9;         // per token tried
constexpr double kWorthwhile = 1.15;    // tokens per time of draft rows, over those without

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

void PassCost::Measured(int64_t rows, double ms) {
  if (rows <= 0 || ms <= 0) return;
  const auto n = static_cast<uint64_t>(rows - 1);
  Point& point = points_[std::min<size_t>(std::bit_width(n), points_.size() - 1)];
  const auto r = static_cast<double>(rows);
  if (point.rows == 0) {
    point = {r, ms};
    return;
  }
  const double counted = std::min(ms, kOutlier * point.ms);
  point.rows += kCostWeight * (r - point.rows);
  point.ms += kCostWeight * (counted - point.ms);
}

double PassCost::ms(int64_t rows) const {
  const auto r = static_cast<double>(rows);
  Point before, last;  // the two known ones up to `rows`, or the last two
  for (Point point : points_) {
    if (point.rows == 0) continue;
    point.ms = std::max(point.ms, last.ms);  // more rows never take less
    before = last;
    last = point;
    if (r <= last.rows) break;
  }
  if (last.rows == 0) last = {1, 1};
  if (before.rows == 0) {
    const double row = last.ms / (1 / kFirstRowShare - 1 + last.rows);
    return last.ms + row * (r - last.rows);
  }
  return before.ms + (last.ms - before.ms) * (r - before.rows) / (last.rows - before.rows);
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

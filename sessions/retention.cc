#include "sessions/retention.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <unordered_map>
#include <utility>

namespace holdfast {
namespace {

constexpr double kEndedTtl = 0.25;

// What is compared before the score.
enum class Class : uint8_t { kClosed, kSuperseded, kUsual, kPinned, kInUse };

Class ClassOf(const HeadFacts& f) {
  switch (f.state) {
    case HeadState::kRunning:
    case HeadState::kRestoring: return Class::kInUse;
    case HeadState::kClosed: return Class::kClosed;
    default: break;
  }
  if (f.pinned) return Class::kPinned;
  return f.state == HeadState::kSuperseded ? Class::kSuperseded : Class::kUsual;
}

double Decay(int64_t idle_ms) {
  return std::exp2(-static_cast<double>(std::max<int64_t>(idle_ms, 0)) / kHalfLifeMs);
}

}  // namespace

std::string_view HeadStateName(HeadState state) {
  constexpr std::array<std::string_view, 8> kNames = {
      "resident", "warm", "cold", "restoring", "running", "tool-wait", "superseded", "closed"};
  return kNames[static_cast<size_t>(state)];
}

double ResumeChance(const HeadFacts& f, int64_t now_ms) {
  const Class c = ClassOf(f);
  if (c == Class::kInUse) return 1;
  if (c == Class::kClosed) return 0;
  double idle = Decay(now_ms - f.last_use_ms);
  if (f.keep_until_ms > now_ms) idle = std::max(idle, 0.5);
  if (f.keep_until_ms > 0 && f.keep_until_ms <= now_ms) idle *= kEndedTtl;
  if (f.expected_ms == 0) return idle;
  const int64_t ahead = f.expected_ms - now_ms;
  if (ahead > kSoonMs) {
    return std::max(idle, kExpected * kSoonMs / static_cast<double>(ahead));
  }
  const int64_t slack = std::max(kSoonMs, f.expected_ms - f.last_use_ms);
  return std::max(idle, kExpected * Decay(-ahead - slack));
}

double Score(const Candidate& c, int64_t now_ms) {
  return ResumeChance(c.facts, now_ms) * c.seconds /
         static_cast<double>(std::max<int64_t>(c.bytes, 1));
}

std::vector<size_t> DropOrder(std::span<const Candidate> candidates, int64_t now_ms) {
  // A head is worth at least what the heads that continue it are worth, and stays longer than they.
  struct Rank {
    std::pair<Class, double> worth;
    int depth = 0;
  };
  std::vector<Rank> ranks(candidates.size());
  for (size_t i = 0; i < candidates.size(); ++i) {
    ranks[i].worth = {ClassOf(candidates[i].facts), Score(candidates[i], now_ms)};
  }
  const auto own = ranks;
  for (size_t i = 0; i < candidates.size(); ++i) {
    for (int p = candidates[i].parent; p >= 0; p = candidates[p].parent) {
      ++ranks[i].depth;
      ranks[p].worth = std::max(ranks[p].worth, own[i].worth);
    }
  }
  std::vector<size_t> order(candidates.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    if (ranks[a].worth != ranks[b].worth) return ranks[a].worth < ranks[b].worth;
    return ranks[a].depth > ranks[b].depth;
  });
  return order;
}

bool IsSuperseded(const BranchUse& branch, const BranchUse& by) {
  return by.parent == branch.name && by.parent_tokens < branch.tokens &&
         by.parent_tokens * 2 > branch.tokens && by.updated_ms > branch.updated_ms;
}

std::vector<size_t> Superseded(std::span<const BranchUse> branches) {
  std::unordered_map<std::string_view, size_t> by_name;
  for (size_t i = 0; i < branches.size(); ++i) by_name.emplace(branches[i].name, i);
  std::vector<size_t> out;
  for (const BranchUse& by : branches) {
    const auto left = by_name.find(by.parent);
    if (left == by_name.end() || !IsSuperseded(branches[left->second], by)) continue;
    out.push_back(left->second);
    by_name.erase(left);  // once is enough
  }
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace holdfast

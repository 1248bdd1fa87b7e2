#include "engine/sched/batch.h"

#include <algorithm>
#include <map>

namespace holdfast {
namespace {

// Candidates of one tenant, as indices.
struct Group {
  uint64_t last_step = 0;
  uint64_t first_id = UINT64_MAX;
  std::vector<size_t> members;
};

// Tenants that waited longest come first.
std::vector<Group> GroupByTenant(std::span<const Candidate> candidates,
                                 std::span<const size_t> members) {
  std::map<std::string_view, Group> by_tenant;
  for (size_t i : members) {
    Group& group = by_tenant[candidates[i].tenant];
    group.last_step = std::max(group.last_step, candidates[i].last_step);
    group.first_id = std::min(group.first_id, candidates[i].id);
    group.members.push_back(i);
  }
  std::vector<Group> groups;
  for (auto& [tenant, group] : by_tenant) groups.push_back(std::move(group));
  std::sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) {
    return a.last_step != b.last_step ? a.last_step < b.last_step : a.first_id < b.first_id;
  });
  return groups;
}

int64_t RowsOf(const Candidate& c) {
  return c.chunk > 0 ? std::min(c.pending, c.chunk) : c.pending;
}

// Takes out all but the oldest of those whose next page is the same.
std::vector<size_t> WithoutFollowers(std::span<const Candidate> candidates) {
  std::map<PageKey, uint64_t> leader;
  for (const Candidate& c : candidates) {
    if (c.next_block.IsZero()) continue;
    const auto [it, fresh] = leader.try_emplace(c.next_block, c.id);
    it->second = std::min(it->second, c.id);
  }
  std::vector<size_t> rest;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const Candidate& c = candidates[i];
    if (c.next_block.IsZero() || leader.at(c.next_block) == c.id) rest.push_back(i);
  }
  return rest;
}

// Hands `part` rows to one tenant's members (ascending id); returns what they can't use.
int64_t Share(std::span<const Candidate> candidates, const Group& group, int64_t part,
              std::vector<int64_t>* rows) {
  const auto left = [&](size_t i) { return RowsOf(candidates[i]) - (*rows)[i]; };
  const auto give = [&](size_t i, int64_t most) {
    const int64_t n = std::min({left(i), most, part});
    (*rows)[i] += n;
    part -= n;
  };
  const auto fewest = *std::min_element(
      group.members.begin(), group.members.end(),
      [&](size_t a, size_t b) { return candidates[a].pending < candidates[b].pending; });
  const int64_t half = part / 2;
  give(fewest, half);
  for (size_t i : group.members) give(i, part);
  return part;
}

}  // namespace

std::vector<Pick> PickShort(std::span<const Candidate> candidates, int64_t rows_max) {
  std::vector<size_t> all(candidates.size());
  for (size_t i = 0; i < all.size(); ++i) all[i] = i;
  std::vector<Group> groups = GroupByTenant(candidates, all);
  for (Group& group : groups) {
    std::sort(group.members.begin(), group.members.end(), [&](size_t a, size_t b) {
      const Candidate &x = candidates[a], &y = candidates[b];
      return x.last_step != y.last_step ? x.last_step < y.last_step : x.id < y.id;
    });
  }
  std::vector<Pick> picks;
  for (size_t round = 0; rows_max > 0 && picks.size() < candidates.size(); ++round) {
    for (const Group& group : groups) {
      if (round >= group.members.size() || rows_max <= 0) continue;
      const size_t i = group.members[round];
      const int64_t rows = std::min(RowsOf(candidates[i]), rows_max);
      picks.push_back({i, rows});
      rows_max -= rows;
    }
  }
  return picks;
}

std::vector<Pick> PickLong(std::span<const Candidate> candidates, int64_t rows_max) {
  std::vector<Group> groups = GroupByTenant(candidates, WithoutFollowers(candidates));
  for (Group& group : groups) {
    std::sort(group.members.begin(), group.members.end(),
              [&](size_t a, size_t b) { return candidates[a].id < candidates[b].id; });
  }
  std::vector<int64_t> rows(candidates.size(), 0);
  // Each round hands out what is left in equal parts; it ends when nobody can use any.
  for (int64_t left = rows_max, before = 0; left > 0 && left != before;) {
    before = left;
    for (size_t g = 0; g < groups.size(); ++g) {
      const auto waiting = static_cast<int64_t>(groups.size() - g);
      const int64_t part = (left + waiting - 1) / waiting;
      left -= part - Share(candidates, groups[g], part, &rows);
    }
  }
  std::vector<Pick> picks;
  for (const Group& group : groups) {
    for (size_t i : group.members) {
      if (rows[i] > 0) picks.push_back({i, rows[i]});
    }
  }
  return picks;
}

double MeanContext(std::span<const Candidate> candidates, std::span<const Pick> picks) {
  double rows = 0, sum = 0;
  for (const Pick& pick : picks) {
    const auto n = static_cast<double>(pick.rows);
    rows += n;
    sum += n * (static_cast<double>(candidates[pick.candidate].context) + (n - 1) / 2);
  }
  return rows == 0 ? 0 : sum / rows;
}

std::vector<size_t> PickAdmission(std::span<const Waiting> waiting, const Room& room) {
  if (!room.is_open()) return {};
  std::vector<size_t> order(waiting.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const Waiting &x = waiting[a], &y = waiting[b];
    return x.tenant_running != y.tenant_running ? x.tenant_running < y.tenant_running
                                                : x.id < y.id;
  });
  for (size_t n = 0; n < order.size(); ++n) {
    const Waiting& next = waiting[order[n]];
    if (room.running == 0 || next.pages <= room.pages) {
      order.resize(n + 1);
      return order;
    }
    if (next.passed_over >= kPassedOverMax) break;
  }
  return {};
}

size_t PickVictim(std::span<const Holder> holders) {
  size_t victim = kNobody;
  for (size_t i = 0; i < holders.size(); ++i) {
    if (holders[i].pages == 0) continue;
    if (victim == kNobody || holders[i].id > holders[victim].id) victim = i;
  }
  return victim;
}

}  // namespace holdfast

#include "sessions/head_table.h"

#include <algorithm>
#include <cassert>
#include <utility>

namespace holdfast {
namespace {

bool IsWithoutTurn(HeadState s) {
  return s != HeadState::kRunning && s != HeadState::kRestoring && s != HeadState::kClosed;
}

Digest ToolKey(const std::string& tenant, const std::string& tool) {
  const std::string both = tenant + '\0' + tool;
  return Sha256(both.data(), both.size());
}

}  // namespace

void HeadTable::CheckInvariants([[maybe_unused]] const Head& h) {
#ifndef NDEBUG
  switch (h.state) {
    case HeadState::kResident:
    case HeadState::kToolWait: assert(h.timeline && !h.turn && !h.prefetch); break;
    case HeadState::kWarm:
    case HeadState::kCold: assert(!h.timeline && !h.turn && !h.prefetch); break;
    case HeadState::kRestoring: assert(h.turn != h.prefetch && (h.turn || !h.timeline)); break;
    case HeadState::kRunning: assert(h.turn && !h.prefetch); break;
    case HeadState::kSuperseded: assert(!h.turn && !h.prefetch); break;
    case HeadState::kClosed: assert(false && "closed heads are forgotten"); break;
  }
  assert(h.state != HeadState::kToolWait || (!h.tools.empty() && h.memory.expected_ms > 0));
#endif
}

// The head's entry, made where there is none.
HeadTable::Head& HeadTable::Enter(const HeadId& id, const HeadMemory& memory) {
  const auto [it, fresh] = heads_.try_emplace(id.branch);
  if (!fresh) return it->second;
  it->second.id = id;
  it->second.memory = memory;
  if (heads_.size() > kMaxHeads) ForgetOldest();
  return it->second;
}

HeadTable::Head* HeadTable::Known(int64_t branch) {
  const auto it = heads_.find(branch);
  return it == heads_.end() ? nullptr : &it->second;
}

void HeadTable::ForgetOldest() {
  auto oldest = heads_.end();
  for (auto it = heads_.begin(); it != heads_.end(); ++it) {
    const Head& h = it->second;
    if (h.turn || h.timeline || h.prefetch || h.last_use_ms == 0) continue;  // 0: just entered
    if (oldest == heads_.end() || h.last_use_ms < oldest->second.last_use_ms) oldest = it;
  }
  if (oldest != heads_.end()) heads_.erase(oldest);
}

// ---- transitions -------------------------------------------------------------------------------

void HeadTable::TurnBegun(const HeadId& id, const HeadMemory& memory, int64_t now_ms) {
  std::lock_guard lock(mu_);
  Head& h = Enter(id, memory);
  if (!h.tools.empty()) ObservePause(h, now_ms - h.last_use_ms);
  h.tools.clear();
  h.memory.expected_ms = 0;
  h.last_use_ms = now_ms;
  h.turn = true;
  h.prefetch = false;  // what it has loaded is in the pool, the rest is the turn's to load
  h.state = HeadState::kRestoring;
  CheckInvariants(h);
}

void HeadTable::TurnRestored(int64_t branch, std::vector<PageKey> loading) {
  std::lock_guard lock(mu_);
  Head* h = Known(branch);
  if (h == nullptr || h->state != HeadState::kRestoring || !h->turn) return;
  h->state = HeadState::kRunning;
  if (!loading.empty()) h->keys = std::move(loading);
  CheckInvariants(*h);
}

void HeadTable::TurnCommitted(int64_t branch, const Committed& what) {
  std::lock_guard lock(mu_);
  Head* h = Known(branch);
  if (h == nullptr || !h->turn) return;
  h->turn = false;
  h->timeline = true;
  h->last_use_ms = what.now_ms;
  h->memory = what.memory;
  h->keys.clear();
  for (const ToolCall& call : what.calls) h->tools.push_back(call.name);
  h->state = HeadState::kResident;
  if (!h->tools.empty()) {
    h->state = HeadState::kToolWait;
    if (h->memory.expected_ms == 0) {
      h->memory.expected_ms = what.now_ms + PauseLocked(h->id.tenant, h->tools);
    }
  }
  CheckInvariants(*h);
}

void HeadTable::TurnAborted(int64_t branch, Kept kept) {
  std::lock_guard lock(mu_);
  Head* h = Known(branch);
  if (h == nullptr || !h->turn) return;
  h->turn = false;
  h->timeline = kept == Kept::kTimeline;
  h->state = h->timeline ? HeadState::kResident : HeadState::kCold;
  CheckInvariants(*h);
}

void HeadTable::LetGo(int64_t branch, std::vector<PageKey> keys) {
  std::lock_guard lock(mu_);
  Head* h = Known(branch);
  if (h == nullptr || h->turn || h->prefetch) return;
  h->timeline = false;
  h->total = static_cast<int64_t>(keys.size());
  h->keys = std::move(keys);
  if (h->state != HeadState::kSuperseded) h->state = HeadState::kWarm;
  CheckInvariants(*h);
}

void HeadTable::Supersede(int64_t branch) {
  std::lock_guard lock(mu_);
  Head* h = Known(branch);
  if (h == nullptr || !IsWithoutTurn(h->state)) return;
  h->state = HeadState::kSuperseded;
  h->memory.expected_ms = 0;
  CheckInvariants(*h);
}

bool HeadTable::PrefetchBegun(const HeadId& id, const HeadMemory& memory) {
  std::lock_guard lock(mu_);
  Head& h = Enter(id, memory);
  if (h.turn || h.timeline || h.prefetch) return false;
  h.prefetch = true;
  h.state = HeadState::kRestoring;
  CheckInvariants(h);
  return true;
}

void HeadTable::Prefetched(int64_t branch, std::vector<PageKey> keys, const Pages& pages) {
  std::lock_guard lock(mu_);
  Head* h = Known(branch);
  if (h == nullptr || !h->prefetch) return;  // a turn took over, or the session is gone
  h->prefetch = false;
  h->keys = std::move(keys);
  h->state = HeadState::kCold;
  See(h, pages);
}

void HeadTable::PagesSeen(int64_t branch, const Pages& pages) {
  std::lock_guard lock(mu_);
  Head* h = Known(branch);
  if (h == nullptr || h->turn || h->timeline || h->prefetch) return;
  See(h, pages);
}

void HeadTable::See(Head* h, const Pages& pages) {
  if (h->state != HeadState::kSuperseded) {
    h->state = pages.there < pages.total ? HeadState::kCold : HeadState::kWarm;
  }
  h->total = pages.total;
  h->keys.resize(std::min(h->keys.size(), static_cast<size_t>(pages.there)));
  CheckInvariants(*h);
}

void HeadTable::Close(int64_t sid) {
  std::lock_guard lock(mu_);
  std::erase_if(heads_, [sid](const auto& entry) { return entry.second.id.sid == sid; });
}

// ---- what follows from it ----------------------------------------------------------------------

std::optional<HeadState> HeadTable::StateOf(int64_t branch) const {
  std::lock_guard lock(mu_);
  const auto it = heads_.find(branch);
  if (it == heads_.end()) return std::nullopt;
  return it->second.state;
}

HeadFacts HeadTable::FactsOf(int64_t branch) const {
  std::lock_guard lock(mu_);
  const auto it = heads_.find(branch);
  if (it == heads_.end()) return {};
  const Head& h = it->second;
  return {h.state, h.last_use_ms, h.memory.expected_ms, h.memory.keep_until_ms, h.memory.pinned};
}

void HeadTable::SetMemory(const HeadId& id, const HeadMemory& memory) {
  std::lock_guard lock(mu_);
  Head& h = Enter(id, memory);
  const int64_t tool_end = h.state == HeadState::kToolWait ? h.memory.expected_ms : 0;
  h.memory = memory;
  if (h.memory.expected_ms == 0) h.memory.expected_ms = tool_end;
  CheckInvariants(h);
}

std::vector<HeadTable::Line> HeadTable::Lines() const {
  std::lock_guard lock(mu_);
  std::vector<Line> lines;
  for (const auto& [branch, h] : heads_) {
    if ((h.timeline && !h.turn) || h.keys.empty()) continue;
    lines.push_back({branch,
                     {h.state, h.last_use_ms, h.memory.expected_ms, h.memory.keep_until_ms,
                      h.memory.pinned},
                     h.keys,
                     h.total});
  }
  return lines;
}

std::vector<HeadId> HeadTable::TakeDue(int64_t now_ms) {
  std::lock_guard lock(mu_);
  std::vector<HeadId> due;
  for (auto& [branch, h] : heads_) {
    const int64_t at = h.memory.expected_ms;
    if (at == 0 || at - kPrefetchLeadMs > now_ms || h.taken_ms == at) continue;
    if (h.turn || h.timeline || h.prefetch) continue;
    h.taken_ms = at;
    due.push_back(h.id);
  }
  return due;
}

int64_t HeadTable::PauseOf(const std::string& tenant, std::span<const std::string> tools) const {
  std::lock_guard lock(mu_);
  return PauseLocked(tenant, tools);
}

int64_t HeadTable::PauseLocked(const std::string& tenant,
                               std::span<const std::string> tools) const {
  int64_t longest = 0;
  for (const std::string& tool : tools) {
    const auto it = pauses_.find(ToolKey(tenant, tool));
    longest = std::max(longest, it == pauses_.end() ? kUnknownPauseMs
                                                    : static_cast<int64_t>(it->second.Get()));
  }
  return longest;
}

void HeadTable::ObservePause(const Head& head, int64_t pause_ms) {
  if (pause_ms < 0 || pause_ms > kLongestPauseMs) return;
  for (const std::string& tool : head.tools) {
    const Digest key = ToolKey(head.id.tenant, tool);
    if (pauses_.size() >= kMaxTools && !pauses_.contains(key)) continue;
    pauses_[key].Add(static_cast<double>(std::max<int64_t>(pause_ms, 1)));
    new_pauses_.insert(key);
  }
}

HeadTable::Pauses HeadTable::TakeNewPauses() {
  std::lock_guard lock(mu_);
  Pauses taken;
  for (const Digest& key : new_pauses_) taken[key] = pauses_.at(key).Values();
  new_pauses_.clear();
  return taken;
}

void HeadTable::KnowPauses(const Pauses& pauses) {
  std::lock_guard lock(mu_);
  for (const auto& [key, values] : pauses) {
    if (pauses_.size() >= kMaxTools) return;
    for (const double ms : values) {
      if (ms >= 1 && ms <= kLongestPauseMs) pauses_[key].Add(ms);
    }
  }
}

HeadTable::Counts HeadTable::counts() const {
  std::lock_guard lock(mu_);
  Counts counts;
  for (const auto& [branch, h] : heads_) ++counts.by_state[static_cast<size_t>(h.state)];
  return counts;
}

}  // namespace holdfast

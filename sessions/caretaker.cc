#include "sessions/caretaker.h"

#include <algorithm>
#include <chrono>
#include <unordered_map>
#include <utility>

#include "sessions/keeper_impl.h"

namespace holdfast {
namespace {

// Of the pool, in parts: below kLow free, heads are let go until kHigh is.
constexpr int64_t kLowPart = 16, kHighPart = 8;
// The pool's cached pages are lined up from this filling on, the disk's from this one.
constexpr double kPoolFull = 0.75, kDiskFull = 0.875;
constexpr int64_t kPassEveryMs = 60'000;  // between passes over the disk
constexpr size_t kHeadsPerStep = 64;      // of a pass, in one round
constexpr int64_t kGcLookEveryMs = 60'000;  // between looks whether there is need for a gc
constexpr std::chrono::milliseconds kGcWaitForReaders{1000};
// Pinned segments go last, but may hold one part in so many of the pool, and of the disk.
constexpr uint64_t kPinnedPart = 2;

}  // namespace

void Caretaker::Start(int64_t every_ms) {
  if (every_ms > 0) thread_ = std::thread([this, every_ms] { Run(every_ms); });
}

void Caretaker::Stop() {
  {
    std::lock_guard lock(mu_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Caretaker::Poke() {
  {
    std::lock_guard lock(mu_);
    poked_ = true;
  }
  changed_.notify_all();
}

void Caretaker::Run(int64_t every_ms) {
  using Clock = std::chrono::steady_clock;
  const std::chrono::milliseconds every(every_ms);
  Clock::time_point round = Clock::now() + every;
  while (true) {
    {
      std::unique_lock lock(mu_);
      changed_.wait_until(lock, round, [&] { return poked_ || stopping_; });
      if (stopping_) return;
      poked_ = false;
    }
    if (Clock::now() < round) {
      Hurry();
    } else {
      Tend();
      round = Clock::now() + every;
    }
  }
}

void Caretaker::Hurry() {
  std::lock_guard lock(tend_mu_);
  Demote();
  TakeDue();
  RunJobs();
}

void Caretaker::Tend() {
  std::lock_guard lock(tend_mu_);
  poked_ = false;  // all that a poke asks for is done here
  Demote();
  LineUpPool();
  LineUpStore();
  TakeDue();
  RunJobs();
  Sweep();
  k_.KeepRates();
  CollectGarbage();
  DoIdleWork();
}

Status Caretaker::Enqueue(PrefetchJob job) {
  {
    std::lock_guard lock(mu_);
    if (jobs_.size() >= kMaxJobs) {
      return Status::Exhausted(std::to_string(kMaxJobs) + " prefetches wait already");
    }
    jobs_.push_back(std::move(job));
    poked_ = true;
  }
  changed_.notify_all();
  return Status();
}

Status Caretaker::EnqueueIdle(IdleWork work) {
  std::lock_guard lock(mu_);
  if (idle_.size() >= kMaxJobs) {
    return Status::Exhausted(std::to_string(kMaxJobs) + " pieces of work wait to be idle already");
  }
  idle_.push_back(std::move(work));
  return Status();
}

bool Caretaker::MustYield() const { return stopping_ || poked_ || k_.leases.held() > 0; }

void Caretaker::Demote() {
  const PoolStats pool = k_.options.pool->stats();
  const auto free = static_cast<int64_t>(pool.slots_max - pool.leased);
  const auto max = static_cast<int64_t>(pool.slots_max);
  if (free < max / kLowPart) k_.warm.MakeRoom(max / kHighPart);
  k_.warm.WriteAhead(k_.reserved_pages + k_.turn_pages);
}

void Caretaker::LineUpPool() {
  PagePool& pool = *k_.options.pool;
  const PoolStats stats = pool.stats();
  if (static_cast<double>(stats.leased + stats.cached) <
      kPoolFull * static_cast<double>(stats.slots_max)) {
    return;
  }
  std::vector<HeadTable::Line> lines = k_.heads.Lines();
  std::vector<Candidate> candidates;
  for (const HeadTable::Line& line : lines) {
    candidates.push_back({.facts = line.facts,
                          .seconds = k_.warm.SecondsToHave(line.keys),
                          .bytes = static_cast<int64_t>(line.keys.size() * pool.page_bytes())});
  }
  // What heads share ends up behind all that they have alone.
  for (const size_t i : DropOrder(candidates, k_.NowMs())) {
    std::reverse(lines[i].keys.begin(), lines[i].keys.end());
    const int64_t there = pool.Renew(lines[i].keys);
    k_.heads.PagesSeen(lines[i].branch, {there, lines[i].total});
  }
  if (k_.options.segments != nullptr) {
    pool.Renew(k_.options.segments->PinnedPages(stats.slots_max / kPinnedPart));
  }
}

// All that is on disk for this model: heads and snapshots with what is known of them.
Result<std::vector<Caretaker::Stored>> Caretaker::AllStored() {
  std::vector<Stored> all;
  const int64_t now = k_.NowMs();
  const Status read = k_.options.db->Read([&](Reader& reader) {
    Rows rows = reader.Query(
        "SELECT s.sid, s.id, s.tenant, b.id, b.name, b.node, b.count, b.tokens, b.updated_ms, "
        "b.parent_name, b.parent_tokens, b.wake_ms, b.keep_until_ms, b.pinned "
        "FROM branch b JOIN session s ON s.sid = b.sid "
        "WHERE s.model_digest = ? AND b.node IS NOT NULL AND "
        "(s.expires_ms IS NULL OR s.expires_ms > ?) "
        "UNION ALL SELECT s.sid, s.id, s.tenant, 0, '', n.node, n.count, n.tokens, n.created_ms, "
        "'', 0, 0, 0, n.pinned FROM snapshot n JOIN session s ON s.sid = n.sid "
        "WHERE s.model_digest = ? AND n.node IS NOT NULL AND "
        "(s.expires_ms IS NULL OR s.expires_ms > ?)",
        k_.options.model_digest, now, k_.options.model_digest, now);
    std::unordered_map<int64_t, std::vector<std::pair<size_t, BranchRow>>> sessions;
    while (rows.Next()) {
      Stored s;
      s.id = {rows.Int(0), rows.Int(3), std::string(rows.Text(2)), std::string(rows.Text(1))};
      s.head = {rows.Int(5), rows.Int(6)};
      s.tokens = rows.Int(7);
      s.facts = {HeadState::kCold, rows.Int(8), rows.Int(11), rows.Int(12), rows.Int(13) != 0};
      BranchRow b;
      b.name = rows.Text(4);
      b.parent_name = rows.Text(9);
      b.tokens = s.tokens;
      b.parent_tokens = rows.Int(10);
      b.updated_ms = s.facts.last_use_ms;
      if (s.id.branch != 0) sessions[s.id.sid].emplace_back(all.size(), std::move(b));
      all.push_back(std::move(s));
    }
    for (const auto& [sid, branches] : sessions) {
      std::vector<BranchUse> uses;
      for (const auto& [i, b] : branches) uses.push_back(UseOf(b));
      for (const size_t n : Superseded(uses)) {
        all[branches[n].first].facts.state = HeadState::kSuperseded;
      }
    }
    return rows.status();
  });
  if (!read.ok()) return read;
  for (Stored& s : all) {  // what this process knows is newer
    if (s.id.branch != 0 && k_.heads.StateOf(s.id.branch)) s.facts = k_.heads.FactsOf(s.id.branch);
  }
  return all;
}

void Caretaker::BeginLineUpStore() {
  const StoreStats stats = k_.options.store->stats();
  const int64_t now = k_.NowMs();
  if (stats.bytes_max == 0 || now < next_pass_ms_ ||
      static_cast<double>(stats.bytes) < kDiskFull * static_cast<double>(stats.bytes_max)) {
    return;
  }
  next_pass_ms_ = now + kPassEveryMs;
  Result<std::vector<Stored>> all = AllStored();
  if (!all.ok()) return;  // the next pass may read
  std::vector<Candidate> candidates;
  const auto page_bytes = static_cast<double>(k_.options.pool->page_bytes());
  for (const Stored& s : *all) {
    // On disk what a page saves is alike for all: the time to compute it.
    const double pages = static_cast<double>(s.tokens) / kPageTokens + 1;
    candidates.push_back({.facts = s.facts,
                          .seconds = pages,
                          .bytes = static_cast<int64_t>(pages * page_bytes)});
  }
  for (const size_t i : DropOrder(candidates, now)) to_line_up_.push_back(std::move((*all)[i]));
  std::reverse(to_line_up_.begin(), to_line_up_.end());
  is_lining_up_ = true;
}

void Caretaker::LineUpStore() {
  if (k_.options.store == nullptr) return;
  if (!is_lining_up_) BeginLineUpStore();
  for (size_t n = 0; n < kHeadsPerStep && !to_line_up_.empty(); ++n) {
    const Stored stored = std::move(to_line_up_.back());
    to_line_up_.pop_back();
    const auto tokens = k_.TokensAt(stored.id, stored.head);
    if (!tokens.ok()) continue;  // deleted meanwhile
    Survey survey = k_.options.stitcher->Look(TenantScope(stored.id.tenant), *tokens);
    std::vector<PageKey> keys = std::move(survey.keys);
    const auto rest = std::span(*tokens).subspan(keys.size() * kPageTokens);
    const int64_t rows = k_.warm.StoredTail(survey.end, rest);
    if (rows > 0) keys.push_back(TailKey(survey.end, rest.first(rows), Digest{}));
    std::reverse(keys.begin(), keys.end());
    k_.options.store->Renew(keys);
  }
  if (!is_lining_up_ || !to_line_up_.empty()) return;
  is_lining_up_ = false;
  if (k_.options.segments == nullptr) return;
  const uint64_t pages = k_.options.store->stats().bytes_max / k_.options.pool->page_bytes();
  k_.options.store->Renew(k_.options.segments->PinnedPages(pages / kPinnedPart));
}

void Caretaker::TakeDue() {
  for (const HeadId& id : k_.heads.TakeDue(k_.NowMs())) {
    auto tokens = k_.TokensAt(id, std::nullopt);
    if (!tokens.ok() || !k_.heads.PrefetchBegun(id, {})) continue;
    if (!Enqueue({id, std::move(*tokens)}).ok()) k_.heads.Prefetched(id.branch, {}, {0, 1});
  }
}

void Caretaker::RunJobs() {
  while (true) {
    PrefetchJob job;
    {
      std::lock_guard lock(mu_);
      if (jobs_.empty() || stopping_) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    const TenantScope scope(job.id.tenant);
    const PoolStats pool = k_.options.pool->stats();
    const int64_t room = static_cast<int64_t>(pool.slots_max - pool.leased) - k_.reserved_pages;
    pages_prefetched_ += static_cast<uint64_t>(
        k_.options.stitcher->Prefetch(scope, job.tokens, std::max<int64_t>(room, 0)));
    ++prefetches_;
    const Survey now = k_.options.stitcher->Look(scope, job.tokens);
    std::vector<PageKey> keys = now.keys;
    const auto there = static_cast<int64_t>(
        std::find_if(keys.begin(), keys.end(),
                     [&](const PageKey& key) { return !k_.options.pool->Contains(key); }) -
        keys.begin());
    const auto total = (static_cast<int64_t>(job.tokens.size()) - 1) / kPageTokens;
    k_.heads.Prefetched(job.id.branch, std::move(keys), {there, total});
  }
}

void Caretaker::Sweep() {
  const int64_t now = k_.NowMs();
  if (now < next_sweep_ms_) return;
  next_sweep_ms_ = k_.SweepSome() ? now : now + Keeper::Impl::kSweepEveryMs;
  k_.SavePauses();
}

void Caretaker::CollectGarbage() {
  const int64_t now = k_.NowMs(), every = k_.options.gc_every_ms;
  if (every == 0 || now < next_gc_look_ms_) return;
  const auto row = k_.ReadGcRow();
  const int64_t since = row.ok() && row->done_ms <= now ? now - row->done_ms : every;
  if (row.ok() && row->deletions > 0 && since >= every) {
    const bool waits = since < 2 * every;
    if (waits && MustYield()) return;  // the next round looks again
    const auto done = k_.Collect([&] { return waits ? MustYield() : stopping_.load(); },
                                 kGcWaitForReaders);
    if (done.status().code() == Code::kCancelled) return;
  }
  next_gc_look_ms_ = now + std::min(every, kGcLookEveryMs);
}

// Turns go first. What fails otherwise is given up: its next turn may ask again.
void Caretaker::DoIdleWork() {
  IdleWork work;
  {
    std::lock_guard lock(mu_);
    if (idle_.empty() || MustYield()) return;
    work = std::move(idle_.front());
    idle_.pop_front();
  }
  const Status done = work();
  if (done.code() != Code::kCancelled) return done.IgnoreError();
  std::lock_guard lock(mu_);
  idle_.push_front(std::move(work));  // perhaps one more than kMaxJobs
}

}  // namespace holdfast

#include "sessions/head_saver.h"

#include <algorithm>
#include <utility>

#include "stitcher/plan.h"

namespace holdfast {

HeadSaver::HeadSaver(PagePool* pool, PageStore* store, Database* db)
    : pool_(pool), store_(store), db_(db) {
  if (store != nullptr) thread_ = std::thread([this] { Run(); });
}

HeadSaver::~HeadSaver() {
  {
    std::lock_guard lock(mu_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

HeadSaver::Stats HeadSaver::stats() const {
  std::lock_guard lock(mu_);
  return stats_;
}

void HeadSaver::Save(std::vector<Unsaved> heads, double compute_ms_per_token, Wait wait) {
  using Millis = std::chrono::duration<double, std::milli>;
  auto job = std::make_shared<Job>();
  for (Unsaved& head : heads) {
    if (head.tail) head.pages.push_back(std::move(*head.tail));
    for (Record& record : head.pages) {
      job->left.push_back({head.sid, head.branch, head.owner, std::move(record)});
    }
  }
  if (store_ == nullptr || job->left.empty()) return;
  const double compute = compute_ms_per_token * kPageTokens * static_cast<double>(job->left.size());
  const auto patience = std::chrono::duration_cast<Clock::duration>(Millis(kPatienceMs));
  const auto worth = std::chrono::duration_cast<Clock::duration>(Millis(compute / 10));
  std::unique_lock lock(mu_);
  const Clock::time_point end = Clock::now() + std::max(patience, worth);
  if (jobs_.empty()) last_move_ = Clock::now();
  jobs_.push_back(job);
  wake_.notify_one();
  if (wait == Wait::kToTheEnd) return moved_.wait(lock, [&] { return job->done; });
  while (!job->done) {
    const Clock::time_point until = std::min(end, last_move_ + patience);
    if (Clock::now() >= until) break;
    moved_.wait_until(lock, until);
  }
  if (job->done) return;
  stats_.given_up += job->left.size();
  const std::deque<Step> given_up = std::exchange(job->left, {});
  if (job != jobs_.front()) std::erase(jobs_, job);
  lock.unlock();  // before the pages go
}

void HeadSaver::Run() {
  std::unique_lock lock(mu_);
  while (true) {
    wake_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
    if (jobs_.empty()) return;
    const std::shared_ptr<Job> job = jobs_.front();
    last_move_ = Clock::now();
    Advance(&lock, job.get());
    if (!job->done) continue;
    jobs_.pop_front();
    last_move_ = Clock::now();
    moved_.notify_all();
  }
}

// Writes the next record, or syncs behind the last one. Lets go of the lock meanwhile.
void HeadSaver::Advance(std::unique_lock<std::mutex>* lock, Job* job) {
  if (job->left.empty()) {
    lock->unlock();
    store_->Sync().IgnoreError();  // what can't be written is computed again when it is wanted
    lock->lock();
    job->done = true;
    return;
  }
  std::optional<Step> step(std::move(job->left.front()));
  job->left.pop_front();
  lock->unlock();
  const Status written = Write(*step);
  step->record.page.Release();
  lock->lock();
  if (written.ok()) {
    stats_.tails += step->record.header.kind == PageKind::kTail;
  } else {  // nor what continues it
    std::erase_if(job->left, [&](const Step& s) { return s.branch == step->branch; });
  }
  moved_.notify_all();
}

Status HeadSaver::Write(const Step& step) {
  std::vector<std::span<const std::byte>> payload;
  const auto& groups = pool_->groups();
  for (size_t g = 0; g < groups.size(); ++g) {
    payload.emplace_back(step.record.page.payload(static_cast<int>(g)), groups[g].PayloadBytes());
  }
  HOLDFAST_RETURN_IF_ERROR(store_->Put(step.record.header, payload));
  return step.record.header.kind == PageKind::kTail ? NoteTail(step) : Status();
}

Status HeadSaver::NoteTail(const Step& step) {
  const PageKey& key = step.record.header.key;
  const bool of_branch = step.owner == TailOwner::kBranch;
  if (of_branch) HOLDFAST_RETURN_IF_ERROR(ForgetOlderTails(step));
  Status noted = db_->Write(
      [&](Txn& txn) {
        if (of_branch) {
          return txn.Run("INSERT INTO tail(key, sid, branch) VALUES(?, ?, ?) "
                         "ON CONFLICT DO NOTHING",
                         key, step.sid, step.branch);
        }
        return txn.Run("INSERT INTO tail(key, sid, branch) VALUES(?, ?, NULL) "
                       "ON CONFLICT(sid, key) DO UPDATE SET branch = NULL",
                       key, step.sid);
      },
      WriteClass::kBackground);
  if (noted.code() == Code::kConflict) ForgetTails({&key, 1});  // the session is gone
  return noted;
}

Status HeadSaver::ForgetOlderTails(const Step& step) {
  const PageKey& kept = step.record.header.key;
  std::vector<PageKey> old;
  HOLDFAST_RETURN_IF_ERROR(db_->Read([&](Reader& reader) {
    Rows rows = reader.Query("SELECT key FROM tail WHERE sid = ? AND branch = ? AND key <> ?",
                             step.sid, step.branch, kept);
    while (rows.Next()) old.push_back(rows.DigestAt(0));
    return rows.status();
  }));
  if (old.empty()) return Status();
  ForgetTails(old);
  return db_->Write(
      [&](Txn& txn) {
        return txn.Run("DELETE FROM tail WHERE sid = ? AND branch = ? AND key <> ?", step.sid,
                       step.branch, kept);
      },
      WriteClass::kBackground);
}

void HeadSaver::ForgetTails(std::span<const PageKey> keys) {
  if (store_ == nullptr) return;
  for (const PageKey& key : keys) store_->Delete(key).IgnoreError();
}

}  // namespace holdfast

#include "api/replay_jobs.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "api/replay_json.h"

namespace holdfast {
namespace {

int64_t NowMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace

std::string_view JobStateName(ReplayJobState state) {
  constexpr std::string_view kNames[] = {"queued", "running", "done", "failed", "cancelled"};
  return kNames[static_cast<size_t>(state)];
}

// One mutex over everything: it is held for as long as a step takes to be stored.
struct ReplayJobs::Impl {
  struct Job {
    ReplayJobInfo info;
    ReplayRequest request;
    std::vector<std::string> steps;
    size_t step_bytes = 0;
    bool cancel = false;
    bool ended() const { return info.ended_ms != 0; }
  };
  using JobPtr = std::shared_ptr<Job>;

  Runtime* runtime = nullptr;
  Limits limits;
  std::mutex mu;
  std::condition_variable changed;
  uint64_t version = 1;
  bool stopping = false;
  int64_t next_position = 0;
  std::map<int64_t, JobPtr> jobs;  // by position: in the order in which they were made
  std::vector<std::thread> workers;

  // All below but Work, Run and Wants: with the mutex held.
  void Note() {
    ++version;
    changed.notify_all();
  }
  JobPtr FirstQueued() const {
    for (const auto& [position, job] : jobs) {
      if (job->info.state == ReplayJobState::kQueued) return job;
    }
    return nullptr;
  }
  Result<std::map<int64_t, JobPtr>::iterator> Find(std::string_view tenant, std::string_view id) {
    DropOld();
    for (auto it = jobs.begin(); it != jobs.end(); ++it) {
      if (it->second->info.id == id && it->second->request.tenant == tenant) return it;
    }
    return Status::NotFound("replay '" + std::string(id) + "' does not exist");
  }
  void End(Job& job, ReplayJobState state) {
    job.info.state = state;
    job.info.ended_ms = NowMs();
    Note();
  }
  void DropOld();
  bool Store(Job& job, const ReplayEvent& event, std::optional<std::string> step, Json report);
  void Judge(Job& job, const Status& status);

  void Work();
  Status Run(Job& job);
  // What Pump asks a listener.
  struct Listener {
    Impl& jobs;
    const Job& job;
    bool ClientGone() const {
      const std::lock_guard lock(jobs.mu);
      return job.cancel || jobs.stopping;
    }
  };
};

// Forgets those that ended too long ago, and the oldest while they are too many or too large.
void ReplayJobs::Impl::DropOld() {
  const int64_t now = NowMs();
  size_t ended = 0, bytes = 0;
  for (const auto& [position, job] : jobs) {
    ended += job->ended();
    bytes += job->ended() ? job->step_bytes : 0;
  }
  for (auto it = jobs.begin(); it != jobs.end();) {
    const Job& job = *it->second;
    const bool surplus = ended > limits.ended || bytes > limits.all_step_bytes;
    if (!job.ended() || (!surplus && now - job.info.ended_ms < limits.keep_ms)) {
      ++it;
      continue;
    }
    --ended;
    bytes -= job.step_bytes;
    it = jobs.erase(it);
  }
}

// False: more than a job may keep.
bool ReplayJobs::Impl::Store(Job& job, const ReplayEvent& event, std::optional<std::string> step,
                             Json report) {
  job.info.done = event.done;
  job.info.total = event.total;
  if (step) {
    if (job.step_bytes + step->size() > limits.step_bytes) return false;
    job.step_bytes += step->size();
    job.steps.push_back(std::move(*step));
    job.info.steps = static_cast<int64_t>(job.steps.size());
  }
  if (!report.is_null()) job.info.result = std::move(report);
  Note();
  return true;
}

Status ReplayJobs::Impl::Run(Job& job) {
  HOLDFAST_ASSIGN_OR_RETURN(const std::unique_ptr<Replay> replay,
                            runtime->StartReplay(job.request));
  const ReplayView view{runtime->engine().tokenizer(), job.request.mode};
  bool too_many = false;
  Status s = Pump(*replay, Listener{*this, job}, [&](const ReplayEvent& event) {
    std::optional<std::string> step;
    Json report;
    if (event.step && view.Shows(*event.step)) step = DumpJson(StepJson(*event.step, view));
    if (event.report) report = ReportJson(event, replay->recording(), view);
    const std::lock_guard lock(mu);
    too_many = !Store(job, event, std::move(step), std::move(report));
    return !too_many;
  });
  if (!too_many) return s;
  s.IgnoreError();  // the cancellation
  return Status::Invalid("its steps take more than " + std::to_string(limits.step_bytes) +
                         " bytes: replay it in parts, with from and to");
}

void ReplayJobs::Impl::Judge(Job& job, const Status& status) {
  if (status.ok()) return End(job, ReplayJobState::kDone);
  if (status.code() == Code::kCancelled && (job.cancel || stopping)) {
    return End(job, ReplayJobState::kCancelled);
  }
  if (auto error = ParseJson(ErrorJson(ErrorOfReplay(status))); error.ok()) {
    job.info.error = std::move((*error)["error"]);
  }
  End(job, ReplayJobState::kFailed);
}

void ReplayJobs::Impl::Work() {
  std::unique_lock lock(mu);
  while (true) {
    JobPtr job;
    changed.wait(lock, [&] { return stopping || (job = FirstQueued()) != nullptr; });
    if (stopping) return;
    job->info.state = ReplayJobState::kRunning;
    job->info.started_ms = NowMs();
    Note();
    lock.unlock();
    const Status status = Run(*job);
    lock.lock();
    Judge(*job, status);
  }
}

ReplayJobs::ReplayJobs(Runtime* runtime, const Limits& limits) : impl_(new Impl) {
  impl_->runtime = runtime;
  impl_->limits = limits;
  for (int i = 0; i < limits.running; ++i) {
    impl_->workers.emplace_back([impl = impl_.get()] { impl->Work(); });
  }
}

ReplayJobs::~ReplayJobs() { Stop(); }

void ReplayJobs::Stop() {
  {
    const std::lock_guard lock(impl_->mu);
    impl_->stopping = true;
    impl_->Note();
  }
  for (std::thread& worker : impl_->workers) {
    if (worker.joinable()) worker.join();
  }
}

Result<ReplayJobInfo> ReplayJobs::Create(ReplayRequest request, std::string id) {
  const std::lock_guard lock(impl_->mu);
  if (impl_->stopping) return Status::Unavailable("shutting down");
  impl_->DropOld();
  size_t queued = 0;
  for (const auto& [position, job] : impl_->jobs) {
    queued += job->info.state == ReplayJobState::kQueued;
  }
  if (queued >= impl_->limits.queued) {
    return Status::Exhausted(std::to_string(queued) + " replays are waiting");
  }
  auto job = std::make_shared<Impl::Job>();
  job->info.id = std::move(id);
  job->info.session_id = request.session;
  job->info.mode = request.mode;
  job->info.created_ms = NowMs();
  job->request = std::move(request);
  impl_->jobs.emplace(impl_->next_position++, job);
  impl_->Note();
  return job->info;
}

Result<Listed<ReplayJobInfo>> ReplayJobs::List(std::string_view tenant, const ListRange& range) {
  const std::lock_guard lock(impl_->mu);
  impl_->DropOld();
  ListRange numbered = range;
  if (range.after.starts_with("rep_")) {
    const auto found = impl_->Find(tenant, range.after);
    if (!found.ok()) return Status::Invalid("after: " + found.status().message());
    numbered.after = std::to_string((*found)->first);
  }
  HOLDFAST_ASSIGN_OR_RETURN(const int64_t after, PositionOf(numbered));
  Listed<ReplayJobInfo> out;
  int64_t last = 0;
  const auto take = [&](int64_t n, const Impl::Job& job) {  // false: the page is full
    if (job.request.tenant != tenant) return true;
    if (static_cast<int>(out.rows.size()) == range.limit) {
      out.next = std::to_string(last);
      return false;
    }
    out.rows.push_back(job.info);
    last = n;
    return true;
  };
  auto& jobs = impl_->jobs;
  if (range.order == ListOrder::kAscending) {
    for (auto it = jobs.upper_bound(after); it != jobs.end(); ++it) {
      if (!take(it->first, *it->second)) break;
    }
  } else {
    for (auto it = jobs.lower_bound(after); it != jobs.begin();) {
      --it;
      if (!take(it->first, *it->second)) break;
    }
  }
  return out;
}

Result<ReplayJobInfo> ReplayJobs::Get(std::string_view tenant, std::string_view id) {
  const std::lock_guard lock(impl_->mu);
  HOLDFAST_ASSIGN_OR_RETURN(const auto found, impl_->Find(tenant, id));
  return found->second->info;
}

Result<ReplayJobInfo> ReplayJobs::Cancel(std::string_view tenant, std::string_view id) {
  const std::lock_guard lock(impl_->mu);
  HOLDFAST_ASSIGN_OR_RETURN(const auto found, impl_->Find(tenant, id));
  Impl::Job& job = *found->second;
  job.cancel = true;
  if (job.info.state == ReplayJobState::kQueued) impl_->End(job, ReplayJobState::kCancelled);
  return job.info;
}

Status ReplayJobs::Delete(std::string_view tenant, std::string_view id) {
  const std::lock_guard lock(impl_->mu);
  HOLDFAST_ASSIGN_OR_RETURN(const auto found, impl_->Find(tenant, id));
  found->second->cancel = true;
  impl_->jobs.erase(found);
  impl_->Note();
  return Status();
}

Result<Listed<std::string>> ReplayJobs::Steps(std::string_view tenant, std::string_view id,
                                              const ListRange& range) {
  const std::lock_guard lock(impl_->mu);
  HOLDFAST_ASSIGN_OR_RETURN(const auto found, impl_->Find(tenant, id));
  const std::vector<std::string>& steps = found->second->steps;
  HOLDFAST_ASSIGN_OR_RETURN(ListPage page, PageOf(range, static_cast<int64_t>(steps.size())));
  Listed<std::string> out;
  for (const int64_t i : page.positions) out.rows.push_back(steps[i]);
  out.next = std::move(page.next);
  return out;
}

uint64_t ReplayJobs::WaitForChange(uint64_t seen, int ms) {
  std::unique_lock lock(impl_->mu);
  impl_->changed.wait_for(lock, std::chrono::milliseconds(ms),
                          [&] { return impl_->version != seen; });
  return impl_->version;
}

}  // namespace holdfast

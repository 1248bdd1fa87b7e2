// Replays that nobody waits for: jobs that run in the background, one at a time unless told
// otherwise, so that agents keep their pace.
//
//   queued --> running --> done | failed | cancelled        queued --> cancelled
//
// Jobs live in this process alone; what a free one has made is in the token log. A job that has
// ended stays for Limits::keep_ms, fewer where there are many or where their steps take much. The
// steps of verify are kept only where they have alternatives to show.
//
// Thread-safe. A job of another tenant is kNotFound, as is one that never was.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "api/json.h"
#include "api/runtime.h"

namespace holdfast {

enum class ReplayJobState : uint8_t { kQueued, kRunning, kDone, kFailed, kCancelled };
std::string_view JobStateName(ReplayJobState state);

struct ReplayJobInfo {
  std::string id, session_id;
  ReplayMode mode = ReplayMode::kVerify;
  ReplayJobState state = ReplayJobState::kQueued;
  int64_t done = 0, total = 0;   // tokens; 0 until it runs
  int64_t steps = 0;             // that are kept so far
  Json result;                   // ReportJson, of a job that is done; else null
  Json error;                    // of one that has failed; else null
  int64_t created_ms = 0, started_ms = 0, ended_ms = 0;  // Unix time; 0 = not yet
};

class ReplayJobs {
 public:
  struct Limits {
    int running = 1;
    size_t queued = 64;                // kExhausted beyond
    size_t ended = 256;                // that stay
    size_t step_bytes = 16u << 20;     // of one job, which fails beyond
    size_t all_step_bytes = 64u << 20; // of those that have ended
    int64_t keep_ms = 3'600'000;
  };

  ReplayJobs(Runtime* runtime, const Limits& limits);  // the runtime outlives Stop
  ~ReplayJobs();                                       // Stop
  // Cancels what runs and waits for it; what is queued stays so. No more are taken on.
  void Stop();

  // kUnavailable after Stop. Whether the request can be replayed shows when the job runs.
  Result<ReplayJobInfo> Create(ReplayRequest request, std::string id);
  // Oldest first, or last; `after` is a position, or the id of a job.
  Result<Listed<ReplayJobInfo>> List(std::string_view tenant, const ListRange& range);
  Result<ReplayJobInfo> Get(std::string_view tenant, std::string_view id);
  // A job that runs ends soon after; one that has ended stays as it is.
  Result<ReplayJobInfo> Cancel(std::string_view tenant, std::string_view id);
  // Forgets it at once; one that runs is cancelled.
  Status Delete(std::string_view tenant, std::string_view id);
  // StepJson of each as text; `after` is a step's index, from 0.
  Result<Listed<std::string>> Steps(std::string_view tenant, std::string_view id,
                                    const ListRange& range);
  // A number that grows whenever any job has changed; waits, for at most `ms`, until it is no
  // longer `seen`.
  uint64_t WaitForChange(uint64_t seen, int ms);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace holdfast

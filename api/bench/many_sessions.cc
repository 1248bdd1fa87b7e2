#include "api/bench/many_sessions.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <mutex>
#include <thread>

#include "api/bench/keeper_bench.h"
#include "api/bench/scratch.h"
#include "api/bench/servers.h"
#include "api/bench/start_bench.h"
#include "api/bench/turn.h"
#include "engine/base/elapsed.h"

namespace holdfast {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kThreads = 8;      // their commits share syncs
constexpr int kLooks = 200;      // of listing and of opening
constexpr int kListed = 20;      // sessions in one page of the list

std::string NameOf(int64_t number) { return "agent-" + std::to_string(number); }

std::string MessageOf(int64_t session, int turn) {
  const std::string n = std::to_string(session * 7919 % 100003);
  return "Job " + n + ", part " + std::to_string(turn) +
         ": read the file and say which of its functions has no test, then write one for it.";
}

// Runs make(0) .. make(count - 1) on several threads; the first error.
Status OnThreads(int64_t count, const std::function<Status(int64_t)>& make) {
  std::atomic<int64_t> next{0};
  std::mutex mu;
  Status first;
  const auto run = [&] {
    for (int64_t i; (i = next++) < count;) {
      Status status = make(i);
      if (status.ok()) continue;
      next = count;
      std::lock_guard lock(mu);
      if (first.ok()) first = std::move(status);
      else status.IgnoreError();
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back(run);
  for (std::thread& t : threads) t.join();
  return first;
}

class ManySessions {
 public:
  explicit ManySessions(const ManySessionsOptions& options)
      : options_(options), computed_(std::min(kSessionsWithPages, options.sessions)) {}

  Result<ManySessionsFigures> Run() {
    const auto start = Clock::now();
    HOLDFAST_RETURN_IF_ERROR(Make());
    figures_.made_s = MsSince(start) / 1000;
    for (int rep = 0; rep < options_.reps; ++rep) {
      for (const bool empty : {true, false}) {
        HOLDFAST_ASSIGN_OR_RETURN(
            const double s,
            MeasureLoad(options_.program, options_.engine, empty ? "" : dir_.path));
        (empty ? figures_.empty_s : figures_.ready_s).push_back(s);
      }
    }
    HOLDFAST_RETURN_IF_ERROR(Look());
    return std::move(figures_);
  }

 private:
  Status Make() {
    RuntimeOptions options;
    options.engine = options_.engine;
    options.data_dir = dir_.path;
    HOLDFAST_ASSIGN_OR_RETURN(const auto runtime, Runtime::Open(options));
    HOLDFAST_RETURN_IF_ERROR(OnThreads(options_.sessions, [&](int64_t i) {
      if (i % kTellEvery == 0) {
        options_.progress(static_cast<double>(i) / static_cast<double>(options_.sessions));
      }
      return i < computed_ ? MakeComputed(*runtime, i) : MakeUncomputed(*runtime, i);
    }));
    runtime->SyncPages();
    figures_.turns = static_cast<int64_t>(runtime->keeper().stats().turns_committed);
    HOLDFAST_RETURN_IF_ERROR(runtime->database().Read([&](Reader& reader) {
      Rows rows = reader.Query("SELECT SUM(tokens) FROM branch");
      if (rows.Next()) figures_.tokens = rows.Int(0);
      return rows.status();
    }));
    runtime->Shutdown(0);
    const StoreStats store = runtime->stats().store;
    figures_.pages = static_cast<int64_t>(store.pages);
    figures_.page_bytes = static_cast<double>(store.bytes);
    std::error_code ignored;
    figures_.database_bytes =
        static_cast<double>(std::filesystem::file_size(dir_.path + "/holdfast.db", ignored));
    return Status();
  }

  Status MakeComputed(Runtime& runtime, int64_t i) {
    ChatRequest request;
    request.tenant = kBenchTenant;
    request.session.id = NameOf(i);
    request.messages = {BenchMessage("user", MessageOf(i, 0))};
    request.sampling.temperature = 0;
    request.max_tokens = 1;
    return TakeTurn(runtime, std::move(request)).status();
  }

  Status MakeUncomputed(Runtime& runtime, int64_t i) {
    UncomputedTurn turn{.session = NameOf(i), .messages = {}};
    for (int t = 0; t < 2; ++t) {
      turn.messages.push_back(BenchMessage("user", MessageOf(i, t)));
      turn.seed = static_cast<uint64_t>(2 * i + t);
      HOLDFAST_RETURN_IF_ERROR(CommitUncomputed(runtime, &turn));
    }
    return Status();
  }

  Status Look() {
    HOLDFAST_ASSIGN_OR_RETURN(
        const ServerProcess server,
        ServerProcess::Start(options_.program, options_.engine, dir_.path));
    const std::string limit = "limit=" + std::to_string(kListed);
    for (int i = 0; i < kLooks; ++i) {
      const int64_t session = int64_t{i} * 7919 % options_.sessions;
      auto start = Clock::now();
      HOLDFAST_ASSIGN_OR_RETURN(
          const Json list,
          server.Get("/v1/sessions?" + limit + "&after=" + std::to_string(session)));
      figures_.list_ms.push_back(MsSince(start));
      const std::string path = "/v1/sessions/" + NameOf(session);
      start = Clock::now();
      HOLDFAST_ASSIGN_OR_RETURN(const Json info, server.Get(path));
      HOLDFAST_ASSIGN_OR_RETURN(const Json items, server.Get(path + "/items"));
      figures_.open_ms.push_back(MsSince(start));
      if (items["data"].empty()) return Status::Corrupt("bench: sessions: one without items");
    }
    return Status();
  }

  static constexpr int64_t kTellEvery = 64;

  const ManySessionsOptions& options_;
  const int64_t computed_;
  const ScratchDir dir_;
  ManySessionsFigures figures_;
};

}  // namespace

Result<ManySessionsFigures> MeasureManySessions(const ManySessionsOptions& options) {
  return ManySessions(options).Run();
}

}  // namespace holdfast

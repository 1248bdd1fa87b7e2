#include "api/bench/beside_bench.h"

#include <algorithm>
#include <memory>
#include <thread>

#include "api/bench/scratch.h"
#include "engine/base/env.h"
#include "engine/store/file_page_store.h"
#include "engine/store/page_writer.h"
#include "stitcher/stitcher.h"

namespace holdfast {
namespace {

using Clock = BesideClock;

constexpr int kAgents = 2;
// Sessions to restore; to save, and as many as the store has room for. When a session's turn to be
// saved comes again it has left the store, and what is not synced yet (which cannot leave) fits.
constexpr int kToRestore = 4, kToSave = 6, kStored = 4;
constexpr std::chrono::milliseconds kSyncInterval{250};
constexpr int64_t kAgentTokens = 512, kOtherTokens = 1024;
constexpr int kPhases = 8;  // of each kind; an even number
constexpr std::chrono::milliseconds kLook{20};  // often enough beside the writer's rests

bool Meets(const BesideSpan& a, const BesideSpan& b) {
  return a.first < b.second && b.first < a.second;
}

// Sessions of others, and what carries their pages.
class Others {
 public:
  Others(Engine& engine, Beside what)
      : engine_(engine), what_(what), sessions_(what == Beside::kSave ? kToSave : kToRestore) {}

  // Computes them and fills the store.
  Status Open(EngineBench& bench) {
    const size_t page = engine_.pool().page_bytes();
    const uint64_t session = kOtherTokens / kPageTokens * (page + kRecordSlack);
    FilePageStore::Options options;
    options.path = dir_.path + "/pages";
    options.env = &env_;
    options.max_bytes = (what_ == Beside::kSave ? kStored : 2 * kToRestore) * session;
    HOLDFAST_ASSIGN_OR_RETURN(store_, FilePageStore::Open(std::move(options)));
    PageWriter::Options writer;
    writer.fp = engine_.model().fingerprint();
    writer.groups = engine_.pool().groups();
    writer.sync_interval = kSyncInterval;
    writer_ = std::make_unique<PageWriter>(store_.get(), std::move(writer));
    stitcher_ = std::make_unique<Stitcher>(&engine_.pool(), store_.get(),
                                           engine_.model().fingerprint());
    stitcher_->SetRunning([this] { return engine_.stats().running > 0; });
    for (int i = 0; i < sessions_; ++i) {
      HOLDFAST_ASSIGN_OR_RETURN(Timeline timeline,
                                bench.Context(static_cast<size_t>(kAgents + i), kOtherTokens, 1));
      timelines_.push_back(std::move(timeline));
      HOLDFAST_RETURN_IF_ERROR(Save(timelines_.back()));
    }
    HOLDFAST_RETURN_IF_ERROR(writer_->Flush());  // read back only what is synced
    bench.Forget();
    if (what_ == Beside::kSave) return Status();
    for (const Timeline& timeline : timelines_) {
      tokens_.emplace_back(timeline.tokens().begin(), timeline.tokens().end());
    }
    timelines_.clear();
    engine_.pool().DropCached();
    return Status();
  }

  // Saves or restores the next one.
  Status Next() {
    const size_t i = static_cast<size_t>(next_++ % sessions_);
    if (what_ == Beside::kSave) return Save(timelines_[i]);
    const int64_t pages = stitcher_->Prefetch(scope_, tokens_[i], kOtherTokens);
    if (pages < kOtherTokens / kPageTokens) {
      return Status::Io("bench: beside-restore: only " + std::to_string(pages) + " pages came");
    }
    engine_.pool().DropCached();
    return Status();
  }

  int64_t done() const { return next_; }
  double bytes() const {
    return static_cast<double>(next_ * (kOtherTokens / kPageTokens)) *
           static_cast<double>(engine_.pool().page_bytes());
  }

 private:
  static constexpr uint64_t kRecordSlack = 64 << 10;  // header and padding of a page's record

  // Returns when it is written: a flush would make the writer hurry.
  Status Save(const Timeline& timeline) {
    const auto ended = [&] {
      const PageWriterStats s = writer_->stats();
      return s.written + s.failed;
    };
    uint64_t end = ended();
    PageKey parent = timeline.chain_key(0);
    for (const Run& run : timeline.runs()) {
      if (!run.page || !run.page.sealed()) break;
      if (!writer_->Offer({run.page.Share(), parent})) {
        return Status::Exhausted("bench: beside-save: the writer's queue is full");
      }
      parent = run.page.key();
      ++end;
    }
    while (ended() < end) std::this_thread::sleep_for(kLook);
    return writer_->stats().failed == 0 ? Status() : writer_->Flush();
  }

  Engine& engine_;
  const Beside what_;
  const int sessions_;
  const ScratchDir dir_;
  RealEnv env_;
  const TenantScope scope_{"bench"};
  std::unique_ptr<FilePageStore> store_;
  std::unique_ptr<PageWriter> writer_;
  std::unique_ptr<Stitcher> stitcher_;
  std::vector<Timeline> timelines_;
  std::vector<std::vector<TokenId>> tokens_;
  int64_t next_ = 0;
};

// An agent that decodes until it is told to stop, on a thread that notes when tokens come.
class Decoding {
 public:
  explicit Decoding(std::shared_ptr<Generation> generation)
      : generation_(std::move(generation)), thread_([this] { Run(); }) {}
  ~Decoding() { Stop(); }

  const std::vector<Clock::time_point>& Stop() {
    generation_->Cancel();
    if (thread_.joinable()) thread_.join();
    return times_;
  }

 private:
  void Run() {
    for (;;) {
      auto event = generation_->Next(-1);
      if (!event.has_value()) return;
      if (event->token.has_value()) times_.push_back(Clock::now());
      if (!event->finish.has_value()) continue;
      event->finish->status.IgnoreError();
      return;
    }
  }

  std::shared_ptr<Generation> generation_;
  std::vector<Clock::time_point> times_;  // the thread's, until it has ended
  std::thread thread_;
};

}  // namespace

void SplitGaps(const std::vector<Clock::time_point>& tokens, const std::vector<BesideSpan>& busy,
               const std::vector<BesideSpan>& quiet, BesideFigures* figures) {
  for (size_t i = 1; i < tokens.size(); ++i) {
    const BesideSpan gap(tokens[i - 1], tokens[i]);
    const std::chrono::duration<double, std::milli> ms = gap.second - gap.first;
    const auto meets = [&](const BesideSpan& span) { return Meets(gap, span); };
    if (std::any_of(busy.begin(), busy.end(), meets)) {
      figures->with_ms.push_back(ms.count());
      continue;
    }
    const bool inside = std::any_of(quiet.begin(), quiet.end(), [&](const BesideSpan& span) {
      return span.first <= gap.first && gap.second <= span.second;
    });
    if (inside) figures->without_ms.push_back(ms.count());
  }
}

Result<BesideFigures> MeasureBeside(Engine& engine, const BesideOptions& options) {
  EngineBench bench(&engine);
  std::vector<Timeline> forks;
  for (size_t i = 0; i < kAgents; ++i) {
    HOLDFAST_ASSIGN_OR_RETURN(Timeline fork, bench.Context(i, kAgentTokens, 1));
    forks.push_back(std::move(fork));
  }
  Others others(engine, options.what);
  HOLDFAST_RETURN_IF_ERROR(others.Open(bench));
  std::vector<std::unique_ptr<Decoding>> agents;
  for (Timeline& fork : forks) {
    const int64_t room = engine.max_context() - fork.size();
    HOLDFAST_ASSIGN_OR_RETURN(auto generation, bench.Start(std::move(fork), room));
    agents.push_back(std::make_unique<Decoding>(std::move(generation)));
  }
  std::this_thread::sleep_for(options.phase / 2);  // to warm up
  std::vector<BesideSpan> busy, quiet;
  std::chrono::duration<double> busy_s{};
  for (int phase = 0; phase < 2 * kPhases; ++phase) {
    if (options.progress) options.progress(static_cast<double>(phase) / (2 * kPhases));
    const auto begin = Clock::now(), end = begin + options.phase;
    // Without, with, with, without, and so on: both kinds meet contexts of equal length on average.
    if (phase % 4 == 0 || phase % 4 == 3) {
      std::this_thread::sleep_until(end);
      quiet.emplace_back(begin, end);
      continue;
    }
    while (Clock::now() < end) HOLDFAST_RETURN_IF_ERROR(others.Next());
    busy.emplace_back(begin, Clock::now());
    busy_s += busy.back().second - begin;
  }
  BesideFigures figures;
  for (auto& agent : agents) SplitGaps(agent->Stop(), busy, quiet, &figures);
  figures.sessions = others.done();
  figures.bytes_per_s = others.bytes() / busy_s.count();
  return figures;
}

}  // namespace holdfast

#include "api/bench/keeper_bench.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "api/bench/disk.h"
#include "api/bench/engine_bench.h"
#include "api/bench/scratch.h"
#include "api/bench/turn.h"
#include "api/recorded_request.h"
#include "engine/base/elapsed.h"

namespace holdfast {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kForkSessions = 10, kForksOfSession = 20;  // durable ones
constexpr int64_t kTurnsOfConversation = 10;
constexpr int64_t kMessageTokens = 190, kAnswerTokens = 32;  // of a turn of MeasureWritten
constexpr std::chrono::seconds kCheckpointWait{8};
constexpr std::chrono::milliseconds kToolPause{100};  // in which the database makes its checkpoint

// A Runtime in a folder of its own.
struct Place {
  ScratchDir dir;
  std::unique_ptr<Runtime> runtime;

  Status Open(const EngineOptions& engine) {
    RuntimeOptions options;
    options.engine = engine;
    options.data_dir = dir.path;
    HOLDFAST_ASSIGN_OR_RETURN(runtime, Runtime::Open(options));
    return Status();
  }
};

ChatRequest RequestOf(const std::string& session, const std::vector<ChatMessage>& messages,
                      int64_t max_tokens) {
  ChatRequest request;
  request.tenant = kBenchTenant;
  request.session.id = session;
  request.messages = messages;
  request.sampling.temperature = 0;
  request.max_tokens = max_tokens;
  return request;
}

// A turn whose answer becomes part of `messages`.
Result<TimedTurn> Go(Runtime& runtime, const std::string& session, int64_t max_tokens,
                     std::vector<ChatMessage>* messages) {
  HOLDFAST_ASSIGN_OR_RETURN(TimedTurn turn,
                            TakeTurn(runtime, RequestOf(session, *messages, max_tokens)));
  messages->push_back(BenchMessage("assistant", turn.done.content));
  return turn;
}

Status ForkInMemory(Runtime& runtime, int64_t n, int reps, ForkFigures* figures) {
  EngineBench bench(&runtime.engine());
  figures->tokens = bench.Fit(n, kPageTokens, 1);
  figures->page_bytes = static_cast<double>(runtime.engine().pool().page_bytes());
  if (figures->tokens < 1) return Status::Exhausted("bench: fork: no memory for KV");
  for (int rep = 0; rep < reps; ++rep) {
    HOLDFAST_ASSIGN_OR_RETURN(const double ms, bench.ForkP99(figures->tokens, figures->tokens));
    figures->p99_ms.push_back(ms);
  }
  for (const int64_t part : {8, 4, 2, 1}) {
    const int64_t length = std::max<int64_t>(figures->tokens / part, 1);
    HOLDFAST_ASSIGN_OR_RETURN(const double ms, bench.ForkP99(figures->tokens, length));
    figures->points.push_back({length, ms});
  }
  for (const int64_t back : {1, 7, 18, 30}) {
    if (back >= figures->tokens) break;
    HOLDFAST_ASSIGN_OR_RETURN(const int64_t pages, bench.PagesOfFork(figures->tokens - back));
    figures->pages_taken = std::max(figures->pages_taken, pages);
  }
  return Status();
}

// Forks and rewinds in turn, to other places each time; sessions are new before they have many
// branches.
Status ForkDurably(Runtime& runtime, const std::string& data_dir, ForkFigures* figures) {
  HOLDFAST_ASSIGN_OR_RETURN(
      const std::string text,
      LogText(figures->tokens - figures->tokens / 16, 1, CounterOf(runtime)));
  HOLDFAST_ASSIGN_OR_RETURN(RewriteProbe probe, RewriteProbe::Open(data_dir));
  Keeper& keeper = runtime.keeper();
  for (int s = 0; s < kForkSessions; ++s) {
    const std::string session = "fork-" + std::to_string(s);
    UncomputedTurn turn{.session = session, .messages = {BenchMessage("user", text)}};
    HOLDFAST_RETURN_IF_ERROR(CommitUncomputed(runtime, &turn));
    HOLDFAST_ASSIGN_OR_RETURN(const SessionInfo info, keeper.Get(kBenchTenant, session));
    for (int i = 0; i < kForksOfSession; ++i) {
      MakeBranch make;
      make.from = "main";
      make.at_token = info.tokens * (i + 1) / kForksOfSession;
      if (i % 2 != 0) make.default_branch = MakeBranch::Default::kMove;
      const auto start = Clock::now();
      HOLDFAST_RETURN_IF_ERROR(keeper.Branch(kBenchTenant, session, make).status());
      figures->durable_ms.push_back(MsSince(start));
      HOLDFAST_ASSIGN_OR_RETURN(const double sync, probe.Ms());
      figures->sync_ms.push_back(sync);
    }
  }
  return Status();
}

}  // namespace

Status CommitUncomputed(Runtime& runtime, UncomputedTurn* turn) {
  const Tokenizer& tokenizer = runtime.engine().tokenizer();
  TurnRequest request;
  request.tenant = kBenchTenant;
  request.session.id = turn->session;
  request.messages = turn->messages;
  request.sampling_json = SamplingText(ChatRequest());
  HOLDFAST_ASSIGN_OR_RETURN(std::unique_ptr<Turn> admitted, runtime.keeper().Begin(request));
  TurnOutcome outcome;
  StreamDecoder decoder(&tokenizer, StreamDecoder::Specials::kHide);
  for (uint64_t i = 0; static_cast<int64_t>(outcome.generated.size()) < turn->answer_tokens; ++i) {
    const PhiloxBlock b = Philox(turn->seed, i, 0);
    const auto id = static_cast<TokenId>(b.v[0] % tokenizer.vocab_size());
    if (tokenizer.IsSpecial(id)) continue;
    outcome.generated.push_back({id, uint64_t{b.v[1]} << 32 | b.v[2], false});
    outcome.message.text += decoder.Push(id);
  }
  outcome.message = BenchMessage("assistant", outcome.message.text + decoder.Flush());
  outcome.finish = "length";
  turn->messages.push_back(outcome.message);
  return runtime.keeper().Commit(std::move(admitted), std::move(outcome)).status;
}

Result<ForkFigures> MeasureFork(const EngineOptions& engine, int64_t n, int reps) {
  Place place;
  HOLDFAST_RETURN_IF_ERROR(place.Open(engine));
  ForkFigures figures;
  HOLDFAST_RETURN_IF_ERROR(ForkInMemory(*place.runtime, n, reps, &figures));
  place.runtime->SyncPages();  // the disk is idle then
  HOLDFAST_RETURN_IF_ERROR(ForkDurably(*place.runtime, place.dir.path, &figures));
  place.runtime->Shutdown(0);
  return figures;
}

Result<CommitFigures> MeasureCommit(const EngineOptions& engine, int64_t turns) {
  Place place;
  HOLDFAST_RETURN_IF_ERROR(place.Open(engine));
  Runtime& runtime = *place.runtime;
  HOLDFAST_ASSIGN_OR_RETURN(RewriteProbe probe, RewriteProbe::Open(place.dir.path));
  const uint64_t before = runtime.database().stats().checkpoints;
  CommitFigures figures;
  std::vector<ChatMessage> messages;
  for (int64_t i = 0; i < turns; ++i) {
    if (i % kTurnsOfConversation == 0) {
      messages.clear();
      std::this_thread::sleep_for(kToolPause);
    }
    const std::string n = std::to_string(i);
    messages.push_back(BenchMessage("user", "Step " + n + " went well. What is step " + n + "?"));
    const std::string session = "commit-" + std::to_string(i / kTurnsOfConversation);
    HOLDFAST_ASSIGN_OR_RETURN(const TimedTurn turn, Go(runtime, session, 2, &messages));
    if (!turn.done.report.durable) return Status::Io("bench: commit: a turn is not durable");
    figures.ack_ms.push_back(turn.ack_ms);
    HOLDFAST_ASSIGN_OR_RETURN(const double sync, probe.Ms());
    figures.sync_ms.push_back(sync);
  }
  figures.checkpoints = runtime.database().stats().checkpoints - before;
  runtime.Shutdown(0);
  return figures;
}

Result<SaveFigures> MeasureSave(const EngineOptions& engine, int64_t n, int reps) {
  Place place;
  HOLDFAST_RETURN_IF_ERROR(place.Open(engine));
  Runtime& runtime = *place.runtime;
  HOLDFAST_ASSIGN_OR_RETURN(RewriteProbe probe, RewriteProbe::Open(place.dir.path));
  SaveFigures figures;
  HOLDFAST_ASSIGN_OR_RETURN(figures.text, LogText(n, 0, CounterOf(runtime)));
  std::vector<ChatMessage> messages = {BenchMessage("user", figures.text)};
  std::vector<double> sync_ms;
  for (int i = 0; i <= reps; ++i) {
    if (i > 0) messages.push_back(BenchMessage("user", "And step " + std::to_string(i) + "?"));
    HOLDFAST_RETURN_IF_ERROR(Go(runtime, "save", 4, &messages).status());
    const auto start = Clock::now();
    HOLDFAST_ASSIGN_OR_RETURN(
        const SnapshotInfo snapshot,
        runtime.keeper().Snapshot(kBenchTenant, "save", "", "save-" + std::to_string(i)));
    const double ms = MsSince(start);
    if (i == 0) figures.first_ms = ms;
    else figures.ms.push_back(ms);
    figures.tokens = snapshot.tokens;
    HOLDFAST_ASSIGN_OR_RETURN(sync_ms.emplace_back(), probe.Ms());
  }
  figures.sync_ms = Median(sync_ms);
  runtime.Shutdown(0);
  return figures;
}

Result<WrittenFigures> MeasureWritten(const EngineOptions& engine, int64_t turns) {
  Place place;
  HOLDFAST_RETURN_IF_ERROR(place.Open(engine));
  Runtime& runtime = *place.runtime;
  std::vector<ChatMessage> messages = {BenchMessage("user", "Read the logs that follow.")};
  HOLDFAST_RETURN_IF_ERROR(Go(runtime, "written", 4, &messages).status());
  runtime.SyncPages();
  HOLDFAST_ASSIGN_OR_RETURN(const WrittenBytes before, WrittenSoFar());
  HOLDFAST_ASSIGN_OR_RETURN(const SessionInfo begin, runtime.keeper().Get(kBenchTenant, "written"));
  WrittenFigures figures;
  for (; figures.turns < turns; ++figures.turns) {
    HOLDFAST_ASSIGN_OR_RETURN(const std::string text,
                              LogText(kMessageTokens, static_cast<int>(figures.turns) + 1,
                                      CounterOf(runtime)));
    messages.push_back(BenchMessage("user", text));
    HOLDFAST_RETURN_IF_ERROR(Go(runtime, "written", kAnswerTokens, &messages).status());
  }
  runtime.SyncPages();
  const uint64_t checkpoints = runtime.database().stats().checkpoints;
  const auto deadline = Clock::now() + kCheckpointWait;
  while (runtime.database().stats().checkpoints == checkpoints && Clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  HOLDFAST_ASSIGN_OR_RETURN(const WrittenBytes after, WrittenSoFar());
  HOLDFAST_ASSIGN_OR_RETURN(const SessionInfo end, runtime.keeper().Get(kBenchTenant, "written"));
  figures.tokens = end.tokens - begin.tokens;
  const int64_t pages = end.tokens / kPageTokens - begin.tokens / kPageTokens;
  figures.page_bytes = static_cast<double>(pages) *
                       static_cast<double>(runtime.engine().pool().page_bytes());
  figures.on_disk = after.to_disk > before.to_disk;
  figures.written_bytes = static_cast<double>(figures.on_disk ? after.to_disk - before.to_disk
                                                              : after.by_calls - before.by_calls);
  runtime.Shutdown(0);
  return figures;
}

}  // namespace holdfast

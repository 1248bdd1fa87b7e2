#include "api/bench/stitch_bench.h"

#include <algorithm>
#include <chrono>

#include "api/bench/scratch.h"
#include "api/bench/servers.h"
#include "api/bench/turn.h"
#include "engine/base/elapsed.h"
#include "stitcher/anchor_index.h"
#include "stitcher/segment_store.h"
#include "stitcher/stitcher.h"
#include "stitcher/token_hash.h"

namespace holdfast {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kGivenTokens = 300;    // of an output that is inserted or put in a place
constexpr int64_t kOutputTokens = 1150;  // of the others
constexpr int64_t kQuestionRoom = 100;   // system, task, question and what the template puts round
constexpr int64_t kMarkup = 40;          // of a call and an output
constexpr int kPeerReps = 2;             // a peer computes the history before each
constexpr int64_t kPlanTokens = 80;      // of a segment of MeasureStitchPlan
constexpr int kDecodeRuns = 10;
constexpr int64_t kDecodeShift = 37, kDecodeLink = 32, kDecodePrefix = 512;
constexpr const char* kSource = "default";
constexpr const char* kFull = "full";    // its tenant has nothing that could be used

// Lines like a log's, of `tokens` tokens or a few more.
Result<std::string> ToolOutput(int64_t tokens, int number, const CountTokens& count) {
  std::string text;
  int64_t there = 0;
  for (int64_t i = 1; there < tokens; ++i) {
    const int64_t a = (i + 131 * number) * 7919 % 9973, b = (i * i + number) * 31 % 4513;
    const std::string line = "unit " + std::to_string(a) + " of rack " + std::to_string(number) +
                             " read " + std::to_string(b) + " at step " + std::to_string(i) + "\n";
    HOLDFAST_ASSIGN_OR_RETURN(const int64_t more, count(line));
    there += more;
    text += line;
  }
  return text;
}

// An agent's session: outputs, each behind its call, and a question. The first output is short.
class History {
 public:
  static Result<History> Make(int64_t tokens, CountTokens count) {
    History h;
    h.count_ = std::move(count);
    const int64_t room = tokens - 2 * kGivenTokens - kQuestionRoom;
    const int64_t large = std::max<int64_t>(2, (room + kOutputTokens / 2) / kOutputTokens);
    const int64_t each = std::max<int64_t>(room / large - kMarkup, 2 * kMinSegmentTokens);
    for (int i = 0; i <= large; ++i) {
      HOLDFAST_ASSIGN_OR_RETURN(const std::string text,
                                ToolOutput(i == 0 ? kGivenTokens : each, i, h.count_));
      h.outputs_.push_back({i, text});
    }
    return h;
  }

  std::vector<ChatMessage> Before() const { return Messages(outputs_, "What was read last?"); }

  // Otherwise for each `rep`: nothing that one left behind is there for the next.
  Result<std::vector<ChatMessage>> After(HistoryEdit edit, int rep) const {
    std::vector<Output> outputs = outputs_;
    const auto n = static_cast<int>(outputs.size());  // three at least
    if (edit == HistoryEdit::kSwap) {
      std::swap(outputs[rep % 2], outputs[2 + rep / 2 % (n - 2)]);
    } else {
      const int number = edit == HistoryEdit::kReplace ? 0 : 1000 + rep;
      HOLDFAST_ASSIGN_OR_RETURN(const std::string text,
                                ToolOutput(kGivenTokens, 1000 + rep, count_));
      if (edit == HistoryEdit::kReplace) outputs.erase(outputs.begin());
      outputs.insert(outputs.begin(), {number, text});
    }
    return Messages(outputs, "Which of them was largest, in look " + std::to_string(rep) + "?");
  }

 private:
  struct Output {
    int call = 0;
    std::string text;
  };

  static std::vector<ChatMessage> Messages(const std::vector<Output>& outputs,
                                           const std::string& question) {
    std::vector<ChatMessage> out = {
        BenchMessage("system", "You read what machines say, and answer questions about it."),
        BenchMessage("user", "Look at all racks, one after the other.")};
    for (const auto& [number, text] : outputs) {
      const std::string call = "rack_" + std::to_string(number);
      out.push_back(BenchMessage("assistant", "Next is " + call + "."));
      ChatMessage& output = out.emplace_back(BenchMessage("tool", text));
      output.tool_call_id = call;
      output.raw_json =
          DumpJson({{"role", "tool"}, {"tool_call_id", call}, {"content", text}});
    }
    out.push_back(BenchMessage("user", question));
    return out;
  }

  std::vector<Output> outputs_;
  CountTokens count_;
};

ChatRequest RequestOf(const std::string& tenant, std::vector<ChatMessage> messages,
                      ReusePolicy policy) {
  ChatRequest request;
  request.tenant = tenant;
  request.messages = std::move(messages);
  request.sampling.temperature = 0;
  request.max_tokens = 1;
  request.reuse.policy = policy;
  return request;
}

int64_t PagesInUse(Runtime& runtime) {
  const PoolStats pool = runtime.engine().pool().stats();
  return static_cast<int64_t>(pool.leased + pool.cached);
}

// How many pages of 32 hold a row that the turn computed itself.
int64_t PagesComputed(const std::vector<ProvenanceSpan>& spans, int64_t tokens) {
  int64_t pages = 0, next = 0;  // the first block that is not counted yet
  for (const ProvenanceSpan& span : spans) {
    const int64_t end = std::min(span.end, tokens);
    if (span.origin == KvOrigin::kExact || span.origin == KvOrigin::kShifted || span.begin >= end) {
      continue;
    }
    const int64_t first = std::max(next, span.begin / kPageTokens);
    next = std::max(next, (end - 1) / kPageTokens + 1);
    pages += std::max<int64_t>(0, next - first);
  }
  return pages;
}

// Takes the turn and deletes its session: what it computed is the first to go.
Result<TimedTurn> TakeAndForget(Runtime& runtime, const ChatRequest& request) {
  HOLDFAST_ASSIGN_OR_RETURN(TimedTurn turn, TakeTurn(runtime, request));
  HOLDFAST_RETURN_IF_ERROR(
      runtime.keeper().Delete(request.tenant, turn.done.report.start.session_id));
  return turn;
}

Status NoteReport(Runtime& runtime, const TimedTurn& turn, int64_t pages_taken,
                  StitchFigures* figures) {
  const StitchReport& report = turn.done.report.start.stitch;
  if (report.shifted == 0) {
    std::string why = report.fallback;
    for (const RunReport& run : report.runs) why += "; " + run.reason;
    return Status::Invalid("bench: stitch: nothing was reused: " + why);
  }
  HOLDFAST_ASSIGN_OR_RETURN(
      const ProvenanceInfo map,
      runtime.keeper().Provenance(kSource, turn.done.report.start.session_id, ""));
  figures->tokens = report.totals.sum();
  figures->computed = report.to_compute;
  figures->runs = static_cast<int>(std::count_if(report.runs.begin(), report.runs.end(),
                                                 [](const RunReport& r) { return r.used; }));
  figures->behind = figures->tokens - report.totals.exact - report.totals.restored;
  figures->fresh = report.totals.fresh;
  figures->stitch_ms = report.restore_ms;
  figures->extra_pages = std::max(figures->extra_pages,
                                  pages_taken - PagesComputed(map.spans, figures->tokens));
  return Status();
}

// One edited history in both ways; `prompt` gets its tokens.
Status MeasureRep(Runtime& runtime, const std::vector<ChatMessage>& messages,
                  std::vector<TokenId>* prompt, StitchFigures* figures) {
  const int64_t before = PagesInUse(runtime);
  HOLDFAST_ASSIGN_OR_RETURN(const TimedTurn fast,
                            TakeTurn(runtime, RequestOf(kSource, messages, ReusePolicy::kFast)));
  figures->fast_ms.push_back(fast.first_ms);
  HOLDFAST_RETURN_IF_ERROR(NoteReport(runtime, fast, PagesInUse(runtime) - before, figures));
  HOLDFAST_RETURN_IF_ERROR(
      runtime.keeper().Delete(kSource, fast.done.report.start.session_id));
  HOLDFAST_ASSIGN_OR_RETURN(
      const TimedTurn full,
      TakeAndForget(runtime, RequestOf(kFull, messages, ReusePolicy::kOff)));
  figures->full_ms.push_back(full.first_ms);
  *prompt = full.done.prompt_tokens;
  return Status();
}

using Prompt = std::vector<TokenId>;

Result<std::vector<double>> PeerFirstMs(const StitchOptions& options, const Peer& peer,
                                        const Prompt& before, const std::vector<Prompt>& after) {
  HOLDFAST_ASSIGN_OR_RETURN(
      const ServerProcess server,
      ServerProcess::StartPeer(peer, options.engine.model_path, options.engine.cpu.threads,
                               {"-np", "1", "-c", std::to_string(after[0].size() + 1024),
                                "--cache-reuse", "64"}));
  const auto ask = [&](const Prompt& prompt) {
    return server.Post("/completion", {{"prompt", prompt}, {"n_predict", 1}, {"temperature", 0},
                                       {"cache_prompt", true}});
  };
  std::vector<double> ms;
  for (const Prompt& prompt : after) {
    HOLDFAST_RETURN_IF_ERROR(ask(before).status());
    const auto start = Clock::now();
    HOLDFAST_RETURN_IF_ERROR(ask(prompt).status());
    ms.push_back(MsSince(start));
  }
  return ms;
}

// Ours; the tokens of the history and of each edited one, for peers.
Status MeasureOurs(const StitchOptions& options, Runtime& runtime, Prompt* before,
                   std::vector<Prompt>* after, StitchFigures* figures) {
  const int64_t most = runtime.engine().max_context() - 2 * kGivenTokens;
  HOLDFAST_ASSIGN_OR_RETURN(const History history,
                            History::Make(std::min(options.tokens, most), CounterOf(runtime)));
  ChatRequest first = RequestOf(kSource, history.Before(), ReusePolicy::kExact);
  first.hints.pin = true;
  HOLDFAST_ASSIGN_OR_RETURN(const TimedTurn source, TakeTurn(runtime, first));
  *before = source.done.prompt_tokens;
  runtime.SyncPages();
  for (int rep = 0; rep < options.reps; ++rep) {
    if (options.progress) options.progress(static_cast<double>(rep) / (options.reps + 1));
    HOLDFAST_ASSIGN_OR_RETURN(const auto messages, history.After(options.edit, rep));
    HOLDFAST_RETURN_IF_ERROR(MeasureRep(runtime, messages, &after->emplace_back(), figures));
  }
  return Status();
}

}  // namespace

Result<StitchFigures> MeasureStitch(const StitchOptions& options) {
  StitchFigures figures;
  Prompt before;
  std::vector<Prompt> after;
  {
    const ScratchDir dir;
    RuntimeOptions runtime_options;
    runtime_options.engine = options.engine;
    runtime_options.data_dir = dir.path;
    HOLDFAST_ASSIGN_OR_RETURN(const auto runtime, Runtime::Open(runtime_options));
    runtime->stitcher().SetCard(std::make_shared<const ModelCard>(
        OpenCard(runtime->engine().model().fingerprint())));
    HOLDFAST_RETURN_IF_ERROR(MeasureOurs(options, *runtime, &before, &after, &figures));
  }
  if (after.size() > kPeerReps) after.resize(kPeerReps);
  for (const Peer& peer : options.peers) {
    const std::string name = peer.name + " cache-reuse";
    auto theirs = PeerFirstMs(options, peer, before, after);
    if (theirs.ok()) figures.peers[name] = std::move(*theirs);
    else figures.notes[name] = theirs.status().message();
  }
  return figures;
}

// Pages are marked as computed and are not: nobody reads them.
Result<StitchPlanFigures> MeasureStitchPlan(Engine& engine, int64_t segments, int reps) {
  const TenantScope scope("bench");
  const Digest fp = engine.model().fingerprint();
  Timeline source = engine.NewTimeline(scope);
  const int64_t n = segments * kPlanTokens;
  Prompt chain;
  for (int64_t i = 0; i < (n + kPageTokens) / kPageTokens * kPageTokens; ++i) {
    chain.push_back(static_cast<TokenId>(Philox(7, static_cast<uint64_t>(i), 0).v[0] %
                                         engine.tokenizer().vocab_size()));
  }
  source.Extend(chain);
  while (source.pending() > 0) {
    HOLDFAST_ASSIGN_OR_RETURN(const auto rows, source.NextRows(kPageTokens));
    source.Filled(static_cast<int64_t>(rows.size()));
  }
  AnchorIndex index;
  const TokenHashes hashes(chain);
  Prompt prompt = {chain.back()};
  for (int64_t s = segments; s-- > 0;) {  // in the other order
    const int64_t begin = s * kPlanTokens, end = begin + kPlanTokens;
    Variant v = SliceOf(source, fp, hashes, begin, end);
    v.row = s;
    v.segment = MakeSegmentId({fp, {}, {}}, scope, "user", v.body());
    prompt.insert(prompt.end(), chain.begin() + begin, chain.begin() + end);
    index.Add(std::make_shared<const Variant>(std::move(v)));
  }
  prompt.push_back(chain.front());
  StitchPlanFigures figures;
  figures.tokens = static_cast<int64_t>(prompt.size());
  const auto start = Clock::now();
  const std::vector<FoundRun> runs = index.Find(prompt, 0, figures.tokens);
  figures.find_ms = MsSince(start) * 1000 / static_cast<double>(figures.tokens);
  Stitcher stitcher(&engine.pool(), nullptr, fp);
  stitcher.SetCard(std::make_shared<const ModelCard>(OpenCard(fp)));
  StitchRequest request{scope, prompt, nullptr, {}};
  request.reuse.policy = ReusePolicy::kFast;
  request.runs = runs;
  for (int rep = 0; rep <= reps; ++rep) {
    const auto began = Clock::now();
    HOLDFAST_ASSIGN_OR_RETURN(const Stitched stitched, stitcher.Stitch(request));
    if (rep > 0) figures.plan_ms.push_back(MsSince(began));
    const auto used = std::count_if(stitched.report.runs.begin(), stitched.report.runs.end(),
                                    [](const RunReport& r) { return r.used; });
    if (used != segments) {
      return Status::Invalid("bench: stitch-plan: " + std::to_string(used) + " of " +
                             std::to_string(segments) + " segments were used: " +
                             stitched.report.fallback);
    }
  }
  return figures;
}

Result<StitchDecodeFigures> MeasureStitchDecode(Engine& engine, EngineBench& bench, int64_t n,
                                                int reps) {
  StitchDecodeFigures figures;
  figures.tokens = bench.Fit(n, 2 * (kDecodeTokens + kPageTokens), 2);
  figures.runs = kDecodeRuns;
  const int64_t prefix = std::min(kDecodePrefix, figures.tokens / 8);
  const int64_t each = (figures.tokens - prefix - kDecodeShift - kPageTokens) / kDecodeRuns;
  if (each <= kDecodeLink) return Status::Exhausted("bench: stitch-decode: no room for a context");
  HOLDFAST_ASSIGN_OR_RETURN(const Timeline source, bench.Context(0, figures.tokens, 0));
  Prompt tokens(source.tokens().begin(), source.tokens().begin() + prefix);
  std::vector<Piece> pieces;
  for (int i = 0; i < kDecodeRuns; ++i) {
    const int64_t from = prefix + kDecodeShift + i * each, at = prefix + i * each;
    tokens.insert(tokens.end(), source.tokens().begin() + from,
                  source.tokens().begin() + from + each);
    pieces.push_back({&source, from + kDecodeLink, from + each, at + kDecodeLink});
  }
  tokens.push_back(tokens.front());
  Stitcher stitcher(&engine.pool(), nullptr, engine.model().fingerprint());
  HOLDFAST_ASSIGN_OR_RETURN(Stitched made,
                            stitcher.Stitch({TenantScope("bench"), tokens, &source, pieces}));
  HOLDFAST_ASSIGN_OR_RETURN(const Timeline stitched, bench.Fill(std::move(made.timeline)));
  figures.tokens = stitched.size();
  for (int rep = 0; rep < reps; ++rep) {
    HOLDFAST_ASSIGN_OR_RETURN(const double exact, bench.Decode(figures.tokens));
    HOLDFAST_ASSIGN_OR_RETURN(Timeline fork, stitched.Fork(figures.tokens));
    HOLDFAST_ASSIGN_OR_RETURN(const double moved, bench.DecodeOn(std::move(fork)));
    figures.exact.push_back(exact);
    figures.stitched.push_back(moved);
  }
  return figures;
}

}  // namespace holdfast

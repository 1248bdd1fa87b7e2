// The engine's boundary: one model, its pages, and one thread that runs it for many sequences at
// once.
//
// A request hands in a Timeline (what is already there) with tokens still to compute, and gets a
// Generation: events arrive in its bounded sink while the model thread computes pending rows in
// chunks and then decodes. What a sequence gets never depends on what else runs (NUMERICS.md).
//
// Threads: every method is thread-safe. The model thread owns a request's timeline from Submit to
// the Finish event and does no I/O. Generations may outlive the engine's Shutdown, not the engine.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/kv/page_store.h"
#include "engine/kv/pool.h"
#include "engine/kv/timeline.h"
#include "engine/model/model.h"
#include "engine/model/sampler.h"
#include "engine/text/text.h"

namespace holdfast {

struct EngineOptions {
  std::string model_path;
  CpuOptions cpu;
  size_t kv_bytes = 0;          // 0: a quarter of the memory that is free
  KvType kv_type = KvType::kF16;
  int max_running = 64;         // sequences that decode together; more wait in the queue
  int max_queued = 256;         // waiting requests; one more is kExhausted
  int prefill_chunk = 256;      // rows of a prefill pass
  bool speculate = true;        // draft tokens where measurements say that it pays (lossless)
  std::function<void(double fraction)> progress;  // while loading
};

enum class FinishReason : uint8_t { kEnd, kStopString, kLength, kCancelled, kError };

// Draft rows of speculation: computed, and those that became tokens.
struct DraftCounts {
  int64_t drafted = 0, accepted = 0;
};

// One token of the answer. Comes when it is certain that no stop string cuts it; tokens that one
// cuts never come.
struct TokenEvent {
  Sample sample;       // token, logprob, digest
  bool forced = false; // put by the constraint's jump-ahead, not drawn
  std::string text;    // whole UTF-8 characters that this token completed
};

struct FinishEvent {
  FinishReason reason = FinishReason::kEnd;
  Status status;                 // kError and kCancelled: why
  std::string text;              // of the answer, but of no whole token: what stood before a stop
                                 // string in the token that it cut, or the end of broken UTF-8
  // Back to the caller: the tokens of all events appended, those that a stop string cut dropped.
  // The last sampled token has no KV yet: it is pending (not so after a cut).
  std::optional<Timeline> timeline;
  int64_t prefilled = 0;         // rows computed before the first token
  int64_t reused = 0;            // rows found in the pool instead, after Submit
  DraftCounts drafts;
  double queue_ms = 0, prefill_ms = 0, decode_ms = 0;
};

struct GenerateRequest {
  std::optional<Timeline> timeline;  // required; at least one pending row (the last token)
  SamplingParams sampling;
  uint64_t turn_seed = 0;
  int64_t output_begin = 0;          // index of the first token to generate (= timeline size)
  int64_t max_tokens = 0;            // 0: only compute the pending rows, sample nothing (kLength)
  std::vector<std::string> stop;     // at most 16, each 1..256 bytes
  bool ignore_end = false;           // go on after an end token (not with a constraint)
  int top_logprobs = -1;             // -1: none; 0..20
  bool speculate = true;             // as far as the engine does; changes nothing but the time
  std::unique_ptr<Constraint> constraint;  // or null
  // Tokens that must come first, with their recorded digests unchecked (retry and replay by force).
  // Their events have digest 0 and no logprobs unless top_logprobs asks for them (then it is
  // slower).
  std::vector<TokenId> forced;
  // Called on the model thread with each logits row of pending rows (perplexity, verify); null =
  // no. Every pending row is then computed, also where the pool has its page, and there are no
  // drafts.
  std::function<void(int64_t index, std::span<const float> logits)> observe_logits;
  // With observe_logits: the rows that it is called for (any thread); null = every one.
  std::function<bool(int64_t index)> observes;
  // Called on the model thread, layer by layer, with the queries of the pending rows in a pass (see
  // ForwardBatch::observe_queries): row i of q is that of token `rows[i]` of `timeline`, which may
  // be read. Selection probes a prompt so; null = no. Rows are computed as with observe_logits.
  std::function<void(int layer, const Timeline& timeline, std::span<const int64_t> rows,
                     std::span<const float> q)> observe_queries;
  // Verify only: at most this many rows of the request in one pass, none from the pool, no drafts;
  // 0 = the engine's choice.
  int chunk = 0;
};

// A running request. Any thread may Next() (one at a time) and Cancel().
class Generation {
 public:
  Generation() = default;
  ~Generation();  // events that nobody took go with it

  // A sink with as many events parks its sequence until half of them are gone. (What one step makes
  // may go beyond it.)
  static constexpr size_t kSinkEvents = 256;

  // The next event, waiting up to `timeout_ms` (-1: without limit). nullopt at the time-out, and
  // after the Finish event.
  struct Event {
    std::optional<TokenEvent> token;
    std::optional<FinishEvent> finish;  // the last one
  };
  std::optional<Event> Next(int timeout_ms);
  // Takes effect within two steps; the Finish event still comes. Dropping the last reference
  // cancels.
  void Cancel();

 private:
  friend class Scheduler;
  friend class Sequence;
  void Push(Event event);
  size_t waiting();

  std::mutex mu_;
  std::condition_variable changed_;
  std::deque<Event> events_;
  bool drained_ = false;        // the Finish event was taken
  std::atomic<bool> cancelled_{false};
  std::function<void()> wake_;  // tells the scheduler of room and of a cancel; constant
};

struct EngineStats {
  uint64_t steps = 0, rows = 0, decode_rows = 0, prefill_rows = 0, generated = 0;
  uint64_t preempted = 0, finished = 0, failed = 0;
  uint64_t drafted = 0, accepted = 0;  // rows of drafts, and those that became tokens
  int running = 0, queued = 0;
  double step_ms_max = 0, busy_seconds = 0;
  PoolStats pool;
};

class Engine {
 public:
  static Result<std::unique_ptr<Engine>> Open(const EngineOptions& options);
  ~Engine();  // Shutdown, then frees everything

  // kExhausted when the queue is full, kUnavailable after Shutdown, kInvalid when the timeline
  // can't fit the context or a field is out of range. `request` is taken on success only.
  Result<std::shared_ptr<Generation>> Submit(GenerateRequest&& request);
  // Cancels what runs and refuses what comes: kUnavailable.
  void Shutdown();

  const Model& model() const;
  const Tokenizer& tokenizer() const;
  PagePool& pool();
  int64_t max_context() const;  // tokens of one timeline: min(model, pool)
  const NumericsDigest& numerics() const;
  std::string_view cpu_level() const;
  EngineStats stats() const;
  // An empty timeline of this model for `scope`.
  Timeline NewTimeline(const TenantScope& scope);

 private:
  struct Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace holdfast

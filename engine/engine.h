// The engine's boundary: one model, its pages, and one thread that runs it for many sequences at once.
//
// A request hands in a Timeline (what is already there) with tokens still to compute, and gets a
// Generation: events arrive in its bounded sink while the model thread computes pending rows in
// chunks and then decodes. What a sequence gets never depends on what else runs (NUMERICS.md).
//
// Threads: every method is thread-safe. The model thread owns a request's timeline from Submit to the
// Finish event and does no I/O. Generations may outlive the engine's Shutdown, not the engine.
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
  std::function<void(double fraction)> progress;  // while loading
};

enum class FinishReason : uint8_t { kEnd, kStopString, kLength, kCancelled, kError };

struct TokenEvent {
  Sample sample;       // token, logprob, digest
  bool forced = false; // put by the constraint's jump-ahead, not drawn
  std::string text;    // whole UTF-8 characters that this token completed; stop strings withheld
};

struct FinishEvent {
  FinishReason reason = FinishReason::kEnd;
  Status status;                 // kError and kCancelled: why
  std::string text;              // withheld text that turned out to belong to the answer
  std::optional<Timeline> timeline;  // back to the caller; stop-string tokens cut off
  // The last sampled token has no KV yet: it is the timeline's last token and pending.
  int64_t prefilled = 0;         // rows computed before the first token
  double queue_ms = 0, prefill_ms = 0, decode_ms = 0;
};

struct GenerateRequest {
  std::optional<Timeline> timeline;  // required; at least one pending row (the last token)
  SamplingParams sampling;
  uint64_t turn_seed = 0;
  int64_t output_begin = 0;          // index of the first token to generate (= timeline size)
  int64_t max_tokens = 0;            // 0: only compute the pending rows, sample nothing
  std::vector<std::string> stop;     // at most 16, each 1..256 bytes
  bool ignore_end = false;           // go on after an end-of-generation token
  int top_logprobs = -1;             // -1: none; 0..20
  std::unique_ptr<Constraint> constraint;  // or null
  // Tokens that must come first, with their recorded digests unchecked (retry and replay by force).
  std::vector<TokenId> forced;
  // Called on the model thread with each logits row of pending rows (perplexity, verify); null = no.
  std::function<void(int64_t index, std::span<const float> logits)> observe_logits;
  // Verify only: at most this many rows of the request in one pass; 0 = the engine's choice.
  int chunk = 0;
};

// A running request. Any thread may Next() (one at a time) and Cancel().
class Generation {
 public:
  static constexpr size_t kSinkEvents = 256;  // full parks the sequence until there is room

  // The next event, waiting up to `timeout_ms` (-1: without limit). nullopt at the time-out.
  struct Event {
    std::optional<TokenEvent> token;
    std::optional<FinishEvent> finish;  // the last one
  };
  std::optional<Event> Next(int timeout_ms);
  void Cancel();  // takes effect within two steps; the Finish event still comes

 private:
  friend class Scheduler;
  std::mutex mu_;
  std::condition_variable changed_;
  std::deque<Event> events_;
  std::atomic<bool> cancelled_{false};
  std::function<void()> wake_;  // tells the scheduler that a parked sink has room
};

struct EngineStats {
  uint64_t steps = 0, rows = 0, decode_rows = 0, prefill_rows = 0, generated = 0;
  int running = 0, queued = 0;
  double step_ms_max = 0, busy_seconds = 0;
  PoolStats pool;
};

class Engine {
 public:
  static Result<std::unique_ptr<Engine>> Open(const EngineOptions& options);
  ~Engine();  // Shutdown, then frees everything

  // kExhausted when the queue is full, kInvalid when the timeline can't fit the context.
  Result<std::shared_ptr<Generation>> Submit(GenerateRequest request);
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

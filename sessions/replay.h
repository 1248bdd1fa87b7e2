// Replay: a recorded branch computed again, for debugging.
//
//   verify   computes the branch from its token log, cold (no page is reused), and compares the
//            digest of every logits row that a token was drawn from, the token that the recorded
//            seed and sampling draw from it, and the pages that memory and disk hold for the
//            branch, until the first divergence. Where the template or tokenizer has changed, the
//            recorded messages are rendered again as well.
//   forced   gives the recorded tokens of every output with the alternatives at each step.
//   free     goes on from a point with something changed, as a new branch (api/free_replay).
//
// Every row is computed alone (NUMERICS.md), so the recorded tokens give the recorded bits,
// whatever the chunks; where they do not, something named in the Basis has changed, or a page was
// wrong.
//
// A Replay is pulled by one consumer and has no thread of its own. It computes in pieces between
// which others get their turn, over pages that nobody else sees, and writes nothing.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "sessions/recording.h"
#include "sessions/token_diff.h"

namespace holdfast {

enum class ReplayMode : uint8_t { kVerify, kForced, kFree };

// What a turn's tokens were drawn with.
struct TurnSampler {
  SamplingParams params;
  std::unique_ptr<Constraint> constraint;      // or null
  std::optional<uint64_t> request_seed;        // that the request named
};

// One output token. Steps come in order of index.
struct ReplayStep {
  int64_t index = 0;            // of the token in the branch
  int64_t item = 0;
  TokenOrigin origin = TokenOrigin::kSampled;  // kSampled or kForced
  TokenId recorded = kNoToken;
  TokenId drawn = kNoToken;     // now, from the same row; of a forced token: the most likely one
  uint64_t recorded_digest = 0; // 0: none to compare
  uint64_t digest = 0;
  float logprob = 0;            // of the recorded token, from raw logits
  int64_t rank = 0;             // of it: 1 = the most likely
  std::vector<TokenLogprob> top;
};

struct ReplayDivergence {
  // "prompt" (a token that the template makes otherwise now), "logits" (the digest), "token" (the
  // same logits, another draw), "page" (stored KV that is not what its tokens give).
  std::string what;
  // "weights", "numerics", "kv_type", "tokenizer", "model", "template", "seed", "sampling",
  // "sampler" (neither of the two, but the draw), "page", or "unknown" (nothing recorded changed).
  std::string cause;
  std::string detail;                 // for people
  int64_t index = 0;                  // of the token in the branch; of a page: its first token
  TokenId expected = kNoToken, got = kNoToken;    // prompt, token, logits
  uint64_t expected_digest = 0, got_digest = 0;   // logits, token
  std::string tier;                   // page: "memory" or "disk"
};

struct ReplayReport {
  int64_t tokens = 0;                 // computed
  int64_t steps = 0;                  // sampled tokens compared
  int64_t undigested = 0;             // of them without a digest to compare (an older log)
  int64_t pages_memory = 0, pages_disk = 0;  // compared
  std::vector<std::string> changed;   // ChangesBetween, over all turns; free: of the one replayed
  std::optional<ReplayDivergence> divergence;
  double ms = 0;
};

// What came of a free replay.
struct FreeOutcome {
  std::string branch, turn_id;        // made by it, in the same session
  std::string finish, content;
  int64_t recorded_begin = 0;         // of the recorded answer, in its branch
  int64_t begin = 0;                  // of the new one, in its own
  int64_t forced = 0;                 // tokens of it that were given: those before the point
  // The two answers. Of another tokenizer: `recorded` is its text in this one's tokens.
  std::vector<TokenId> recorded, replayed;
  std::vector<DiffHunk> diff;         // between them
  std::optional<Miss> miss;           // "model_changed": another model gave the recorded one
};

struct ReplayEvent {
  std::optional<ReplayStep> step;
  int64_t done = 0, total = 0;        // tokens; set in every event
  std::optional<ReplayReport> report; // the last event
  std::optional<FreeOutcome> free;    // beside the report
};

// A running replay. One consumer; ends when it goes.
class Replay {
 public:
  virtual ~Replay() = default;
  // The next event, waiting up to `timeout_ms` (-1: for as long as it takes); nullopt at the
  // time-out, and after the report. After an error nothing more comes.
  virtual Result<std::optional<ReplayEvent>> Next(int timeout_ms) = 0;
  virtual void Cancel() = 0;  // Next then gives kCancelled
  virtual const Recording& recording() const = 0;
};

struct RecomputeRequest {
  ReplayMode mode = ReplayMode::kVerify;  // kVerify or kForced
  std::string tenant;
  int64_t from = 0, to = -1;          // tokens that are compared or shown; -1 = to the end
  int top_k = 0;                      // alternatives of each step, 0..20
  std::optional<uint64_t> seed;       // verify: as if every request had named this one
  bool other_sampling = false;        // verify: the samplers are not the recorded ones
};

struct RecomputeParts {
  Engine* engine = nullptr;
  PageStore* store = nullptr;         // whose pages are compared; may be null
  Basis basis;                        // of this process
  std::function<void(int64_t pages)> make_room;
  // From RecordedTurn::sampling and tools. An error ends the replay.
  std::function<Result<TurnSampler>(const RecordedTurn&)> sampler;
  std::shared_ptr<void> alive;        // let go of last: whoever waits for replays to end
};

// verify and forced. The engine and the store outlive it.
class Recompute : public Replay {
 public:
  // kInvalid: from, to or top_k out of range; a token that this model's vocabulary lacks; more
  // tokens than its context holds.
  static Result<std::unique_ptr<Recompute>> Start(const RecomputeRequest& request,
                                                  Recording recording, RecomputeParts parts);
  ~Recompute() override;
  Result<std::optional<ReplayEvent>> Next(int timeout_ms) override;
  void Cancel() override;
  const Recording& recording() const override;

 private:
  struct Impl;
  explicit Recompute(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace holdfast

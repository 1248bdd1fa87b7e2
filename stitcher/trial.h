// One measurement of reuse: a context answered by full prefill and, on the same answer's tokens, by
// a method that reuses KV. Everything is computed here, on one ForwardPass; nothing of a context
// outlives the next Begin.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/kv/pool.h"
#include "engine/model/model.h"
#include "stitcher/card.h"
#include "stitcher/contexts.h"
#include "stitcher/pending.h"
#include "stitcher/select.h"
#include "stitcher/stitcher.h"

namespace holdfast {

// A way to come by a prompt's KV.
enum class ReuseHow : uint8_t {
  kReuse,       // runs reused, repaired as the setting says
  kRandom,      // the same with windows at random: control
  kUnturned,    // runs reused without turning queries: control
  kPrefix,      // the exact prefix alone: control, KL 0
  kTranslated,  // all computed, for other positions, and read with turned queries: noise
  kOtherKv,     // all computed by a model of the same weights with other KV: noise
};

struct ReuseMethod {
  std::string name;
  ReuseHow how = ReuseHow::kReuse;
  CardSetting setting;
};
// rot, link-16 .. link-128, win, link-32 + win, link-128 + win, then controls and noise.
std::vector<ReuseMethod> StandardMethods();
inline constexpr int kStandardWindows = 20;  // per cent

struct Trial {
  std::string edit, method;
  ReuseHow how = ReuseHow::kReuse;
  CardSetting setting;
  CardKind kind = CardKind::kInContext;
  uint64_t seed = 0;
  // Of the context.
  int64_t context = 0, min_tokens = 0, max_shift = 0;  // tokens of the prompt, the shortest run
  int runs = 0;
  // Of the answer's tokens.
  int tokens = 0;
  double kl = 0, largest_kl = 0;  // mean and largest, nats
  int same_top = 0;               // tokens with the same likeliest continuation
  int first_divergence = 0;       // index of the first without; `tokens` where there is none
  // Of the work (see CardKl).
  double recomputed = 0, rows = 0;
};

class TrialRunner {
 public:
  // Contexts of at most `max_tokens` tokens, answer included. `model` is borrowed; `other`, the
  // same weights with other KV, may be null (then kOtherKv is kInvalid).
  TrialRunner(Model& model, Model* other, int64_t max_tokens);

  // Full prefill and greedy answer of at most `answer_tokens` (an end token ends it and counts),
  // then the KV of the context's sources. `context` must stay until the next Begin.
  Status Begin(const TestContext& context, int answer_tokens);
  // `edit` and `seed` are left to the caller.
  Result<Trial> Run(const ReuseMethod& method);

  const std::vector<TokenId>& answer() const { return answer_; }  // of full prefill
  // The greedy answer that `method` gives.
  Result<std::vector<TokenId>> Answer(const ReuseMethod& method, int tokens);

 private:
  using OnLogits = std::function<void(std::span<const float>)>;

  std::vector<TokenRange> RunRanges() const;
  Status Probe();
  Result<std::vector<TokenRange>> Recomputed(const ReuseMethod& method);
  Result<Timeline> Assemble(std::span<const TokenId> tokens,
                            std::span<const TokenRange> recomputed);
  Status ComputeAll(Model& model, ForwardPass& pass, std::span<const TokenId> tokens, int32_t move,
                    const OnLogits& on_logits) const;
  Result<std::vector<TokenId>> Decode(Timeline& timeline, ShiftReading reading, int tokens,
                                      const OnLogits& on_logits);
  void DescribeWork(const ReuseMethod& method, std::span<const TokenRange> recomputed,
                    Trial* trial) const;

  Model& model_;
  Model* other_;
  ForwardPass pass_;
  std::unique_ptr<ForwardPass> other_pass_;
  PagePool pool_;
  Stitcher stitcher_;
  const TestContext* context_ = nullptr;
  std::vector<Timeline> sources_;
  std::vector<TokenId> answer_;
  std::vector<std::vector<float>> want_;  // [answer tokens][vocab]
  std::vector<double> mass_;              // empty until a method wants it
};

}  // namespace holdfast

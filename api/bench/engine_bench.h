// Workloads on an Engine: what is timed, without peers, limits or JSON. Tokens come from a fixed
// generator and are new each time, so that nothing is found in a cache by accident; contexts are
// computed once and forked for each run. Not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "api/bench/limits.h"
#include "engine/engine.h"

namespace holdfast {

inline constexpr int kDecodeTokens = 64;   // timed, after the first one
inline constexpr int kAppendTokens = 16;

// What sequences that decode together go on from: a context of their own, or one for all.
enum class Prompts : uint8_t { kOwn, kShared };

class EngineBench {
 public:
  explicit EngineBench(Engine* engine) : engine_(engine) {}

  // The largest context <= n after which `tokens` more fit for each of `sequences` (the model's
  // context, and the memory for KV). Negative: none.
  int64_t Fit(int64_t n, int64_t tokens, int64_t sequences) const;

  // All but the last in tokens per second. Prefill and Append end with the first token drawn.
  Result<double> Prefill(int64_t n);                    // n tokens from nothing
  Result<double> Append(int64_t n);                     // kAppendTokens on n cached ones
  Result<double> Decode(int64_t n);                     // kDecodeTokens after n cached ones
  // Of all together, each as Decode.
  Result<double> Agents(int64_t sequences, int64_t n, Prompts prompts = Prompts::kOwn);
  // p99 in ms of forking a context of n tokens at `length` or up to 31 tokens before.
  Result<double> ForkP99(int64_t n, int64_t length);
  // Pages of the pool that a fork at `length`, inside a page, takes until it has a row of its own.
  Result<int64_t> PagesOfFork(int64_t length);

  // The first n tokens of context number `base`, computed where it is shorter, and `pending` new
  // ones that are not.
  Result<Timeline> Context(size_t base, int64_t n, int64_t pending);
  // All that is pending, computed.
  Result<Timeline> Fill(Timeline timeline);
  Result<double> DecodeOn(Timeline timeline);           // kDecodeTokens after it
  // Greedy, past end tokens, without drafts.
  Result<std::shared_ptr<Generation>> Start(Timeline timeline, int64_t max_tokens);
  void Forget() { bases_.clear(); }                     // gives the contexts' pages back

 private:
  struct Timed {
    double ms = 0;         // from Submit to the end
    double decode_ms = 0;  // from the first token to the last
    std::optional<Timeline> timeline;
  };

  std::vector<TokenId> Tokens(int64_t n);
  Result<Timed> Compute(Timeline timeline, int64_t max_tokens);

  Engine* engine_;
  uint64_t counter_ = 0;
  std::vector<Timeline> bases_;  // other tokens each
};

// What a pass over this model costs: matrices as its file has them, KV as the engine stores it.
Result<ModelCost> CostOf(const std::string& model_path, const Model& model);

}  // namespace holdfast

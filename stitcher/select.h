// Query-aware selection: which tokens of reused runs the question looks at most.
//
// A probe runs the question's rows over the KV as it stands (every run reused, nothing repaired)
// and throws its own KV away. AttentionMass adds up what each earlier token gets of these rows'
// attention; the probe counts the later half of the layers, since counting earlier ones as well
// chose worse (stitcher/README.md). ChooseWindows takes the whole windows of a page's size
// (kPageTokens, on the prompt's own blocks, so that what is recomputed fills whole pages) with the
// largest sums. Contiguous, because a recomputed token among stale ones inherits their staleness.
//
// The scores are plain C++ over the pages' stored form, in a fixed order: equal on every machine
// and for any number of threads. They are no operation of the backend: a row's result never
// depends on them, only the choice of what to compute does.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/kv/timeline.h"
#include "engine/model/model.h"

namespace holdfast {

// Token indices [begin, end).
struct TokenRange {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  bool operator==(const TokenRange&) const = default;
};

// Tokens at the start of a prompt and of each run that soak up attention whatever they say.
inline constexpr int64_t kSinkTokens = 4;
// Rows of the question that are scored: its last ones.
inline constexpr int64_t kProbeRows = 64;

// Attention received, by token. Fed by ForwardBatch::observe_queries or
// GenerateRequest::observe_queries, layer by layer; not thread-safe.
class AttentionMass {
 public:
  // Of the first `tokens` tokens of a prompt. `model` is borrowed.
  AttentionMass(const Model& model, int64_t tokens);

  // Adds the rows' attention in `layer`. `q`: [rows][heads * head_dim], not yet turned; `position`
  // of each row; `runs` of the layer's group, over every index up to the last position. Costs about
  // rows * heads * positions * head_dim multiplications; runs on the model's backend's threads.
  void Add(int layer, std::span<const float> q, std::span<const int64_t> position,
           std::span<const KvRun> runs);

  // Sums over rows, layers and heads; one row of one head in one layer gives 1 in all.
  std::span<const double> mass() const { return mass_; }

 private:
  const Model& model_;
  std::vector<RopeTable> ropes_;  // [groups]
  std::vector<double> mass_;      // [tokens]
};

// An observer for GenerateRequest::observe_queries: adds, of the later half of the layers, the last
// kProbeRows rows of a prompt of `tokens` tokens whose question begins at `question`. `mass` is
// borrowed.
class QuestionProbe {
 public:
  QuestionProbe(AttentionMass* mass, const Model& model, int64_t question, int64_t tokens);
  void operator()(int layer, const Timeline& timeline, std::span<const int64_t> rows,
                  std::span<const float> q) const;

 private:
  AttentionMass* mass_;
  const Model* model_;
  int64_t first_;  // index of the first row that is scored
};

// Windows inside `runs` (ascending, disjoint; what is to be recomputed anyway is not in them),
// together at most `budget` tokens, ascending, neighbours joined. A window is what a block of
// kPageTokens indices has in common with a run; one that does not fit the budget any more is
// passed over. The sinks of the prompt (below kSinkTokens) and of each of `heads` (the indices
// where runs begin) count as zero. Equal sums: the earlier window.
std::vector<TokenRange> ChooseWindows(std::span<const double> mass,
                                      std::span<const TokenRange> runs,
                                      std::span<const int64_t> heads, int64_t budget);

// `ranges` without the tokens of `gone`; both ascending and disjoint.
std::vector<TokenRange> Without(std::span<const TokenRange> ranges,
                                std::span<const TokenRange> gone);
// All of both, ascending, what touches joined.
std::vector<TokenRange> Union(std::span<const TokenRange> a, std::span<const TokenRange> b);
int64_t TokensIn(std::span<const TokenRange> ranges);

}  // namespace holdfast

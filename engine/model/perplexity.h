// Perplexity of a model on a text, as llama-perplexity measures it, so that figures compare; and
// how far a second model (the same file with KV of another type) departs from it on the same
// tokens.
//
// The text is cut into windows of N tokens; a partial last one is dropped. Each window is a
// sequence of its own; its tokens at positions N/2+1 .. N-1 are scored given all before them in the
// window. Where the model's file asks for a bos, one opens the text and takes the place of each
// window's first token. Special tokens in the text are plain text.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

#include "engine/base/status.h"
#include "engine/model/model.h"

namespace holdfast {

struct PerplexityProgress {
  int64_t windows_done = 0, windows = 0;
  double figure = 0;  // so far: the perplexity, or the mean divergence
};

struct PerplexityOptions {
  int window = 512;          // tokens, 4 .. context length
  int windows_together = 1;  // rows of this many windows share a pass; changes no figure
  int chunk = 128;           // rows of one window in a pass; bounds the memory for logits
  int64_t max_windows = 0;   // 0 = all
  std::function<void(const PerplexityProgress&)> progress;  // after each pass that ends windows
};

struct Perplexity {
  double perplexity = 0;
  int64_t tokens = 0;  // scored
  int64_t windows = 0;
};

// Of the scored tokens, each given the same true tokens before it in both models.
struct Divergence {
  double mean_kl = 0;      // KL(model || other) over the vocabulary, nats
  double half_width = 0;   // of its 95 % interval, from the means of windows; 0 where there is one
  double largest_kl = 0;
  double same_top = 0;     // share of the tokens whose likeliest continuation is the same
  int64_t tokens = 0;      // scored
  int64_t windows = 0;
};

// On the calling thread, with the models' backends. kInvalid: fewer tokens than one window, options
// out of range, models of different vocabularies; kCorrupt: a logit is not finite.
Result<Perplexity> MeasurePerplexity(Model& model, std::span<const TokenId> tokens,
                                     const PerplexityOptions& options);
Result<Perplexity> MeasureTextPerplexity(Model& model, std::string_view text,
                                         const PerplexityOptions& options);
Result<Divergence> MeasureDivergence(Model& model, Model& other, std::span<const TokenId> tokens,
                                     const PerplexityOptions& options);
Result<Divergence> MeasureTextDivergence(Model& model, Model& other, std::string_view text,
                                         const PerplexityOptions& options);

}  // namespace holdfast

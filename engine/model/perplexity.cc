#include "engine/model/perplexity.h"

#include <algorithm>
#include <string>
#include <vector>

#include "engine/backend/exact_math.h"
#include "engine/model/sequence_kv.h"
#include "engine/model/softmax.h"

namespace holdfast {
namespace {

// Some windows side by side.
class WindowPass {
 public:
  WindowPass(Model& model, const PerplexityOptions& options)
      : model_(model), window_(options.window), chunk_(options.chunk), pass_(model) {
    for (int i = 0; i < options.windows_together; ++i) {
      kv_.emplace_back(model);
      kv_.back().Reserve(window_);
    }
  }

  // Adds the negative log likelihoods of the scored tokens of `windows` (each of window_ tokens).
  Status Score(const std::vector<std::vector<TokenId>>& windows, double* nll, int64_t* count) {
    for (int begin = 0; begin < window_; begin += chunk_) {
      const int end = std::min(window_, begin + chunk_);
      pass_.Begin(Batch(windows, begin, end));
      pass_.Run();
      int64_t row = 0;
      for (const std::vector<TokenId>& tokens : windows) {
        for (int i = begin; i < end; ++i, ++row) {
          if (pass_.failed(row)) return Status::Corrupt("perplexity: a number is not finite");
          if (!Scores(i)) continue;
          const std::span<const float> logits = pass_.logits(row);
          *nll += LogSumExp(logits) - static_cast<double>(logits[tokens[i + 1]]);
          ++*count;
        }
      }
    }
    return {};
  }

 private:
  // Whether the row at position i predicts a scored token.
  bool Scores(int i) const { return i >= window_ / 2 && i + 1 < window_; }

  ForwardBatch Batch(const std::vector<std::vector<TokenId>>& windows, int begin, int end) const {
    ForwardBatch batch;
    for (size_t w = 0; w < windows.size(); ++w) {
      for (int i = begin; i < end; ++i) {
        batch.rows.push_back({.token = windows[w][i], .position = i,
                              .sequence = static_cast<int32_t>(w), .page = kv_[w].PageOf(i),
                              .slot = SequenceKv::SlotOf(i), .logits = Scores(i)});
      }
      batch.sequences.push_back({kv_[w].Runs(end)});
    }
    return batch;
  }

  Model& model_;
  const int window_, chunk_;
  ForwardPass pass_;
  std::vector<SequenceKv> kv_;
};

}  // namespace

Result<Perplexity> MeasurePerplexity(Model& model, std::span<const TokenId> tokens,
                                     const PerplexityOptions& options) {
  if (options.window < 4 || options.window > model.config().context_length) {
    return Status::Invalid("perplexity: a window of " + std::to_string(options.window) +
                           " tokens is outside 4.." +
                           std::to_string(model.config().context_length));
  }
  if (options.windows_together < 1 || options.chunk < 1 || options.max_windows < 0) {
    return Status::Invalid("perplexity: windows per pass and rows per pass must be positive");
  }
  int64_t total = static_cast<int64_t>(tokens.size()) / options.window;
  if (options.max_windows > 0) total = std::min(total, options.max_windows);
  if (total == 0) {
    return Status::Invalid("perplexity: the text has " + std::to_string(tokens.size()) +
                           " tokens, a window needs " + std::to_string(options.window));
  }
  const Tokenizer& tokenizer = model.tokenizer();
  const bool opens_with_bos = tokenizer.add_bos() && tokenizer.bos() != kNoToken;
  WindowPass pass(model, options);
  Perplexity result;
  double nll = 0;
  while (result.windows < total) {
    std::vector<std::vector<TokenId>> windows;
    for (; static_cast<int>(windows.size()) < options.windows_together && result.windows < total;
         ++result.windows) {
      const auto part = tokens.subspan(result.windows * options.window, options.window);
      windows.emplace_back(part.begin(), part.end());
      if (opens_with_bos) windows.back()[0] = tokenizer.bos();
    }
    HOLDFAST_RETURN_IF_ERROR(pass.Score(windows, &nll, &result.tokens));
    result.perplexity = Exp(nll / static_cast<double>(result.tokens));
    if (options.progress) options.progress({result.windows, total, result.perplexity});
  }
  return result;
}

Result<Perplexity> MeasureTextPerplexity(Model& model, std::string_view text,
                                         const PerplexityOptions& options) {
  const Tokenizer& tokenizer = model.tokenizer();
  std::vector<TokenId> tokens;
  if (tokenizer.add_bos() && tokenizer.bos() != kNoToken) tokens.push_back(tokenizer.bos());
  HOLDFAST_ASSIGN_OR_RETURN(const std::vector<TokenId> encoded, tokenizer.EncodePlain(text));
  tokens.insert(tokens.end(), encoded.begin(), encoded.end());
  return MeasurePerplexity(model, tokens, options);
}

}  // namespace holdfast

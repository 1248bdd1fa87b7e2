#include "engine/model/perplexity.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "engine/backend/exact_math.h"
#include "engine/model/sequence_kv.h"
#include "engine/model/softmax.h"

namespace holdfast {
namespace {

using Windows = std::vector<std::vector<TokenId>>;

// Some windows side by side.
class WindowPass {
 public:
  WindowPass(Model& model, const PerplexityOptions& options)
      : window_(options.window), pass_(model) {
    for (int i = 0; i < options.windows_together; ++i) {
      kv_.emplace_back(model);
      kv_.back().Reserve(window_);
    }
  }

  // Whether the row at position i predicts a scored token.
  bool Scores(int i) const { return i >= window_ / 2 && i + 1 < window_; }

  // Rows [begin, end) of `windows` (each of window_ tokens), one window behind the other.
  Status Run(const Windows& windows, int begin, int end) {
    pass_.Begin(Batch(windows, begin, end));
    pass_.Run();
    const int64_t rows = static_cast<int64_t>(windows.size()) * (end - begin);
    for (int64_t row = 0; row < rows; ++row) {
      if (pass_.failed(row)) return Status::Corrupt("perplexity: a number is not finite");
    }
    return {};
  }

  std::span<const float> logits(int64_t row) const { return pass_.logits(row); }

 private:
  ForwardBatch Batch(const Windows& windows, int begin, int end) const {
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

  const int window_;
  ForwardPass pass_;
  std::vector<SequenceKv> kv_;
};

// A row that predicts a scored token, as each model has it.
struct ScoredRow {
  int64_t window = 0;
  TokenId next = 0;
  std::span<const std::unique_ptr<WindowPass>> passes;
  int64_t row = 0;

  std::span<const float> logits(size_t model) const { return passes[model]->logits(row); }
};

using Visit = std::function<void(const ScoredRow& row)>;

Status CheckOptions(const Model& model, size_t tokens, const PerplexityOptions& options) {
  if (options.window < 4 || options.window > model.config().context_length) {
    return Status::Invalid("perplexity: a window of " + std::to_string(options.window) +
                           " tokens is outside 4.." +
                           std::to_string(model.config().context_length));
  }
  if (options.windows_together < 1 || options.chunk < 1 || options.max_windows < 0) {
    return Status::Invalid("perplexity: windows per pass and rows per pass must be positive");
  }
  if (tokens < static_cast<size_t>(options.window)) {
    return Status::Invalid("perplexity: the text has " + std::to_string(tokens) +
                           " tokens, a window needs " + std::to_string(options.window));
  }
  return {};
}

// Visits the scored rows of `windows`, of which `done` lie before.
Status VisitWindows(std::span<const std::unique_ptr<WindowPass>> passes, const Windows& windows,
                    int64_t done, const PerplexityOptions& options, const Visit& visit) {
  for (int begin = 0; begin < options.window; begin += options.chunk) {
    const int end = std::min(options.window, begin + options.chunk);
    for (auto& pass : passes) HOLDFAST_RETURN_IF_ERROR(pass->Run(windows, begin, end));
    int64_t row = 0;
    for (size_t w = 0; w < windows.size(); ++w) {
      for (int i = begin; i < end; ++i, ++row) {
        if (!passes[0]->Scores(i)) continue;
        visit({done + static_cast<int64_t>(w), windows[w][i + 1], passes, row});
      }
    }
  }
  return {};
}

// Cuts `tokens` into windows and visits every scored row. `figure` is what progress shows. Returns
// the number of windows.
Result<int64_t> VisitRows(std::span<Model* const> models, std::span<const TokenId> tokens,
                          const PerplexityOptions& options, const Visit& visit,
                          const std::function<double()>& figure) {
  HOLDFAST_RETURN_IF_ERROR(CheckOptions(*models[0], tokens.size(), options));
  int64_t total = static_cast<int64_t>(tokens.size()) / options.window;
  if (options.max_windows > 0) total = std::min(total, options.max_windows);
  const Tokenizer& tokenizer = models[0]->tokenizer();
  const bool opens_with_bos = tokenizer.add_bos() && tokenizer.bos() != kNoToken;
  std::vector<std::unique_ptr<WindowPass>> passes;
  for (Model* m : models) passes.push_back(std::make_unique<WindowPass>(*m, options));
  for (int64_t done = 0; done < total;) {
    Windows windows;
    const int64_t together = std::min<int64_t>(options.windows_together, total - done);
    for (int64_t w = done; w < done + together; ++w) {
      const auto part = tokens.subspan(w * options.window, options.window);
      windows.emplace_back(part.begin(), part.end());
      if (opens_with_bos) windows.back()[0] = tokenizer.bos();
    }
    HOLDFAST_RETURN_IF_ERROR(VisitWindows(passes, windows, done, options, visit));
    done += together;
    if (options.progress) options.progress({done, total, figure()});
  }
  return total;
}

Result<std::vector<TokenId>> TokensOf(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<TokenId> tokens;
  if (tokenizer.add_bos() && tokenizer.bos() != kNoToken) tokens.push_back(tokenizer.bos());
  HOLDFAST_ASSIGN_OR_RETURN(const std::vector<TokenId> encoded, tokenizer.EncodePlain(text));
  tokens.insert(tokens.end(), encoded.begin(), encoded.end());
  return tokens;
}

// Half of the 95 % interval of the mean of `values`, taken as independent.
double HalfWidth(std::span<const double> values) {
  if (values.size() < 2) return 0;
  const double n = static_cast<double>(values.size());
  double mean = 0, squares = 0;
  for (double value : values) mean += value / n;
  for (double value : values) squares += (value - mean) * (value - mean);
  return 1.96 * std::sqrt(squares / (n - 1) / n);
}

}  // namespace

Result<Perplexity> MeasurePerplexity(Model& model, std::span<const TokenId> tokens,
                                     const PerplexityOptions& options) {
  Perplexity result;
  double nll = 0;
  const auto visit = [&](const ScoredRow& row) {
    const std::span<const float> logits = row.logits(0);
    nll += LogSumExp(logits) - static_cast<double>(logits[row.next]);
    ++result.tokens;
  };
  const auto perplexity = [&] { return Exp(nll / static_cast<double>(result.tokens)); };
  Model* const models[] = {&model};
  HOLDFAST_ASSIGN_OR_RETURN(result.windows, VisitRows(models, tokens, options, visit, perplexity));
  result.perplexity = perplexity();
  return result;
}

Result<Perplexity> MeasureTextPerplexity(Model& model, std::string_view text,
                                         const PerplexityOptions& options) {
  HOLDFAST_ASSIGN_OR_RETURN(const std::vector<TokenId> tokens, TokensOf(model.tokenizer(), text));
  return MeasurePerplexity(model, tokens, options);
}

Result<Divergence> MeasureDivergence(Model& model, Model& other, std::span<const TokenId> tokens,
                                     const PerplexityOptions& options) {
  if (model.config().vocab != other.config().vocab) {
    return Status::Invalid("divergence: vocabularies of " + std::to_string(model.config().vocab) +
                           " and " + std::to_string(other.config().vocab) + " tokens");
  }
  Divergence result;
  double sum = 0;
  int64_t same = 0;
  std::vector<double> of_window;  // sums, then means
  const auto visit = [&](const ScoredRow& row) {
    const double kl = KlDivergence(row.logits(0), row.logits(1));
    of_window.resize(std::max<size_t>(of_window.size(), row.window + 1));
    of_window[row.window] += kl;
    sum += kl;
    result.largest_kl = std::max(result.largest_kl, kl);
    same += RowTop(row.logits(0)) == RowTop(row.logits(1));
    ++result.tokens;
  };
  const auto mean = [&] { return sum / static_cast<double>(result.tokens); };
  Model* const models[] = {&model, &other};
  HOLDFAST_ASSIGN_OR_RETURN(result.windows, VisitRows(models, tokens, options, visit, mean));
  const double per_window = static_cast<double>(result.tokens / result.windows);
  for (double& window : of_window) window /= per_window;
  result.mean_kl = mean();
  result.half_width = HalfWidth(of_window);
  result.same_top = static_cast<double>(same) / static_cast<double>(result.tokens);
  return result;
}

Result<Divergence> MeasureTextDivergence(Model& model, Model& other, std::string_view text,
                                         const PerplexityOptions& options) {
  HOLDFAST_ASSIGN_OR_RETURN(const std::vector<TokenId> tokens, TokensOf(model.tokenizer(), text));
  return MeasureDivergence(model, other, tokens, options);
}

}  // namespace holdfast

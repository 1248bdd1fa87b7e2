#include "stitcher/shadow.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "engine/model/softmax.h"

namespace holdfast {
namespace {

using Logits = std::vector<std::vector<float>>;

// Computes `timeline` to the end of `tokens` and keeps the logits of its rows from `first` on.
Result<Logits> RowsOf(const ComputeFn& compute, Timeline* timeline, int64_t first,
                      std::span<const TokenId> tokens, ComputeOptions options) {
  timeline->Extend(tokens);
  Logits rows(static_cast<size_t>(timeline->size() - first));
  options.logits_from = first;
  options.on_logits = [&rows, first](int64_t index, std::span<const float> logits) {
    rows[static_cast<size_t>(index - first)].assign(logits.begin(), logits.end());
  };
  HOLDFAST_ASSIGN_OR_RETURN(*timeline, compute(std::move(*timeline), options));
  for (const std::vector<float>& row : rows) {
    if (row.empty()) return Status::Unavailable("shadow: a row has no logits");
  }
  return rows;
}

}  // namespace

Result<ShadowKl> CompareAnswers(const ComputeFn& compute, Timeline served, Timeline exact,
                                std::span<const TokenId> answer, const ComputeOptions& options) {
  ShadowKl out;
  double sum = 0;
  int64_t same = 0;
  // The row of a token says the next one: rows begin with the context's last, and the answer's last
  // token has none to say.
  for (size_t at = 0; at < answer.size(); at += kShadowRows) {
    const size_t n = std::min<size_t>(kShadowRows, answer.size() - at);
    const auto tokens = at == 0 ? answer.first(n - 1) : answer.subspan(at - 1, n);
    const int64_t first = served.size() - (at == 0 ? 1 : 0);
    HOLDFAST_ASSIGN_OR_RETURN(const Logits got, RowsOf(compute, &served, first, tokens, options));
    HOLDFAST_ASSIGN_OR_RETURN(const Logits want, RowsOf(compute, &exact, first, tokens, options));
    for (size_t i = 0; i < n; ++i) {
      const double kl = KlDivergence(want[i], got[i]);
      sum += kl;
      out.largest = std::max(out.largest, kl);
      same += RowTop(want[i]) == RowTop(got[i]);
    }
  }
  out.tokens = static_cast<int64_t>(answer.size());
  if (out.tokens == 0) return out;
  out.mean = sum / static_cast<double>(out.tokens);
  out.same_top = static_cast<double>(same) / static_cast<double>(out.tokens);
  return out;
}

}  // namespace holdfast

// exp over a row of logits and what follows from it, for the sampler, perplexity and divergence:
// fixed arithmetic, equal on every machine (ExpF, Exp and Log of exact_math.h; fp32 sums as
// NUMERICS.md section 1 has them), and exp fast enough for a vocabulary per token: by the
// best level that the processor has.
#pragma once

#include <cstddef>
#include <span>

namespace holdfast {

// The largest of x, which is not empty and finite.
float RowMax(std::span<const float> x);

// The index of the largest of x, which is not empty; of equals the first.
size_t RowTop(std::span<const float> x);

// out[i] = ExpF((x[i] - max) / temperature); returns the row sum of out. temperature > 0. `out` has
// x.size() numbers and may be x.
float ExpRow(std::span<const float> x, float max, float temperature, float* out);

// log(sum(exp(x[i]))), x finite and not empty.
double LogSumExp(std::span<const float> x);

// KL(p || q) in nats between the distributions of two rows of logits of one length, finite and not
// empty; never below 0, and 0 for equal rows.
double KlDivergence(std::span<const float> p, std::span<const float> q);

}  // namespace holdfast

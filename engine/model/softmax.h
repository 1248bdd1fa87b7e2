// exp over a row of logits and its sum, for the sampler and for perplexity: fixed arithmetic, equal
// on every machine (ExpF and Log of exact_math.h; sums as NUMERICS.md section 1 has them), and fast
// enough for a vocabulary per token: eight lanes where the processor has AVX2.
#pragma once

#include <span>

namespace holdfast {

// The largest of x, which is not empty and finite.
float RowMax(std::span<const float> x);

// out[i] = ExpF((x[i] - max) / temperature); returns the row sum of out. temperature > 0. `out` has
// x.size() numbers and may be x.
float ExpRow(std::span<const float> x, float max, float temperature, float* out);

// log(sum(exp(x[i]))), x finite and not empty.
double LogSumExp(std::span<const float> x);

}  // namespace holdfast

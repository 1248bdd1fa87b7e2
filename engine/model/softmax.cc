#include "engine/model/softmax.h"

#include <algorithm>
#include <cassert>

#include "engine/backend/cpu/levels.h"
#include "engine/backend/exact_math.h"

namespace holdfast {
namespace {

float RunExpRow(const ExpRowArgs& args) { return BestCpuLevel().elementwise().exp_row(args); }

}  // namespace

float RowMax(std::span<const float> x) {
  assert(!x.empty());
  constexpr size_t kChains = 16;  // independent, so that the compiler can make vectors of them
  float m[kChains];
  std::fill(m, m + kChains, x[0]);
  size_t i = 0;
  for (; i + kChains <= x.size(); i += kChains) {
    for (size_t j = 0; j < kChains; ++j) m[j] = x[i + j] > m[j] ? x[i + j] : m[j];
  }
  for (; i < x.size(); ++i) m[0] = x[i] > m[0] ? x[i] : m[0];
  return *std::max_element(m, m + kChains);
}

size_t RowTop(std::span<const float> x) {
  return static_cast<size_t>(std::max_element(x.begin(), x.end()) - x.begin());
}

float ExpRow(std::span<const float> x, float max, float temperature, float* out) {
  return RunExpRow({static_cast<int64_t>(x.size()), x.data(), max, temperature, out});
}

double LogSumExp(std::span<const float> x) {
  const float max = RowMax(x);
  const float sum = RunExpRow({static_cast<int64_t>(x.size()), x.data(), max, 1.0f, nullptr});
  return static_cast<double>(max) + Log(static_cast<double>(sum));
}

double KlDivergence(std::span<const float> p, std::span<const float> q) {
  assert(p.size() == q.size());
  const double top = RowMax(p), other_top = RowMax(q);
  double sum = 0, other_sum = 0, weighted = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const double e = Exp(p[i] - top);
    sum += e;
    other_sum += Exp(q[i] - other_top);
    weighted += e * ((p[i] - top) - (q[i] - other_top));
  }
  return std::max(0.0, weighted / sum + Log(other_sum / sum));
}

}  // namespace holdfast

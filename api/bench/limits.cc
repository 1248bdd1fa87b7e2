#include "api/bench/limits.h"

#include <algorithm>
#include <utility>

namespace holdfast {
namespace {

// Pairs of a row and a token that it sees, for rows at positions context .. context + rows - 1.
double VisiblePairs(int64_t context, int64_t rows, int64_t window) {
  const auto whole = [](int64_t n) {
    return 0.5 * static_cast<double>(n) * static_cast<double>(n + 1);
  };
  const int64_t end = context + rows;
  if (window == 0 || end <= window) return whole(end) - whole(context);
  const int64_t growing = std::max<int64_t>(0, window - context);  // rows that see all before them
  return whole(context + growing) - whole(context) +
         static_cast<double>(rows - growing) * static_cast<double>(window);
}

// Tokens whose KV the rows read between them.
int64_t VisibleTokens(int64_t context, int64_t rows, int64_t window) {
  return window == 0 ? context + rows : std::min(context + rows, window + rows - 1);
}

}  // namespace

MachineRates MedianOf(const std::vector<MachineRates>& rates) {
  const auto of = [&](double MachineRates::* rate) {
    std::vector<double> values;
    for (const MachineRates& r : rates) values.push_back(r.*rate);
    return Median(std::move(values));
  };
  return {of(&MachineRates::read), of(&MachineRates::int8), of(&MachineRates::fp32)};
}

double PassBytes(const ModelCost& model, const PassWork& work) {
  double bytes = model.weight_bytes;
  for (const ModelCost::Group& g : model.groups) {
    const int64_t again = g.window == 0 ? (work.sequences - 1) * work.shared : 0;
    const int64_t tokens =
        work.sequences * VisibleTokens(work.context, work.rows, g.window) - again;
    bytes += g.layers * g.kv_bytes * static_cast<double>(tokens);
  }
  return bytes;
}

Limit LimitOf(const ModelCost& model, const MachineRates& rates, const PassWork& work) {
  const auto sequences = static_cast<double>(work.sequences);
  const double rows = sequences * static_cast<double>(work.rows);
  const double heads = sequences * static_cast<double>(work.logits);
  double int8 = 2 * (rows * model.int8_elements + heads * model.int8_head);
  double fp32 = 2 * (rows * model.fp32_elements + heads * model.fp32_head);
  for (const ModelCost::Group& g : model.groups) {
    const double pairs = sequences * g.layers * VisiblePairs(work.context, work.rows, g.window);
    (g.int8_keys ? int8 : fp32) += pairs * g.qk_ops;
    fp32 += pairs * g.pv_ops;
  }
  const auto over = [](double amount, double rate) { return rate > 0 ? amount / rate : 0; };
  return {over(PassBytes(model, work), rates.read), over(int8, rates.int8), over(fp32, rates.fp32)};
}

double KvBytes(const ModelCost& model, int64_t tokens) {
  double bytes = 0;
  for (const ModelCost::Group& g : model.groups) bytes += g.layers * g.kv_bytes;
  return bytes * static_cast<double>(tokens);
}

double Percentile(std::vector<double> v, size_t percent) {
  std::sort(v.begin(), v.end());
  return v.empty() ? 0 : v[v.size() * percent / 100];
}

double FittedSlope(const std::vector<double>& x, const std::vector<double>& y) {
  const auto n = static_cast<double>(std::min(x.size(), y.size()));
  if (n < 2) return 0;
  double sx = 0, sy = 0, sxx = 0, sxy = 0;
  for (size_t i = 0; i < x.size() && i < y.size(); ++i) {
    sx += x[i];
    sy += y[i];
    sxx += x[i] * x[i];
    sxy += x[i] * y[i];
  }
  const double spread = n * sxx - sx * sx;
  return spread > 0 ? (n * sxy - sx * sy) / spread : 0;
}

}  // namespace holdfast

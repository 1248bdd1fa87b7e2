#include "engine/model/key_balance.h"

#include <cmath>
#include <numeric>
#include <vector>

namespace holdfast {
namespace {

using Energies = std::vector<double>;  // [outputs], fp64 sums in ascending order

Energies EnergiesOf(Backend& backend, const Weight& rows, const std::vector<float>& gain,
                    const std::vector<float>& bias) {
  std::vector<TokenId> ids(static_cast<size_t>(rows.outputs()));
  std::iota(ids.begin(), ids.end(), 0);
  const size_t width = gain.size();
  std::vector<float> w(ids.size() * width);
  backend.Embed(rows, ids, w.data());
  Energies energies(ids.size());
  backend.ForEach(rows.outputs(), [&](int64_t o) {
    double sum = bias.empty() ? 0.0 : double{bias[o]} * double{bias[o]};
    for (size_t i = 0; i < width; ++i) {
      const double term = double{w[o * width + i]} * double{gain[i]};
      sum = sum + term * term;
    }
    energies[o] = sum;
  });
  return energies;
}

// Of heads that a norm of their own makes: what it multiplies by.
Energies EnergiesOf(const std::vector<float>& norm, int heads) {
  Energies energies;
  for (int h = 0; h < heads; ++h) {
    for (float gain : norm) energies.push_back(double{gain} * double{gain});
  }
  return energies;
}

// The power of two nearest to the fourth root of k / q, by its logarithm.
float FactorFor(double k, double q) {
  const double ratio = 4 * k / q;
  if (!(ratio > 0x1.0p-80 && ratio < 0x1.0p80)) return 1.0f;  // none to speak of, or not finite
  int exponent;
  std::frexp(ratio, &exponent);  // in [2^(exponent - 1), 2^exponent)
  return std::ldexp(1.0f, (exponent - 1) >> 2);
}

}  // namespace

void BalanceKeys(const ModelConfig& c, Backend& backend, ModelWeights* weights) {
  const int half = c.rope_dim / 2, group = c.heads / c.kv_heads;
  for (LayerWeights& layer : weights->layers) {
    const Energies k = c.qk_norm ? EnergiesOf(layer.k_norm, c.kv_heads)
                                 : EnergiesOf(backend, *layer.k, layer.attn_norm, layer.k_bias);
    const Energies q = c.qk_norm ? EnergiesOf(layer.q_norm, c.heads)
                                 : EnergiesOf(backend, *layer.q, layer.attn_norm, layer.q_bias);
    layer.k_factor.assign(k.size(), 1.0f);
    layer.q_factor.assign(q.size(), 1.0f);
    for (int h = 0; h < c.kv_heads; ++h) {
      for (int i = 0; i < half; ++i) {
        const int at = h * c.head_dim + i;
        double of_q = 0;
        for (int n = h * group; n < (h + 1) * group; ++n) {
          of_q = of_q + (q[n * c.head_dim + i] + q[n * c.head_dim + i + half]);
        }
        const float s = FactorFor(k[at] + k[at + half], of_q / group);
        layer.k_factor[at] = layer.k_factor[at + half] = 1 / s;
        for (int n = h * group; n < (h + 1) * group; ++n) {
          layer.q_factor[n * c.head_dim + i] = layer.q_factor[n * c.head_dim + i + half] = s;
        }
      }
    }
  }
}

}  // namespace holdfast

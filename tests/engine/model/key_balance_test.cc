// The factors of INT8 K on weights whose energies are seen at a glance.
#include "engine/model/key_balance.h"

#include <memory>
#include <vector>

#include <doctest/doctest.h>

namespace holdfast {
namespace {

using Floats = std::vector<float>;

// One layer: one KV head, two query heads of 4 numbers, so pairs (0, 2) and (1, 3); inputs of 2.
class Layer {
 public:
  Layer() : backend_(*MakeCpuBackend({.threads = 1, .level = "portable"})) {
    config_.heads = 2;
    config_.kv_heads = 1;
    config_.head_dim = config_.rope_dim = 4;
    weights_.layers.resize(1);
    weights().attn_norm = {1, 1};
    SetK({1, 0, 1, 0, 1, 0, 1, 0});
    weights().q = Pack(Floats{1, 0, 1, 0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 1, 0, 1});
  }
  ModelConfig& config() { return config_; }
  LayerWeights& weights() { return weights_.layers[0]; }
  void SetK(const Floats& rows) { weights().k = Pack(rows); }
  const LayerWeights& Balanced() {
    BalanceKeys(config_, *backend_, &weights_);
    return weights();
  }

 private:
  std::unique_ptr<Weight> Pack(const Floats& rows) {
    return *backend_->Pack({WeightType::kF32, static_cast<int64_t>(rows.size() / 2), 2,
                            reinterpret_cast<const std::byte*>(rows.data())});
  }

  std::unique_ptr<Backend> backend_;
  ModelConfig config_;
  ModelWeights weights_;
};

TEST_CASE("even keys keep their size") {
  Layer layer;
  CHECK(layer.Balanced().k_factor == Floats{1, 1, 1, 1});
  CHECK(layer.Balanced().q_factor == Floats{1, 1, 1, 1, 1, 1, 1, 1});
}

TEST_CASE("a pair's factor is the root of what K is against q, and meets every query head") {
  Layer layer;
  layer.SetK({16, 0, 1, 0, 0, 16, 1, 0});  // pair (0, 2) is 16 times larger
  CHECK(layer.Balanced().k_factor == Floats{0.25f, 1, 0.25f, 1});
  CHECK(layer.Balanced().q_factor == Floats{4, 1, 4, 1, 4, 1, 4, 1});
}

TEST_CASE("one large number of a pair counts for both") {
  Layer layer;
  layer.SetK({0, 0, 1, 0, 23, 0, 1, 0});  // 23^2 is about 2 * 16^2
  CHECK(layer.Balanced().k_factor == Floats{0.25f, 1, 0.25f, 1});
}

TEST_CASE("a bias on k counts, and the gain of the norm before") {
  Layer layer;
  layer.weights().k_bias = {0, -64, 0, 64};
  CHECK(layer.Balanced().k_factor == Floats{1, 0.125f, 1, 0.125f});
  layer.weights().k_bias.clear();
  layer.SetK({1, 0, 0, 1, 1, 0, 0, 1});
  layer.weights().attn_norm = {1, 4};  // of q too: the second query head reads input 1 alone
  CHECK(layer.Balanced().k_factor == Floats{2, 1, 2, 1});
}

TEST_CASE("where heads have a norm of their own its gains decide") {
  Layer layer;
  layer.config().qk_norm = true;
  layer.weights().k_norm = {1, 16, 1, 16};
  layer.weights().q_norm = {1, 1, 1, 1};
  layer.SetK({9, 9, 0, 0, 9, 9, 0, 0});
  CHECK(layer.Balanced().k_factor == Floats{1, 0.25f, 1, 0.25f});
}

TEST_CASE("what is zero, and what is not turned, stays") {
  Layer layer;
  layer.config().rope_dim = 2;  // one pair, (0, 1)
  layer.SetK({0, 0, 0, 0, 99, 0, 99, 0});
  CHECK(layer.Balanced().k_factor == Floats{1, 1, 1, 1});
}

}  // namespace
}  // namespace holdfast

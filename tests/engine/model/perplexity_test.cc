// Perplexity and divergence: the figures are the definitions', however windows and chunks are
// grouped.
#include "engine/model/perplexity.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "tests/engine/base/temp_dir.h"
#include "tests/engine/model/naive_llama.h"
#include "tests/fixtures/tiny_model.h"

namespace holdfast {
namespace {

class Fixture {
 public:
  explicit Fixture(uint64_t seed = 1) {
    spec_.type = WeightType::kF32;
    spec_.seed = seed;
    backend_ = *MakeCpuBackend({.threads = 1, .level = ""});
    REQUIRE(WriteTinyModel(spec_, dir_.File("m")).ok());
    const NumericsDigest none;
    auto model = Model::Load(dir_.File("m"), *backend_,
                             {.kv_type = KvType::kF32, .progress = {}, .numerics = &none});
    REQUIRE(model.ok());
    model_ = std::move(model).value();
    for (int i = 0; i < 70; ++i) tokens_.push_back(3 + (i * i * 31 + i * 7) % 310);
  }
  Perplexity Measure(const PerplexityOptions& options) {
    const auto result = MeasurePerplexity(*model_, tokens_, options);
    REQUIRE_MESSAGE(result.ok(), result.status().ToString());
    return *result;
  }
  Code Refusal(const PerplexityOptions& options) {
    return MeasurePerplexity(*model_, tokens_, options).status().code();
  }
  // By the definition, from a forward pass that shares no code with ours.
  double Expected(int window, int windows) {
    double nll = 0;
    int count = 0;
    for (int w = 0; w < windows; ++w) {
      const auto part = std::span(tokens_).subspan(w * window, window);
      const auto logits = NaiveLogits(TinyModelFile(spec_), part);
      for (int i = window / 2 + 1; i < window; ++i, ++count) {
        double sum = 0;
        for (double x : logits[i - 1]) sum += std::exp(x);
        nll += std::log(sum) - logits[i - 1][part[i]];
      }
    }
    return std::exp(nll / count);
  }
  std::vector<std::vector<double>> Plain(std::span<const TokenId> tokens) const {
    return NaiveLogits(TinyModelFile(spec_), tokens);
  }
  std::span<const TokenId> tokens() const { return tokens_; }
  Model& model() { return *model_; }

 private:
  testing::TempDir dir_;
  TinyModelSpec spec_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Model> model_;
  std::vector<TokenId> tokens_;
};

TEST_CASE("perplexity is what its definition says") {
  Fixture f;
  const Perplexity p = f.Measure({.window = 16, .progress = {}});
  CHECK(p.windows == 4);  // the partial fifth is dropped
  CHECK(p.tokens == 4 * 7);
  CHECK(p.perplexity == doctest::Approx(f.Expected(16, 4)).epsilon(1e-4));
  const Perplexity odd = f.Measure({.window = 23, .max_windows = 2, .progress = {}});
  CHECK(odd.tokens == 2 * 11);
  CHECK(odd.perplexity == doctest::Approx(f.Expected(23, 2)).epsilon(1e-4));
}

TEST_CASE("grouping changes no figure") {
  Fixture f;
  const double want = f.Measure({.window = 16, .progress = {}}).perplexity;
  for (int together : {2, 3, 9}) {
    for (int chunk : {1, 5, 16}) {
      const Perplexity p = f.Measure(
          {.window = 16, .windows_together = together, .chunk = chunk, .progress = {}});
      CHECK(p.tokens == 28);
      CHECK(p.perplexity == doctest::Approx(want).epsilon(1e-12));
    }
  }
}

double PlainKl(const std::vector<double>& p, const std::vector<double>& q) {
  double p_sum = 0, q_sum = 0, kl = 0;
  for (double x : p) p_sum += std::exp(x);
  for (double x : q) q_sum += std::exp(x);
  for (size_t i = 0; i < p.size(); ++i) {
    kl += std::exp(p[i]) / p_sum * (p[i] - std::log(p_sum) - q[i] + std::log(q_sum));
  }
  return kl;
}

TEST_CASE("divergence is what its definition says") {
  Fixture f, other(2);
  constexpr int kWindow = 16, kWindows = 4, kScored = 7;
  double means[kWindows] = {}, largest = 0;
  int same = 0;
  for (int w = 0; w < kWindows; ++w) {
    const auto part = f.tokens().subspan(w * kWindow, kWindow);
    const auto p = f.Plain(part), q = other.Plain(part);
    for (int i = kWindow / 2; i + 1 < kWindow; ++i) {
      const double kl = PlainKl(p[i], q[i]);
      means[w] += kl / kScored;
      largest = std::max(largest, kl);
      same += std::ranges::max_element(p[i]) - p[i].begin() ==
              std::ranges::max_element(q[i]) - q[i].begin();
    }
  }
  const double mean = (means[0] + means[1] + means[2] + means[3]) / 4;
  double squares = 0;
  for (double m : means) squares += (m - mean) * (m - mean);
  for (int together : {1, 3}) {
    const auto d = MeasureDivergence(
        f.model(), other.model(), f.tokens(),
        {.window = kWindow, .windows_together = together, .chunk = 5, .progress = {}});
    REQUIRE(d.ok());
    CHECK(d->tokens == kWindows * kScored);
    CHECK(d->windows == kWindows);
    CHECK(d->mean_kl == doctest::Approx(mean).epsilon(1e-4));
    CHECK(d->largest_kl == doctest::Approx(largest).epsilon(1e-4));
    CHECK(d->half_width == doctest::Approx(1.96 * std::sqrt(squares / 3 / 4)).epsilon(1e-3));
    CHECK(d->same_top == doctest::Approx(same / 28.0));
  }
  const auto none = MeasureDivergence(f.model(), f.model(), f.tokens(),
                                      {.window = kWindow, .progress = {}});
  REQUIRE(none.ok());
  CHECK(none->mean_kl == 0);
  CHECK(none->same_top == 1);
}

TEST_CASE("progress counts windows") {
  Fixture f;
  std::vector<int64_t> done;
  f.Measure({.window = 16, .windows_together = 3, .progress = [&](const PerplexityProgress& p) {
               CHECK(p.windows == 4);
               done.push_back(p.windows_done);
             }});
  CHECK(done == std::vector<int64_t>{3, 4});
}

TEST_CASE("what can't be measured is refused") {
  Fixture f;
  CHECK(f.Refusal({.window = 71, .progress = {}}) == Code::kInvalid);
  CHECK(f.Refusal({.window = 3, .progress = {}}) == Code::kInvalid);
  CHECK(f.Refusal({.window = 4096, .progress = {}}) == Code::kInvalid);
  CHECK(f.Refusal({.window = 16, .windows_together = 0, .progress = {}}) == Code::kInvalid);
  CHECK(MeasureTextPerplexity(f.model(), "short", {}).status().code() == Code::kInvalid);
  const auto text = MeasureTextPerplexity(f.model(), "the rain in the lane is the same",
                                          {.window = 4, .progress = {}});
  REQUIRE(text.ok());
  CHECK(text->windows > 1);
}

}  // namespace
}  // namespace holdfast

// The sampler: Philox against its published vectors, the order of the stages, and the distribution.
#include "engine/model/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <map>
#include <vector>

#include <doctest/doctest.h>

#include "engine/backend/cpu/levels.h"
#include "engine/backend/exact_math.h"
#include "engine/base/hash.h"
#include "engine/model/softmax.h"

namespace holdfast {
namespace {

struct Draws {
  std::vector<float> logits = {};
  std::vector<TokenId> history = {};
  size_t output_begin = 0;
  std::vector<uint32_t> mask = {};
  int top_logprobs = 0;

  Sample At(const SamplingParams& params, int64_t position, uint64_t seed = 7) const {
    const auto sample = SampleToken(params, {.logits = logits, .history = history,
                                             .output_begin = output_begin, .mask = mask,
                                             .turn_seed = seed, .position = position,
                                             .top_logprobs = top_logprobs});
    REQUIRE(sample.ok());
    return *sample;
  }
  TokenId Greedy(SamplingParams params = {}) const {
    params.temperature = 0;
    return At(params, 0).token;
  }
  std::map<TokenId, int> Count(const SamplingParams& params, int n) const {
    std::map<TokenId, int> counts;
    for (int i = 0; i < n; ++i) ++counts[At(params, i).token];
    return counts;
  }
};

std::vector<float> Ramp(int n) {  // a shuffled spread of logits in -4..4
  std::vector<float> x(n);
  for (int i = 0; i < n; ++i) x[i] = static_cast<float>((i * 7919 % n) * 8.0 / n - 4.0);
  return x;
}

void CheckBlock(const PhiloxBlock& b, std::array<uint32_t, 4> want) {
  for (int i = 0; i < 4; ++i) CHECK(b.v[i] == want[i]);
}

TEST_CASE("philox gives the vectors that its authors published") {
  CheckBlock(Philox(0, 0, 0), {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  const uint64_t ones = ~uint64_t{0};
  CheckBlock(Philox(ones, ones, ones), {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  // Counter and key are digits of pi.
  CheckBlock(Philox(0x299f31d0a4093822, 0x85a308d3243f6a88, 0x0370734413198a2e),
             {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("greedy takes the best, and of equals the lowest id") {
  CHECK(Draws{.logits = {0, 3, 1, 3, -1}}.Greedy() == 1);
  CHECK(Draws{.logits = {-2, -2, -2}}.Greedy() == 0);
  CHECK(Draws{.logits = {-0.0f, 0.0f}}.Greedy() == 0);
}

TEST_CASE("a mask allows what it allows") {
  Draws d{.logits = Ramp(70), .mask = {0, 1u << 8, 0}};
  CHECK(d.Greedy() == 40);
  CHECK(d.Count({}, 50) == std::map<TokenId, int>{{40, 50}});
  SampleContext c{.logits = d.logits, .mask = d.mask};
  d.mask = {0, 0, 1u << 31};  // a bit beyond the vocabulary
  c.mask = d.mask;
  CHECK(SampleToken({}, c).status().code() == Code::kInvalid);
  const uint32_t one_word[] = {1};
  c.mask = one_word;
  CHECK(SampleToken({}, c).status().code() == Code::kInvalid);
}

TEST_CASE("penalties change scores in their order and range") {
  Draws d{.logits = {2.0f, 1.9f, 1.0f, -1.0f}, .history = {0, 0, 3}, .output_begin = 1};
  CHECK(d.Greedy() == 0);
  CHECK(d.Greedy({.presence_penalty = 0.2f}) == 1);
  // Token 0 occurs once in the output and twice in all.
  CHECK(d.Greedy({.frequency_penalty = 0.09f}) == 0);
  CHECK(d.Greedy({.frequency_penalty = 0.11f}) == 1);
  CHECK(d.Greedy({.repetition_penalty = 1.1f}) == 1);
  CHECK(d.Greedy({.repetition_penalty = 1.1f, .repetition_window = 1}) == 0);
  CHECK(d.Greedy({.logit_bias = {{2, 1.5f}}}) == 2);
  // A negative score is multiplied: token 3 falls behind token 4, which it led.
  d.logits = {-9, -9, -9, -1.0f, -1.05f};
  CHECK(d.Greedy({.repetition_penalty = 1.1f}) == 4);
  // Ids that are no tokens of this vocabulary change nothing.
  d.history = {0, 99, -1};
  CHECK(d.Greedy({.repetition_penalty = 1.1f, .logit_bias = {{99, 5.0f}}}) == 3);
}

TEST_CASE("top-k, top-p and min-p cut where they say") {
  Draws d{.logits = {std::log(0.5f), std::log(0.25f), std::log(0.125f), std::log(0.0625f),
                     std::log(0.0625f)}};
  CHECK(d.Count({.top_k = 2}, 400).size() == 2);
  CHECK(d.Count({.top_k = 4}, 2000).count(4) == 0);  // of two equals the lower id stays
  CHECK(d.Count({.top_p = 0.49f}, 200).size() == 1);
  CHECK(d.Count({.top_p = 0.51f}, 400).size() == 2);
  CHECK(d.Count({.top_p = 0.76f}, 800).size() == 3);
  CHECK(d.Count({.min_p = 0.2f}, 800).size() == 3);
  CHECK(d.Count({.min_p = 0.3f}, 400).size() == 2);
  CHECK(d.Count({.top_k = 1, .top_p = 0.9f, .min_p = 0.9f}, 50).size() == 1);
  // A low temperature sharpens before the cuts.
  CHECK(d.Count({.temperature = 0.05f}, 300).size() == 1);
  CHECK(d.Count({.temperature = 1e-30f}, 20) == std::map<TokenId, int>{{0, 20}});
}

TEST_CASE("top-p over a wide vocabulary equals a full sort") {
  Draws d{.logits = Ramp(5000)};
  std::vector<float> weight(5000);
  const float max = RowMax(d.logits);
  ExpRow(d.logits, max, 1.0f, weight.data());
  std::vector<TokenId> order(5000);
  for (int i = 0; i < 5000; ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](TokenId a, TokenId b) { return d.logits[a] > d.logits[b]; });
  double total = 0, sum = 0;
  for (float w : weight) total += w;
  std::vector<uint8_t> kept(5000, 0);
  for (int i = 0; sum < 0.3f * total; ++i) {
    kept[order[i]] = 1;
    sum += weight[order[i]];
  }
  for (const auto& [token, n] : d.Count({.top_p = 0.3f}, 3000)) CHECK(kept[token] == 1);
}

TEST_CASE("draws follow the distribution") {
  Draws d{.logits = Ramp(40)};
  constexpr int kDraws = 40000;
  const SamplingParams params{.temperature = 1.5f};
  const auto counts = d.Count(params, kDraws);
  double total = 0, chi = 0;
  for (float x : d.logits) total += std::exp(x / 1.5);
  for (int t = 0; t < 40; ++t) {
    const double want = kDraws * std::exp(d.logits[t] / 1.5) / total;
    const double got = counts.count(t) != 0 ? counts.at(t) : 0;
    chi += (got - want) * (got - want) / want;
  }
  CHECK(chi < 72.05);  // 39 degrees of freedom: exceeded with probability 0.001
  CHECK(chi > 15);     // and not too good to be true
}

TEST_CASE("a draw is a function of seed and position") {
  const Draws d{.logits = Ramp(40)};
  int moved = 0, stepped = 0;
  for (int i = 0; i < 100; ++i) {
    CHECK(d.At({}, i).token == d.At({}, i).token);
    moved += d.At({}, i, 7).token != d.At({}, i, 8).token;
    stepped += d.At({}, 2 * i).token != d.At({}, 2 * i + 1).token;
  }
  CHECK(moved > 50);
  CHECK(stepped > 50);
}

TEST_CASE("logprobs come from the raw logits") {
  Draws d{.logits = {1, 3, 2, 3, 0}, .top_logprobs = 3};
  const Sample s = d.At({.temperature = 0, .logit_bias = {{4, 100.0f}}}, 0);
  CHECK(s.token == 4);
  const double sum = std::exp(1.0) + 2 * std::exp(3.0) + std::exp(2.0) + 1;
  CHECK(s.logprob == doctest::Approx(-std::log(sum)).epsilon(1e-6));
  REQUIRE(s.top.size() == 3);
  CHECK(s.top[0].token == 1);
  CHECK(s.top[1].token == 3);
  CHECK(s.top[2].token == 2);
  CHECK(s.top[0].logprob == doctest::Approx(3 - std::log(sum)).epsilon(1e-6));
  CHECK(s.logits_digest == LogitsDigest(d.logits));
}

TEST_CASE("the digest is that of the raw row, and of each of its bits") {
  // XXH3-64 of its 20 bytes, as xxhash 0.8.1 has it.
  CHECK(LogitsDigest(std::vector<float>{1, 3, 2, 3, 0}) == 0x8e7312fe093f25a7u);
  Draws d{.logits = std::vector<float>(1000, 0.5f)};
  const uint64_t digest = d.At({}, 0).logits_digest;
  CHECK(d.At({.temperature = 0, .logit_bias = {{4, 100.0f}}}, 7).logits_digest == digest);
  d.logits[999] = std::nextafter(0.5f, 1.0f);
  CHECK(d.At({}, 0).logits_digest != digest);
}

TEST_CASE("parameters out of range are named") {
  CHECK(ValidateSampling({}).ok());
  const auto names = [](const SamplingParams& p, const char* field) {
    const Status status = ValidateSampling(p);
    return status.code() == Code::kInvalid && status.message().starts_with(field);
  };
  CHECK(names({.temperature = 2.1f}, "temperature"));
  CHECK(names({.temperature = NAN}, "temperature"));
  CHECK(names({.top_k = -1}, "top_k"));
  CHECK(names({.top_p = 0}, "top_p"));
  CHECK(names({.min_p = 1}, "min_p"));
  CHECK(names({.presence_penalty = 3}, "presence_penalty"));
  CHECK(names({.frequency_penalty = -3}, "frequency_penalty"));
  CHECK(names({.repetition_penalty = 0}, "repetition_penalty"));
  CHECK(names({.repetition_window = -1}, "repetition_window"));
  CHECK(names({.logit_bias = {{-1, 0.0f}}}, "logit_bias"));
  CHECK(names({.logit_bias = {{1, 101.0f}}}, "logit_bias"));
}

void CheckExpRows(const ElementwiseKernels& kernels) {
  for (int n : {1, 63, 64, 65, 1000}) {
    std::vector<float> x = Ramp(n), a(n), b(n);
    for (float& value : x) value *= 30;
    const ExpRowArgs args{.n = n, .x = x.data(), .max = 120, .temperature = 0.7f, .out = a.data()};
    const float sum = kernels.exp_row(args);
    for (int i = 0; i < n; ++i) CHECK(a[i] == ExpF((x[i] - 120) / 0.7f));
    CHECK(sum == ExpRow(x, 120, 0.7f, b.data()));
    CHECK(a == b);
  }
}

TEST_CASE("exp rows are the same bits in plain and in vector code") {
  for (const CpuLevel& level : CpuLevels()) {
    if (!level.present()) continue;
    CAPTURE(level.name);
    CheckExpRows(level.elementwise());
  }
  CHECK(RowMax(std::vector<float>{-5, -3, -4}) == -3);
  CHECK(LogSumExp(std::vector<float>(1000, 2.0f)) == doctest::Approx(2 + std::log(1000.0)));
}

}  // namespace
}  // namespace holdfast

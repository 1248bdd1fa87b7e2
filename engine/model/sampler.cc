#include "engine/model/sampler.h"

#include <xxhash.h>

#include <algorithm>
#include <cfloat>
#include <string>

#include "engine/model/softmax.h"

namespace holdfast {
namespace {

Status OutOfRange(const char* field, const char* range) {
  return Status::Invalid(std::string(field) + " must be " + range);
}

bool Within(float value, float least, float most) { return value >= least && value <= most; }

bool Allowed(std::span<const uint32_t> mask, size_t token) {
  return mask.empty() || (mask[token / 32] >> (token % 32) & 1) != 0;
}

// Better first: larger score, then lower id.
struct Better {
  const float* score;
  bool operator()(TokenId a, TokenId b) const {
    return score[a] > score[b] || (score[a] == score[b] && a < b);
  }
};

// Ids of `tokens` with how often each occurs, ids outside the vocabulary left out.
std::vector<std::pair<TokenId, int>> CountTokens(std::span<const TokenId> tokens, size_t vocab) {
  std::vector<TokenId> sorted(tokens.begin(), tokens.end());
  std::sort(sorted.begin(), sorted.end());
  std::vector<std::pair<TokenId, int>> counts;
  for (TokenId t : sorted) {
    if (t < 0 || static_cast<size_t>(t) >= vocab) continue;
    if (counts.empty() || counts.back().first != t) counts.emplace_back(t, 0);
    ++counts.back().second;
  }
  return counts;
}

bool ChangesScores(const SamplingParams& p) {
  return p.presence_penalty != 0 || p.frequency_penalty != 0 || !p.logit_bias.empty() ||
         (p.repetition_penalty != 1 && p.repetition_window > 0);
}

// Repetition penalty, then OpenAI's penalties, then bias; each sum rounded once, kept finite.
std::vector<float> ChangeScores(const SamplingParams& p, const SampleContext& c) {
  std::vector<float> score(c.logits.begin(), c.logits.end());
  const auto put = [&](TokenId t, float value) {
    score[t] = value > FLT_MAX ? FLT_MAX : value < -FLT_MAX ? -FLT_MAX : value;
  };
  const size_t window = std::min<size_t>(c.history.size(), std::max(0, p.repetition_window));
  if (p.repetition_penalty != 1) {
    for (const auto& [t, n] : CountTokens(c.history.last(window), score.size())) {
      put(t, score[t] > 0 ? score[t] / p.repetition_penalty : score[t] * p.repetition_penalty);
    }
  }
  if (p.presence_penalty != 0 || p.frequency_penalty != 0) {
    const auto output = c.history.subspan(std::min(c.output_begin, c.history.size()));
    for (const auto& [t, n] : CountTokens(output, score.size())) {
      const float penalty = p.presence_penalty + p.frequency_penalty * static_cast<float>(n);
      put(t, score[t] - penalty);
    }
  }
  for (const auto& [t, bias] : p.logit_bias) {
    if (t >= 0 && static_cast<size_t>(t) < score.size()) put(t, score[t] + bias);
  }
  return score;
}

TokenId BestToken(std::span<const float> score, std::span<const uint32_t> mask) {
  TokenId best = kNoToken;
  for (size_t t = 0; t < score.size(); ++t) {
    if (best != kNoToken && !(score[t] > score[best])) continue;
    if (Allowed(mask, t)) best = static_cast<TokenId>(t);
  }
  return best;
}

// The shortest prefix, in order of Better, whose weights sum to at least `share` of all of them.
// `ids` is ascending; sorts no further than it has to.
void CutTopP(const float* score, const std::vector<float>& weight, float share,
             std::vector<TokenId>* ids) {
  double total = 0;
  for (TokenId t : *ids) total += static_cast<double>(weight[t]);
  const double enough = static_cast<double>(share) * total;
  double sum = 0;
  size_t kept = 0;
  for (size_t sorted = 0, step = 64; sorted < ids->size() && sum < enough; step *= 4) {
    const size_t end = std::min(ids->size(), sorted + step);
    std::partial_sort(ids->begin() + sorted, ids->begin() + end, ids->end(), Better{score});
    for (; kept < end && sum < enough; ++kept) sum += static_cast<double>(weight[(*ids)[kept]]);
    sorted = end;
  }
  ids->resize(std::max<size_t>(kept, 1));
  std::sort(ids->begin(), ids->end());
}

// A number in [0, 1) with 53 random bits.
double Uniform(uint64_t seed, int64_t position) {
  const PhiloxBlock block = Philox(seed, static_cast<uint64_t>(position), 0);
  const uint64_t bits = (uint64_t{block.v[0]} << 32 | block.v[1]) >> 11;
  return static_cast<double>(bits) * 0x1.0p-53;
}

// The token at which the running sum of weights, by ascending id, passes u of their total.
TokenId Draw(const std::vector<float>& weight, const std::vector<TokenId>& ids, double u) {
  double total = 0;
  for (TokenId t : ids) total += static_cast<double>(weight[t]);
  const double target = u * total;
  double sum = 0;
  TokenId last = kNoToken;
  for (TokenId t : ids) {
    if (weight[t] == 0) continue;
    last = t;
    sum += static_cast<double>(weight[t]);
    if (sum > target) return t;
  }
  return last;  // u * total rounded up to total
}

TokenId DrawToken(const SamplingParams& p, const SampleContext& c, std::span<const float> score,
                  float best_score) {
  std::vector<float> weight(score.size());  // exp((score - best) / temperature): 1 for the best
  ExpRow(score, best_score, p.temperature, weight.data());
  std::vector<TokenId> ids;  // ascending
  ids.reserve(score.size());
  for (size_t t = 0; t < score.size(); ++t) {
    if (weight[t] > 0 && Allowed(c.mask, t)) ids.push_back(static_cast<TokenId>(t));
  }
  if (p.top_k > 0 && static_cast<size_t>(p.top_k) < ids.size()) {
    std::nth_element(ids.begin(), ids.begin() + p.top_k, ids.end(), Better{score.data()});
    ids.resize(p.top_k);
    std::sort(ids.begin(), ids.end());
  }
  if (p.top_p < 1) CutTopP(score.data(), weight, p.top_p, &ids);
  if (p.min_p > 0) std::erase_if(ids, [&](TokenId t) { return weight[t] < p.min_p; });
  return Draw(weight, ids, Uniform(c.turn_seed, c.position));
}

std::vector<TokenLogprob> TopLogprobs(std::span<const float> logits, int count, double log_sum) {
  std::vector<TokenId> ids(logits.size());
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<TokenId>(i);
  const size_t n = std::min(ids.size(), static_cast<size_t>(count));
  std::partial_sort(ids.begin(), ids.begin() + n, ids.end(), Better{logits.data()});
  std::vector<TokenLogprob> top;
  for (size_t i = 0; i < n; ++i) {
    top.push_back({ids[i], static_cast<float>(static_cast<double>(logits[ids[i]]) - log_sum)});
  }
  return top;
}

}  // namespace

Status ValidateSampling(const SamplingParams& p) {
  if (!Within(p.temperature, 0, 2)) return OutOfRange("temperature", "between 0 and 2");
  if (p.top_k < 0) return OutOfRange("top_k", "0 or more");
  if (!(p.top_p > 0 && p.top_p <= 1)) return OutOfRange("top_p", "above 0 and at most 1");
  if (!(p.min_p >= 0 && p.min_p < 1)) return OutOfRange("min_p", "at least 0 and below 1");
  if (!Within(p.presence_penalty, -2, 2)) return OutOfRange("presence_penalty", "between -2 and 2");
  if (!Within(p.frequency_penalty, -2, 2)) {
    return OutOfRange("frequency_penalty", "between -2 and 2");
  }
  if (!Within(p.repetition_penalty, 0.1f, 10)) {
    return OutOfRange("repetition_penalty", "between 0.1 and 10");
  }
  if (p.repetition_window < 0) return OutOfRange("repetition_window", "0 or more");
  if (p.logit_bias.size() > 1024) return OutOfRange("logit_bias", "for at most 1024 tokens");
  for (const auto& [t, bias] : p.logit_bias) {
    if (t < 0) return OutOfRange("logit_bias", "for token ids, which are not negative");
    if (!Within(bias, -100, 100)) return OutOfRange("logit_bias", "between -100 and 100");
  }
  return {};
}

Result<Sample> SampleToken(const SamplingParams& params, const SampleContext& context) {
  const SampleContext& c = context;
  if (!c.mask.empty() && c.mask.size() * 32 < c.logits.size()) {
    return Status::Invalid("sampler: the mask is shorter than the vocabulary");
  }
  std::vector<float> changed;
  std::span<const float> score = c.logits;
  if (ChangesScores(params)) {
    changed = ChangeScores(params, c);
    score = changed;
  }
  const TokenId best = BestToken(score, c.mask);
  if (best == kNoToken) return Status::Invalid("sampler: the mask allows no token");

  Sample sample;
  sample.token = params.temperature > 0 ? DrawToken(params, c, score, score[best]) : best;
  const double log_sum = LogSumExp(c.logits);
  sample.logprob = static_cast<float>(static_cast<double>(c.logits[sample.token]) - log_sum);
  if (c.top_logprobs > 0) sample.top = TopLogprobs(c.logits, c.top_logprobs, log_sum);
  sample.logits_digest = LogitsDigest(c.logits);
  return sample;
}

uint64_t LogitsDigest(std::span<const float> logits) {
  return XXH3_64bits(logits.data(), logits.size_bytes());
}

PhiloxBlock Philox(uint64_t key, uint64_t counter_lo, uint64_t counter_hi) {
  constexpr uint64_t kMultiply0 = 0xD2511F53, kMultiply1 = 0xCD9E8D57;
  constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  constexpr int kRounds = 10;
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  PhiloxBlock b = {{static_cast<uint32_t>(counter_lo), static_cast<uint32_t>(counter_lo >> 32),
                    static_cast<uint32_t>(counter_hi), static_cast<uint32_t>(counter_hi >> 32)}};
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t p0 = kMultiply0 * b.v[0], p1 = kMultiply1 * b.v[2];
    b = {{static_cast<uint32_t>(p1 >> 32) ^ b.v[1] ^ k0, static_cast<uint32_t>(p1),
          static_cast<uint32_t>(p0 >> 32) ^ b.v[3] ^ k1, static_cast<uint32_t>(p0)}};
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
  return b;
}

}  // namespace holdfast

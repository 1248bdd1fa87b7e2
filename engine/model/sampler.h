// Sampling: logits and a request's parameters to one token. Runs on the host in fixed arithmetic
// (the exact exp and log of engine/backend/exact_math.h), so the same logits and draws give the
// same token on every machine.
//
// Order: penalties and bias, constraint mask, temperature, top-k, top-p, min-p, draw. Ties go to
// the lower token id. Logprobs come from the raw logits, before all of that. Randomness:
// Philox4x32-10 (Salmon et al., SC'11), keyed by the turn seed, counter = (position, draw number).
// No state: a draw depends on where it happens, so replays and speculation draw alike.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/types.h"

namespace holdfast {

struct SamplingParams {
  float temperature = 1.0f;        // 0 = greedy; 0..2 at the API
  int top_k = 0;                   // 0 = off
  float top_p = 1.0f;              // (0, 1]
  float min_p = 0.0f;              // [0, 1)
  float presence_penalty = 0.0f;   // OpenAI's: subtracted once per token seen in the output
  float frequency_penalty = 0.0f;  // OpenAI's: subtracted per occurrence in the output
  float repetition_penalty = 1.0f; // divides positive, multiplies negative logits of the last
  int repetition_window = 64;      //   `repetition_window` tokens, prompt included
  std::vector<std::pair<TokenId, float>> logit_bias = {};
  bool operator==(const SamplingParams&) const = default;
};
// kInvalid, naming the field, when out of range.
Status ValidateSampling(const SamplingParams& params);

struct TokenLogprob {
  TokenId token = kNoToken;
  float logprob = 0;
};

struct Sample {
  TokenId token = kNoToken;
  float logprob = 0;               // of `token`, natural log, from raw logits
  std::vector<TokenLogprob> top;   // when asked for, best first
  uint64_t logits_digest = 0;      // LogitsDigest of the raw row
};

struct SampleContext {
  std::span<const float> logits = {};      // [vocab], finite
  std::span<const TokenId> history = {};   // prompt and output so far (repetition window)
  size_t output_begin = 0;                 // history[output_begin..] is output (OpenAI penalties)
  std::span<const uint32_t> mask = {};     // allowed tokens, bit i of word i/32; empty = all
  uint64_t turn_seed = 0;
  int64_t position = 0;                    // index that the token will have
  int top_logprobs = 0;                    // 0..20
};
// kInvalid when the mask allows nothing.
Result<Sample> SampleToken(const SamplingParams& params, const SampleContext& context);

// XXH3-64 of the row's bytes, before penalties and masks: what a token log keeps beside each
// sampled token. Equal rows have equal digests. It tells of change, and proves nothing to a forger.
uint64_t LogitsDigest(std::span<const float> logits);

// Philox4x32-10. Exposed for its known-answer test.
struct PhiloxBlock {
  uint32_t v[4];
};
PhiloxBlock Philox(uint64_t key, uint64_t counter_lo, uint64_t counter_hi);

}  // namespace holdfast

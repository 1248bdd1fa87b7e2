// What a GGUF file's metadata says about its model, checked: hyper-parameters, rotation, tokenizer,
// chat template. No tensor is touched here except the small rope_freqs.weight.
//
// kInvalid names what a file needs and this build lacks (an architecture, a rope scaling, experts,
// sliding windows); kCorrupt names the key that is missing, of the wrong type or out of range.
#pragma once

#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/model/gguf.h"
#include "engine/model/model.h"
#include "engine/text/text.h"

namespace holdfast {

struct ModelLimits {
  static constexpr uint64_t kLayers = 1024;
  static constexpr uint64_t kWidth = 1u << 16;   // also of heads * head_dim
  static constexpr uint64_t kHeads = 1024;
  static constexpr uint64_t kHeadDim = 512;
  static constexpr uint64_t kFfn = 1u << 20;
  static constexpr uint64_t kVocab = 1u << 22;
  static constexpr uint64_t kContext = 1u << 24;
};

struct ModelMetadata {
  ModelConfig config;
  std::vector<double> freq_scale;  // RopeTable's; empty = ones
  TokenizerSpec tokenizer;
  std::string chat_template;
};

// `fallback_name` is the model's name where general.name is missing.
Result<ModelMetadata> ReadModelMetadata(const Gguf& gguf, const std::string& fallback_name);

}  // namespace holdfast

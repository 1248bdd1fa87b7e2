// The tensors of a model, taken from a mapped GGUF file into a backend's order.
//
// Every tensor that the model needs is found and its shape verified before the first is packed, and
// a tensor that this architecture has no use for is refused: it would mean other layers than these.
// Several threads pack, the largest tensors first; the file's pages go as soon as they are packed.
// Rows of wq and wk (and their biases) of models with interleaved rotation are put into half-split
// order on the way, so that one rotation serves all models.
#pragma once

#include <functional>
#include <memory>
#include <set>
#include <vector>

#include "engine/backend/backend.h"
#include "engine/base/hash.h"
#include "engine/model/file_map.h"
#include "engine/model/gguf.h"
#include "engine/model/model.h"

namespace holdfast {

// Vectors are empty where the model has none.
struct LayerWeights {
  std::vector<float> attn_norm, ffn_norm;             // [width]
  std::vector<float> attn_post_norm, ffn_post_norm;   // [width]
  std::vector<float> q_norm, k_norm;                  // [head_dim]
  std::unique_ptr<Weight> q, k, v, o;                 // heads * head_dim, or kv_heads * head_dim
  std::vector<float> q_bias, k_bias, v_bias, o_bias;  // [outputs]
  std::vector<float> q_factor, k_factor;  // [outputs], INT8 K alone (key_balance.h)
  std::unique_ptr<Weight> gate, up, down;             // width -> ffn, ffn -> width
};

struct ModelWeights {
  std::unique_ptr<Weight> embed;       // [vocab][width]
  std::unique_ptr<Weight> output;      // [vocab][width]; null where it is the embedding
  std::vector<float> output_norm;      // [width]
  std::vector<LayerWeights> layers;
  std::set<WeightType> types;          // that occur as matrices
  size_t bytes = 0;                    // memory that all of it holds
  Digest digest;  // tree: over name, type, shape and SHA-256 of each tensor, as the file has them

  const Weight& head() const { return output ? *output : *embed; }
};

// `map` holds the bytes that `gguf` looks into. Backend::Pack is called from `threads` threads (0 =
// one per core), `progress` (may be empty) from the calling one.
Result<ModelWeights> LoadWeights(const FileMap& map, const Gguf& gguf, const ModelConfig& config,
                                 Backend& backend, int threads,
                                 const std::function<void(double fraction)>& progress);

}  // namespace holdfast

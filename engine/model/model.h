// A model: weights in the backend's order, shapes, and the forward pass over rows of many
// sequences.
//
// Architectures: `llama` (mistral too), `qwen2`, `qwen3` and `gemma3` in GGUF files. The file is
// mapped while loading; packed copies replace it tensor by tensor, so that two copies never stand
// side by side.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/backend/backend.h"
#include "engine/base/hash.h"
#include "engine/base/status.h"
#include "engine/kv/layout.h"
#include "engine/text/text.h"

namespace holdfast {

struct ModelConfig {
  std::string name;          // general.name, else the file's stem
  std::string architecture;  // "llama", "mistral3", "qwen2", "qwen3", "gemma3"
  int layers = 0, width = 0, heads = 0, kv_heads = 0, head_dim = 0, ffn = 0, vocab = 0;
  int context_length = 0;    // tokens the model was trained for
  double rope_base = 0;
  int rope_dim = 0;
  float norm_eps = 0;
  bool interleaved_rope = false;  // the file's order of wq and wk rows; permuted at load
  bool qkv_bias = false;     // q, k and v must have biases (any model may)
  bool qk_norm = false;      // each head of q and k is normalised before it is turned
  bool post_norms = false;   // what a half-layer adds to the residual is normalised first
  bool gelu = false;         // GeGLU instead of SwiGLU
  float embed_scale = 1;     // of the embeddings at the bottom
  float attention_scale = 0;  // of scores
  float logit_cap = 0;       // soft limit of logits; 0 = none
  // Layers that see only `window` tokens and turn by a base of their own; empty: there are none.
  std::vector<bool> is_local;  // [layers]
  int window = 0;
  double local_rope_base = 0;
};

// Where a layer's KV is: a layer group holds every layer of its kind, in the model's order.
struct LayerPlace {
  size_t group = 0;
  int layer = 0;  // 0-based in the group
};

struct LoadOptions {
  KvType kv_type = KvType::kF16;
  int threads = 0;                                  // for packing; 0 = one per core
  std::function<void(double fraction)> progress;    // may be empty; called from the loading thread
  const NumericsDigest* numerics = nullptr;         // the backend's, if known; else it is computed
};

class Model {
 public:
  // kNotFound / kIo for the file, kInvalid for an architecture or tensor type that is not supported
  // (names it), kCorrupt for a file that is not what it says. `backend` must outlive the model.
  static Result<std::unique_ptr<Model>> Load(const std::string& path, Backend& backend,
                                             const LoadOptions& options);
  ~Model();

  const ModelConfig& config() const;
  Backend& backend() const;
  const std::vector<LayerGroup>& groups() const;  // in order of their first layers
  LayerPlace place(int layer) const;
  RopeTable MakeRope(size_t group) const;  // the rotation of the group's layers, still empty
  // H(weights digest, hyper-parameters, rope spec, tokenizer digest, layer groups, page size,
  // NUMERICS version, digests of the operations that this forward uses): part of every page key.
  const Digest& fingerprint() const;
  const Digest& weights_digest() const;
  const std::string& chat_template() const;  // Jinja source, "" when the file has none
  const Tokenizer& tokenizer() const;
  size_t weight_bytes() const;               // memory that the packed weights hold

 private:
  friend class ForwardPass;
  struct Impl;
  explicit Model(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The tokenizer of a model file alone, without its weights. Errors as Model::Load's.
Result<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& path);

// One row of a batch: a token at its position, and where its KV goes.
struct ForwardRow {
  TokenId token = 0;
  int32_t position = 0;                  // index in the sequence: what the row sees
  int32_t home = -1;                     // position that K is turned for; -1 = `position` (a run
                                         // over such rows has shift = position - home)
  int32_t sequence = 0;                  // index into ForwardBatch::sequences
  std::byte* const* page = nullptr;      // payload per layer group, [groups]
  int32_t slot = 0;
  bool logits = false;                   // a logits row is wanted
};

struct ForwardBatch {
  std::vector<ForwardRow> rows;  // rows of one sequence are adjacent
  // Per sequence: its runs per layer group, covering every index up to its largest position.
  struct Sequence {
    std::vector<std::vector<KvRun>> runs;  // [groups]
  };
  std::vector<Sequence> sequences;
  // Called by StepLayer with the queries of all rows, [rows][heads * head_dim], not yet turned,
  // once the layer's K and V of these rows are stored; null = no.
  std::function<void(int layer, std::span<const float> q)> observe_queries;
};

// One pass over a batch, a layer at a time, so that a long prefill chunk can pause while decode
// steps run in another ForwardPass of the same model (rows are computed alone: nothing changes).
// Owns its activations and reuses them. One caller at a time per backend.
class ForwardPass {
 public:
  // Runs on the model's backend, or on another one of the same kind (other thread count).
  explicit ForwardPass(Model& model, Backend* backend = nullptr);
  ~ForwardPass();

  void Begin(ForwardBatch batch);
  bool done() const;      // true before the first Begin and after the last layer and the logits
  void StepLayer();       // the next layer; the last call also makes the logits
  void Run() {
    while (!done()) StepLayer();
  }
  int layers_left() const;

  // After done(): the logits of row r (ForwardRow::logits set), [vocab]; empty for a failed row.
  std::span<const float> logits(int64_t row) const;
  // True when a value that is not finite appeared in this row or in another of its sequence (whose
  // KV this one may have seen): the sequence can't go on. Other sequences are not touched by it.
  bool failed(int64_t row) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace holdfast

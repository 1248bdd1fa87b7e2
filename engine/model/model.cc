#include "engine/model/model.h"

#include <algorithm>
#include <bit>
#include <string_view>

#include "engine/model/config.h"
#include "engine/model/file_map.h"
#include "engine/model/gguf.h"
#include "engine/model/model_impl.h"

namespace holdfast {
namespace {

// "/a/smollm2.gguf" -> "smollm2"
std::string FileStem(const std::string& path) {
  const std::string base = path.substr(path.find_last_of('/') + 1);
  return base.ends_with(".gguf") ? base.substr(0, base.size() - 5) : base;
}

// Of "matmul/Q4_K", "attend/f16" and the like those whose variant this model uses, and every
// operation that has no variants: another model's new operation does not void this one's pages.
Digest UsedOperations(const NumericsDigest& numerics, const std::set<WeightType>& types,
                      KvType kv_type) {
  const std::string_view kv = KvTypeName(kv_type);
  const auto used = [&](std::string_view op) {
    const size_t slash = op.find('/');
    if (slash == std::string_view::npos) return true;
    const std::string_view variant = op.substr(slash + 1);
    return variant == kv || std::any_of(types.begin(), types.end(), [&](WeightType t) {
             return variant == WeightTypeName(t);
           });
  };
  Hasher h("ops-1");
  for (const NumericsDigest::Entry& entry : numerics.ops) {
    if (used(entry.op)) h.Text(entry.op).Add(entry.digest);
  }
  return h.Finish();
}

}  // namespace

Digest Model::Impl::Fingerprint(const Digest& operations) const {
  const ModelConfig& c = config;
  Hasher h("fp-1");
  h.Add(weights.digest).Text(c.architecture);
  for (int n : {c.layers, c.width, c.heads, c.kv_heads, c.head_dim, c.ffn, c.vocab, c.rope_dim}) {
    h.U64(static_cast<uint64_t>(n));
  }
  h.U64(std::bit_cast<uint32_t>(c.norm_eps)).U64(c.interleaved_rope ? 1 : 0);
  h.U64(std::bit_cast<uint64_t>(c.rope_base));
  h.Values(std::span<const double>(freq_scale));
  h.Add(tokenizer->digest());
  h.U64(groups.size());
  for (const LayerGroup& group : groups) group.HashInto(h);
  h.U64(kPageTokens).U64(kNumericsVersion).Add(operations);
  return h.Finish();
}

Model::Model(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Model::~Model() = default;

Result<std::unique_ptr<Model>> Model::Load(const std::string& path, Backend& backend,
                                           const LoadOptions& options) {
  HOLDFAST_ASSIGN_OR_RETURN(const std::unique_ptr<FileMap> map, FileMap::Open(path));
  HOLDFAST_ASSIGN_OR_RETURN(const Gguf gguf, Gguf::Parse(map->bytes()));
  HOLDFAST_ASSIGN_OR_RETURN(ModelMetadata metadata, ReadModelMetadata(gguf, FileStem(path)));

  auto impl = std::make_unique<Impl>();
  impl->backend = &backend;
  impl->config = std::move(metadata.config);
  impl->freq_scale = std::move(metadata.freq_scale);
  impl->chat_template = std::move(metadata.chat_template);
  HOLDFAST_ASSIGN_OR_RETURN(impl->tokenizer, Tokenizer::Create(metadata.tokenizer));
  metadata.tokenizer = {};

  const ModelConfig& c = impl->config;
  LayerGroup group;
  group.layers = c.layers;
  group.heads = c.kv_heads;
  group.k_dim = group.v_dim = c.head_dim;
  if (options.kv_type == KvType::kI8 && c.head_dim % 4 != 0) {
    return Status::Invalid("model: INT8 K needs heads of a multiple of 4 numbers, not " +
                           std::to_string(c.head_dim));
  }
  group.k_type = options.kv_type;
  group.v_type = VTypeBeside(options.kv_type);
  impl->groups = {group};

  HOLDFAST_ASSIGN_OR_RETURN(
      impl->weights, LoadWeights(*map, gguf, c, backend, options.threads, options.progress));
  const NumericsDigest numerics =
      options.numerics != nullptr ? *options.numerics : ComputeNumericsDigest(backend);
  impl->fingerprint =
      impl->Fingerprint(UsedOperations(numerics, impl->weights.types, options.kv_type));
  return std::unique_ptr<Model>(new Model(std::move(impl)));
}

Result<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& path) {
  HOLDFAST_ASSIGN_OR_RETURN(const std::unique_ptr<FileMap> map, FileMap::Open(path));
  HOLDFAST_ASSIGN_OR_RETURN(const Gguf gguf, Gguf::Parse(map->bytes()));
  HOLDFAST_ASSIGN_OR_RETURN(const ModelMetadata metadata, ReadModelMetadata(gguf, FileStem(path)));
  return Tokenizer::Create(metadata.tokenizer);
}

const ModelConfig& Model::config() const { return impl_->config; }
const std::vector<LayerGroup>& Model::groups() const { return impl_->groups; }
const Digest& Model::fingerprint() const { return impl_->fingerprint; }
const Digest& Model::weights_digest() const { return impl_->weights.digest; }
const std::string& Model::chat_template() const { return impl_->chat_template; }
const Tokenizer& Model::tokenizer() const { return *impl_->tokenizer; }
size_t Model::weight_bytes() const { return impl_->weights.bytes; }

}  // namespace holdfast

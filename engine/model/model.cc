#include "engine/model/model.h"

#include <algorithm>
#include <bit>
#include <future>
#include <string_view>

#include "engine/model/config.h"
#include "engine/model/file_map.h"
#include "engine/model/gguf.h"
#include "engine/model/key_balance.h"
#include "engine/model/model_impl.h"

namespace holdfast {
namespace {

// "/a/smollm2.gguf" -> "smollm2"
std::string FileStem(const std::string& path) {
  const std::string base = path.substr(path.find_last_of('/') + 1);
  return base.ends_with(".gguf") ? base.substr(0, base.size() - 5) : base;
}

// Of "matmul/Q4_K", "attend/f16" and the like those whose variant this model uses, and of those
// without variants what it needs: another model's new operation does not void this one's pages.
Digest UsedOperations(const NumericsDigest& numerics, const ModelConfig& c,
                      const std::set<WeightType>& types, KvType kv_type) {
  const std::string_view kv = KvTypeName(kv_type);
  const auto used = [&](std::string_view op) {
    if (op == "geglu") return c.gelu;
    if (op == "scale") return c.embed_scale != 1;
    if (op == "soft_cap") return c.logit_cap != 0;
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
  // What only some architectures have; the others' fingerprints are those of versions without it.
  if (!c.is_local.empty()) {
    for (bool local : c.is_local) h.U64(local ? 1 : 0);
    h.U64(std::bit_cast<uint64_t>(c.local_rope_base));
  }
  if (c.logit_cap != 0) h.U64(std::bit_cast<uint32_t>(c.logit_cap));
  for (const LayerWeights& layer : weights.layers) {  // INT8 K: the rule shows in its outcome
    if (!layer.k_factor.empty()) h.Values(std::span<const float>(layer.k_factor));
  }
  h.U64(groups.size());
  for (const LayerGroup& group : groups) group.HashInto(h);
  h.U64(kPageTokens).U64(kNumericsVersion).Add(operations);
  return h.Finish();
}

void Model::Impl::PlaceLayers(KvType kv_type) {
  int of_kind[2] = {-1, -1};  // group of the global and of the local layers
  for (int i = 0; i < config.layers; ++i) {
    const bool local = !config.is_local.empty() && config.is_local[i];
    int& group = of_kind[local];
    if (group < 0) {
      group = static_cast<int>(groups.size());
      groups.push_back({.first_layer = i, .heads = config.kv_heads, .k_dim = config.head_dim,
                        .v_dim = config.head_dim, .k_type = kv_type,
                        .v_type = VTypeBeside(kv_type),
                        .window = local ? config.window : 0});
    }
    places.push_back({static_cast<size_t>(group), groups[group].layers++});
  }
}

RopeTable Model::Impl::MakeRope(size_t group) const {
  if (groups[group].window > 0) return RopeTable(config.rope_dim, config.local_rope_base, {});
  return RopeTable(config.rope_dim, config.rope_base, freq_scale);
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
  // Takes one core as long as the weights take all of them: beside each other.
  auto tokenizer = std::async(std::launch::async, [spec = std::move(metadata.tokenizer)] {
    return Tokenizer::Create(spec);
  });

  const ModelConfig& c = impl->config;
  if (options.kv_type == KvType::kI8 && c.head_dim % 4 != 0) {
    return Status::Invalid("model: INT8 K needs heads of a multiple of 4 numbers, not " +
                           std::to_string(c.head_dim));
  }
  impl->PlaceLayers(options.kv_type);
  HOLDFAST_ASSIGN_OR_RETURN(
      impl->weights, LoadWeights(*map, gguf, c, backend, options.threads, options.progress));
  HOLDFAST_ASSIGN_OR_RETURN(impl->tokenizer, tokenizer.get());
  if (options.kv_type == KvType::kI8) BalanceKeys(c, backend, &impl->weights);
  const NumericsDigest numerics =
      options.numerics != nullptr ? *options.numerics : ComputeNumericsDigest(backend);
  impl->fingerprint =
      impl->Fingerprint(UsedOperations(numerics, c, impl->weights.types, options.kv_type));
  return std::unique_ptr<Model>(new Model(std::move(impl)));
}

Result<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& path) {
  HOLDFAST_ASSIGN_OR_RETURN(const std::unique_ptr<FileMap> map, FileMap::Open(path));
  HOLDFAST_ASSIGN_OR_RETURN(const Gguf gguf, Gguf::Parse(map->bytes()));
  HOLDFAST_ASSIGN_OR_RETURN(const ModelMetadata metadata, ReadModelMetadata(gguf, FileStem(path)));
  return Tokenizer::Create(metadata.tokenizer);
}

const ModelConfig& Model::config() const { return impl_->config; }
Backend& Model::backend() const { return *impl_->backend; }
const std::vector<LayerGroup>& Model::groups() const { return impl_->groups; }
LayerPlace Model::place(int layer) const { return impl_->places[static_cast<size_t>(layer)]; }
RopeTable Model::MakeRope(size_t group) const { return impl_->MakeRope(group); }
const Digest& Model::fingerprint() const { return impl_->fingerprint; }
const Digest& Model::weights_digest() const { return impl_->weights.digest; }
const std::string& Model::chat_template() const { return impl_->chat_template; }
const Tokenizer& Model::tokenizer() const { return *impl_->tokenizer; }
size_t Model::weight_bytes() const { return impl_->weights.bytes; }

}  // namespace holdfast

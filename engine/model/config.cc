#include "engine/model/config.h"

#include <cmath>
#include <cstring>
#include <span>

namespace holdfast {
namespace {

Status Unsupported(const std::string& what) {
  return Status::Invalid("model: " + what + " is not supported");
}

// Reads keys below one prefix ("llama.") and keeps the first error, so that a list of reads stays a
// list; ok() is looked at once, at its end.
class KeyReader {
 public:
  KeyReader(const Gguf& gguf, std::string prefix) : gguf_(gguf), prefix_(std::move(prefix)) {}

  int Count(const std::string& key, uint64_t least, uint64_t most) {
    return InRange(key, gguf_.Count(prefix_ + key), least, most);
  }
  int CountOr(const std::string& key, uint64_t otherwise, uint64_t least, uint64_t most) {
    return InRange(key, gguf_.CountOr(prefix_ + key, otherwise), least, most);
  }
  double Real(const std::string& key) { return Keep(gguf_.Real(prefix_ + key), 0.0); }
  double RealOr(const std::string& key, double otherwise) {
    return Keep(gguf_.RealOr(prefix_ + key, otherwise), 0.0);
  }
  std::string Text(const std::string& key) {
    return std::string(Keep(gguf_.Text(prefix_ + key), std::string_view()));
  }
  std::string TextOr(const std::string& key, std::string_view otherwise) {
    return std::string(Keep(gguf_.TextOr(prefix_ + key, otherwise), std::string_view()));
  }
  bool FlagOr(const std::string& key, bool otherwise) {
    return Keep(gguf_.FlagOr(prefix_ + key, otherwise), false);
  }
  TokenId TokenOr(const std::string& key, uint64_t vocab, TokenId otherwise = kNoToken) {
    if (!gguf_.Has(prefix_ + key)) {
      return otherwise < static_cast<TokenId>(vocab) ? otherwise : kNoToken;
    }
    return Count(key, 0, vocab - 1);
  }
  template <typename T>
  T Keep(Result<T> result, T otherwise) {
    if (result.ok()) return std::move(result).value();
    Fail(result.status());
    return otherwise;
  }
  void Fail(Status status) {
    status.IgnoreError();  // one is enough
    if (status_.ok()) status_ = std::move(status);
  }
  bool Has(const std::string& key) const { return gguf_.Has(prefix_ + key); }
  const Status& status() const { return status_; }

 private:
  int InRange(const std::string& key, Result<uint64_t> value, uint64_t least, uint64_t most) {
    if (!value.ok()) {
      Fail(value.status());
      return 1;
    }
    if (*value < least || *value > most) {
      Fail(Status::Corrupt("gguf: key '" + prefix_ + key + "' is " + std::to_string(*value) +
                           ", outside " + std::to_string(least) + ".." + std::to_string(most)));
      return 1;
    }
    return static_cast<int>(*value);
  }

  const Gguf& gguf_;
  const std::string prefix_;
  Status status_;
};

struct Architecture {
  std::string_view name;
  bool interleaved_rope, qkv_bias, qk_norm, is_gemma;
};
// mistral3 is llama where its file asks for no YaRN and no temperature; the older ones say llama.
constexpr Architecture kArchitectures[] = {{"llama", true, false, false, false},
                                           {"mistral3", true, false, false, false},
                                           {"qwen2", false, true, false, false},
                                           {"qwen3", false, false, true, false},
                                           {"gemma3", false, false, true, true}};

Result<Architecture> FindArchitecture(const std::string& name) {
  std::string known;
  for (const Architecture& a : kArchitectures) {
    if (a.name == name) return a;
    known.append(known.empty() ? "" : ", ").append(a.name);
  }
  return Status::Invalid("model: architecture " + GgufQuote(name) + " is not supported; " + known +
                         " are");
}

// Keys that change what the layers compute, in ways that this forward pass does not know.
Status RefuseOtherLayers(const Gguf& gguf, const std::string& prefix, bool is_gemma) {
  static constexpr std::string_view kKeys[] = {
      "expert_count",
      "attention.scale",
      "attention.temperature_scale",
      "embedding_scale",
      "residual_scale",
      "logit_scale",
      "attn_logit_softcapping",
      "rope.scaling.attn_factor",
      "attention.max_alibi_bias",
      "attention.clamp_kqv",
      "attention.sliding_window",  // this one and those below are known of gemma3
      "attention.sliding_window_pattern",
      "final_logit_softcapping"};
  const auto keys = std::span(kKeys).first(std::size(kKeys) - (is_gemma ? 3 : 0));
  for (std::string_view key : keys) {
    const std::string full = prefix + std::string(key);
    if (!gguf.Has(full)) continue;
    const Result<uint64_t> count = gguf.Count(full);
    const Result<double> real = gguf.Real(full);
    const bool no_count = count.ok() && *count == 0, no_real = real.ok() && *real == 0;
    if (!no_count && !no_real) return Unsupported("key '" + full + "'");
  }
  return {};
}

// Which layers see a window only. Files say nothing, or a period of which the last layer sees all,
// or which layers.
Result<std::vector<bool>> ReadLocalLayers(const Gguf& gguf, KeyReader& keys, int layers) {
  constexpr uint64_t kPeriod = 6;
  const std::string key = "attention.sliding_window_pattern";
  if (Result<std::vector<bool>> flags = gguf.Flags("gemma3." + key); flags.ok()) {
    if (flags->size() == static_cast<size_t>(layers)) return flags;
    return Status::Corrupt("gguf: key 'gemma3." + key + "' has " + std::to_string(flags->size()) +
                           " entries for " + std::to_string(layers) + " layers");
  } else {
    flags.status().IgnoreError();  // a number, then, or nothing
  }
  const int period = keys.CountOr(key, kPeriod, 0, ModelLimits::kLayers);
  std::vector<bool> local;
  for (int i = 0; i < layers; ++i) local.push_back(period == 0 || i % period < period - 1);
  return local;
}

// What gemma3 has beyond the others. Frequencies of local layers are never scaled.
Status ReadGemma(const Gguf& gguf, KeyReader& keys, ModelConfig* c) {
  constexpr int kLayersOf27B = 62;  // its scores are scaled by width / heads, no file says so
  c->post_norms = c->gelu = true;
  c->embed_scale = std::sqrt(static_cast<float>(c->width));
  if (c->layers == kLayersOf27B) {
    c->attention_scale = 1.0f / std::sqrt(static_cast<float>(c->width / c->heads));
  }
  c->logit_cap = static_cast<float>(keys.RealOr("final_logit_softcapping", 0.0));
  c->window = keys.CountOr("attention.sliding_window", 0, 0, ModelLimits::kContext);
  c->local_rope_base = keys.RealOr("rope.freq_base_swa", 10000.0);
  if (c->window > 0) {
    HOLDFAST_ASSIGN_OR_RETURN(c->is_local, ReadLocalLayers(gguf, keys, c->layers));
  }
  HOLDFAST_RETURN_IF_ERROR(keys.status());
  if (!(c->logit_cap >= 0 && c->logit_cap <= 1e6f)) {
    return Status::Corrupt("gguf: key 'gemma3.final_logit_softcapping' is outside 0..1e6");
  }
  return {};
}

Status CheckShape(const ModelConfig& c, int v_dim) {
  const std::string prefix = c.architecture + ".";
  if (v_dim != c.head_dim) return Unsupported("a value length other than the key length");
  if (c.head_dim % 16 != 0) {
    return Unsupported("a head of " + std::to_string(c.head_dim) +
                       " dimensions, no multiple of 16,");
  }
  if (c.rope_dim != c.head_dim) {
    return Unsupported("rope over " + std::to_string(c.rope_dim) + " of " +
                       std::to_string(c.head_dim) + " dimensions");
  }
  if (c.heads % c.kv_heads != 0 ||
      static_cast<uint64_t>(c.heads) * c.head_dim > ModelLimits::kWidth) {
    return Status::Corrupt("model: " + std::to_string(c.heads) + " heads of " +
                           std::to_string(c.head_dim) + " over " + std::to_string(c.kv_heads) +
                           " KV heads do not fit");
  }
  for (const auto& [key, base] : {std::pair{"rope.freq_base", c.rope_base},
                                  std::pair{"rope.freq_base_swa", c.local_rope_base}}) {
    if (!(base >= 1.0 && base <= 1e12)) {
      return Status::Corrupt("gguf: key '" + prefix + key + "' is outside 1..1e12");
    }
  }
  if (!(c.norm_eps >= 0.0f && c.norm_eps < 1.0f)) {
    return Status::Corrupt("gguf: key '" + prefix +
                           "attention.layer_norm_rms_epsilon' is outside 0..1");
  }
  return {};
}

Result<ModelConfig> ReadConfig(const Gguf& gguf, const std::string& fallback_name) {
  KeyReader general(gguf, "general.");
  ModelConfig c;
  c.architecture = general.Text("architecture");
  c.name = general.TextOr("name", fallback_name);
  HOLDFAST_RETURN_IF_ERROR(general.status());
  HOLDFAST_ASSIGN_OR_RETURN(const Architecture a, FindArchitecture(c.architecture));
  c.interleaved_rope = a.interleaved_rope;
  c.qkv_bias = a.qkv_bias;
  c.qk_norm = a.qk_norm;
  const std::string prefix = c.architecture + ".";
  HOLDFAST_RETURN_IF_ERROR(RefuseOtherLayers(gguf, prefix, a.is_gemma));

  KeyReader keys(gguf, prefix);
  c.layers = keys.Count("block_count", 1, ModelLimits::kLayers);
  c.context_length = keys.Count("context_length", 1, ModelLimits::kContext);
  c.width = keys.Count("embedding_length", 1, ModelLimits::kWidth);
  c.ffn = keys.Count("feed_forward_length", 1, ModelLimits::kFfn);
  c.heads = keys.Count("attention.head_count", 1, ModelLimits::kHeads);
  c.kv_heads = keys.CountOr("attention.head_count_kv", c.heads, 1, ModelLimits::kHeads);
  c.head_dim = keys.CountOr("attention.key_length", c.width / c.heads, 1, ModelLimits::kHeadDim);
  const int v_dim = keys.CountOr("attention.value_length", c.width / c.heads, 1,
                                 ModelLimits::kHeadDim);
  c.rope_dim = keys.CountOr("rope.dimension_count", c.head_dim, 1, ModelLimits::kHeadDim);
  c.rope_base = keys.RealOr("rope.freq_base", 10000.0);
  c.norm_eps = static_cast<float>(keys.Real("attention.layer_norm_rms_epsilon"));
  c.attention_scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  c.local_rope_base = c.rope_base;
  HOLDFAST_RETURN_IF_ERROR(keys.status());
  if (a.is_gemma) HOLDFAST_RETURN_IF_ERROR(ReadGemma(gguf, keys, &c));
  HOLDFAST_RETURN_IF_ERROR(CheckShape(c, v_dim));
  return c;
}

// Linear scaling by metadata; llama3's by the tensor rope_freqs.weight, whose numbers divide.
Result<std::vector<double>> ReadFreqScale(const Gguf& gguf, const ModelConfig& c) {
  KeyReader keys(gguf, c.architecture + ".rope.");
  const std::string kind = keys.TextOr("scaling.type", "none");
  double factor = keys.RealOr("scaling.factor", keys.RealOr("scale_linear", 1.0));
  HOLDFAST_RETURN_IF_ERROR(keys.status());
  const bool old_linear = !keys.Has("scaling.type") && keys.Has("scale_linear");
  if (kind != "none" && kind != "linear") return Unsupported("rope scaling " + GgufQuote(kind));
  if (kind == "none" && !old_linear) factor = 1.0;
  if (factor == 0.0) factor = 1.0;  // what converters write for "no scaling"
  if (!(factor >= 1e-6 && factor <= 1e6)) {
    return Status::Corrupt("model: rope scaling factor is outside 1e-6..1e6");
  }
  const size_t pairs = static_cast<size_t>(c.rope_dim / 2);
  std::vector<double> scale;
  if (factor != 1.0) scale.assign(pairs, 1.0 / factor);
  const GgufTensor* freqs = gguf.FindTensor("rope_freqs.weight");
  if (freqs == nullptr) return scale;
  if (freqs->type != static_cast<uint32_t>(WeightType::kF32) || freqs->dims != 1 ||
      freqs->dim[0] != pairs) {
    return Status::Corrupt("gguf: tensor 'rope_freqs.weight' is not F32 [" +
                           std::to_string(pairs) + "]");
  }
  scale.resize(pairs, 1.0);
  for (size_t i = 0; i < pairs; ++i) {
    float divisor;
    std::memcpy(&divisor, freqs->data.data() + 4 * i, 4);
    if (!(divisor >= 1e-6f && divisor <= 1e6f)) {
      return Status::Corrupt("gguf: tensor 'rope_freqs.weight' holds a number outside 1e-6..1e6");
    }
    scale[i] /= static_cast<double>(divisor);
  }
  return scale;
}

// Files of these families expect a bos without saying so.
bool AddsBosByDefault(const TokenizerSpec& t) {
  return t.model == "llama" || t.pre == "llama-bpe" || t.pre == "llama3" || t.pre == "llama-v3";
}

Result<TokenizerSpec> ReadTokenizer(const Gguf& gguf) {
  KeyReader keys(gguf, "tokenizer.ggml.");
  TokenizerSpec t;
  t.model = keys.Text("model");
  t.pre = keys.TextOr("pre", "gpt-2");
  t.tokens = keys.Keep(gguf.Texts("tokenizer.ggml.tokens"), {});
  HOLDFAST_RETURN_IF_ERROR(keys.status());
  const uint64_t vocab = t.tokens.size();
  if (vocab == 0 || vocab > ModelLimits::kVocab) {
    return Status::Corrupt("gguf: 'tokenizer.ggml.tokens' holds " + std::to_string(vocab) +
                           " tokens, not 1.." + std::to_string(ModelLimits::kVocab));
  }
  if (keys.Has("token_type")) t.types = keys.Keep(gguf.Int32s("tokenizer.ggml.token_type"), {});
  if (keys.Has("scores")) t.scores = keys.Keep(gguf.Floats("tokenizer.ggml.scores"), {});
  if (keys.Has("merges")) t.merges = keys.Keep(gguf.Texts("tokenizer.ggml.merges"), {});
  const bool is_spm = t.model == "llama";
  t.bos = keys.TokenOr("bos_token_id", vocab, is_spm ? 1 : kNoToken);
  t.eos = keys.TokenOr("eos_token_id", vocab, is_spm ? 2 : kNoToken);
  t.eot = keys.TokenOr("eot_token_id", vocab);
  t.eom = keys.TokenOr("eom_token_id", vocab);
  t.unk = keys.TokenOr("unknown_token_id", vocab, is_spm ? 0 : kNoToken);
  t.pad = keys.TokenOr("padding_token_id", vocab);
  t.add_bos = keys.FlagOr("add_bos_token", AddsBosByDefault(t));
  t.add_space_prefix = keys.FlagOr("add_space_prefix", is_spm);
  HOLDFAST_RETURN_IF_ERROR(keys.status());
  for (const auto& [name, size] : {std::pair{"token_type", t.types.size()},
                                   std::pair{"scores", t.scores.size()}}) {
    if (size != 0 && size != vocab) {
      return Status::Corrupt("gguf: 'tokenizer.ggml." + std::string(name) + "' has " +
                             std::to_string(size) + " entries for " + std::to_string(vocab) +
                             " tokens");
    }
  }
  return t;
}

}  // namespace

Result<ModelMetadata> ReadModelMetadata(const Gguf& gguf, const std::string& fallback_name) {
  ModelMetadata m;
  HOLDFAST_ASSIGN_OR_RETURN(m.config, ReadConfig(gguf, fallback_name));
  HOLDFAST_ASSIGN_OR_RETURN(m.freq_scale, ReadFreqScale(gguf, m.config));
  HOLDFAST_ASSIGN_OR_RETURN(m.tokenizer, ReadTokenizer(gguf));
  m.config.vocab = static_cast<int>(m.tokenizer.tokens.size());
  HOLDFAST_ASSIGN_OR_RETURN(const std::string_view chat,
                            gguf.TextOr("tokenizer.chat_template", ""));
  m.chat_template = std::string(chat);
  return m;
}

}  // namespace holdfast

// Model::Load: what it reads, what it refuses and how it says so, and what the fingerprint depends
// on.
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include <doctest/doctest.h>

#include "engine/model/model.h"
#include "tests/engine/base/temp_dir.h"
#include "tests/fixtures/gguf_writer.h"
#include "tests/fixtures/tiny_model.h"

namespace holdfast {
namespace {

class Loader {
 public:
  Loader() : backend_(*MakeCpuBackend({.threads = 1, .level = "portable"})) {}

  Result<std::unique_ptr<Model>> Load(const TinyModelSpec& spec, KvType kv = KvType::kF16) {
    return LoadBytes(TinyModelFile(spec), kv);
  }
  Result<std::unique_ptr<Model>> LoadBytes(const std::string& bytes, KvType kv = KvType::kF16) {
    std::ofstream(dir_.File("m.gguf"), std::ios::binary) << bytes;
    const NumericsDigest none;
    return Model::Load(dir_.File("m.gguf"), *backend_,
                       {.kv_type = kv, .threads = 2, .progress = {}, .numerics = &none});
  }
  std::string Error(const std::string& bytes) {
    const auto model = LoadBytes(bytes);
    return model.ok() ? "" : model.status().ToString();
  }
  Digest Fingerprint(const TinyModelSpec& spec, KvType kv = KvType::kF16) {
    auto model = Load(spec, kv);
    REQUIRE_MESSAGE(model.ok(), model.status().ToString());
    return (*model)->fingerprint();
  }
  Backend& backend() { return *backend_; }
  const testing::TempDir& dir() const { return dir_; }

 private:
  testing::TempDir dir_;
  std::unique_ptr<Backend> backend_;
};

bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// The file of `spec` with one piece of its bytes replaced by another as long.
std::string Patched(const TinyModelSpec& spec, const std::string& from, const std::string& to) {
  std::string bytes = TinyModelFile(spec);
  const size_t at = bytes.find(from);
  REQUIRE(at != std::string::npos);
  REQUIRE(from.size() == to.size());
  return bytes.replace(at, from.size(), to);
}

// A key of the file with its u32 value changed.
std::string WithU32(const TinyModelSpec& spec, const std::string& key, uint32_t value) {
  std::string bytes = TinyModelFile(spec);
  const std::string head = GgufTextBytes(key);
  const size_t at = bytes.find(head);
  REQUIRE(at != std::string::npos);
  return bytes.replace(at + head.size() + 4, 4, GgufBytes(value));
}

TEST_CASE("a model knows what its file says") {
  Loader loader;
  TinyModelSpec spec;
  spec.architecture = "qwen2";
  const auto model = loader.Load(spec);
  REQUIRE(model.ok());
  const ModelConfig& c = (*model)->config();
  CHECK(c.name == "tiny qwen2");
  CHECK(c.architecture == "qwen2");
  CHECK(c.layers == 2);
  CHECK(c.width == 64);
  CHECK(c.heads == 2);
  CHECK(c.kv_heads == 1);
  CHECK(c.head_dim == 32);
  CHECK(c.ffn == 128);
  CHECK(c.vocab == 320);
  CHECK(c.context_length == 2048);
  CHECK_FALSE(c.interleaved_rope);
  REQUIRE((*model)->groups().size() == 1);
  CHECK((*model)->groups()[0] ==
        LayerGroup{.layers = 2, .heads = 1, .k_dim = 32, .v_dim = 32});
  CHECK((*model)->tokenizer().vocab_size() == 320);
  CHECK((*model)->tokenizer().eos() == kTinyTurnEnd);
  CHECK(Contains((*model)->chat_template(), "<|im_start|>"));
  CHECK((*model)->weight_bytes() > 64 * 320);
}

TEST_CASE("the fingerprint depends on what decides KV, and on nothing else") {
  Loader loader;
  const TinyModelSpec base;
  const Digest fp = loader.Fingerprint(base);
  CHECK(fp == loader.Fingerprint(base));
  const auto changed = [&](const std::function<void(TinyModelSpec&)>& change) {
    TinyModelSpec spec;
    change(spec);
    return loader.Fingerprint(spec) != fp;
  };
  CHECK(changed([](TinyModelSpec& s) { s.seed = 2; }));
  CHECK(changed([](TinyModelSpec& s) { s.type = WeightType::kQ5_0; }));
  CHECK(changed([](TinyModelSpec& s) { s.rope_freqs.assign(16, 2.0f); }));
  CHECK(changed([](TinyModelSpec& s) { s.vocab = 330; }));
  CHECK(fp != loader.Fingerprint(base, KvType::kF32));
  CHECK(fp != loader.Fingerprint(base, KvType::kI8));
  CHECK_FALSE(changed([](TinyModelSpec& s) { s.context_length = 4096; }));
  const auto renamed = loader.LoadBytes(Patched(base, "tiny llama", "TINY LLAMA"));
  REQUIRE(renamed.ok());
  CHECK((*renamed)->fingerprint() == fp);
  // One bit of one weight, of a token's text, and of a hyper-parameter that no shape shows.
  std::string bytes = TinyModelFile(base);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  const auto bit = loader.LoadBytes(bytes);
  REQUIRE(bit.ok());
  CHECK((*bit)->fingerprint() != fp);
  CHECK((*bit)->weights_digest() != (*loader.Load(base))->weights_digest());
  const auto token = loader.LoadBytes(Patched(base, "<|im_start|>" + GgufBytes(uint64_t{10}),
                                              "<|im_START|>" + GgufBytes(uint64_t{10})));
  REQUIRE_MESSAGE(token.ok(), token.status().ToString());
  CHECK((*token)->fingerprint() != fp);
  const std::string base_key = "rope.freq_base" + GgufBytes(uint32_t{6});
  const auto rope = loader.LoadBytes(
      Patched(base, base_key + GgufBytes(10000.0f), base_key + GgufBytes(20000.0f)));
  REQUIRE(rope.ok());
  CHECK((*rope)->fingerprint() != fp);
}

TEST_CASE("the digest of operations that the model uses is part of the fingerprint") {
  Loader loader;
  std::ofstream(loader.dir().File("m"), std::ios::binary) << TinyModelFile({});
  const auto fingerprint = [&](const std::string& op, uint8_t value) {
    NumericsDigest numerics;
    numerics.ops.push_back({op, {}});
    numerics.ops[0].digest.bytes[0] = value;
    auto model = Model::Load(loader.dir().File("m"), loader.backend(),
                             {.threads = 1, .progress = {}, .numerics = &numerics});
    REQUIRE(model.ok());
    return (*model)->fingerprint();
  };
  CHECK(fingerprint("matmul/Q8_0", 1) != fingerprint("matmul/Q8_0", 2));
  CHECK(fingerprint("attend/f16", 1) != fingerprint("attend/f16", 2));
  CHECK(fingerprint("norm", 1) != fingerprint("norm", 2));
  CHECK(fingerprint("matmul/Q4_K", 1) == fingerprint("matmul/Q4_K", 2));
  CHECK(fingerprint("attend/f32", 1) == fingerprint("attend/f32", 2));
  const auto computed = Model::Load(loader.dir().File("m"), loader.backend(), {});
  const NumericsDigest numerics = ComputeNumericsDigest(loader.backend());
  const auto given = Model::Load(loader.dir().File("m"), loader.backend(),
                                 {.progress = {}, .numerics = &numerics});
  CHECK((*computed)->fingerprint() == (*given)->fingerprint());
}

TEST_CASE("files that are no model of ours are refused by name") {
  Loader loader;
  const TinyModelSpec spec;
  CHECK(Contains(loader.Error(Patched(spec, "llama", "bloom")),
                 "invalid: model: architecture 'bloom' is not supported; "
                 "llama, mistral3, qwen2, qwen3, gemma3 are"));
  CHECK(Contains(loader.Error(Patched(spec, "blk.1.attn_k.weight", "blk.1.attn_X.weight")),
                 "tensor 'blk.1.attn_k.weight' is missing"));
  CHECK(Contains(loader.Error(Patched(spec, "llama.block_count", "llama.block_cOUnt")),
                 "key 'llama.block_count' is missing"));
  CHECK(Contains(loader.Error(WithU32(spec, "llama.block_count", 1)),
                 "invalid: model: tensor 'blk.1.attn_norm.weight' has no place"));
  CHECK(Contains(loader.Error(WithU32(spec, "llama.block_count", 1025)), "outside 1..1024"));
  CHECK(Contains(loader.Error(WithU32(spec, "llama.block_count", 0)), "outside 1..1024"));
  CHECK(Contains(loader.Error(WithU32(spec, "llama.embedding_length", 64 + 16)),
                 "a head of 40 dimensions"));
  CHECK(Contains(loader.Error(WithU32(spec, "llama.feed_forward_length", 64)),
                 "'blk.0.ffn_gate.weight' is [64 x 128] where [64 x 64] is expected"));
  const std::string down = "blk.1.ffn_down.weight" + GgufBytes(uint32_t{2});
  CHECK(Contains(loader.Error(Patched(spec, down + GgufBytes(uint64_t{128}),
                                      down + GgufBytes(uint64_t{64}))),
                 "'blk.1.ffn_down.weight' is [64 x 64] where [128 x 64] is expected"));
  CHECK(Contains(loader.Error(WithU32(spec, "llama.attention.head_count_kv", 3)), "do not fit"));
  CHECK(Contains(loader.Error(WithU32(spec, "llama.attention.head_count_kv", 2)),
                 "'blk.0.attn_k.weight' is [64 x 32] where [64 x 64] is expected"));
  CHECK(Contains(loader.Error(WithU32(spec, "llama.rope.dimension_count", 16)), "rope over 16"));
  CHECK(Contains(loader.Error(WithU32(spec, "tokenizer.ggml.bos_token_id", 320)),
                 "outside 0..319"));
  const std::string type = GgufBytes(uint64_t{64}) + GgufBytes(uint64_t{320});
  CHECK(Contains(loader.Error(Patched(spec, type + GgufBytes(uint32_t{8}),
                                      type + GgufBytes(uint32_t{10}))),
                 "invalid: model: tensor 'token_embd.weight' is Q2_K, which is not supported; the types that are: F32 F16 Q4_0 "));
  CHECK(Contains(loader.Error(Patched(spec, "tokenizer.ggml.tokens", "tokenizer.ggml.tOkens")),
                 "'tokenizer.ggml.tokens' is missing"));
}

TEST_CASE("keys that mean other layers are refused") {
  Loader loader;
  GgufWriter w;
  w.Text("general.architecture", "llama");
  w.U32("llama.expert_count", 8);
  CHECK(Contains(loader.Error(w.Finish()), "key 'llama.expert_count' is not supported"));
  for (const char* key : {"attention.sliding_window", "final_logit_softcapping",
                          "attention.temperature_scale", "attn_logit_softcapping"}) {
    GgufWriter other;
    other.Text("general.architecture", "qwen3");
    other.F32(std::string("qwen3.") + key, 4.0f);
    CHECK(Contains(loader.Error(other.Finish()), std::string("key 'qwen3.") + key + "' is not"));
  }
  GgufWriter capped;
  capped.Text("general.architecture", "gemma3");
  capped.F32("gemma3.attn_logit_softcapping", 50.0f);
  CHECK(Contains(loader.Error(capped.Finish()), "'gemma3.attn_logit_softcapping' is not supported"));
  GgufWriter scaled;
  scaled.Text("general.architecture", "llama");
  scaled.F32("llama.attention.scale", 0.0f);  // says nothing
  CHECK(Contains(loader.Error(scaled.Finish()), "'llama.block_count' is missing"));
}

TEST_CASE("which layers have a window is a period, a list, or the usual period of six") {
  Loader loader;
  TinyModelSpec spec;
  spec.architecture = "gemma3";
  spec.layers = 4;
  const auto locals = [&](const std::string& bytes) {
    auto model = loader.LoadBytes(bytes);
    REQUIRE_MESSAGE(model.ok(), model.status().ToString());
    CHECK((*model)->config().window == 8);
    CHECK((*model)->config().local_rope_base == 500.0);
    std::string text;
    for (bool local : (*model)->config().is_local) text += local ? 'l' : 'g';
    return text;
  };
  const std::string key = "gemma3.attention.sliding_window_pattern";
  CHECK(locals(TinyModelFile(spec)) == "llgl");
  CHECK(locals(WithU32(spec, key, 1)) == "gggg");
  CHECK(locals(WithU32(spec, key, 0)) == "llll");
  CHECK(locals(Patched(spec, "sliding_window_pattern", "sliding_window_patteRN")) == "llll");
  spec.local_layers = {1, 0, 0, 1};
  CHECK(locals(TinyModelFile(spec)) == "lggl");
  spec.local_layers.pop_back();
  CHECK(Contains(loader.Error(TinyModelFile(spec)), "3 entries for 4 layers"));
}

TEST_CASE("paths that hold no file have their own errors") {
  Loader loader;
  const auto code = [&](const std::string& path) {
    return Model::Load(path, loader.backend(), {}).status().code();
  };
  CHECK(code(loader.dir().File("absent.gguf")) == Code::kNotFound);
  CHECK(code(loader.dir().path()) == Code::kInvalid);
  CHECK(code("/dev/null") == Code::kInvalid);
  std::ofstream(loader.dir().File("empty")).flush();
  CHECK(code(loader.dir().File("empty")) == Code::kInvalid);
}

TEST_CASE("progress climbs to one on the loading thread") {
  Loader loader;
  std::ofstream(loader.dir().File("m"), std::ios::binary) << TinyModelFile({});
  const NumericsDigest none;
  const auto self = std::this_thread::get_id();
  double last = 0;
  const auto model = Model::Load(loader.dir().File("m"), loader.backend(),
                                 {.threads = 3,
                                  .progress =
                                      [&](double fraction) {
                                        CHECK(fraction >= last);
                                        CHECK(std::this_thread::get_id() == self);
                                        last = fraction;
                                      },
                                  .numerics = &none});
  CHECK(model.ok());
  CHECK(last == 1.0);
}

}  // namespace
}  // namespace holdfast

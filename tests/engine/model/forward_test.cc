// The forward pass at the level of the model: what a sequence gets depends on its tokens alone, not
// on batch, chunk, other sequences, or the instruction set. Every comparison is to the bit.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "engine/backend/cpu/levels.h"
#include "engine/model/model.h"
#include "engine/model/sequence_kv.h"
#include "tests/engine/base/temp_dir.h"
#include "tests/engine/model/naive_llama.h"
#include "tests/fixtures/tiny_model.h"

namespace holdfast {
namespace {

using Logits = std::vector<std::vector<float>>;  // one row per token

TinyModelSpec SpecFor(WeightType type) {
  TinyModelSpec spec;
  spec.type = type;
  if (WeightBlock(type).elements == 256) spec.width = 256;
  return spec;
}

// A backend and a model on it. Numerics digests take a while on the reference; tests that do not
// look at the fingerprint do without.
class Fixture {
 public:
  Fixture(const TinyModelSpec& spec, const std::string& level, KvType kv_type = KvType::kF16,
          int threads = 1) {
    auto backend = MakeCpuBackend({.threads = threads, .level = level});
    if (!backend.ok()) return;  // this processor lacks it
    backend_ = std::move(backend).value();
    REQUIRE(WriteTinyModel(spec, dir_.File("tiny.gguf")).ok());
    const NumericsDigest none;
    auto model = Model::Load(dir_.File("tiny.gguf"), *backend_,
                             {.kv_type = kv_type, .threads = 2, .progress = {}, .numerics = &none});
    REQUIRE_MESSAGE(model.ok(), model.status().ToString());
    model_ = std::move(model).value();
  }
  bool available() const { return model_ != nullptr; }
  Model& model() { return *model_; }

 private:
  testing::TempDir dir_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Model> model_;
};

// One sequence that is being computed.
struct Sequence {
  explicit Sequence(const Model& model, std::vector<TokenId> t) : tokens(std::move(t)), kv(model) {
    kv.Reserve(static_cast<int64_t>(tokens.size()));
  }
  std::vector<TokenId> tokens;
  SequenceKv kv;
  int done = 0;
  Logits logits = {};
};

std::vector<TokenId> SomeTokens(int n, int seed) {
  std::vector<TokenId> tokens;
  for (int i = 0; i < n; ++i) tokens.push_back(3 + (i * 37 + seed * 101 + i * i) % 317);
  return tokens;
}

// The next `count` rows of each sequence (fewer where it ends), all in one pass.
void Advance(ForwardPass& pass, const std::vector<Sequence*>& sequences, int count) {
  ForwardBatch batch;
  for (size_t s = 0; s < sequences.size(); ++s) {
    Sequence& q = *sequences[s];
    const int end = std::min<int>(q.done + count, static_cast<int>(q.tokens.size()));
    for (int i = q.done; i < end; ++i) {
      batch.rows.push_back({.token = q.tokens[i], .position = i, .sequence = static_cast<int>(s),
                            .page = q.kv.PageOf(i), .slot = SequenceKv::SlotOf(i),
                            .logits = true});
    }
    batch.sequences.push_back({q.kv.Runs(end)});
  }
  pass.Begin(batch);
  pass.Run();
  int64_t row = 0;
  for (Sequence* q : sequences) {
    const int end = std::min<int>(q->done + count, static_cast<int>(q->tokens.size()));
    for (; q->done < end; ++q->done, ++row) {
      const auto logits = pass.logits(row);
      q->logits.emplace_back(logits.begin(), logits.end());
    }
  }
}

// All tokens of one sequence in passes of `chunk` rows.
Logits Compute(Model& model, const std::vector<TokenId>& tokens, int chunk) {
  ForwardPass pass(model);
  Sequence sequence(model, tokens);
  while (sequence.done < static_cast<int>(tokens.size())) Advance(pass, {&sequence}, chunk);
  return sequence.logits;
}

bool SameBits(const Logits& a, const Logits& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].size() != b[i].size() || a[i].empty() ||
        std::memcmp(a[i].data(), b[i].data(), a[i].size() * 4) != 0) {
      return false;
    }
  }
  return true;
}

TEST_CASE("logits are those of a plain forward pass in double precision") {
  TinyModelSpec llama, qwen2, scaled;
  qwen2.architecture = "qwen2";
  qwen2.head = TinyHead::kSeparate;
  scaled.rope_freqs.assign(16, 1.0f);
  scaled.rope_freqs[3] = 4.0f;
  TinyModelSpec mistral, qwen3, gemma, capped, global;
  mistral.architecture = "mistral3";
  qwen3.architecture = "qwen3";
  gemma.architecture = capped.architecture = global.architecture = "gemma3";
  gemma.layers = capped.layers = 4;  // local, local, global, local
  capped.logit_cap = 2;
  global.window = 0;
  for (TinyModelSpec spec : {llama, qwen2, scaled, mistral, qwen3, gemma, capped, global}) {
    CAPTURE(spec.architecture);
    spec.type = WeightType::kF32;
    Fixture f(spec, "", KvType::kF32);
    const auto tokens = SomeTokens(20, 1);
    const Logits got = Compute(f.model(), tokens, 20);
    const auto want = NaiveLogits(TinyModelFile(spec), tokens);
    double worst = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      for (size_t t = 0; t < want[i].size(); ++t) {
        worst = std::max(worst, std::abs(want[i][t] - static_cast<double>(got[i][t])));
      }
    }
    CHECK(worst < 1e-3);
  }
}

TinyModelSpec GemmaSpec() {
  TinyModelSpec spec;
  spec.architecture = "gemma3";
  spec.layers = 4;
  spec.window = 40;  // not a multiple of a page
  return spec;
}

TEST_CASE("layers with a window are a group of their own, chunks change no bit of them") {
  Fixture f(GemmaSpec(), "");
  const std::vector<LayerGroup>& groups = f.model().groups();
  REQUIRE(groups.size() == 2);
  CHECK(groups[0] == LayerGroup{.layers = 3, .heads = 1, .k_dim = 32, .v_dim = 32, .window = 40});
  CHECK(groups[1] ==
        LayerGroup{.first_layer = 2, .layers = 1, .heads = 1, .k_dim = 32, .v_dim = 32});
  CHECK(f.model().place(2).group == 1);
  CHECK(f.model().place(3).group == 0);
  CHECK(f.model().place(3).layer == 2);
  const auto tokens = SomeTokens(150, 1);
  const Logits whole = Compute(f.model(), tokens, 150);
  for (int chunk : {1, 7, 64}) CHECK(SameBits(whole, Compute(f.model(), tokens, chunk)));
}

TEST_CASE("nothing depends on pages that lie before the window") {
  Fixture f(GemmaSpec(), "");
  const auto tokens = SomeTokens(150, 3);
  const Logits want = Compute(f.model(), tokens, 150);
  ForwardPass pass(f.model());
  Sequence s(f.model(), tokens);
  while (s.done < 149) Advance(pass, {&s}, 149);
  const LayerGroup& local = f.model().groups()[0];
  // The last row sees 110 .. 149: pages 0 to 2 of the local layers hold nothing for it.
  for (int page = 0; page < 3; ++page) {
    std::memset(s.kv.PageOf(page * kPageTokens)[0], 0xff, local.PayloadBytes());
  }
  Advance(pass, {&s}, 1);
  CHECK(SameBits({want.back()}, {s.logits.back()}));
  // A page in the window is looked at.
  std::memset(s.kv.PageOf(4 * kPageTokens)[0], 0xff, local.PayloadBytes());
  s.done = 149;
  Advance(pass, {&s}, 1);
  CHECK(s.logits.back().empty());
}

TEST_CASE("chunks, neighbours and pauses change no bit") {
  for (WeightType type : AllWeightTypes()) {
    CAPTURE(WeightTypeName(type));
    Fixture f(SpecFor(type), "");
    const auto tokens = SomeTokens(75, 1);
    const Logits whole = Compute(f.model(), tokens, 75);
    REQUIRE(whole.size() == 75);
    for (int chunk : {1, 2, 7, 32, 33}) CHECK(SameBits(whole, Compute(f.model(), tokens, chunk)));

    // Beside others, at another place in the batch, and with another pass between two layers.
    ForwardPass pass(f.model()), other(f.model());
    Sequence a(f.model(), SomeTokens(20, 5)), b(f.model(), tokens), c(f.model(), SomeTokens(60, 6));
    Advance(pass, {&a, &b, &c}, 11);
    while (b.done < 75) Advance(pass, {&c, &b}, 5);
    CHECK(SameBits(whole, b.logits));
  }
}

TEST_CASE("threads change no bit") {
  const auto tokens = SomeTokens(40, 1);
  for (WeightType type : {WeightType::kF16, WeightType::kQ5_0}) {
    Fixture one(SpecFor(type), "");
    const Logits want = Compute(one.model(), tokens, 40);
    for (int threads : {2, 3}) {
      Fixture f(SpecFor(type), "", KvType::kF16, threads);
      CHECK(SameBits(want, Compute(f.model(), tokens, 13)));
    }
  }
}

TEST_CASE("a pass that pauses between layers gives the same") {
  Fixture f(SpecFor(WeightType::kQ5_0), "");
  const auto tokens = SomeTokens(40, 2);
  const Logits whole = Compute(f.model(), tokens, 40);
  ForwardPass prefill(f.model()), decode(f.model());
  Sequence a(f.model(), tokens), b(f.model(), SomeTokens(2, 9));
  ForwardBatch batch;
  for (int i = 0; i < 40; ++i) {
    batch.rows.push_back({.token = tokens[i], .position = i, .page = a.kv.PageOf(i),
                          .slot = SequenceKv::SlotOf(i), .logits = i == 39});
  }
  batch.sequences.push_back({a.kv.Runs(40)});
  prefill.Begin(batch);
  int layers = 0;
  for (; !prefill.done(); ++layers) {
    CHECK(prefill.layers_left() == f.model().config().layers - layers);
    prefill.StepLayer();
    Advance(decode, {&b}, 1);
  }
  CHECK(layers == 2);
  CHECK(SameBits({whole.back()}, {{prefill.logits(39).begin(), prefill.logits(39).end()}}));
  CHECK(prefill.logits(38).empty());
  CHECK(SameBits(b.logits, Compute(f.model(), b.tokens, 2)));
}

TEST_CASE("every instruction set gives the same bits") {
  for (WeightType type : AllWeightTypes()) {
    CAPTURE(WeightTypeName(type));
    TinyModelSpec spec = SpecFor(type);
    spec.layers = 1;
    const auto tokens = SomeTokens(34, 3);
    Fixture reference(spec, "reference");
    const Logits want = Compute(reference.model(), tokens, 34);
    for (const CpuLevel& row : CpuLevels()) {
      const std::string level(row.name);
      CAPTURE(level);
      Fixture f(spec, level);
      if (!f.available()) {
        MESSAGE("skipped: this processor lacks " << level);
        continue;
      }
      CHECK(SameBits(want, Compute(f.model(), tokens, 34)));
      CHECK(SameBits(want, Compute(f.model(), tokens, 1)));
    }
  }
}

TEST_CASE("the variants of the architectures are equal on all instruction sets") {
  TinyModelSpec biased, separate, scaled, wide_heads, old_kv;
  biased.architecture = "qwen2";
  separate.head = TinyHead::kSeparate;
  scaled.rope_freqs = std::vector<float>(16, 1.0f);
  scaled.rope_freqs[15] = 8.0f;
  wide_heads.head_dim = 64;  // one head
  TinyModelSpec normed = biased;
  normed.architecture = "qwen3";
  const auto tokens = SomeTokens(40, 4);
  Logits before;
  for (const TinyModelSpec& spec : {biased, separate, scaled, wide_heads, normed, GemmaSpec(),
                                    old_kv}) {
    Fixture reference(spec, "reference"), best(spec, "");
    const Logits want = Compute(reference.model(), tokens, 40);
    CHECK(SameBits(want, Compute(best.model(), tokens, 9)));
    CHECK_FALSE(SameBits(want, before));  // the variant matters
    before = want;
  }
  Fixture f32(old_kv, "", KvType::kF32);
  CHECK_FALSE(SameBits(before, Compute(f32.model(), tokens, 40)));
}

TEST_CASE("INT8 K is equal on all instruction sets, in chunks and beside biases and head norms") {
  const auto tokens = SomeTokens(40, 5);
  for (const char* architecture : {"llama", "qwen2", "qwen3", "gemma3"}) {
    CAPTURE(architecture);
    TinyModelSpec spec;
    spec.architecture = architecture;
    Fixture reference(spec, "reference", KvType::kI8), f16(spec, "");
    const Logits want = Compute(reference.model(), tokens, 40);
    CHECK_FALSE(SameBits(want, Compute(f16.model(), tokens, 40)));
    for (const CpuLevel& row : CpuLevels()) {
      const std::string level(row.name);
      CAPTURE(level);
      Fixture f(spec, level, KvType::kI8, 2);
      if (f.available()) CHECK(SameBits(want, Compute(f.model(), tokens, 9)));
    }
  }
}

TEST_CASE("a bad row ends its own sequence and touches no other") {
  for (WeightType type : {WeightType::kF32, WeightType::kQ8_0}) {
    TinyModelSpec spec = SpecFor(type);
    spec.head = TinyHead::kSeparate;
    spec.poisoned = 20;
    Fixture f(spec, "");
    Sequence good(f.model(), SomeTokens(6, 7)), bad(f.model(), {5, 20, 7, 8});
    for (TokenId& t : good.tokens) t = t == 20 ? 21 : t;
    const Logits want = Compute(f.model(), good.tokens, 6);
    ForwardPass pass(f.model());
    Advance(pass, {&bad, &good}, 6);
    CHECK(SameBits(want, good.logits));
    for (int row = 0; row < 4; ++row) {
      CHECK(pass.failed(row));
      CHECK(pass.logits(row).empty());
    }
    for (int row = 4; row < 10; ++row) CHECK_FALSE(pass.failed(row));
  }
}

// The largest difference of a logit when all rows are stored 100 positions further on and read with
// shift -100: the same distances, so the same logits up to the rounding of K.
double WorstWhenMoved(Model& model) {
  const auto tokens = SomeTokens(30, 8);
  const Logits plain = Compute(model, tokens, 30);
  SequenceKv kv(model);
  kv.Reserve(30);
  ForwardBatch batch;
  for (int i = 0; i < 30; ++i) {
    batch.rows.push_back({.token = tokens[i], .position = i, .home = i + 100, .page = kv.PageOf(i),
                          .slot = SequenceKv::SlotOf(i), .logits = true});
  }
  batch.sequences.push_back({kv.Runs(30)});
  for (auto& runs : batch.sequences[0].runs) {
    for (KvRun& run : runs) run.shift = -100;
  }
  ForwardPass pass(model);
  pass.Begin(batch);
  pass.Run();
  double worst = 0;
  for (int i = 0; i < 30; ++i) {
    for (size_t t = 0; t < plain[i].size(); ++t) {
      worst = std::max<double>(worst, std::abs(pass.logits(i)[t] - plain[i][t]));
    }
  }
  return worst;
}

TEST_CASE("rows can be turned for another home and read back by a shift") {
  Fixture f(SpecFor(WeightType::kQ8_0), "");
  const double worst = WorstWhenMoved(f.model());
  CHECK(worst > 0);
  CHECK(worst < 0.5);
  TinyModelSpec gemma = GemmaSpec();  // two groups with rotations of their own
  gemma.type = WeightType::kF32;
  Fixture exact(gemma, "", KvType::kF32);
  CHECK(WorstWhenMoved(exact.model()) < 1e-3);
}

TEST_CASE("an empty batch is done at once") {
  Fixture f(SpecFor(WeightType::kF32), "");
  ForwardPass pass(f.model());
  CHECK(pass.done());
  pass.Begin({});
  CHECK(pass.done());
}

}  // namespace
}  // namespace holdfast

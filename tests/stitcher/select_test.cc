// Attention mass against its definition, and windows as a table.
#include "stitcher/select.h"

#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "engine/model/sequence_kv.h"
#include "stitcher/pending.h"
#include "stitcher/stitcher.h"
#include "tests/engine/base/temp_dir.h"
#include "tests/fixtures/tiny_model.h"

using namespace holdfast;

namespace {

struct Fixture {
  explicit Fixture(KvType kv_type, const std::string& architecture = "llama", int threads = 1) {
    TinyModelSpec spec;
    spec.architecture = architecture;
    spec.width = 128;  // two KV heads, so that two threads share the work
    backend = *MakeCpuBackend({.threads = threads, .level = ""});
    REQUIRE(WriteTinyModel(spec, dir.File("m")).ok());
    const NumericsDigest none;
    auto loaded = Model::Load(dir.File("m"), *backend,
                              {.kv_type = kv_type, .progress = {}, .numerics = &none});
    REQUIRE_MESSAGE(loaded.ok(), loaded.status().ToString());
    model = std::move(*loaded);
  }
  // Mass of the last `rows` rows of `n` tokens, all computed for positions `home` later, in the
  // layers from `first_layer` on.
  std::vector<double> Mass(int n, int rows, int home, int first_layer = 0) {
    ForwardPass pass(*model);
    SequenceKv kv(*model);
    kv.Reserve(n);
    ForwardBatch batch;
    for (int i = 0; i < n; ++i) {
      batch.rows.push_back({.token = 3 + (i * i * 31 + i * 7) % 250, .position = i,
                            .home = i + home, .page = kv.PageOf(i),
                            .slot = SequenceKv::SlotOf(i)});
    }
    auto runs = kv.Runs(n);
    for (auto& group : runs) {
      for (KvRun& run : group) run.shift = -home;
    }
    batch.sequences.push_back({runs});
    AttentionMass mass(*model, n);
    std::vector<int64_t> position;
    for (int i = n - rows; i < n; ++i) position.push_back(i);
    batch.observe_queries = [&](int layer, std::span<const float> q) {
      REQUIRE(q.size() % n == 0);
      if (layer < first_layer) return;
      const size_t width = q.size() / n;
      mass.Add(layer, q.subspan((n - rows) * width), position,
               runs[model->place(layer).group]);
    };
    pass.Begin(std::move(batch));
    pass.Run();
    return {mass.mass().begin(), mass.mass().end()};
  }

  testing::TempDir dir;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Model> model;
};

double Sum(const std::vector<double>& v) {
  double sum = 0;
  for (double x : v) sum += x;
  return sum;
}

void CheckNear(const std::vector<double>& a, const std::vector<double>& b, double share) {
  REQUIRE(a.size() == b.size());
  double off = 0;
  for (size_t i = 0; i < a.size(); ++i) off += std::abs(a[i] - b[i]);
  CHECK(off <= share * Sum(a));
}

}  // namespace

TEST_CASE("each row of each head in each layer gives away 1") {
  for (const char* architecture : {"llama", "gemma3"}) {
    Fixture f(KvType::kF16, architecture);
    const auto mass = f.Mass(70, 5, 0);
    const auto& c = f.model->config();
    CHECK(Sum(mass) == doctest::Approx(5.0 * c.heads * c.layers));
    CHECK(mass[64] > 0);
  }
}

TEST_CASE("a row sees what is before it, and itself") {
  Fixture f(KvType::kF32);
  const auto& c = f.model->config();
  CHECK(Sum(f.Mass(1, 1, 0)) == doctest::Approx(1.0 * c.heads * c.layers));
}

TEST_CASE("mass does not depend on where runs lie, nor much on the KV's type") {
  Fixture f32(KvType::kF32), f16(KvType::kF16), i8(KvType::kI8);
  const auto mass = f32.Mass(70, 9, 0);
  CheckNear(mass, f32.Mass(70, 9, 40), 1e-4);
  CheckNear(mass, f16.Mass(70, 9, 0), 0.01);
  CheckNear(mass, i8.Mass(70, 9, 40), 0.05);
}

TEST_CASE("mass is the same for any number of threads") {
  Fixture one(KvType::kF16, "llama", 1), three(KvType::kF16, "llama", 3);
  CHECK(one.Mass(70, 9, 0) == three.Mass(70, 9, 0));
}

TEST_CASE("the question's probe scores its last rows in the later layers, whatever the chunks") {
  Fixture f(KvType::kF16);
  PagePool pool(f.model->groups(), 1 << 24);
  std::vector<TokenId> tokens;
  for (int i = 0; i < 150; ++i) tokens.push_back(3 + (i * i * 31 + i * 7) % 250);
  std::vector<std::vector<double>> found;
  for (int64_t chunk : {150, 23}) {
    ForwardPass pass(*f.model);
    Timeline timeline(&pool, TenantScope(std::to_string(chunk)), f.model->fingerprint());
    timeline.Extend(tokens);
    AttentionMass mass(*f.model, 150);
    PendingOptions options;
    options.chunk = chunk;
    options.on_queries = QuestionProbe(&mass, *f.model, 130, 150);
    REQUIRE(ComputePending(*f.model, pass, timeline, options).ok());
    found.emplace_back(mass.mass().begin(), mass.mass().end());
  }
  const auto& c = f.model->config();
  REQUIRE(c.layers == 2);
  CHECK(Sum(found[0]) == doctest::Approx(20.0 * c.heads));
  CheckNear(found[0], found[1], 1e-9);
  CheckNear(found[0], f.Mass(150, 20, 0, 1), 1e-9);
}

TEST_CASE("windows: the heaviest blocks of runs, whole, inside the budget") {
  std::vector<double> mass(200, 1.0);
  const std::vector<TokenRange> runs = {{40, 110}, {130, 200}};
  const std::vector<int64_t> heads = {40, 130};
  const auto choose = [&](int64_t budget) { return ChooseWindows(mass, runs, heads, budget); };
  CHECK(choose(0).empty());
  CHECK(choose(7).empty());
  // Blocks: [40,64) less 4 sinks, [64,96), [96,110), [130,160) less 4, [160,192), [192,200).
  CHECK(choose(32) == std::vector<TokenRange>{{64, 96}});
  CHECK(choose(64) == std::vector<TokenRange>{{64, 96}, {160, 192}});
  CHECK(choose(94) == std::vector<TokenRange>{{64, 96}, {130, 192}});
  CHECK(choose(72) == std::vector<TokenRange>{{64, 96}, {160, 200}});
  mass[100] = 90;
  CHECK(choose(14) == std::vector<TokenRange>{{96, 110}});
  mass[131] = mass[41] = 1000;  // sinks of runs
  CHECK(choose(46) == std::vector<TokenRange>{{64, 110}});
  mass[134] = 200;
  CHECK(choose(30) == std::vector<TokenRange>{{130, 160}});
}

TEST_CASE("ranges: union and difference") {
  const std::vector<TokenRange> a = {{0, 10}, {20, 30}}, b = {{5, 22}, {30, 31}, {40, 40}};
  CHECK(Union(a, b) == std::vector<TokenRange>{{0, 31}});
  CHECK(Without(a, b) == std::vector<TokenRange>{{0, 5}, {22, 30}});
  CHECK(Without(a, std::vector<TokenRange>{{2, 3}, {4, 5}}) ==
        std::vector<TokenRange>{{0, 2}, {3, 4}, {5, 10}, {20, 30}});
  CHECK(TokensIn(a) == 20);
}

// Contexts, trials and what calibration makes of them, on a tiny model.
#include "stitcher/calibrate.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>

#include "tests/engine/base/temp_dir.h"
#include "tests/fixtures/tiny_model.h"

using namespace holdfast;

namespace {

struct Fixture {
  explicit Fixture(KvType kv_type = KvType::kF16) {
    TinyModelSpec spec;
    spec.context_length = 16384;
    backend = *MakeCpuBackend({.threads = 1, .level = ""});
    REQUIRE(WriteTinyModel(spec, dir.File("m")).ok());
    const NumericsDigest none;
    auto loaded = Model::Load(dir.File("m"), *backend,
                              {.kv_type = kv_type, .progress = {}, .numerics = &none});
    REQUIRE_MESSAGE(loaded.ok(), loaded.status().ToString());
    model = std::move(*loaded);
    maker = *ContextMaker::Create(*model);
  }
  TestContext Make(ContextEdit edit, uint64_t seed) {
    auto context = maker->Make(edit, seed);
    REQUIRE_MESSAGE(context.ok(), context.status().ToString());
    return std::move(*context);
  }

  testing::TempDir dir;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Model> model;
  std::unique_ptr<ContextMaker> maker;
};

Trial MustRun(TrialRunner& runner, const ReuseMethod& method) {
  auto trial = runner.Run(method);
  REQUIRE_MESSAGE(trial.ok(), trial.status().ToString());
  return *trial;
}

Trial Made(const std::string& edit, CardKind kind, uint64_t seed, double kl, CardSetting setting,
           int64_t min_tokens = 600, int runs = 1) {
  Trial t;
  t.edit = edit;
  t.method = std::to_string(setting.link);
  t.kind = kind;
  t.seed = seed;
  t.kl = kl;
  t.setting = setting;
  t.min_tokens = min_tokens;
  t.runs = runs;
  t.context = 2000;
  t.tokens = 10;
  t.same_top = 9;
  t.rows = 0.1 + 0.01 * setting.link;
  return t;
}

}  // namespace

TEST_CASE("a context's runs hold the prompt's own tokens, and are those of the edit") {
  Fixture f;
  for (const ContextEdit edit : kContextEdits) {
    const TestContext c = f.Make(edit, 3);
    CAPTURE(ContextEditName(edit));
    CHECK(c.kind == KindOf(edit));
    REQUIRE(!c.runs.empty());
    int64_t at = c.exact;
    for (const TestRun& run : c.runs) {
      CHECK(run.at >= at);
      at = run.at + run.size();
      const auto& source = c.sources[run.source];
      REQUIRE(run.end + kPageTokens <= static_cast<int64_t>(source.size()));
      CHECK(std::equal(source.begin() + run.begin, source.begin() + run.end,
                       c.tokens.begin() + run.at));
    }
    CHECK(at <= c.question);
    CHECK(c.question < static_cast<int64_t>(c.tokens.size()));
    CHECK(std::equal(c.tokens.begin(), c.tokens.begin() + c.exact, c.sources[0].begin()));
  }
  CHECK(f.Make(ContextEdit::kDelete, 3).runs.size() == 1);
  CHECK(f.Make(ContextEdit::kDelete, 3).runs[0].shift() < 0);
  CHECK(f.Make(ContextEdit::kInsert, 3).runs[0].shift() > 0);
  CHECK(f.Make(ContextEdit::kSwap, 3).runs.size() >= 3);
  CHECK(f.Make(ContextEdit::kThin, 3).runs.size() >= 3);
  const TestContext chunks = f.Make(ContextEdit::kChunks256, 3);
  CHECK(chunks.runs[0].size() == 256);
  CHECK(chunks.runs[0].at == chunks.exact);  // the first chunk too was computed elsewhere
  CHECK(chunks.runs[0].begin > 256);         // behind the primer
  CHECK(chunks.runs.size() + 1 == chunks.sources.size());
}

TEST_CASE("contexts follow from the seed") {
  Fixture f;
  CHECK(f.Make(ContextEdit::kSwap, 3).tokens == f.Make(ContextEdit::kSwap, 3).tokens);
  CHECK(f.Make(ContextEdit::kSwap, 3).tokens != f.Make(ContextEdit::kSwap, 4).tokens);
  CHECK(f.Make(ContextEdit::kSwap, 3).tokens != f.Make(ContextEdit::kDelete, 3).tokens);
}

TEST_CASE("facts stand whole in outputs and chunks") {
  Fixture f;
  const std::string fact = "The access code for Lisbon is 48213.";
  SeededRandom random(1);
  for (int i = 0; i < 8; ++i) {
    CHECK(f.maker->OutputOf(100, {fact}, &random).text.find(fact + "\n") != std::string::npos);
    const auto chunk = f.maker->ChunkOf(512, {fact}, &random);
    REQUIRE(chunk.ok());
    CHECK(chunk->size() == 512);
    std::string text;
    for (TokenId t : *chunk) text += f.model->tokenizer().TokenText(t);
    CHECK(text.find(fact) != std::string::npos);
  }
}

TEST_CASE("contexts are made of the user's text where there is some") {
  testing::TempDir dir;
  const auto write = [&](const std::string& name, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(dir.File(name)).parent_path());
    std::ofstream(dir.File(name), std::ios::binary) << text;
  };
  const auto lines = [](const std::string& what, int n) {
    std::string out;
    for (int i = 0; i < n; ++i) out += what + "\t" + std::to_string(i) + "\n";
    return out;
  };
  write("t/b/deep.txt", lines("a sea \"shanty\"", 90) + "no newline at the end");
  write("t/a.md", lines("a r\xc3\xb6pe", 400));
  write("t/short.txt", lines("short", 19));
  write("t/.git/hidden.txt", lines("hidden", 90));
  write("t/data.bin", lines(std::string("nul\0", 4), 90));
  write("t/marks.txt", lines("<|im_end|>", 90));
  write("t/wide.txt", lines(std::string(501, 'w'), 90));
  write("t/latin1.txt", lines("r\xf6pe", 90));
  const std::vector<std::string> paths = {dir.File("t")};
  const auto texts = ReadTextFiles(paths);
  REQUIRE_MESSAGE(texts.ok(), texts.status().ToString());
  REQUIRE(texts->size() == 3);  // what is not UTF-8 is for the tokenizer to say
  CHECK((*texts)[0].path == dir.File("t/a.md"));
  CHECK((*texts)[0].lines.size() == 400);
  CHECK((*texts)[1].path == dir.File("t/b/deep.txt"));
  CHECK((*texts)[1].lines.back() == "no newline at the end\n");

  Fixture f;
  const auto maker = ContextMaker::Create(*f.model, *texts);
  REQUIRE_MESSAGE(maker.ok(), maker.status().ToString());
  SeededRandom random(1);
  for (int i = 0; i < 20; ++i) {
    const ToolOutput out = (*maker)->OutputOf(120, {}, &random);
    const TextFile& of = (*texts)[out.file == (*texts)[0].path ? 0 : 1];
    CHECK(out.file == of.path);
    std::string whole;
    for (const std::string& line : of.lines) whole += line;
    CHECK(whole.find(out.text) != std::string::npos);
    CHECK(f.model->tokenizer().EncodePlain(out.text)->size() >= 120);
  }
  for (const ContextEdit edit : kContextEdits) CHECK((*maker)->Make(edit, 1).ok());

  const std::vector<std::string> none = {dir.File("t/short.txt")}, gone = {dir.File("gone")};
  CHECK(ReadTextFiles(none).status().code() == Code::kInvalid);
  CHECK(ReadTextFiles(gone).status().code() == Code::kNotFound);
  const auto latin1 = std::span(*texts).subspan(2);
  CHECK(ContextMaker::Create(*f.model, latin1).status().code() == Code::kInvalid);
}

TEST_CASE("what is recomputed whole says what full prefill says, to the bit") {
  Fixture f;
  Fixture f32(KvType::kF32);
  for (const ContextEdit edit : {ContextEdit::kSwap, ContextEdit::kChunks256}) {
    const TestContext context = f.Make(edit, 5);
    TrialRunner runner(*f.model, f32.model.get(), 16384);
    REQUIRE(runner.Begin(context, 12).ok());
    CHECK(runner.answer().size() == 12);
    for (const ReuseMethod& all : {ReuseMethod{"prefix", ReuseHow::kPrefix, {}},
                                   ReuseMethod{"windows", ReuseHow::kReuse, {0, 100}},
                                   ReuseMethod{"random", ReuseHow::kRandom, {0, 100}},
                                   ReuseMethod{"link", ReuseHow::kReuse, {1 << 20, 0}}}) {
      const Trial t = MustRun(runner, all);
      CAPTURE(all.name);
      CHECK(t.kl == 0);
      CHECK(t.same_top == 12);
      CHECK(t.first_divergence == 12);
      CHECK(t.recomputed == 1);
      CHECK(runner.Answer(all, 12).ok());
      CHECK(*runner.Answer(all, 12) == runner.answer());
    }
    const Trial rot = MustRun(runner, {"rot", ReuseHow::kReuse, {}});
    const Trial link = MustRun(runner, {"link", ReuseHow::kReuse, {128, 40}});
    const Trial unturned = MustRun(runner, {"no", ReuseHow::kUnturned, {}});
    const Trial moved = MustRun(runner, {"moved", ReuseHow::kTranslated, {}});
    const Trial other = MustRun(runner, {"f32", ReuseHow::kOtherKv, {}});
    CHECK(rot.kl > 0);
    CHECK(link.kl < rot.kl);
    CHECK(unturned.kl > 1.5 * rot.kl);
    CHECK(moved.kl > 0);
    CHECK(moved.kl < 0.5 * rot.kl);
    CHECK(other.kl > 0);
    CHECK(rot.recomputed == 0);
    CHECK(link.recomputed > 0.4);
    CHECK(rot.rows < link.rows);
    const auto full = static_cast<double>(context.tokens.size() - context.exact / 32 * 32);
    int64_t reused = 0;
    for (const TestRun& run : context.runs) reused += run.size();
    const double behind =
        static_cast<double>(context.tokens.size()) - context.runs[0].at - reused;
    CHECK(rot.rows == doctest::Approx(1 - reused / full));
    CHECK(link.rows == doctest::Approx(1 - (1 - link.recomputed) * reused / full + behind / full));
    CHECK(rot.runs == static_cast<int>(context.runs.size()));
    CHECK(rot.tokens == 12);
    // A method leaves nothing behind for the next.
    CHECK(MustRun(runner, {"rot", ReuseHow::kReuse, {}}).kl == rot.kl);
  }
}

TEST_CASE("a sweep goes by rounds, tells what it did, and stops when it is told to") {
  Fixture f;
  SweepOptions sweep = CardSweep(SweepSize::kQuick);
  sweep.edits = {ContextEdit::kDelete, ContextEdit::kChunks256};
  sweep.contexts = 2;
  sweep.answer_tokens = 3;
  std::vector<Trial> trials;
  double last = -1;
  sweep.on_trial = [&](const Trial& t) { trials.push_back(t); };
  sweep.go_on = [&](double fraction) {
    CHECK(fraction >= last);
    last = fraction;
    return true;
  };
  REQUIRE(RunSweep(*f.model, nullptr, sweep).ok());
  CHECK(last == 1);
  REQUIRE(trials.size() == 12);
  CHECK(trials[0].edit == "A1");
  CHECK(trials[3].edit == "B256");
  CHECK(trials[6].edit == "A1");
  CHECK(trials[6].seed == 2);
  trials.clear();
  sweep.go_on = [&](double) { return trials.size() < 4; };
  REQUIRE(RunSweep(*f.model, nullptr, sweep).ok());
  CHECK(trials.size() == 4);
}

TEST_CASE("the quality sweep has controls on two edits, the card's has none") {
  const SweepOptions quality = QualitySweep(), card = CardSweep(SweepSize::kWhole);
  CHECK(quality.methods.size() == StandardMethods().size());
  CHECK(std::all_of(card.methods.begin(), card.methods.end(),
                    [](const ReuseMethod& m) { return m.how == ReuseHow::kReuse; }));
  CHECK(card.edits.size() == 8);
}

TEST_CASE("intervals, bounds and medians") {
  std::vector<double> values;
  for (int i = 0; i < 100; ++i) values.push_back(i);
  const Interval mean = BootstrapMean(values);
  CHECK(mean.mean == 49.5);
  CHECK(mean.low == doctest::Approx(49.5 - 1.96 * 2.89).epsilon(0.03));
  CHECK(mean.high == doctest::Approx(49.5 + 1.96 * 2.89).epsilon(0.03));
  CHECK(BootstrapMean(std::vector<double>{3}).high == 3);
  CHECK(Median({3, 1, 2}) == 2);
  CHECK(Median({4, 1, 2, 3}) == 2.5);
  CHECK(Median({}) == 0);
  // e^0, e^1, e^2: mean 1, deviation 1; t(2) = 2.92.
  const std::vector<double> three = {1, std::exp(1.0), std::exp(2.0)};
  CHECK(std::log(PredictionBound(three)) == doctest::Approx(1 + 2.92 * std::sqrt(4.0 / 3)).epsilon(0.02));
  CHECK(PredictionBound(std::vector<double>{0, 0}) == doctest::Approx(1e-6));
  std::vector<double> one_outlier(10, 0.001);
  one_outlier[3] = 5;
  CHECK(PredictionBound(one_outlier) >= 5 * (1 - 1e-9));
}

TEST_CASE("a prediction bound holds for 95 of 100 further values") {
  SeededRandom random(7);
  const auto draw = [&] {  // log-normal, by twelve uniform numbers
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += static_cast<double>(random.Next() >> 11) * 0x1p-53;
    return 0.004 * std::exp(1.3 * sum);
  };
  int under = 0, all = 0;
  for (int round = 0; round < 400; ++round) {
    std::vector<double> values;
    for (int i = 0; i < 8; ++i) values.push_back(draw());
    const double bound = PredictionBound(values);
    for (int i = 0; i < 5; ++i, ++all) under += draw() <= bound;
  }
  CHECK(under >= 0.94 * all);
  CHECK(under <= 0.98 * all);
}

TEST_CASE("summaries count contexts, not trials of other methods") {
  std::vector<Trial> trials;
  for (uint64_t seed : {1, 2, 3}) {
    for (const int link : {0, 32}) {
      trials.push_back(Made("A1", CardKind::kInContext, seed, 0.01 * seed, {link, 0}));
    }
  }
  trials[0].same_top = 10;
  const auto all = Summarise(trials);
  REQUIRE(all.size() == 2);
  CHECK(all[0].method == "0");
  CHECK(all[0].contexts == 3);
  CHECK(all[0].tokens == 30);
  CHECK(all[0].kl.mean == doctest::Approx(0.02));
  CHECK(all[0].median_kl == 0.02);
  CHECK(all[0].same_top.mean == doctest::Approx(2.8 / 3));
  CHECK(all[0].same_answer == doctest::Approx(1.0 / 3));
}

TEST_CASE("a card has a cell per class, and wider ones where contexts are few") {
  std::vector<Trial> trials;
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    trials.push_back(Made("A1", CardKind::kInContext, seed, 0.01, {32, 0}));
  }
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    trials.push_back(Made("B512", CardKind::kIsolated, seed, 0.02, {32, 0}, 512, 2));
    trials.push_back(Made("B512", CardKind::kIsolated, seed, 0.04, {32, 0}, 256, 7));
  }
  Trial noise = Made("A1", CardKind::kInContext, 1, 0.5, {});
  noise.how = ReuseHow::kOtherKv;
  trials.push_back(noise);
  const ModelCard card = MakeCard(Digest{}, "name", "f16", trials);
  CHECK(card.noise == 0.5);
  CHECK(card.contexts == 6);
  CHECK(card.min_tokens == 256);
  CHECK(card.max_runs == 7);
  CHECK(card.max_context == 2000);
  REQUIRE(card.cells.size() == 2);
  CHECK(card.cells[0].kind == CardKind::kInContext);
  CHECK(card.cells[0].tokens == 2);
  CHECK(card.cells[0].kl.contexts == 4);
  CHECK(card.cells[0].kl.mean == doctest::Approx(0.01));
  CHECK(card.cells[1].kind == CardKind::kIsolated);  // all lengths and numbers of runs
  CHECK(card.cells[1].tokens == 1);
  CHECK(card.cells[1].runs == 2);
  CHECK(card.cells[1].kl.contexts == 6);
  CHECK(card.cells[1].kl.bound > 0.04);
}

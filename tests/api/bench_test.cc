// The pure parts of the benches: limits, peers' commands and outputs, charts; and child processes.
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "api/bench/agent_trace.h"
#include "api/bench/bench.h"
#include "api/bench/bench_run.h"
#include "api/bench/beside_bench.h"
#include "api/bench/disk.h"
#include "api/bench/keeper_bench.h"
#include "api/bench/limits.h"
#include "api/bench/peers.h"
#include "api/bench/plot.h"
#include "api/bench/process.h"
#include "api/bench/soak.h"
#include "api/bench/stitch_bench.h"
#include "api/bench/turn.h"
#include "tests/engine/base/temp_dir.h"
#include "tests/fixtures/tiny_model.h"

using namespace holdfast;

namespace {

// Weights of 1000 bytes; two layers that see everything, with 10 bytes of KV per token and layer.
ModelCost SmallModel() {
  return {.weight_bytes = 1000,
          .int8_elements = 500,
          .fp32_elements = 0,
          .int8_head = 100,
          .fp32_head = 0,
          .groups = {{.layers = 2, .window = 0, .kv_bytes = 10, .qk_ops = 8, .pv_ops = 4}}};
}

constexpr MachineRates kRates = {.read = 100, .int8 = 1000, .fp32 = 10};

std::string Joined(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& w : words) out += (out.empty() ? "" : " ") + w;
  return out;
}

// An engine's options with a tiny model in `dir`.
EngineOptions TinyEngine(const testing::TempDir& dir) {
  TinyModelSpec spec;
  spec.head = TinyHead::kSeparate;
  REQUIRE(WriteTinyModel(spec, dir.File("tiny.gguf")).ok());
  EngineOptions engine;
  engine.model_path = dir.File("tiny.gguf");
  engine.kv_bytes = 64u << 20;
  return engine;
}

int Count(const std::string& text, const std::string& part) {
  int n = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; ++at) ++n;
  return n;
}

}  // namespace

TEST_CASE("a limit is the larger of bytes and arithmetic") {
  struct Case {
    const char* what;
    PassWork work;
    double bytes, int8_ops, fp32_ops;
  };
  const Case cases[] = {
      // 12 operations of attention per pair and layer; one row sees context + 1 tokens.
      {"decode from nothing", {.context = 0, .logits = 1}, 1000 + 20, 2 * 600, 2 * 12},
      {"decode", {.context = 9, .logits = 1}, 1000 + 200, 2 * 600, 2 * 12 * 10},
      {"prefill", {.rows = 4, .logits = 1}, 1000 + 80, 2 * (4 * 500 + 100), 2 * 12 * 10},
      {"no head", {.rows = 4}, 1000 + 80, 2 * 4 * 500, 2 * 12 * 10},
      {"append", {.rows = 2, .context = 3, .logits = 1}, 1000 + 100, 2 * (2 * 500 + 100),
       2 * 12 * (4 + 5)},
      {"agents", {.sequences = 3, .context = 9, .logits = 1}, 1000 + 3 * 200, 3 * 2 * 600,
       3 * 2 * 12 * 10},
      {"agents behind one prompt", {.sequences = 3, .context = 9, .logits = 1, .shared = 7},
       1000 + 3 * 200 - 2 * 7 * 20, 3 * 2 * 600, 3 * 2 * 12 * 10},
  };
  for (const Case& c : cases) {
    CAPTURE(c.what);
    const Limit limit = LimitOf(SmallModel(), kRates, c.work);
    CHECK(limit.bytes_s == doctest::Approx(c.bytes / kRates.read));
    CHECK(limit.int8_s == doctest::Approx(c.int8_ops / kRates.int8));
    CHECK(limit.fp32_s == doctest::Approx(c.fp32_ops / kRates.fp32));
    CHECK(limit.seconds() == std::max(limit.bytes_s, limit.int8_s + limit.fp32_s));
    CHECK(limit.by_arithmetic() == (limit.int8_s + limit.fp32_s > limit.bytes_s));
  }
}

TEST_CASE("rates of several moments count by the median of each") {
  const MachineRates rates = MedianOf({{30, 500, 7}, {10, 700, 9}, {20, 600, 8}});
  CHECK(rates.read == 20);
  CHECK(rates.int8 == 600);
  CHECK(rates.fp32 == 8);
}

TEST_CASE("keys in INT8 and matrices in float count at their own rates") {
  ModelCost model = SmallModel();
  model.groups[0].int8_keys = true;
  model.fp32_elements = 7;
  model.fp32_head = 3;
  const Limit limit = LimitOf(model, kRates, {.context = 9, .logits = 1});
  CHECK(limit.int8_s == doctest::Approx((2 * 600 + 2 * 8 * 10) / kRates.int8));
  CHECK(limit.fp32_s == doctest::Approx((2 * 10 + 2 * 4 * 10) / kRates.fp32));
}

TEST_CASE("a window hides what lies before it") {
  ModelCost model = SmallModel();
  model.weight_bytes = model.int8_elements = model.int8_head = 0;
  for (const int64_t window : {1, 3, 4, 100}) {
    for (const int64_t context : {0, 2, 3, 4, 50}) {
      for (const int64_t rows : {1, 2, 5}) {
        model.groups[0].window = static_cast<int>(window);
        double pairs = 0;
        for (int64_t p = context; p < context + rows; ++p) {
          pairs += static_cast<double>(std::min(p + 1, window));
        }
        const int64_t first = std::max<int64_t>(0, context - window + 1);
        const Limit limit = LimitOf(model, kRates, {.rows = rows, .context = context});
        CHECK(limit.fp32_s == doctest::Approx(pairs * 2 * 12 / kRates.fp32));
        CHECK(limit.bytes_s ==
              doctest::Approx(static_cast<double>(context + rows - first) * 20 / kRates.read));
      }
    }
  }
}

TEST_CASE("the slope of a line, and of nothing") {
  CHECK(FittedSlope({1, 2, 4}, {5, 8, 14}) == doctest::Approx(3));
  CHECK(FittedSlope({0, 1, 2}, {0, 2, 1}) == doctest::Approx(0.5));
  CHECK(FittedSlope({1}, {5}) == 0);
  CHECK(FittedSlope({2, 2}, {5, 6}) == 0);
}

TEST_CASE("percentiles are values that are there") {
  std::vector<double> v;
  for (int i = 200; i > 0; --i) v.push_back(i);
  CHECK(Median(v) == 100.5);
  CHECK(Percentile(v, 99) == 199);
  CHECK(Percentile({7}, 99) == 7);
  CHECK(Percentile({}, 50) == 0);
}

TEST_CASE("a figure says whether it is what it should be") {
  Json result;
  AddFigure({.what = "a", .value = 2, .unit = "ms", .most = 2}, &result);
  AddFigure({.what = "b", .value = 2.5, .unit = "ms", .most = 2}, &result);
  AddFigure({.what = "c", .value = 2, .unit = "x", .least = 3}, &result);
  AddFigure({.what = "d", .value = 2, .unit = ""}, &result);
  const Json& f = result["figures"];
  CHECK(f[0]["met"] == true);
  CHECK(f[1]["met"] == false);
  CHECK(f[2]["met"] == false);
  CHECK(f[2]["least"] == 3);
  CHECK(!f[3].contains("met"));
}

TEST_CASE("what a process wrote is read from its account") {
  const auto written = ParseProcessIo(
      "rchar: 1\nwchar: 23\nsyscr: 4\nread_bytes: 5\nwrite_bytes: 4096\n"
      "cancelled_write_bytes: 7\n");
  REQUIRE(written.ok());
  CHECK(written->to_disk == 4096);
  CHECK(written->by_calls == 23);
  for (const char* bad : {"", "rchar: 1\nwchar: 2\n", "rchar: 1\nwchar: x\nwrite_bytes: 3\n"}) {
    CHECK_MESSAGE(ParseProcessIo(bad).status().code() == Code::kIo, bad);
  }
  CHECK(WrittenSoFar().ok());
}

TEST_CASE("a disk is measured where it is used") {
  testing::TempDir dir;
  CHECK(RawReadRate(dir.path()).status().code() == Code::kNotFound);
  CHECK(RawReadRate(dir.File("nowhere")).status().code() == Code::kIo);
  std::ofstream(dir.File("file")) << std::string(100'000, 'x');
  CHECK(DropPageCache(dir.path()).ok());
  const auto rate = RawReadRate(dir.path());
  REQUIRE_MESSAGE(rate.ok(), rate.status().ToString());
  CHECK(*rate > 0);
  auto probe = RewriteProbe::Open(dir.path());
  REQUIRE(probe.ok());
  CHECK(*probe->Ms() > 0);
}

TEST_CASE("times between tokens are told apart by what went on beside") {
  const auto at = [](int ms) { return BesideClock::time_point(std::chrono::milliseconds(ms)); };
  const auto span = [&](int a, int b) { return BesideSpan(at(a), at(b)); };
  BesideFigures figures;
  // Quiet until 100, then busy until 200. A gap that a busy span touches at its end alone is quiet.
  SplitGaps({at(0), at(10), at(40), at(90), at(130), at(150), at(195), at(260), at(270)},
            {span(100, 200)}, {span(5, 100), span(265, 300)}, &figures);
  CHECK(figures.without_ms == std::vector<double>{30, 50});
  CHECK(figures.with_ms == std::vector<double>{40, 20, 45, 65});
  BesideFigures none;
  SplitGaps({at(0)}, {span(0, 1)}, {}, &none);
  SplitGaps({at(0), at(100)}, {span(100, 200)}, {}, &none);
  CHECK(none.with_ms.empty());
  CHECK(none.without_ms.empty());
}

TEST_CASE("a trace fills the context, reads 142 tokens for each that it writes, and is its seed's") {
  TraceShape shape;
  const TracePlan plan = PlanTrace(shape);
  REQUIRE(plan.agents.size() == 3);
  double read = 0, written = 0;
  for (const std::vector<TraceTurn>& turns : plan.agents) {
    REQUIRE(turns.size() == 40);
    CHECK(turns[0].pause_s == 0);
    int64_t context = plan.system_tokens;
    double pauses = 0;
    for (const TraceTurn& turn : turns) {
      CHECK(turn.input_tokens > 0);
      CHECK(turn.answer_tokens > 0);
      pauses += turn.pause_s;
      context += turn.input_tokens + kTraceMarkup;
      read += static_cast<double>(context);
      context += turn.answer_tokens;
      written += static_cast<double>(turn.answer_tokens);
    }
    CHECK(context > shape.context * 95 / 100);
    CHECK(context < shape.context + kTraceSlack / 2);
    CHECK(pauses > 5);
    CHECK(pauses < 60);
  }
  CHECK(read / written == doctest::Approx(142).epsilon(0.1));
  const auto first = [](const TracePlan& p) { return p.agents[0][0].input_tokens; };
  CHECK(first(plan) == first(PlanTrace(shape)));
  CHECK(first(plan) != plan.agents[1][0].input_tokens);
  shape.seed = 2;
  CHECK(first(plan) != first(PlanTrace(shape)));
}

TEST_CASE("hits are counted of what was possible") {
  TraceSide side;
  CHECK(side.HitRate() == 0);
  side.turns = {{.prompt = 120, .cached = 90, .possible = 100, .first_ms = 3},
                {.prompt = 320, .cached = 300, .possible = 300, .first_ms = 5}};
  CHECK(side.HitRate() == doctest::Approx(0.975));
  CHECK(side.FirstMs() == std::vector<double>{3, 5});
}

TEST_CASE("forks, commits, snapshots and bytes written are measured on a keeper") {
  testing::TempDir dir;
  const EngineOptions engine = TinyEngine(dir);
  const auto forks = MeasureFork(engine, 256, 1);
  REQUIRE_MESSAGE(forks.ok(), forks.status().ToString());
  CHECK(forks->tokens == 256);
  CHECK(forks->points.size() == 4);
  CHECK(forks->points[0].tokens == 32);
  CHECK(forks->pages_taken == 1);  // the partial page's copy
  CHECK(forks->durable_ms.size() == 200);
  CHECK(forks->sync_ms.size() == 200);
  const auto commits = MeasureCommit(engine, 12);
  REQUIRE_MESSAGE(commits.ok(), commits.status().ToString());
  CHECK(commits->ack_ms.size() == 12);
  CHECK(*std::min_element(commits->ack_ms.begin(), commits->ack_ms.end()) > 0);
  const auto saves = MeasureSave(engine, 64, 2);
  REQUIRE_MESSAGE(saves.ok(), saves.status().ToString());
  CHECK(saves->ms.size() == 2);
  CHECK(saves->tokens > 64);
  const auto written = MeasureWritten(engine, 2);
  REQUIRE_MESSAGE(written.ok(), written.status().ToString());
  CHECK(written->turns == 2);
  CHECK(written->tokens >= 400);
  CHECK(written->written_bytes > written->page_bytes);
  CHECK(written->page_bytes >= 12 * 4096);
}

TEST_CASE("a turn that nobody computed is in the log as any other") {
  testing::TempDir dir;
  RuntimeOptions options;
  options.engine = TinyEngine(dir);
  options.data_dir = dir.File("data");
  const auto runtime = Runtime::Open(options);
  REQUIRE(runtime.ok());
  UncomputedTurn turn{.session = "s", .messages = {}};
  for (int i = 0; i < 2; ++i) {
    turn.messages.push_back(BenchMessage("user", "Part " + std::to_string(i)));
    turn.seed = static_cast<uint64_t>(i);
    REQUIRE(CommitUncomputed(**runtime, &turn).ok());
  }
  const auto info = (*runtime)->keeper().Get(kBenchTenant, "s");
  REQUIRE(info.ok());
  CHECK(info->turns == 2);
  CHECK(info->branches == 1);  // the second goes on from the first
  CHECK(info->items == 4);
  const auto report = (*runtime)->keeper().CheckLog();
  REQUIRE(report.ok());
  CHECK(report->damaged() == 0);
}

TEST_CASE("agents decode beside others that save or restore") {
  testing::TempDir dir;
  const auto engine = Engine::Open(TinyEngine(dir));
  REQUIRE(engine.ok());
  for (const Beside what : {Beside::kSave, Beside::kRestore}) {
    const auto figures = MeasureBeside(**engine, {.what = what,
                                                  .phase = std::chrono::milliseconds(20),
                                                  .progress = {}});
    REQUIRE_MESSAGE(figures.ok(), figures.status().ToString());
    CHECK(figures->sessions >= 4);
    CHECK(figures->bytes_per_s > 0);
    CHECK(!figures->with_ms.empty());
    CHECK(!figures->without_ms.empty());
  }
}

TEST_CASE("peers are named") {
  CHECK(ParsePeer("ik_llama=/a=b")->dir == "/a=b");
  for (const char* bad : {"llama.cpp", "llama.cpp=", "other=/a", "=/a", ""}) {
    CHECK_MESSAGE(ParsePeer(bad).status().code() == Code::kInvalid, bad);
  }
}

TEST_CASE("a peer's command says the test") {
  const auto command = [](PeerTest test, bool depth) {
    const auto words = PeerCommand("p", test, "m", 2, depth);
    return words.ok() ? Joined(*words) : words.status().message();
  };
  const std::string head = "p -m m -t 2 -fa 1 -ctk f16 -ctv f16 -r 1 -o json ";
  using Kind = PeerTest::Kind;
  CHECK(command({Kind::kPrefill, 0, 512, 1}, true) == head + "-p 512 -n 0");
  CHECK(command({Kind::kPrefill, 0, 512, 1}, false) == head + "-p 512 -n 0");
  CHECK(command({Kind::kPrefill, 4096, 16, 1}, true) == head + "-p 16 -n 0 -d 4096");
  CHECK(command({Kind::kDecode, 0, 64, 1}, true) == head + "-p 0 -n 64");
  CHECK(command({Kind::kDecode, 4096, 64, 1}, true) == head + "-p 0 -n 64 -d 4096");
  CHECK(command({Kind::kDecode, 4096, 64, 1}, false) == head + "-p 0 -n 0 -gp 4096,64");
  CHECK(command({Kind::kPrefill, 4096, 16, 1}, false).find("no -d") != std::string::npos);
  CHECK(command({Kind::kAgents, 1024, 64, 8}, false) ==
        "p -m m -t 2 -fa 1 -c 8704 -npp 1024 -ntg 64 -npl 8 --output-format jsonl");
  CHECK(command({Kind::kAgents, 1024, 64, 8, true}, false).ends_with("--output-format jsonl -pps"));
}

TEST_CASE("a peer's figure is found in its output") {
  const PeerTest bench{PeerTest::Kind::kDecode, 0, 64, 1}, agents{PeerTest::Kind::kAgents, 1, 1, 2};
  CHECK(*ParsePeerOutput(bench, "loading [1]\n[\n {\"avg_ts\": 1.5},\n {\"avg_ts\": 2.5}\n]\n") ==
        2.5);
  CHECK(*ParsePeerOutput(agents, "main: n = 2\n{\"pp\": 1, \"speed_tg\": 7.25}\ntimings\n") == 7.25);
  for (const char* bad : {"", "[]", "[\n]", "[\n{\"avg_ts\": \"x\"}]", "{\"avg_ts\": 2}", "[\n{"}) {
    CHECK_MESSAGE(ParsePeerOutput(bench, bad).status().code() == Code::kIo, bad);
    CHECK_MESSAGE(ParsePeerOutput(agents, bad).status().code() == Code::kIo, bad);
  }
}

// A program of a peer in bin/ of `dir`: notes in "calls" how it was called and prints `output`.
void WriteProgram(const testing::TempDir& dir, const std::string& name, const std::string& output) {
  std::filesystem::create_directories(dir.File("bin"));
  const std::string path = dir.File("bin/" + name);
  std::ofstream(path) << "#!/bin/sh\n"
                         "if [ \"$1\" = --help ]; then echo '  -d, --n-depth <n>'; exit; fi\n"
                         "echo \"$@\" >>" << dir.File("calls") << "\n"
                         "echo 'load_backend: loaded [CPU]' >&2\n"
                         "cat <<'END'\n" << output << "\nEND\n";
  std::filesystem::permissions(path, std::filesystem::perms::owner_all);
}

TEST_CASE("a peer that runs has a figure in the report") {
  testing::TempDir dir;
  WriteProgram(dir, "llama-bench",
               "[\n  {\n    \"build_number\": 11434,\n    \"n_threads\": 1,\n"
               "    \"n_prompt\": 0,\n    \"n_gen\": 64,\n    \"avg_ns\": 1,\n"
               "    \"avg_ts\": 43.25,\n    \"samples_ts\": [ 43.25 ]\n  }\n]");
  WriteProgram(dir, "llama-batched-bench",
               "{\"n_kv_max\": 512, \"pp\": 16, \"tg\": 64, \"pl\": 2, \"speed_pp\": 900.5, "
               "\"speed_tg\": 71.5, \"speed\": 80.0}");
  const auto peer = ParsePeer("llama.cpp=" + dir.File(""));
  REQUIRE(peer.ok());
  CHECK(*RunPeer(*peer, {PeerTest::Kind::kAgents, 16, 64, 2}, "m", 1) == 71.5);
  CHECK(*RunPeer(*peer, {PeerTest::Kind::kPrefill, 4096, 16, 1}, "m", 1) == 43.25);
  BenchOptions options;
  options.engine = TinyEngine(dir);
  options.engine.cpu.threads = 1;
  options.names = {"decode@0"};
  options.peers = {*peer};
  options.reps = 2;
  const auto report = RunBench(options);
  REQUIRE_MESSAGE(report.ok(), report.status().ToString());
  const Json result = report->document["results"][0];
  CHECK(result["peers"]["llama.cpp"]["value"] == 43.25);
  CHECK_FALSE(result["peers"]["llama.cpp"].contains("note"));
  CHECK(result["value"].get<double>() > 0);
  std::ifstream in(dir.File("calls"));
  std::vector<std::string> calls;
  for (std::string line; std::getline(in, line);) calls.push_back(line);
  REQUIRE(calls.size() == 2 + 2);
  CHECK(calls[1].ends_with("-o json -p 16 -n 0 -d 4096"));
  CHECK(calls[3] == "-m " + options.engine.model_path +
                        " -t 1 -fa 1 -ctk f16 -ctv f16 -r 1 -o json -p 0 -n 64");
}

TEST_CASE("a peer that is not there is a note") {
  const Peer nowhere{"llama.cpp", "/nonexistent"};
  const auto rate = RunPeer(nowhere, {PeerTest::Kind::kAgents, 1, 1, 2}, "m", 1);
  CHECK(rate.status().code() == Code::kNotFound);
  CHECK(rate.status().message().find("llama-batched-bench") != std::string::npos);
}

TEST_CASE("children are read, waited for and explained") {
  CHECK(*RunProcess({"sh", "-c", "echo a; printf b"}) == "a\nb\n");
  const Status failed = RunProcess({"sh", "-c", "echo one >&2; echo 'two  ' >&2; exit 3"}).status();
  CHECK(failed.code() == Code::kIo);
  CHECK(failed.message() == "sh: exit 3: two");
  CHECK(RunProcess({"sh", "-c", "kill -9 $$"}).status().message() == "sh: signal 9: ");
  CHECK(RunProcess({"/nonexistent/program"}).status().code() == Code::kIo);
  auto endless = ChildProcess::Start({"sh", "-c", "echo ready; exec sleep 1000"});
  std::string line;
  CHECK(endless->ReadLine(&line));
  CHECK(line == "ready");  // and its end here ends it
}

TEST_CASE("an axis has few round marks") {
  for (const double largest : {0.3, 1.0, 7.0, 17.0, 64.0, 1000.0, 32768.0}) {
    const double step = AxisStep(largest, 8);
    CHECK(largest / step <= 8);
    CHECK(largest / step > 3);
  }
  CHECK(AxisStep(32768, 8) == 5000);
  CHECK(AxisStep(0, 8) == 1);
}

TEST_CASE("a chart draws every finite point and escapes its words") {
  Chart chart{"a < b & c", "x", "y", {}};
  using Style = ChartSeries::Style;
  chart.series.push_back({"ours", Style::kPoints, {{1, 1}, {2, 2}, {3, 0.0 / 0.0}}});
  chart.series.push_back({"limit", Style::kDashes, {{1, 0.5}, {2, 1}}});
  const std::string svg = PlotSvg({chart, chart});
  CHECK(svg.starts_with("<svg "));
  CHECK(svg.ends_with("</svg>\n"));
  CHECK(Count(svg, "<circle") == 2 * (2 + 1));  // one in each legend
  CHECK(Count(svg, "<polyline") == 2);
  CHECK(Count(svg, "a &lt; b &amp; c") == 2);
  CHECK(Count(svg, "nan") == 0);
  CHECK(PlotSvg({}).starts_with("<svg "));
  CHECK(PlotSvg({{"empty", "x", "y", {}}}).find("nan") == std::string::npos);
}

TEST_CASE("unknown names are refused before anything runs") {
  for (const char* bad : {"nonsense@1", "decode@", "decode@x", "decode@-1", "prefill@0", "agents",
                          "agents0", "agents8@0", "soak0", "soakx", "soak@0", "soak16@", "switch0",
                          "switch8@0", "roofline@1", "load@3", "scale-context@1", "fork@0", "save@0",
                          "commit@0", "written@x", "beside-save@1", "beside-restore@1",
                          "sessions@0", "agent-trace@0", "stitch-plan@0", "stitch-insert2", ""}) {
    BenchOptions options;
    options.names = {"roofline", bad};
    CHECK_MESSAGE(RunBench(options).status().code() == Code::kInvalid, bad);
  }
}

TEST_CASE("all names that are listed are known, and some draw") {
  for (const auto& names : {BenchNames(), BenchScaleNames(), BenchLongNames()}) {
    for (const std::string& name : names) {
      BenchOptions options;
      options.names = {name, "nonsense"};
      CHECK(RunBench(options).status().message().find("'nonsense'") != std::string::npos);
    }
  }
  CHECK(BenchDraws("scale-context"));
  CHECK(BenchDraws("fork@4096"));
  CHECK(BenchDraws("switch8@3000"));
  CHECK(BenchDraws("stitch-swap@8000"));
  CHECK(!BenchDraws("stitch-plan@100"));
  CHECK(!BenchDraws("all"));
  CHECK(!BenchDraws("decode@0"));
}

TEST_CASE("behind an edit runs are used, and take no pages of their own") {
  testing::TempDir dir;
  for (const HistoryEdit edit :
       {HistoryEdit::kInsert, HistoryEdit::kSwap, HistoryEdit::kReplace}) {
    StitchOptions options;
    options.engine = TinyEngine(dir);
    options.edit = edit;
    options.tokens = 1400;
    options.reps = 3;
    const auto figures = MeasureStitch(options);
    REQUIRE_MESSAGE(figures.ok(), figures.status().ToString());
    CHECK(figures->fast_ms.size() == 3);
    CHECK(figures->full_ms.size() == 3);
    CHECK(figures->tokens > 1100);
    CHECK(figures->tokens < 1700);
    CHECK(figures->runs >= 2);
    CHECK(figures->behind > 700);
    // Each time: nothing is left of the run before, which used it too.
    CHECK(figures->computed >= figures->fresh + 32 * figures->runs);
    CHECK(figures->computed < figures->behind);
    CHECK(figures->extra_pages == 0);
    CHECK(figures->peers.empty());
  }
}

TEST_CASE("a prompt of many segments is planned, found and stitched") {
  testing::TempDir dir;
  const auto engine = Engine::Open(TinyEngine(dir));
  REQUIRE(engine.ok());
  const auto plan = MeasureStitchPlan(**engine, 20, 3);
  REQUIRE_MESSAGE(plan.ok(), plan.status().ToString());
  CHECK(plan->plan_ms.size() == 3);
  CHECK(plan->tokens == 20 * 80 + 2);
  CHECK(plan->find_ms > 0);
  EngineBench bench(engine->get());
  const auto decode = MeasureStitchDecode(**engine, bench, 1000, 2);
  REQUIRE_MESSAGE(decode.ok(), decode.status().ToString());
  CHECK(decode->exact.size() == 2);
  CHECK(decode->stitched.size() == 2);
  CHECK(decode->tokens > 800);
  CHECK(MeasureStitchDecode(**engine, bench, 300, 1).status().code() == Code::kExhausted);
}

TEST_CASE("a soak counts turns and sees memory and speed") {
  testing::TempDir dir;
  SoakOptions options;
  options.engine = TinyEngine(dir);
  options.engine.kv_bytes = 4u << 20;  // soon full
  options.agents = 5;
  options.seconds = 3;
  const auto figures = MeasureSoak(options);
  REQUIRE_MESSAGE(figures.ok(), figures.status().ToString());
  CHECK(figures->points.size() == kSoakPoints);
  CHECK(figures->points.back().minute == doctest::Approx(0.05));
  CHECK(figures->turns >= 5);
  CHECK(figures->conversations >= 5);
  CHECK_MESSAGE(figures->failed == 0, figures->error);
  double tokens = 0, prompts = 0;
  for (const SoakPoint& p : figures->points) {
    CHECK(p.pool_mib <= 4);
    CHECK(p.resident_mib > p.pool_mib);
    tokens += p.tokens_per_s;
    prompts += p.prompt_per_s;
  }
  CHECK(tokens > 0);
  CHECK(prompts > 0);
}

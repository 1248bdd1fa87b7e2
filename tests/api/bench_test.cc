// The pure parts of the benches: limits, peers' commands and outputs, charts; and child processes.
#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "api/bench/bench.h"
#include "api/bench/limits.h"
#include "api/bench/peers.h"
#include "api/bench/plot.h"
#include "api/bench/process.h"
#include "api/bench/soak.h"
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
                          "switch8@0", "roofline@1", "load@3", "scale-context@1", ""}) {
    BenchOptions options;
    options.names = {"roofline", bad};
    CHECK_MESSAGE(RunBench(options).status().code() == Code::kInvalid, bad);
  }
}

TEST_CASE("a soak counts turns and sees memory and speed") {
  testing::TempDir dir;
  TinyModelSpec spec;
  spec.head = TinyHead::kSeparate;
  REQUIRE(WriteTinyModel(spec, dir.File("tiny.gguf")).ok());
  SoakOptions options;
  options.engine.model_path = dir.File("tiny.gguf");
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

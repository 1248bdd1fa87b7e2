#include "api/bench/bench.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <optional>

#include "api/bench/bench_run.h"
#include "api/bench/rewrite.h"
#include "api/bench/soak.h"
#include "api/bench/start_bench.h"
#include "engine/backend/cpu/roofline.h"
#include "engine/base/machine.h"

namespace holdfast {
namespace {

constexpr int64_t kSequencesMost = 256;
constexpr int64_t kContextMost = 1 << 24;
constexpr const char* kDrawn[] = {
    "scale-", "fork",     "save",        "commit",        "restore",     "switch",
    "beside", "sessions", "agent-trace", "stitch-insert", "stitch-swap", "stitch-replace"};

void AddRoofline(const BenchRun& run, Json* results) {
  std::vector<int> threads = {1};
  if (run.threads() > 1) threads.push_back(run.threads());
  for (const int n : threads) {
    const Roofline r = MeasureRoofline({.level = run.level(), .threads = n});
    const struct {
      const char* what;
      const char* unit;
      double value;
    } figures[] = {{"dram_read", "GB/s", r.dram_read}, {"l3_read", "GB/s", r.l3_read},
                   {"l2_read", "GB/s", r.l2_read},     {"int8", "Gop/s", r.int8},
                   {"fp32", "Gop/s", r.fp32}};
    for (const auto& f : figures) {
      results->push_back({{"name", std::string("roofline.") + f.what + "@" + std::to_string(n)},
                          {"threads", n},
                          {"value", f.value / 1e9},
                          {"unit", f.unit},
                          {"limit", nullptr},
                          {"peers", Json::object()}});
    }
  }
}

// What one run of an engine's bench is: the pass that it repeats, and the same for a peer.
struct EngineWork {
  PassWork pass;
  double tokens = 0;  // that a pass makes
  PeerTest test;
  std::function<Result<double>()> ours;
};

EngineWork WorkOf(const BenchName& name, int64_t n, EngineBench& bench) {
  const int64_t half = kDecodeTokens / 2;  // the mean context while decoding
  if (name.Is("prefill")) {
    return {{.rows = n, .logits = 1}, static_cast<double>(n),
            {PeerTest::Kind::kPrefill, 0, n, 1}, [=, &bench] { return bench.Prefill(n); }};
  }
  if (name.Is("append16")) {
    return {{.rows = kAppendTokens, .context = n, .logits = 1}, kAppendTokens,
            {PeerTest::Kind::kPrefill, n, kAppendTokens, 1},
            [=, &bench] { return bench.Append(n); }};
  }
  if (name.Is("decode")) {
    return {{.context = n + half, .logits = 1}, 1,
            {PeerTest::Kind::kDecode, n, kDecodeTokens, 1},
            [=, &bench] { return bench.Decode(n); }};
  }
  const int64_t s = name.sequences;
  const bool shared = name.Is("shared");
  return {{.sequences = s, .context = n + half, .logits = 1, .shared = shared ? n : 0},
          static_cast<double>(s), {PeerTest::Kind::kAgents, n, kDecodeTokens, s, shared},
          [=, &bench] {
            return bench.Agents(s, n, shared ? Prompts::kShared : Prompts::kOwn);
          }};
}

Json RatesJson(const MachineRates& rates) {
  return {{"read_bytes_per_s", rates.read},
          {"int8_ops_per_s", rates.int8},
          {"fp32_ops_per_s", rates.fp32}};
}

Result<Json> BenchEngine(BenchRun& run, const BenchName& name) {
  HOLDFAST_RETURN_IF_ERROR(run.Open());
  if (name.sequences > 1) run.bench().Forget();
  const bool whole = name.Is("prefill");  // n itself is computed
  const int64_t room = name.Is("append16") ? kAppendTokens + 1 : kDecodeTokens + 1;
  const int64_t n = run.bench().Fit(name.n, whole ? 1 : room, name.sequences);
  if (n < 0 || (n == 0 && name.n > 0)) {
    return Status::Exhausted("bench: " + name.text + ": the memory for KV or the model's context " +
                             "is too small for it");
  }
  const EngineWork work = WorkOf(name, n, run.bench());
  HOLDFAST_ASSIGN_OR_RETURN(
      const Samples samples,
      run.Measure(name.text, work.ours, work.test, run.threads(), run.options().reps,
                  PassBytes(run.cost(), work.pass)));
  if (name.sequences > 1) run.bench().Forget();
  const Limit limit = LimitOf(run.cost(), samples.rates, work.pass);
  Json result = ResultJson(run.options(), name, samples, work.tokens / limit.seconds());
  result["limited_by"] = limit.by_arithmetic() ? "arithmetic" : "bytes";
  result["limit_ms"] = {{"bytes", limit.bytes_s * 1000},
                        {"int8", limit.int8_s * 1000},
                        {"fp32", limit.fp32_s * 1000}};
  result["rates"] = RatesJson(samples.rates);
  if (n != name.n) result["context"] = n;
  return result;
}

Result<Json> BenchLoad(BenchRun& run, const BenchName& name) {
  run.Close();
  const BenchOptions& options = run.options();
  if (options.program.empty()) return Status::Invalid("bench: load: no program to start");
  HOLDFAST_ASSIGN_OR_RETURN(
      const Samples samples,
      run.Measure(name.text, [&] { return MeasureLoad(options.program, options.engine); }, {},
                  run.threads(), 0));
  std::error_code ignored;
  const auto bytes =
      static_cast<double>(std::filesystem::file_size(options.engine.model_path, ignored));
  return ResultJson(options, name, samples, bytes / samples.rates.read);
}

// The limit is that of decoding a token per pass: speculation may pass it.
Result<Json> BenchRewrite(BenchRun& run, const BenchName& name) {
  run.Close();
  const BenchOptions& options = run.options();
  HOLDFAST_ASSIGN_OR_RETURN(const RewriteFigures figures,
                            MeasureRewrite(options.engine, options.reps));
  const Limit limit = LimitOf(figures.cost, run.Rates(run.threads()),
                              {.context = figures.prompt + figures.tokens / 2, .logits = 1});
  Samples samples;
  samples.ours = figures.with;
  Json result = ResultJson(options, name, samples, 1 / limit.seconds());
  result["without_speculation"] = Median(figures.without);
  result["speculation_ratio"] = Median(figures.with) / Median(figures.without);
  result["same_tokens"] = figures.same_tokens;
  result["tokens"] = figures.tokens;
  result["drafted"] = figures.drafts.drafted;
  result["accepted"] = figures.drafts.accepted;
  return result;
}

Result<Json> BenchSoak(BenchRun& run, const BenchName& name) {
  run.Close();
  SoakOptions options{.engine = run.options().engine,
                      .agents = static_cast<int>(name.sequences),
                      .seconds = 60.0 * static_cast<double>(name.n),
                      .progress = {}};
  options.progress = run.ProgressOf(name);
  HOLDFAST_ASSIGN_OR_RETURN(const SoakFigures figures, MeasureSoak(options));
  Samples samples;
  Json points = Json::array();
  for (const SoakPoint& p : figures.points) {
    samples.ours.push_back(p.tokens_per_s);
    points.push_back({{"minute", p.minute},
                      {"tokens_per_s", p.tokens_per_s},
                      {"prompt_tokens_per_s", p.prompt_per_s},
                      {"resident_mib", p.resident_mib},
                      {"pool_mib", p.pool_mib}});
  }
  Json result = ResultJson(run.options(), name, samples, 0);
  result["soak"] = {{"agents", options.agents},
                    {"minutes", name.n},
                    {"turns", figures.turns},
                    {"conversations", figures.conversations},
                    {"failed", figures.failed},
                    {"error", figures.error.empty() ? Json(nullptr) : Json(figures.error)},
                    {"resident_mib_per_hour", figures.resident_mib_per_hour},
                    {"speed_change_per_hour", figures.speed_change_per_hour},
                    {"points", std::move(points)}};
  return result;
}

Result<Json> BenchScale(BenchRun& run, const BenchName& name) {
  HOLDFAST_ASSIGN_OR_RETURN(const ScaleResult scale, MeasureScale(run, name.text));
  Json result = JsonOf(scale);
  result["name"] = name.text;
  result["model"] = run.options().model_name;
  run.Draw(ChartOf(scale, run.options().model_name));
  return result;
}

constexpr BenchKind kKinds[] = {
    {"roofline", "", true, 0},
    {"prefill", "tok/s", true, 512, 1, &BenchEngine},
    {"decode", "tok/s", true, 4096, 1, &BenchEngine},
    {"append16", "tok/s", true, 4096, 1, &BenchEngine},
    {"agents", "tok/s", true, 1024, 0, &BenchEngine},
    {"shared", "tok/s", true, 4096, 0, &BenchEngine},
    {"load", "s", false, 0, 1, &BenchLoad},
    {"rewrite", "tok/s", true, 0, 1, &BenchRewrite},
    {"soak", "tok/s", true, 30, 16, &BenchSoak},
    {"fork", "ms", false, 4096, 1, &BenchFork},
    {"save", "ms", false, 4000, 1, &BenchSave},
    {"commit", "ms", false, 200, 1, &BenchCommit},
    {"written", "x", false, 8, 1, &BenchWritten},
    {"restore", "ms", false, 4000, 1, &BenchRestore},
    {"switch", "ms", false, 3000, 8, &BenchSwitch},
    {"beside-save", "ms", false, 0, 1, &BenchBesideSave},
    {"beside-restore", "ms", false, 0, 1, &BenchBesideRestore},
    {"sessions", "s", false, 10000, 1, &BenchManySessions},
    {"agent-trace", "ms", false, 40, 1, &BenchAgentTrace},
    {"stitch-insert", "ms", false, 8000, 1, &BenchStitchInsert},
    {"stitch-swap", "ms", false, 8000, 1, &BenchStitchSwap},
    {"stitch-replace", "ms", false, 8000, 1, &BenchStitchReplace},
    {"stitch-plan", "ms", false, 100, 1, &BenchStitchPlan},
    {"stitch-decode", "tok/s", true, 8000, 1, &BenchStitchDecode},
    {"scale-context", "", false, 0, 1, &BenchScale},
    {"scale-sequences", "", false, 0, 1, &BenchScale},
    {"scale-threads", "", false, 0, 1, &BenchScale},
};

bool ReadNumber(std::string_view text, int64_t least, int64_t most, int64_t* out) {
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, *out);
  return parsed.ec == std::errc() && parsed.ptr == end && *out >= least && *out <= most;
}

Result<BenchName> ParseName(const std::string& text) {
  const size_t at = text.find('@');
  std::string kind = text.substr(0, at);
  BenchName name{.text = text};
  int64_t sequences = 0;
  bool good = true;
  for (const char* several : {"agents", "shared", "soak", "switch"}) {
    if (!kind.starts_with(several) || kind == several) continue;
    good = ReadNumber(std::string_view(kind).substr(std::strlen(several)), 1, kSequencesMost,
                      &sequences);
    kind = several;
  }
  for (const BenchKind& k : kKinds) {
    if (kind == k.name) name.kind = &k;
  }
  if (name.kind != nullptr) {
    name.n = name.kind->n;
    name.sequences = sequences > 0 ? sequences : name.kind->sequences;
    good = good && name.sequences > 0;
    if (at != std::string::npos) {
      good = good && name.n > 0 &&
             ReadNumber(std::string_view(text).substr(at + 1), name.Is("decode") ? 0 : 1,
                        kContextMost, &name.n);
    }
  }
  if (name.kind != nullptr && good) return name;
  return Status::Invalid("bench: unknown name '" + text + "'; see holdfast bench list");
}

Json MachineJson(BenchRun& run, bool with_model) {
  Json machine = {{"cpu", CpuModel()}, {"threads", run.threads()}, {"level", run.level()}};
  if (with_model) machine.update(RatesJson(run.Rates(run.threads())));
  return machine;
}

}  // namespace

std::vector<std::string> BenchNames() {
  return {"roofline",    "prefill@512",  "decode@0", "decode@4096",  "decode@8192",
          "append16@4096", "agents8",      "shared8@4096", "fork@4096", "save@4000",
          "commit",      "written",      "restore@4000", "load",     "rewrite",
          "stitch-plan@100"};
}

std::vector<std::string> BenchScaleNames() {
  return {"scale-context", "scale-sequences", "scale-threads"};
}

std::vector<std::string> BenchLongNames() {
  return {"soak",           "switch8",     "beside-save", "beside-restore",
          "sessions@10000", "agent-trace", "stitch-insert@8000", "stitch-swap@8000",
          "stitch-replace@8000", "stitch-decode@8000"};
}

bool BenchDraws(const std::string& name) {
  return std::any_of(std::begin(kDrawn), std::end(kDrawn),
                     [&](const char* kind) { return name.starts_with(kind); });
}

bool BenchNeedsModel(const std::string& name) { return name != "roofline"; }

Result<BenchReport> RunBench(const BenchOptions& given) {
  BenchOptions options = given;
  if (options.engine.cpu.threads == 0) options.engine.cpu.threads = UsableCores();
  std::vector<BenchName> names;
  bool with_model = false;
  for (const std::string& text : options.names) {
    HOLDFAST_ASSIGN_OR_RETURN(names.emplace_back(), ParseName(text));
    with_model = with_model || BenchNeedsModel(text);
  }
  HOLDFAST_ASSIGN_OR_RETURN(const auto backend, MakeCpuBackend({1, options.engine.cpu.level}));
  BenchRun run(options, std::string(backend->name()));
  BenchReport report;
  Json results = Json::array();
  for (const BenchName& name : names) {
    if (name.Is("roofline")) {
      AddRoofline(run, &results);
      continue;
    }
    HOLDFAST_ASSIGN_OR_RETURN(Json result, name.kind->measure(run, name));
    results.push_back(std::move(result));
  }
  report.charts = run.TakeCharts();
  report.document = {{"machine", MachineJson(run, with_model)}, {"results", std::move(results)}};
  return report;
}

}  // namespace holdfast

#include "api/bench/bench.h"

#include <sched.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>

#include "api/bench/bench_run.h"
#include "api/bench/rewrite.h"
#include "api/bench/soak.h"
#include "api/bench/start_bench.h"
#include "api/bench/switch_bench.h"
#include "engine/backend/cpu/roofline.h"

namespace holdfast {
namespace {

constexpr int64_t kSequencesMost = 256;
constexpr int64_t kContextMost = 1 << 24;

struct BenchKind {
  const char* name;
  const char* unit;
  bool rate;       // more is better
  int64_t n;       // where the name does not say
  int64_t sequences = 1;  // so, too; 0: the name must say
};
constexpr BenchKind kKinds[] = {
    {"roofline", "", true, 0},         {"prefill", "tok/s", true, 512},
    {"decode", "tok/s", true, 4096},   {"append16", "tok/s", true, 4096},
    {"agents", "tok/s", true, 1024, 0}, {"fork", "ms", false, 4096},
    {"restore", "ms", false, 4000},    {"load", "s", false, 0},
    {"rewrite", "tok/s", true, 0},     {"soak", "tok/s", true, 30, 16},
    {"switch", "ms", false, 3000, 8},
    {"scale-context", "", false, 0},   {"scale-sequences", "", false, 0},
    {"scale-threads", "", false, 0},
};

// "agents8@1024" -> agents, 1024, 8 sequences.
struct BenchName {
  std::string text;
  const BenchKind* kind = nullptr;
  int64_t n = 0;
  int64_t sequences = 1;

  bool Is(const char* name) const { return std::strcmp(kind->name, name) == 0; }
  bool IsScale() const { return std::strncmp(kind->name, "scale-", 6) == 0; }
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
  for (const char* several : {"agents", "soak", "switch"}) {
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

std::string CpuModel() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

int UsableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

// `limit` in the result's unit; 0: unknown.
Json ResultJson(const BenchOptions& options, const BenchName& name, const Samples& samples,
                double limit) {
  const double value = Median(samples.ours);
  const bool rate = name.kind->rate;
  Json result = {{"name", name.text},
                 {"model", options.model_name},
                 {"value", value},
                 {"unit", name.kind->unit},
                 {"limit", limit > 0 ? Json(limit) : Json(nullptr)},
                 {"share", limit > 0 ? Json(rate ? value / limit : limit / value) : Json(nullptr)},
                 {"samples", samples.ours},
                 {"peers", Json::object()}};
  for (const auto& [peer, figures] : samples.peers) {
    const double theirs = Median(figures);
    result["peers"][peer] = {{"value", theirs},
                             {"ratio", rate ? value / theirs : theirs / value},
                             {"samples", figures}};
  }
  for (const auto& [peer, note] : samples.notes) result["peers"][peer]["note"] = note;
  return result;
}

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
  return {{.sequences = s, .context = n + half, .logits = 1}, static_cast<double>(s),
          {PeerTest::Kind::kAgents, n, kDecodeTokens, s},
          [=, &bench] { return bench.Agents(s, n); }};
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
  HOLDFAST_ASSIGN_OR_RETURN(const Samples samples, run.Measure(name.text, work.ours, work.test,
                                                               run.threads(), run.options().reps));
  if (name.sequences > 1) run.bench().Forget();
  const Limit limit = LimitOf(run.cost(), run.Rates(run.threads()), work.pass);
  Json result = ResultJson(run.options(), name, samples, work.tokens / limit.seconds());
  result["limited_by"] = limit.by_arithmetic() ? "arithmetic" : "bytes";
  result["limit_ms"] = {{"bytes", limit.bytes_s * 1000},
                        {"int8", limit.int8_s * 1000},
                        {"fp32", limit.fp32_s * 1000}};
  if (n != name.n) result["context"] = n;
  return result;
}

Result<Json> BenchFork(BenchRun& run, const BenchName& name) {
  HOLDFAST_RETURN_IF_ERROR(run.Open());
  const int64_t n = run.bench().Fit(name.n, kPageTokens, 1);
  if (n < 1) return Status::Exhausted("bench: " + name.text + ": no memory for KV");
  HOLDFAST_ASSIGN_OR_RETURN(
      const Samples samples,
      run.Measure(name.text, [&] { return run.bench().ForkP99(n); }, {}, run.threads(), 0));
  const double bytes = static_cast<double>(n) * sizeof(TokenId) +
                       static_cast<double>(n) / kPageTokens * (sizeof(Run) + sizeof(PageKey));
  return ResultJson(run.options(), name, samples, 1000 * bytes / run.Rates(run.threads()).read);
}

Result<Json> BenchRestore(BenchRun& run, const BenchName& name) {
  run.Close();  // two models would not fit everywhere
  std::vector<double> cold;
  RestoreFigures last;
  Samples samples;
  const BenchOptions& options = run.options();
  for (int rep = 0; rep < options.reps; ++rep) {
    if (options.progress) options.progress(name.text, static_cast<double>(rep) / options.reps);
    HOLDFAST_ASSIGN_OR_RETURN(last, MeasureRestore(options.engine, name.n));
    cold.push_back(last.cold_ms);
    samples.ours.push_back(last.restart_ms);
  }
  const MachineRates& rates = run.Rates(run.threads());
  const double pages = KvBytes(last.cost, last.restored) / rates.read;
  const Limit pass = LimitOf(last.cost, rates, {.rows = last.computed, .context = last.restored,
                                                .logits = 1});
  Json result = ResultJson(options, name, samples, 1000 * (pages + pass.seconds()));
  result["cold_ms"] = Median(cold);
  result["share_of_cold"] = Median(samples.ours) / Median(cold);
  result["tokens_restored"] = last.restored;
  result["tokens_computed"] = last.computed;
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
  return ResultJson(options, name, samples, bytes / run.Rates(run.threads()).read);
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
  if (const auto& progress = run.options().progress) {
    options.progress = [&](double fraction) { progress(name.text, fraction); };
  }
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

// The limit reads an agent's pages and computes what is new.
Result<Json> BenchSwitch(BenchRun& run, const BenchName& name) {
  const BenchOptions& options = run.options();
  if (options.program.empty()) return Status::Invalid("bench: switch: no program to start");
  HOLDFAST_RETURN_IF_ERROR(run.Open());
  const ModelCost cost = run.cost();
  run.Close();
  SwitchOptions what{.program = options.program,
                     .engine = options.engine,
                     .peers = options.peers,
                     .agents = static_cast<int>(name.sequences),
                     .tokens = name.n,
                     .rounds = options.reps,
                     .progress = {}};
  what.engine.kv_bytes = static_cast<size_t>(KvBytes(cost, 2 * SwitchContext(name.n)));
  if (options.progress) {
    what.progress = [&](double fraction) { options.progress(name.text, fraction); };
  }
  HOLDFAST_ASSIGN_OR_RETURN(SwitchFigures figures, MeasureSwitch(what));
  const Samples samples = {std::move(figures.ours), std::move(figures.peers),
                           std::move(figures.notes)};
  const MachineRates& rates = run.Rates(run.threads());
  const Limit pass = LimitOf(cost, rates, {.rows = 32, .context = name.n, .logits = 1});
  return ResultJson(options, name, samples,
                    1000 * (KvBytes(cost, name.n) / rates.read + pass.seconds()));
}

Result<Json> BenchOne(BenchRun& run, const BenchName& name) {
  if (name.Is("fork")) return BenchFork(run, name);
  if (name.Is("restore")) return BenchRestore(run, name);
  if (name.Is("load")) return BenchLoad(run, name);
  if (name.Is("rewrite")) return BenchRewrite(run, name);
  if (name.Is("soak")) return BenchSoak(run, name);
  if (name.Is("switch")) return BenchSwitch(run, name);
  return BenchEngine(run, name);
}

Json MachineJson(BenchRun& run, bool with_model) {
  Json machine = {{"cpu", CpuModel()}, {"threads", run.threads()}, {"level", run.level()}};
  if (with_model) {
    const MachineRates& rates = run.Rates(run.threads());
    machine["read_bytes_per_s"] = rates.read;
    machine["int8_ops_per_s"] = rates.int8;
    machine["fp32_ops_per_s"] = rates.fp32;
  }
  return machine;
}

}  // namespace

std::vector<std::string> BenchNames() {
  return {"roofline",    "prefill@512",  "decode@0", "decode@4096",  "decode@8192",
          "append16@4096", "agents8",    "fork@4096", "restore@4000", "load",
          "rewrite"};
}

std::vector<std::string> BenchScaleNames() {
  return {"scale-context", "scale-sequences", "scale-threads"};
}

std::vector<std::string> BenchLongNames() { return {"soak", "switch8"}; }

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
    if (!name.IsScale()) {
      HOLDFAST_ASSIGN_OR_RETURN(Json result, BenchOne(run, name));
      results.push_back(std::move(result));
      continue;
    }
    HOLDFAST_ASSIGN_OR_RETURN(const ScaleResult scale, MeasureScale(run, name.text));
    Json result = JsonOf(scale);
    result["name"] = name.text;
    result["model"] = options.model_name;
    results.push_back(std::move(result));
    report.charts.push_back(ChartOf(scale, options.model_name));
  }
  report.document = {{"machine", MachineJson(run, with_model)}, {"results", std::move(results)}};
  return report;
}

}  // namespace holdfast

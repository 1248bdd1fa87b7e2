// bench NAME...
#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>

#include "api/bench.h"
#include "api/cli.h"

namespace holdfast {
namespace {

struct BenchFlags {
  std::vector<std::string> names, peers;  // peers: "llama.cpp=DIR"
  int reps = 5;
};

void PrintTable(const Json& report) {
  std::printf("%-16s %12s %-6s %10s %12s %7s\n", "BENCH", "VALUE", "UNIT", "LIMIT", "LLAMA.CPP",
              "RATIO");
  for (const Json& r : report["results"]) {
    const auto number = [](const Json& v, const char* format) {
      char text[32] = "-";
      if (v.is_number()) std::snprintf(text, sizeof(text), format, v.get<double>());
      return std::string(text);
    };
    const Json& peer = r["peers"].contains("llama.cpp") ? r["peers"]["llama.cpp"] : Json::object();
    const auto of_peer = [&](const char* key) { return peer.contains(key) ? peer[key] : Json(); };
    std::printf("%-16s %12s %-6s %10s %12s %7s\n", r["name"].get<std::string>().c_str(),
                number(r["value"], "%.2f").c_str(), r["unit"].get<std::string>().c_str(),
                number(r["limit"], "%.1f").c_str(), number(of_peer("value"), "%.2f").c_str(),
                number(of_peer("ratio"), "%.2f").c_str());
    if (r.contains("share_of_cold")) {
      std::printf("  cold %.0f ms; after the restart %.1f %% of it (%lld tokens restored)\n",
                  r["cold_ms"].get<double>(), 100 * r["share_of_cold"].get<double>(),
                  static_cast<long long>(r["tokens_restored"].get<int64_t>()));
    }
  }
}

int Bench(const CommonFlags& flags, const BenchFlags& bench) {
  if (bench.names == std::vector<std::string>{"list"}) {
    if (flags.json) {
      Json document;
      document["names"] = BenchNames();
      PrintJson(document);
    } else {
      for (const std::string& n : BenchNames()) std::cout << n << "\n";
    }
    return 0;
  }
  BenchOptions options;
  options.names = bench.names == std::vector<std::string>{"all"} ? BenchNames() : bench.names;
  options.reps = bench.reps;
  options.threads = flags.threads;
  options.model_name = ModelNameOf(flags);
  options.progress = ShowProgress;
  for (const std::string& p : bench.peers) {
    if (!p.starts_with("llama.cpp=")) {
      return Fail(flags, Status::Invalid("--peer must be llama.cpp=DIR"));
    }
    options.llama_cpp_dir = p.substr(p.find('=') + 1);
  }
  auto engine = EngineOptionsOf(flags);
  if (!engine.ok()) return Fail(flags, engine.status());
  options.engine = std::move(*engine);
  auto report = RunBench(options);
  ShowProgress("bench", 1);
  if (!report.ok()) return Fail(flags, report.status());
  flags.json ? PrintJson(*report) : PrintTable(*report);
  return 0;
}

}  // namespace

void AddBenchCommand(CLI::App& app, CommonFlags* flags, Command* chosen) {
  auto bench = std::make_shared<BenchFlags>();
  CLI::App* b = app.add_subcommand("bench", "Measure speed, beside a peer where one is given");
  AddCommonFlags(b, flags, false);
  b->add_option("names", bench->names, "decode@4096, ...; all; list")->required();
  b->add_option("--peer", bench->peers, "llama.cpp=DIR of its build");
  b->add_option("--reps", bench->reps, "Runs of each; the median counts")->check(CLI::Range(1, 99));
  b->callback([=] { *chosen = [=] { return Bench(*flags, *bench); }; });
}

}  // namespace holdfast

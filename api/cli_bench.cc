// bench NAME...
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <set>

#include "api/bench/bench.h"
#include "api/cli.h"

namespace holdfast {
namespace {

struct BenchFlags {
  std::vector<std::string> names, peers;  // peers: "llama.cpp=DIR"
  std::string plot;                       // a file, or ""
  int reps = 5;
};

std::string Formatted(const Json& v, const char* format, double factor) {
  char text[32] = "-";
  if (v.is_number()) std::snprintf(text, sizeof(text), format, v.get<double>() * factor);
  return text;
}

std::string Formatted(const Json& object, const char* key, const char* format, double factor = 1) {
  return Formatted(object.contains(key) ? object[key] : Json(), format, factor);
}

void PrintPoints(const Json& result, const std::set<std::string>& peers) {
  std::printf("  %s\n", result["x"].get<std::string>().c_str());
  for (const Json& p : result["points"]) {
    std::printf("  %-20s %10s ms %8s %6s %%", Formatted(p, "x", "%g").c_str(),
                Formatted(p, "value", "%.3f").c_str(), Formatted(p, "limit", "%.3f").c_str(),
                Formatted(p, "share", "%.0f", 100).c_str());
    for (const std::string& peer : peers) {
      std::printf(" %11s", Formatted(p["peers"], peer.c_str(), "%.3f").c_str());
    }
    std::printf("\n");
  }
}

void PrintSoak(const Json& soak) {
  for (const Json& p : soak["points"]) {
    std::printf("  minute %-6s %8s tok/s, %8s of prompts %8s MiB resident\n",
                Formatted(p, "minute", "%.1f").c_str(),
                Formatted(p, "tokens_per_s", "%.1f").c_str(),
                Formatted(p, "prompt_tokens_per_s", "%.1f").c_str(),
                Formatted(p, "resident_mib", "%.0f").c_str());
  }
  std::printf("  %s turns, %s failed; memory %s MiB per hour, speed %s %% per hour\n",
              soak["turns"].dump().c_str(), soak["failed"].dump().c_str(),
              Formatted(soak, "resident_mib_per_hour", "%+.1f").c_str(),
              Formatted(soak, "speed_change_per_hour", "%+.1f", 100).c_str());
  if (soak["error"].is_string()) {
    std::printf("  last failure: %s\n", soak["error"].get<std::string>().c_str());
  }
}

void PrintFigures(const Json& figures) {
  for (const Json& f : figures) {
    std::printf("  %-44s %10s %-8s", f["what"].get<std::string>().c_str(),
                Formatted(f, "value", "%.4g").c_str(), f["unit"].get<std::string>().c_str());
    for (const char* bound : {"most", "least"}) {
      if (f.contains(bound)) std::printf(" at %s %s", bound, Formatted(f, bound, "%.4g").c_str());
    }
    if (f.contains("met")) std::printf(f["met"].get<bool>() ? ": met" : ": MISSED");
    std::printf("\n");
  }
}

void PrintDetails(const Json& result, const std::set<std::string>& peers) {
  if (result.contains("figures")) PrintFigures(result["figures"]);
  if (result.contains("points")) PrintPoints(result, peers);
  if (result.contains("soak")) PrintSoak(result["soak"]);
  if (result.contains("share_of_cold")) {
    std::printf("  cold %.0f ms; after the restart %.1f %% of it (%lld tokens restored)\n",
                result["cold_ms"].get<double>(), 100 * result["share_of_cold"].get<double>(),
                static_cast<long long>(result["tokens_restored"].get<int64_t>()));
  }
  if (result.contains("same_tokens")) {
    std::printf("  %.2f x the speed without speculation (%.4g tok/s); %lld tokens, %s\n",
                result["speculation_ratio"].get<double>(),
                result["without_speculation"].get<double>(),
                static_cast<long long>(result["tokens"].get<int64_t>()),
                result["same_tokens"].get<bool>() ? "the same" : "NOT THE SAME");
  }
  if (result.contains("card")) {
    std::printf("  %s\n", result["card"].get<std::string>().c_str());
  }
  if (result.contains("context")) {
    std::printf("  measured at %lld tokens: more do not fit\n",
                static_cast<long long>(result["context"].get<int64_t>()));
  }
  for (const auto& [peer, figures] : result["peers"].items()) {
    if (!figures.contains("note")) continue;
    std::printf("  %s: %s\n", peer.c_str(), figures["note"].get<std::string>().c_str());
  }
}

void PrintTable(const Json& report) {
  std::set<std::string> peers;
  for (const Json& r : report["results"]) {
    for (const auto& [peer, figures] : r["peers"].items()) peers.insert(peer);
  }
  std::printf("%-22s %12s %-18s %10s %6s", "BENCH", "VALUE", "UNIT", "LIMIT", "SHARE");
  for (const std::string& peer : peers) std::printf(" %11s %6s", peer.c_str(), "RATIO");
  std::printf("\n");
  for (const Json& r : report["results"]) {
    std::printf("%-22s %12s %-18s %10s %5s%%", r["name"].get<std::string>().c_str(),
                Formatted(r, "value", "%.4g").c_str(), r["unit"].get<std::string>().c_str(),
                Formatted(r, "limit", "%.4g").c_str(), Formatted(r, "share", "%.0f", 100).c_str());
    for (const std::string& peer : peers) {
      const Json figures = r["peers"].contains(peer) ? r["peers"][peer] : Json::object();
      std::printf(" %11s %6s", Formatted(figures, "value", "%.4g").c_str(),
                  Formatted(figures, "ratio", "%.2f").c_str());
    }
    std::printf("\n");
    PrintDetails(r, peers);
  }
}

int ListNames(const CommonFlags& flags) {
  if (flags.json) {
    PrintJson({{"names", BenchNames()}, {"plots", BenchScaleNames()}, {"long", BenchLongNames()}});
    return 0;
  }
  for (const auto& names : {BenchNames(), BenchScaleNames(), BenchLongNames()}) {
    for (const std::string& n : names) std::cout << n << "\n";
  }
  return 0;
}

Status WritePlot(const std::string& path, const std::vector<Chart>& charts) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << PlotSvg(charts) << std::flush;
  return out ? Status() : Status::Io("cannot write " + path);
}

// The names to run: `all` stands for its own; --plot adds how cost grows where none named draws.
std::vector<std::string> NamesOf(const BenchFlags& bench) {
  std::vector<std::string> names;
  for (const std::string& n : bench.names) {
    const auto all = n == "all" ? BenchNames() : std::vector<std::string>{n};
    names.insert(names.end(), all.begin(), all.end());
  }
  if (!bench.plot.empty() && std::none_of(bench.names.begin(), bench.names.end(), BenchDraws)) {
    const auto more = BenchScaleNames();
    names.insert(names.end(), more.begin(), more.end());
  }
  return names;
}

Result<BenchReport> RunNamed(const CommonFlags& flags, const BenchFlags& bench) {
  BenchOptions options;
  options.names = NamesOf(bench);
  if (options.names.empty()) return Status::Invalid("bench: no name; see holdfast bench list");
  options.program = "/proc/self/exe";
  options.reps = bench.reps;
  options.model_name = ModelNameOf(flags);
  options.progress = ShowProgress;
  for (const std::string& text : bench.peers) {
    HOLDFAST_ASSIGN_OR_RETURN(options.peers.emplace_back(), ParsePeer(text));
  }
  if (std::any_of(options.names.begin(), options.names.end(), BenchNeedsModel)) {
    HOLDFAST_ASSIGN_OR_RETURN(options.engine, EngineOptionsOf(flags));
  } else {
    options.engine.cpu = {flags.threads, flags.cpu};
  }
  auto report = RunBench(options);
  ShowProgress("bench", 1);
  return report;
}

int Bench(const CommonFlags& flags, const BenchFlags& bench) {
  if (bench.names == std::vector<std::string>{"list"}) return ListNames(flags);
  const auto report = RunNamed(flags, bench);
  if (!report.ok()) return Fail(flags, report.status());
  flags.json ? PrintJson(report->document) : PrintTable(report->document);
  if (bench.plot.empty()) return 0;
  const Status written = WritePlot(bench.plot, report->charts);
  return written.ok() ? 0 : Fail(flags, written);
}

}  // namespace

void AddBenchCommand(CLI::App& app, CommonFlags* flags, Command* chosen) {
  auto bench = std::make_shared<BenchFlags>();
  CLI::App* b = app.add_subcommand("bench", "Measure speed, beside peers where they are given");
  AddCommonFlags(b, flags, false);
  b->add_option("names", bench->names, "decode@4096, ...; all; list");
  b->add_option("--peer", bench->peers,
                "llama.cpp=DIR or ik_llama=DIR of its build; may be given again");
  b->add_option("--reps", bench->reps, "Runs of each; the median counts")->check(CLI::Range(1, 99));
  b->add_option("--plot", bench->plot, "Draw charts into this SVG file");
  b->callback([=] { *chosen = [=] { return Bench(*flags, *bench); }; });
}

}  // namespace holdfast

// pull, tokenize, verify, eval, doctor.
#include <sys/statvfs.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>

#include "api/bench/plot.h"
#include "api/cli.h"
#include "api/pull.h"
#include "engine/base/memory.h"
#include "engine/model/perplexity.h"
#include "engine/store/data_dir.h"
#include "stitcher/verify.h"

namespace holdfast {
namespace {

Result<std::string> ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return Status::Io("cannot read " + path);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

// A model with its backend, without the engine's thread.
struct LoadedModel {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Model> model;
};

Result<LoadedModel> LoadModelOf(const CommonFlags& flags, KvType kv_type) {
  LoadedModel loaded;
  HOLDFAST_ASSIGN_OR_RETURN(const std::string path, ModelPathOf(flags));
  HOLDFAST_ASSIGN_OR_RETURN(loaded.backend, MakeCpuBackend({flags.threads, flags.cpu}));
  LoadOptions options;
  options.kv_type = kv_type;
  options.threads = flags.threads;
  options.progress = [](double f) { ShowProgress("loading", f); };
  HOLDFAST_ASSIGN_OR_RETURN(loaded.model, Model::Load(path, *loaded.backend, options));
  ShowProgress("loading", 1);
  return loaded;
}

int Pull(const CommonFlags& flags, const std::string& name) {
  auto pulled = PullModel(name, ModelsDir(), ShowProgress);
  ShowProgress(name, 1);
  if (!pulled.ok()) return Fail(flags, pulled.status());
  if (flags.json) {
    PrintJson({{"name", pulled->name}, {"path", pulled->path}, {"sha256", pulled->sha256}});
  } else {
    std::cout << pulled->path << std::endl;
  }
  return 0;
}

int Tokenize(const CommonFlags& flags, const std::string& file) {
  auto text = ReadFile(file);
  if (!text.ok()) return Fail(flags, text.status());
  auto path = ModelPathOf(flags);
  if (!path.ok()) return Fail(flags, path.status());
  auto tokenizer = LoadTokenizer(*path);
  if (!tokenizer.ok()) return Fail(flags, tokenizer.status());
  auto tokens = (*tokenizer)->EncodePlain(*text);
  if (!tokens.ok()) return Fail(flags, tokens.status());
  if (flags.json) {
    Json document;
    document["tokens"] = *tokens;
    PrintJson(document);
    return 0;
  }
  for (TokenId t : *tokens) {
    std::cout << t << "\t" << DumpJson((*tokenizer)->TokenText(t)) << "\n";
  }
  return 0;
}

Json VerifyJson(const VerifyReport& report) {
  Json rungs = Json::object();
  for (const RungResult& r : report.rungs) {
    rungs[r.name] = {{"pass", r.pass}, {"cases", r.cases}, {"detail", r.detail}};
    if (!r.points.empty()) rungs[r.name]["points"] = r.points;
  }
  return {{"numerics_digest", report.numerics_digest.Hex()},
          {"numerics_version", kNumericsVersion},
          {"cpu", report.cpu},
          {"pass", report.pass()},
          {"rungs", std::move(rungs)}};
}

// A folder of our own that goes away with us.
class ScratchDir {
 public:
  ScratchDir()
      : path_(std::filesystem::temp_directory_path() / ("holdfast-" + std::to_string(getpid()))) {
    std::filesystem::create_directories(path_);
  }
  ~ScratchDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

// E7 as a chart.
Status PlotVerify(const VerifyReport& report, const std::string& model, const std::string& path) {
  std::vector<Chart> charts;
  for (const RungResult& r : report.rungs) {
    if (r.points.empty()) continue;
    charts.push_back({r.name + ": what a moved run costs (" + model + ")",
                      "share of the run computed again, %", "mean KL, nats per token",
                      {{"random tokens", ChartSeries::Style::kLine, r.points}}});
  }
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << PlotSvg(charts) << std::flush;
  return out ? Status() : Status::Io("cannot write " + path);
}

int Verify(const CommonFlags& flags, int tokens, const std::string& plot) {
  auto loaded = LoadModelOf(flags, KvTypeOf(flags));
  if (!loaded.ok()) return Fail(flags, loaded.status());
  LoadedModel wide;
  if (KvTypeOf(flags) != KvType::kF32) {
    auto other = LoadModelOf(flags, KvType::kF32);
    if (!other.ok()) return Fail(flags, other.status());
    wide = std::move(*other);
  }
  std::vector<std::unique_ptr<Backend>> others;
  std::vector<Backend*> borrowed;
  for (int threads : {1, 3}) {
    auto backend = MakeCpuBackend({threads, std::string(loaded->backend->name())});
    if (!backend.ok()) return Fail(flags, backend.status());
    borrowed.push_back(backend->get());
    others.push_back(std::move(*backend));
  }
  const ScratchDir scratch;
  VerifyOptions options;
  options.scratch_dir = scratch.path();
  options.prompt_tokens = tokens;
  options.f32_kv = wide.model.get();
  options.progress = [](const std::string& rung, int done, int total) {
    ShowProgress(rung, total > 0 ? static_cast<double>(done) / (total + 1) : 0);
  };
  auto report = RunVerify(*loaded->model, *loaded->backend, borrowed, options);
  ShowProgress("verify", 1);
  if (!report.ok()) return Fail(flags, report.status());
  if (!plot.empty()) {
    const Status drawn = PlotVerify(*report, ModelNameOf(flags), plot);
    if (!drawn.ok()) return Fail(flags, drawn);
  }
  if (flags.json) {
    PrintJson(VerifyJson(*report));
  } else {
    std::cout << ModelNameOf(flags) << " on " << report->cpu << ", numerics "
              << report->numerics_digest.Hex().substr(0, 16) << "\n";
    for (const RungResult& r : report->rungs) {
      std::printf("  %s  %-4s %3d cases  %s\n", r.name.c_str(), r.pass ? "pass" : "FAIL", r.cases,
                  r.detail.c_str());
    }
  }
  return report->pass() ? 0 : 1;
}

PerplexityOptions EvalOptions(const char* figure, int window) {
  PerplexityOptions options;
  options.window = window;
  options.progress = [figure](const PerplexityProgress& p) {
    char what[64];
    std::snprintf(what, sizeof(what), "%s %.6g", figure, p.figure);
    ShowProgress(what, p.windows > 0 ? static_cast<double>(p.windows_done) / p.windows : 1);
  };
  return options;
}

int EvalPerplexity(const CommonFlags& flags, const std::string& file, int window) {
  auto text = ReadFile(file);
  if (!text.ok()) return Fail(flags, text.status());
  auto loaded = LoadModelOf(flags, KvTypeOf(flags));
  if (!loaded.ok()) return Fail(flags, loaded.status());
  auto result =
      MeasureTextPerplexity(*loaded->model, *text, EvalOptions("perplexity", window));
  ShowProgress("perplexity", 1);
  if (!result.ok()) return Fail(flags, result.status());
  if (flags.json) {
    PrintJson({{"perplexity", result->perplexity},
               {"tokens", result->tokens},
               {"windows", result->windows},
               {"ctx", window}});
  } else {
    std::printf("perplexity %.4f over %lld tokens (%lld windows of %d)\n", result->perplexity,
                static_cast<long long>(result->tokens), static_cast<long long>(result->windows),
                window);
  }
  return 0;
}

// What --kv-type costs: the model with its KV so stored, against itself with F16 KV.
int EvalKl(const CommonFlags& flags, const std::string& file, int window) {
  auto text = ReadFile(file);
  if (!text.ok()) return Fail(flags, text.status());
  auto plain = LoadModelOf(flags, KvType::kF16);
  if (!plain.ok()) return Fail(flags, plain.status());
  auto other = LoadModelOf(flags, KvTypeOf(flags));
  if (!other.ok()) return Fail(flags, other.status());
  auto result =
      MeasureTextDivergence(*plain->model, *other->model, *text, EvalOptions("KL", window));
  ShowProgress("KL", 1);
  if (!result.ok()) return Fail(flags, result.status());
  if (flags.json) {
    PrintJson({{"kv_type", flags.kv_type},
               {"kl", result->mean_kl},
               {"kl_half_width", result->half_width},
               {"kl_largest", result->largest_kl},
               {"same_top", result->same_top},
               {"tokens", result->tokens},
               {"windows", result->windows},
               {"ctx", window}});
  } else {
    std::printf("KL %.6f +- %.6f nats (largest %.4f), same first choice %.2f %%, over %lld tokens "
                "(%lld windows of %d)\n", result->mean_kl, result->half_width, result->largest_kl,
                100 * result->same_top, static_cast<long long>(result->tokens),
                static_cast<long long>(result->windows), window);
  }
  return 0;
}

// One thing that doctor looks at.
struct Check {
  std::string name;
  bool good = true;
  std::string detail;
};

Check CheckCpu(const CommonFlags& flags) {
  auto backend = MakeCpuBackend({flags.threads, flags.cpu});
  if (!backend.ok()) return {"cpu", false, backend.status().message()};
  const std::string digest = ComputeNumericsDigest(**backend).all.Hex();
  return {"cpu", true, std::string((*backend)->name()) + ", numerics digest " + digest};
}

Check CheckMemory() {
  const size_t bytes = AvailableMemory();
  return {"memory", bytes > (size_t{1} << 30), std::to_string(bytes >> 20) + " MiB free"};
}

Check CheckDataDir(const CommonFlags& flags) {
  const std::string path = DataDirOf(flags);
  auto dir = DataDir::Open(path, DataDir::Mode::kCreate);
  if (!dir.ok()) return {"data", false, dir.status().message()};
  struct statvfs disk {};
  if (statvfs(path.c_str(), &disk) != 0) return {"data", false, path + ": cannot ask for its disk"};
  const uint64_t free_mib = disk.f_bavail * disk.f_frsize >> 20;
  return {"data", free_mib > 1024, path + ", " + std::to_string(free_mib) + " MiB free"};
}

Check CheckModel(const CommonFlags& flags) {
  for (const KnownModel& m : KnownModels()) {
    if (m.name != flags.model) continue;
    const std::string path = ModelsDir() + "/" + m.name + ".gguf";
    std::error_code ec;
    if (std::filesystem::exists(path, ec)) return {"model", true, path};
    return {"model", true, flags.model + " is not here yet: holdfast pull " + flags.model};
  }
  std::error_code ec;
  const bool there = std::filesystem::exists(flags.model, ec);
  return {"model", there, there ? flags.model : "no file " + flags.model};
}

int Doctor(const CommonFlags& flags) {
  const std::vector<Check> checks = {CheckCpu(flags), CheckMemory(), CheckDataDir(flags),
                                     CheckModel(flags)};
  bool good = true;
  Json list = Json::array();
  for (const Check& c : checks) {
    good = good && c.good;
    list.push_back({{"name", c.name}, {"good", c.good}, {"detail", c.detail}});
    if (!flags.json) {
      std::printf("%-7s %-4s %s\n", c.name.c_str(), c.good ? "good" : "BAD", c.detail.c_str());
    }
  }
  if (flags.json) PrintJson({{"good", good}, {"checks", std::move(list)}});
  return good ? 0 : 1;
}

}  // namespace

void AddToolCommands(CLI::App& app, CommonFlags* flags, Command* chosen) {
  auto text = std::make_shared<std::string>();
  auto number = std::make_shared<int>(0);

  CLI::App* pull = app.add_subcommand("pull", "Fetch a model by name or URL");
  pull->add_option("name", *text, "Name, path or URL")->required();
  pull->add_flag("--json", flags->json, "One JSON document on standard output");
  pull->callback([=] { *chosen = [=] { return Pull(*flags, *text); }; });

  CLI::App* tokenize = app.add_subcommand("tokenize", "Token ids of a plain text file");
  AddCommonFlags(tokenize, flags, false);
  tokenize->add_option("--file", *text, "The file")->required();
  tokenize->callback([=] { *chosen = [=] { return Tokenize(*flags, *text); }; });

  CLI::App* verify = app.add_subcommand("verify", "Check the laws of exactness on this machine");
  AddCommonFlags(verify, flags, false);
  verify->add_option("--tokens", *number, "Tokens of the longest prompt (default 200)")
      ->check(CLI::Range(96, 4096));
  verify->add_option("--plot", *text, "Draw E7 into this SVG file");
  verify->callback([=] {
    *chosen = [=] { return Verify(*flags, *number == 0 ? 200 : *number, *text); };
  });

  CLI::App* eval = app.add_subcommand("eval", "Measure the quality of a model");
  eval->require_subcommand(1);
  const auto add_eval = [&](const char* name, const char* what, auto run) {
    CLI::App* command = eval->add_subcommand(name, what);
    AddCommonFlags(command, flags, false);
    command->add_option("--file", *text, "The text")->required();
    command->add_option("--ctx", *number, "Tokens of a window (default 512)")
        ->check(CLI::Range(4, 1 << 20));
    command->callback(
        [=] { *chosen = [=] { return run(*flags, *text, *number == 0 ? 512 : *number); }; });
  };
  add_eval("perplexity", "Perplexity on a text", EvalPerplexity);
  add_eval("kl", "How far --kv-type departs from f16 KV on a text", EvalKl);

  CLI::App* doctor = app.add_subcommand("doctor", "Look at what Holdfast needs on this machine");
  AddCommonFlags(doctor, flags, true);
  doctor->callback([=] { *chosen = [=] { return Doctor(*flags); }; });
}

}  // namespace holdfast

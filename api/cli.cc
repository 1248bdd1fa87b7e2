#include "api/cli.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>

#include "api/api_error.h"
#include "api/pull.h"

namespace holdfast {
namespace {

constexpr const char* kVersion = "0.1.0";
constexpr int kBarWidth = 30;
constexpr std::chrono::seconds kProgressLineEvery{10};
constexpr int kUsage = 2;

}  // namespace

void AddCommonFlags(CLI::App* command, CommonFlags* flags, bool with_data) {
  command->add_option("--model", flags->model, "A model's name, path or URL")
      ->envname("HOLDFAST_MODEL")
      ->capture_default_str();
  command->add_option("--threads", flags->threads, "Compute threads (default: one per core)")
      ->envname("HOLDFAST_THREADS")
      ->check(CLI::Range(0, 256));
  command->add_option("--cpu", flags->cpu, "avx512, avx2, neon, portable or reference")
      ->envname("HOLDFAST_CPU");
  command->add_option("--kv-memory", flags->kv_memory, "Memory for KV pages, like 2GiB")
      ->envname("HOLDFAST_KV_MEMORY");
    command->add_flag("--no-speculation", flags->no_speculation, "Decode without draft tokens")
        ->envname("HOLDFAST_NO_SPECULATION");
    command->add_option("--kv-type", flags->kv_type, "How K is stored: f16, i8 or f32 (for tests)")
        ->envname("HOLDFAST_KV_TYPE")
        ->check(CLI::IsMember({"f16", "i8", "f32"}))
        ->capture_default_str();
  command->add_flag("--json", flags->json, "One JSON document on standard output");
  if (with_data) {
    command->add_option("--data", flags->data, "Data folder (default: $XDG_DATA_HOME/holdfast)")
        ->envname("HOLDFAST_DATA");
  }
}

int Fail(const CommonFlags& flags, const Status& status) {
  if (flags.json) {
    std::cout << ErrorJson(ErrorOf(status)) << std::endl;
  }
  std::cerr << "holdfast: " << status.message() << std::endl;
  return 1;
}

void PrintJson(const Json& document) { std::cout << DumpJson(document) << std::endl; }

std::string DataDirOf(const CommonFlags& flags) {
  if (!flags.data.empty()) return flags.data;
  const char* xdg = std::getenv("XDG_DATA_HOME");
  if (xdg != nullptr && *xdg != '\0') return std::string(xdg) + "/holdfast";
  const char* home = std::getenv("HOME");
  return std::string(home != nullptr ? home : ".") + "/.local/share/holdfast";
}

Result<std::string> ModelPathOf(const CommonFlags& flags) {
  HOLDFAST_ASSIGN_OR_RETURN(PulledModel pulled, PullModel(flags.model, ModelsDir(), ShowProgress));
  return pulled.path;
}

std::string ModelNameOf(const CommonFlags& flags) {
  return std::filesystem::path(flags.model).extension() == ".gguf"
             ? std::filesystem::path(flags.model).stem().string()
             : flags.model;
}

Result<size_t> ParseBytes(const std::string& text) {
  if (text.empty()) return size_t{0};
  double number = 0;
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, number);
  const std::string unit(parsed.ptr, end);
  const std::pair<const char*, double> kUnits[] = {
      {"", 1},         {"B", 1},         {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30},
      {"TiB", 0x1p40}, {"K", 0x1p10},    {"M", 0x1p20},   {"G", 0x1p30},   {"kB", 1e3},
      {"MB", 1e6},     {"GB", 1e9},
  };
  for (const auto& [name, factor] : kUnits) {
    if (unit == name && parsed.ec == std::errc() && number >= 0 && number * factor < 0x1p60) {
      return static_cast<size_t>(number * factor);
    }
  }
  return Status::Invalid("'" + text + "' is not a size like 512MiB or 2GiB");
}

KvType KvTypeOf(const CommonFlags& flags) {
  for (KvType type : {KvType::kI8, KvType::kF32}) {
    if (flags.kv_type == KvTypeName(type)) return type;
  }
  return KvType::kF16;
}

Result<EngineOptions> EngineOptionsOf(const CommonFlags& flags) {
  EngineOptions options;
  HOLDFAST_ASSIGN_OR_RETURN(options.kv_bytes, ParseBytes(flags.kv_memory));
  options.speculate = !flags.no_speculation;
  HOLDFAST_ASSIGN_OR_RETURN(options.model_path, ModelPathOf(flags));
  options.kv_type = KvTypeOf(flags);
  options.cpu.threads = flags.threads;
  options.cpu.level = flags.cpu;
  options.progress = [](double fraction) { ShowProgress("loading", fraction); };
  return options;
}

void ShowProgress(const std::string& what, double fraction) {
  static const bool terminal = isatty(STDERR_FILENO) != 0;
  if (!terminal) {
    static auto last = std::chrono::steady_clock::now();
    const auto now = std::chrono::steady_clock::now();
    if (now - last < kProgressLineEvery) return;
    last = now;
    std::fprintf(stderr, "%3.0f %% %s\n", fraction * 100, what.c_str());
    return;
  }
  const int filled = static_cast<int>(std::lround(fraction * kBarWidth));
  std::string bar(static_cast<size_t>(std::clamp(filled, 0, kBarWidth)), '#');
  bar.resize(kBarWidth, '.');
  std::fprintf(stderr, "\r\x1b[K%s %3.0f %% %s%s", bar.c_str(), fraction * 100, what.c_str(),
               fraction >= 1 ? "\r\x1b[K" : "");
  std::fflush(stderr);
}

int RunCli(int argc, char** argv) {
  CLI::App app{"Holdfast: an agent session memory runtime", "holdfast"};
  app.set_version_flag("--version", kVersion);
  app.set_config("--config", "", "A TOML file with flags by command");
  app.require_subcommand(1);
  CommonFlags flags;
  Command chosen;
  AddServeCommands(app, &flags, &chosen);
  AddToolCommands(app, &flags, &chosen);
  AddCalibrateCommand(app, &flags, &chosen);
  AddSessionCommands(app, &flags, &chosen);
  AddReplayCommand(app, &flags, &chosen);
  AddBenchCommand(app, &flags, &chosen);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    const int code = app.exit(e);
    return code == 0 ? 0 : kUsage;
  }
  return chosen();
}

}  // namespace holdfast

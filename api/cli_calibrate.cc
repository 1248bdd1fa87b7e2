// calibrate: measures what reuse costs on the user's own model and writes its card.
#include <CLI/CLI.hpp>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <memory>
#include <vector>

#include "api/card_json.h"
#include "api/cli.h"
#include "stitcher/calibrate.h"

namespace holdfast {
namespace {

struct CalibrateFlags {
  int contexts = 0;  // of each edit; 0 = the sweep's own
  double minutes = 60;
  bool is_quick = false, only_shows = false;
  std::vector<std::string> text;  // files or folders
};

volatile std::sig_atomic_t interrupted = 0;

void PrintCard(const ModelCard& card) {
  std::printf("%s, %s KV, %d contexts of each edit, prompts up to %lld tokens, up to %d runs of at "
              "least %lld\n\n",
              card.name.c_str(), card.kv_type.c_str(), card.contexts,
              static_cast<long long>(card.max_context), card.max_runs,
              static_cast<long long>(card.min_tokens));
  std::printf("%-11s %7s %5s %7s  %-14s %4s %9s %9s %9s %7s %6s\n", "KIND", "TOKENS", "RUNS",
              "SHIFT", "SETTING", "N", "MEAN KL", "UPPER", "BOUND", "TOP-1", "ROWS");
  for (const CardCell& c : card.cells) {
    char setting[32];
    std::snprintf(setting, sizeof(setting), "link %d, %d %%", c.setting.link, c.setting.windows);
    std::printf("%-11s >=%5lld >=%3lld >=%5lld  %-14s %4d %9.5f %9.5f %9.5f %6.2f%% %5.1f%%\n",
                CardKindName(c.kind), static_cast<long long>(kCardTokens[c.tokens]),
                static_cast<long long>(kCardRuns[c.runs]),
                static_cast<long long>(kCardShift[c.shift]), setting, c.kl.contexts, c.kl.mean,
                c.kl.mean_upper, c.kl.bound, 100 * c.kl.top1, 100 * c.kl.rows);
  }
}

Result<std::unique_ptr<Model>> Load(const CommonFlags& flags, Backend& backend) {
  HOLDFAST_ASSIGN_OR_RETURN(const std::string path, ModelPathOf(flags));
  LoadOptions options;
  options.kv_type = KvTypeOf(flags);
  options.threads = flags.threads;
  options.progress = [](double f) { ShowProgress("loading", f); };
  auto model = Model::Load(path, backend, options);
  ShowProgress("loading", 1);
  return model;
}

// Trials until the sweep, the time or the user's patience ends.
Result<ModelCard> Measure(const CommonFlags& flags, const CalibrateFlags& calibrate, Model& model) {
  using Clock = std::chrono::steady_clock;
  SweepOptions sweep = CardSweep(calibrate.is_quick ? SweepSize::kQuick : SweepSize::kWhole);
  if (calibrate.contexts > 0) sweep.contexts = calibrate.contexts;
  std::vector<TextFile> texts;
  if (!calibrate.text.empty()) {
    HOLDFAST_ASSIGN_OR_RETURN(texts, ReadTextFiles(calibrate.text));
    sweep.texts = texts;
  }
  std::vector<Trial> trials;
  const auto start = Clock::now();
  sweep.on_trial = [&](const Trial& t) { trials.push_back(t); };
  sweep.go_on = [&](double fraction) {
    const double minutes = std::chrono::duration<double>(Clock::now() - start).count() / 60;
    char what[64] = "calibrating";
    if (fraction > 0) {
      std::snprintf(what, sizeof(what), "calibrating, %.0f min more",
                    std::min(minutes / fraction, calibrate.minutes) - minutes);
    }
    ShowProgress(what, std::min(fraction, 0.999));
    return interrupted == 0 && minutes < calibrate.minutes;
  };
  std::signal(SIGINT, [](int) { interrupted = 1; });
  const Status status = RunSweep(model, nullptr, sweep);
  std::signal(SIGINT, SIG_DFL);
  ShowProgress("calibrating", 1);
  HOLDFAST_RETURN_IF_ERROR(status);
  ModelCard card = MakeCard(model.fingerprint(), ModelNameOf(flags), flags.kv_type, trials);
  if (!card.cells.empty()) return card;
  return Status::Exhausted("calibrate: stopped before " + std::to_string(kCardMinContexts) +
                           " contexts of one kind were measured; no card was written");
}

Result<ModelCard> MeasureOrFind(const CommonFlags& flags, const CalibrateFlags& calibrate,
                                std::string* path) {
  HOLDFAST_ASSIGN_OR_RETURN(const auto backend, MakeCpuBackend({flags.threads, flags.cpu}));
  HOLDFAST_ASSIGN_OR_RETURN(const auto model, Load(flags, *backend));
  if (calibrate.only_shows) {
    HOLDFAST_ASSIGN_OR_RETURN(auto card, FindCard(DataDirOf(flags), model->fingerprint()));
    if (card) return std::move(*card);
    return Status::NotFound("calibrate: there is no card for " + ModelNameOf(flags) + " with " +
                            flags.kv_type + " KV; run holdfast calibrate");
  }
  HOLDFAST_ASSIGN_OR_RETURN(ModelCard card, Measure(flags, calibrate, *model));
  HOLDFAST_ASSIGN_OR_RETURN(*path, SaveCard(DataDirOf(flags), card));
  return card;
}

int Calibrate(const CommonFlags& flags, const CalibrateFlags& calibrate) {
  std::string path;
  const auto card = MeasureOrFind(flags, calibrate, &path);
  if (!card.ok()) return Fail(flags, card.status());
  if (flags.json) {
    Json document = CardJson(*card);
    if (!path.empty()) document["path"] = path;
    PrintJson(document);
    return 0;
  }
  PrintCard(*card);
  if (!path.empty()) std::cout << "\nwritten to " << path << std::endl;
  return 0;
}

}  // namespace

void AddCalibrateCommand(CLI::App& app, CommonFlags* flags, Command* chosen) {
  auto calibrate = std::make_shared<CalibrateFlags>();
  CLI::App* command =
      app.add_subcommand("calibrate", "Measure what reuse of KV costs, and write the model's card");
  AddCommonFlags(command, flags, true);
  command->add_option("--contexts", calibrate->contexts,
                      "Contexts of each of 8 edits (default 12; --quick: 4 of 4 edits). One of "
                      "each takes about a minute at 135M, six at 0.5B on two cores")
      ->check(CLI::Range(1, 10000));
  command->add_option("--minutes", calibrate->minutes, "Stop then, with what was measured")
      ->check(CLI::Range(0.1, 10000.0))
      ->capture_default_str();
  command->add_option("--text", calibrate->text,
                      "Files or folders whose text the contexts are made of (default: made-up "
                      "tables, logs and prose). May be given again");
  command->add_flag("--quick", calibrate->is_quick, "Few edits, few settings");
  command->add_flag("--show", calibrate->only_shows, "Show the card that there is");
  command->callback([=] { *chosen = [=] { return Calibrate(*flags, *calibrate); }; });
}

}  // namespace holdfast

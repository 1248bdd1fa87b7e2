// Measures what reuse of KV costs in quality, and writes stitcher/QUALITY.md, its figure and the
// models' cards from all that was measured so far:
//
//   quality_bench [--records DIR] [--out DIR] [--contexts N] [--tasks N] [--minutes M]
//                 [--threads T] [--cpu LEVEL] [--edits A1,B512,...] [--methods rot,link32,...]
//                 [--text PATH,...] MODEL.gguf...
//
// --text: files or folders whose text contexts and tasks are made of, in place of made-up text;
// keep its records in a folder of their own.
// For each model: N more contexts of each edit and N more instances of each task, as far as M
// minutes go (0: none, only the report). A trial is a line in --records as soon as it is done.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "stitcher/calibrate.h"
#include "tests/bench/quality/records.h"
#include "tests/bench/quality/report.h"

using namespace holdfast;

namespace {

struct Arguments {
  std::map<std::string, std::string> flags = {
      {"records", "build/quality"}, {"out", "stitcher"}, {"contexts", "0"}, {"tasks", "0"},
      {"minutes", "1000000"},       {"threads", "0"},    {"cpu", ""},       {"edits", ""},
      {"methods", ""},          {"text", ""}};
  std::vector<std::string> models;

  int Number(const char* name) const { return std::atoi(flags.at(name).c_str()); }
  std::vector<std::string> List(const char* flag) const {
    std::vector<std::string> out;
    std::istringstream in(flags.at(flag));
    for (std::string item; std::getline(in, item, ',');) out.push_back(item);
    return out;
  }
  // Whether a list flag names it, or names nothing.
  bool Wants(const char* flag, const std::string& name) const {
    const auto list = List(flag);
    return list.empty() || std::find(list.begin(), list.end(), name) != list.end();
  }
};

bool Parse(int argc, char** argv, Arguments* out) {
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (!arg.starts_with("--")) {
      out->models.push_back(arg);
    } else if (i + 1 < argc && out->flags.contains(arg.substr(2))) {
      out->flags[arg.substr(2)] = argv[++i];
    } else {
      return false;
    }
  }
  return !out->models.empty();
}

Result<std::unique_ptr<Model>> Load(const std::string& path, Backend& backend, KvType type) {
  LoadOptions options;
  options.kv_type = type;
  return Model::Load(path, backend, options);
}

Status MeasureModel(const Arguments& arguments, std::span<const TextFile> texts,
                    const std::string& name, Model& model, Model* other) {
  using Clock = std::chrono::steady_clock;
  const std::string dir = arguments.flags.at("records");
  const ModelRecords before = ReadRecords(dir, name);
  const auto start = Clock::now();
  const auto in_time = [&] {
    return std::chrono::duration<double>(Clock::now() - start).count() <
           60.0 * arguments.Number("minutes");
  };
  SweepOptions sweep = QualitySweep();
  sweep.first_seed = before.next_seed();
  sweep.contexts = arguments.Number("contexts");
  std::erase_if(sweep.edits, [&](ContextEdit edit) {
    return !arguments.Wants("edits", ContextEditName(edit));
  });
  std::erase_if(sweep.methods, [&](const ReuseMethod& m) {
    return !arguments.Wants("methods", m.name);
  });
  sweep.texts = texts;
  sweep.go_on = [&](double) { return in_time(); };
  sweep.on_trial = [&](const Trial& t) {
    AppendRecord(dir, name, t);
    std::fprintf(stderr, "%s %-5s %3d %-14s %5lld tokens, %2d runs: KL %.6f, %d of %d, rows %.3f\n",
                 name.c_str(), t.edit.c_str(), static_cast<int>(t.seed), t.method.c_str(),
                 static_cast<long long>(t.context), t.runs, t.kl, t.same_top, t.tokens, t.rows);
  };
  HOLDFAST_RETURN_IF_ERROR(RunSweep(model, other, sweep));
  TaskOptions tasks;
  tasks.first_seed = before.next_task_seed();
  tasks.instances = arguments.Number("tasks");
  tasks.texts = texts;
  tasks.go_on = in_time;
  tasks.on_result = [&](const TaskResult& t) {
    AppendRecord(dir, name, t);
    std::fprintf(stderr, "%s task %s, %s, %s: %.2f of %.2f\n", name.c_str(), t.category.c_str(),
                 t.edit.c_str(), t.method.c_str(), t.score, t.full_score);
  };
  return RunTasks(model, tasks);
}

Status MeasureAndReport(const Arguments& arguments) {
  HOLDFAST_ASSIGN_OR_RETURN(
      const auto backend,
      MakeCpuBackend({arguments.Number("threads"), arguments.flags.at("cpu")}));
  std::vector<TextFile> texts;
  if (const auto paths = arguments.List("text"); !paths.empty()) {
    HOLDFAST_ASSIGN_OR_RETURN(texts, ReadTextFiles(paths));
  }
  std::vector<MeasuredModel> measured;
  for (const std::string& path : arguments.models) {
    const std::string name = std::filesystem::path(path).stem().string();
    HOLDFAST_ASSIGN_OR_RETURN(auto model, Load(path, *backend, KvType::kF16));
    if (arguments.Number("contexts") > 0 || arguments.Number("tasks") > 0) {
      std::unique_ptr<Model> other;
      if (arguments.Wants("methods", "f32 KV")) {
        HOLDFAST_ASSIGN_OR_RETURN(other, Load(path, *backend, KvType::kF32));
      }
      HOLDFAST_RETURN_IF_ERROR(MeasureModel(arguments, texts, name, *model, other.get()));
    }
    MeasuredModel& m = measured.emplace_back();
    m.records = ReadRecords(arguments.flags.at("records"), name);
    m.card = MakeCard(model->fingerprint(), name, "f16", m.records.trials);
  }
  return WriteReport(arguments.flags.at("out"), arguments.flags.at("text"), measured);
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  if (!Parse(argc, argv, &arguments)) {
    std::fprintf(stderr, "usage: quality_bench [--records DIR] [--out DIR] [--contexts N] "
                         "[--tasks N] [--minutes M] [--threads T] [--cpu LEVEL] [--edits A1,B512,...] "
                         "[--methods rot,link32,...] [--text PATH,...] MODEL.gguf...\n");
    return 2;
  }
  const Status status = MeasureAndReport(arguments);
  if (status.ok()) return 0;
  std::fprintf(stderr, "quality_bench: %s\n", status.message().c_str());
  return 1;
}

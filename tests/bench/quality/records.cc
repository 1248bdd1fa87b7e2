#include "tests/bench/quality/records.h"

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "api/card_json.h"

namespace holdfast {
namespace {

std::string PathOf(const std::string& dir, const std::string& name, const char* what) {
  return dir + "/" + name + "." + what + ".jsonl";
}

void AppendLine(const std::string& dir, const std::string& path, const Json& json) {
  std::error_code ignored;
  std::filesystem::create_directories(dir, ignored);
  std::ofstream(path, std::ios::app) << DumpJson(json) << "\n" << std::flush;
}

Json TaskJson(const TaskResult& t) {
  return {{"category", t.category}, {"edit", t.edit},     {"seed", t.seed},
          {"method", t.method},     {"score", t.score},   {"full_score", t.full_score},
          {"answer", t.answer},     {"rows", t.rows}};
}

bool ReadTask(const std::string& line, TaskResult* t) {
  const auto json = ParseJson(line);
  if (!json.ok() || !json->contains("rows")) return false;
  t->category = (*json)["category"];
  t->edit = (*json)["edit"];
  t->seed = (*json)["seed"];
  t->method = (*json)["method"];
  t->score = (*json)["score"];
  t->full_score = (*json)["full_score"];
  t->answer = (*json)["answer"];
  t->rows = (*json)["rows"];
  return true;
}

template <typename T>
uint64_t After(const std::vector<T>& all) {
  uint64_t next = 1;
  for (const T& one : all) next = std::max(next, one.seed + 1);
  return next;
}

}  // namespace

uint64_t ModelRecords::next_seed() const { return After(trials); }
uint64_t ModelRecords::next_task_seed() const { return After(tasks); }

ModelRecords ReadRecords(const std::string& dir, const std::string& name) {
  ModelRecords records;
  records.name = name;
  std::string line;
  std::ifstream trials(PathOf(dir, name, "trials"));
  while (std::getline(trials, line)) {
    auto trial = ParseTrial(line);
    if (trial.ok()) records.trials.push_back(std::move(*trial));
  }
  std::ifstream tasks(PathOf(dir, name, "tasks"));
  while (std::getline(tasks, line)) {
    TaskResult task;
    if (ReadTask(line, &task)) records.tasks.push_back(std::move(task));
  }
  return records;
}

void AppendRecord(const std::string& dir, const std::string& name, const Trial& trial) {
  AppendLine(dir, PathOf(dir, name, "trials"), TrialJson(trial));
}

void AppendRecord(const std::string& dir, const std::string& name, const TaskResult& task) {
  AppendLine(dir, PathOf(dir, name, "tasks"), TaskJson(task));
}

}  // namespace holdfast

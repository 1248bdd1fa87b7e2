// Tasks with an answer that can be checked: what reuse does to what an agent is asked.
//
// Facts with random names and numbers stand in tool outputs (a history edited above) or in chunks
// (computed alone); a method's own greedy answer is scored by the strings that it must hold. Most
// small models fail many of them with full prefill: a score counts against full's.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "stitcher/trial.h"

namespace holdfast {

struct TaskResult {
  std::string category, edit;  // edit: "A" (a history edited above) or "B512"
  uint64_t seed = 0;
  std::string method;
  double score = 0, full_score = 0;  // 0..1; of the method and of full prefill
  std::string answer;
  double rows = 0;                   // see CardKl
};

struct TaskOptions {
  uint64_t first_seed = 1;
  int instances = 4;  // of each category and edit
  std::span<const TextFile> texts;  // that facts stand in; empty: made-up ones
  std::function<bool()> go_on;
  std::function<void(const TaskResult&)> on_result;
};

Status RunTasks(Model& model, const TaskOptions& options);

}  // namespace holdfast

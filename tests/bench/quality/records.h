// Record files of the quality bench: DIR/MODEL.trials.jsonl and DIR/MODEL.tasks.jsonl, one trial or
// task a line, appended as they are measured, so that a sweep can go on where another stopped.
#pragma once

#include <string>
#include <vector>

#include "stitcher/trial.h"
#include "tests/bench/quality/tasks.h"

namespace holdfast {

struct ModelRecords {
  std::string name;
  std::vector<Trial> trials;
  std::vector<TaskResult> tasks;
  uint64_t next_seed() const;       // above all seeds of trials
  uint64_t next_task_seed() const;  // and of tasks
};

// Lines that can't be read (the last one of a run that was killed) are left out.
ModelRecords ReadRecords(const std::string& dir, const std::string& name);
void AppendRecord(const std::string& dir, const std::string& name, const Trial& trial);
void AppendRecord(const std::string& dir, const std::string& name, const TaskResult& task);

}  // namespace holdfast

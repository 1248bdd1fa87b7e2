// Child processes of the benches: peers, and Holdfast itself where starting is what is measured.
// Standard error of a child goes to a file that nobody keeps; its last line is in error messages.
#pragma once

#include <sys/types.h>

#include <cstdio>
#include <string>
#include <vector>

#include "engine/base/status.h"

namespace holdfast {

class ChildProcess {
 public:
  // argv[0] is a path, or a name in PATH. kIo when it can't be started.
  static Result<ChildProcess> Start(const std::vector<std::string>& argv);
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&&) = delete;
  ~ChildProcess();  // asks it to end (SIGTERM) and waits

  // The next line of its standard output without the end; false at the end of the output.
  bool ReadLine(std::string* line);
  // Waits for its end. kIo, with the last line of its standard error, unless it exits with 0.
  Status Wait();

 private:
  ChildProcess() = default;
  std::string name_;
  pid_t pid_ = -1;       // -1: waited for
  FILE* out_ = nullptr;
  FILE* error_ = nullptr;  // a file without a name
};

// Runs it to the end; what it wrote to standard output.
Result<std::string> RunProcess(const std::vector<std::string>& argv);

}  // namespace holdfast

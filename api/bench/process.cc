#include "api/bench/process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

extern char** environ;

namespace holdfast {
namespace {

constexpr size_t kErrorBytes = 400;  // of standard error, for a message

// The last line with anything in it.
std::string LastLine(FILE* file) {
  std::fseek(file, 0, SEEK_END);
  const long size = std::ftell(file);
  std::fseek(file, std::max(0L, size - static_cast<long>(kErrorBytes)), SEEK_SET);
  char text[kErrorBytes];
  std::string tail(text, std::fread(text, 1, sizeof(text), file));
  while (!tail.empty() && (tail.back() == '\n' || tail.back() == ' ')) tail.pop_back();
  const size_t line = tail.rfind('\n');
  return line == std::string::npos ? tail : tail.substr(line + 1);
}

}  // namespace

Result<ChildProcess> ChildProcess::Start(const std::vector<std::string>& argv) {
  ChildProcess child;
  child.name_ = argv[0];
  child.error_ = std::tmpfile();
  int pipe_fd[2];
  if (child.error_ == nullptr || pipe2(pipe_fd, O_CLOEXEC) != 0) {
    return Status::Io("cannot start " + argv[0] + ": " + std::strerror(errno));
  }
  std::vector<char*> args;
  for (const std::string& a : argv) args.push_back(const_cast<char*>(a.c_str()));
  args.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, pipe_fd[1], STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, fileno(child.error_), STDERR_FILENO);
  const int rc = posix_spawnp(&child.pid_, args[0], &actions, nullptr, args.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(pipe_fd[1]);
  child.out_ = fdopen(pipe_fd[0], "r");
  if (rc != 0) {
    child.pid_ = -1;
    return Status::Io("cannot start " + argv[0] + ": " + std::strerror(rc));
  }
  return child;
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : name_(std::move(other.name_)),
      pid_(std::exchange(other.pid_, -1)),
      out_(std::exchange(other.out_, nullptr)),
      error_(std::exchange(other.error_, nullptr)) {}

ChildProcess::~ChildProcess() {
  if (pid_ > 0) {
    kill(pid_, SIGTERM);
    waitpid(pid_, nullptr, 0);
  }
  if (out_ != nullptr) std::fclose(out_);
  if (error_ != nullptr) std::fclose(error_);
}

bool ChildProcess::ReadLine(std::string* line) {
  line->clear();
  for (int c; (c = std::fgetc(out_)) != EOF;) {
    if (c == '\n') return true;
    line->push_back(static_cast<char>(c));
  }
  return !line->empty();
}

Status ChildProcess::Wait() {
  int status = 0;
  if (pid_ > 0) waitpid(pid_, &status, 0);
  pid_ = -1;
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return Status();
  const std::string how = WIFSIGNALED(status) ? "signal " + std::to_string(WTERMSIG(status))
                                              : "exit " + std::to_string(WEXITSTATUS(status));
  return Status::Io(name_ + ": " + how + ": " + LastLine(error_));
}

Result<std::string> RunProcess(const std::vector<std::string>& argv) {
  HOLDFAST_ASSIGN_OR_RETURN(ChildProcess child, ChildProcess::Start(argv));
  std::string out;
  for (std::string line; child.ReadLine(&line);) out += line + "\n";
  HOLDFAST_RETURN_IF_ERROR(child.Wait());
  return out;
}

}  // namespace holdfast

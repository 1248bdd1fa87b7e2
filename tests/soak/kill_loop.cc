// kill_loop [--kills N] [--seed S]: kills a process that serves the clients of load.h, again and
// again, with SIGKILL.
//
// Half of the kills come at a random moment; the others at a named point: before, in the middle of
// or after a kind of operation on a kind of file, "log sync after", say. Which points there are is
// seen in the run that nothing disturbs. The parent starts the next child on the same folder.
// Checked:
//   - after each start everything acknowledged is there, token for token; fsck is clean
//   - an answer has the token ids of the undisturbed run, in another folder
// Exit 0: all held. Points by name and kills go to standard output.
//
// The parent runs no threads (it forks); acks come through a pipe, and one that is cut off by the
// kill was not acknowledged.

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <random>
#include <thread>

#include "tests/engine/base/hook_env.h"
#include "tests/engine/store/fault_index_env.h"
#include "tests/engine/store/fault_vfs.h"
#include "tests/soak/load.h"

namespace holdfast::soak {
namespace {

using testing::DiskEvent;
using testing::DiskFault;
using testing::DiskOp;

constexpr uint32_t kRounds = 6;      // of the clients, in one data folder
// Ack::client of the messages that list points: once the folder is open, and at the end.
constexpr uint32_t kOpenedAck = 98, kPointsAck = 99;
constexpr int kMaxKillMs = 150;      // when a random moment is; later ones are rarer
constexpr int kGiveUpMs = 600;       // a point that is not reached by then is not waited for

// ---- named points ------------------------------------------------------------------------------

enum class Area : uint8_t { kDatabase, kLog, kJournal, kPages, kIndexLog, kIndexTable, kManifest,
                            kOther };
constexpr std::array<const char*, 8> kAreas = {"database", "log", "journal", "pages", "index log",
                                               "index table", "index manifest", "other"};
constexpr std::array<const char*, testing::kDiskOps> kOps = {
    "create", "read", "write", "sync", "truncate", "punch", "sync folder", "make folder", "remove",
    "rename"};
enum class When : uint8_t { kBefore, kHalf, kAfter };
constexpr std::array<const char*, 3> kWhens = {"before", "half", "after"};
constexpr size_t kPoints = kAreas.size() * kOps.size() * kWhens.size();

Area AreaOf(std::string_view path) {
  if (path.ends_with(".db-wal")) return Area::kLog;
  if (path.ends_with(".db-journal")) return Area::kJournal;
  if (path.ends_with(".db")) return Area::kDatabase;
  if (path.ends_with(".hf")) return Area::kPages;
  if (path.ends_with(".log")) return Area::kIndexLog;
  if (path.ends_with(".sst")) return Area::kIndexTable;
  return path.find("/index/") != std::string_view::npos ? Area::kManifest : Area::kOther;
}

size_t PointOf(const DiskEvent& e, When when) {
  return (static_cast<size_t>(AreaOf(e.path)) * kOps.size() + static_cast<size_t>(e.op)) *
             kWhens.size() + static_cast<size_t>(when);
}

std::string NameOf(size_t point) {
  return std::string(kAreas[point / kWhens.size() / kOps.size()]) + ", " +
         kOps[point / kWhens.size() % kOps.size()] + ", " + kWhens[point % kWhens.size()];
}

// A point and how often it is passed before the process dies there.
struct Target {
  size_t point = kPoints;  // none
  uint32_t nth = 0;
};

class KillHook : public testing::DiskHook {
 public:
  explicit KillHook(Target target) : target_(target) {}
  DiskFault Before(const DiskEvent& e) override {
    Pass(PointOf(e, When::kBefore));
    if (e.op == DiskOp::kWrite && Pass(PointOf(e, When::kHalf))) {
      dying_ = true;  // After comes when the half is written
      return DiskFault::kShort;
    }
    return DiskFault::kNone;
  }
  void After(const DiskEvent& e) override {
    if (dying_) Die();
    Pass(PointOf(e, When::kAfter));
  }
  std::string Counts() const {
    std::string out;
    for (const auto& c : counts_) {
      const uint32_t n = c;
      out.append(reinterpret_cast<const char*>(&n), sizeof(n));
    }
    return out;
  }

 private:
  [[noreturn]] static void Die() {
    kill(getpid(), SIGKILL);
    while (true) pause();
  }
  // Dies here, or says that it is time to (in the middle).
  bool Pass(size_t point) {
    const uint32_t n = ++counts_[point];
    if (point != target_.point || n != target_.nth) return false;
    if (point % kWhens.size() == static_cast<size_t>(When::kHalf)) return true;
    Die();
  }

  const Target target_;
  std::array<std::atomic<uint32_t>, kPoints> counts_{};
  std::atomic<bool> dying_{false};
};

// ---- the child ---------------------------------------------------------------------------------

void WriteAll(int fd, const std::string& bytes) {
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t n = write(fd, bytes.data() + at, bytes.size() - at);
    if (n <= 0) _exit(3);
    at += static_cast<size_t>(n);
  }
}

// Serves the clients until it is killed, or until each has come to the end of the rounds.
[[noreturn]] void RunChild(Load load, RuntimeOptions options, int fd, Target target) {
  KillHook hook(target);
  testing::FaultVfs vfs(&hook);
  testing::HookEnv env(&hook);
  testing::FaultIndexEnv index(&hook);
  options.database_vfs = vfs.name();
  options.env = &env;
  options.index_env = index.env();
  auto runtime = Runtime::Open(options);
  if (!runtime.ok()) Fail("open: " + runtime.status().ToString());
  Ack points;
  points.client = kOpenedAck;
  points.result = hook.Counts();
  WriteAll(fd, Encode(points));
  load.Check(**runtime);
  std::mutex mu;
  std::vector<std::thread> threads;
  for (int i = 0; i < Load::kClients; ++i) {
    threads.emplace_back([&, i] {
      while (load.round(i) < kRounds) {
        Ack ack = load.MustStep(**runtime, i);  // of this client alone
        std::lock_guard lock(mu);
        WriteAll(fd, Encode(ack));
        load.Advance(std::move(ack));
      }
    });
  }
  for (std::thread& t : threads) t.join();
  runtime->reset();
  points.client = kPointsAck;
  points.result = hook.Counts();
  WriteAll(fd, Encode(points));
  std::_Exit(0);
}

// ---- the parent --------------------------------------------------------------------------------

class Campaign {
 public:
  Campaign(uint64_t seed, int kills)
      : seed_(seed), wanted_(kills), random_(seed ^ 0x9e3779b97f4a7c15u), load_("kill-loop", seed) {
    folder_ = (std::filesystem::temp_directory_path() / "kill-loop-XXXXXX").string();
    if (mkdtemp(folder_.data()) == nullptr) Fail("no temporary folder");
    model_ = Load::WriteModel(folder_);
    // Leaves the numerics' digest to all children, so that most of their time goes to the clients.
    if (!Engine::Open(Load::OptionsFor(model_, folder_).engine).ok()) Fail("no engine");
  }

  int Main() {
    std::printf("kill_loop: seed %llu, %d kills, in %s\n", static_cast<unsigned long long>(seed_),
                wanted_, folder_.c_str());
    Run(folder_ + "/calm", -1, {});
    calm_ = false;
    for (size_t p = 0; p < kPoints; ++p) {
      if (seen_[p] > 0) points_.push_back(p);
      if (seen_[p] > 0 && seen_[p] == seen_opening_[p]) making_points_.push_back(p);
    }
    std::shuffle(points_.begin(), points_.end(), random_);
    std::shuffle(making_points_.begin(), making_points_.end(), random_);
    int runs = 0;
    for (int part = 0; killed_ < wanted_; ++part) {
      const std::string data = folder_ + "/data" + std::to_string(part);
      load_ = Load("kill-loop", seed_);
      bool ended = false;
      for (int run = 0; killed_ < wanted_ && !ended; ++run, ++runs) ended = RunToKill(data, run);
      if (!ended && !Run(data, -1, {})) Fail("the last run did not end");
      std::filesystem::remove_all(data);
      if (part % 16 == 15) std::printf("  %d kills so far\n", killed_);
    }
    std::filesystem::remove_all(folder_);
    Report(runs);
    return 0;
  }

 private:
  // `run`: of this folder, from 0 on.
  bool RunToKill(const std::string& data, int run) {
    Target target;
    int kill_ms = 1 + static_cast<int>(random_() % kMaxKillMs);
    if (run == 0 || random_() % 2 == 0) {
      // Some points are passed in the making of a folder alone.
      target.point = run == 0 ? making_points_[next_making_point_++ % making_points_.size()]
                              : points_[next_point_++ % points_.size()];
      // Most points are passed a few times only; what is passed often is so at every moment.
      const uint32_t most = std::max(1u, std::min(seen_[target.point] / 8, 60u));
      target.nth = 1 + static_cast<uint32_t>(random_() % most);
      kill_ms = kGiveUpMs;
    } else if (random_() % 8 == 0) {
      kill_ms *= 4;
    }
    const bool ended = Run(data, kill_ms, target);
    killed_ += !ended;
    if (!ended && self_killed_) ++kills_at_[target.point];
    return ended;
  }

  // Takes in what came through the pipe.
  void Receive(std::string* stream) {
    Ack ack;
    while (Decode(stream, &ack)) {
      if (ack.client == kPointsAck || ack.client == kOpenedAck) {
        Counts& counts = ack.client == kPointsAck ? seen_ : seen_opening_;
        if (calm_) std::memcpy(counts.data(), ack.result.data(), sizeof(counts));
        continue;
      }
      const auto key = std::tuple(ack.client, ack.round, ack.step);
      if (calm_) {
        expected_.emplace(key, ack.completion);
      } else if (expected_.at(key) != ack.completion) {
        Fail("client " + std::to_string(ack.client) + ", round " + std::to_string(ack.round) +
             ", step " + std::to_string(ack.step) + ": other tokens than the undisturbed run");
      }
      acknowledged_ += !calm_;
      load_.Advance(std::move(ack));
    }
  }

  // Runs a child, killed after `kill_ms` unless that is negative. True: it ended by itself, well.
  bool Run(const std::string& data, int kill_ms, Target target) {
    int fds[2];
    if (pipe(fds) != 0) Fail("pipe");
    std::fflush(nullptr);
    const pid_t child = fork();
    if (child < 0) Fail("fork");
    if (child == 0) {
      close(fds[0]);
      RunChild(load_, Load::OptionsFor(model_, data), fds[1], target);
    }
    close(fds[1]);
    const bool killed = Watch(child, fds[0], kill_ms);
    close(fds[0]);
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return true;
    self_killed_ = !killed;
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL &&
        (killed || target.point < kPoints)) {
      return false;
    }
    Fail("a child ended with status " + std::to_string(status));
  }

  // Reads acks until the pipe closes; true when the time came to kill.
  bool Watch(pid_t child, int fd, int kill_ms) {
    using std::chrono::steady_clock;
    const auto deadline = steady_clock::now() + std::chrono::milliseconds(kill_ms);
    std::string stream;
    bool killed = false;
    char buffer[65536];
    while (true) {
      int wait = -1;
      if (kill_ms >= 0 && !killed) {
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
            deadline - steady_clock::now());
        wait = static_cast<int>(std::max<int64_t>(0, left.count()));
        if (wait == 0) {
          kill(child, SIGKILL);
          killed = true;
          wait = -1;
        }
      }
      pollfd p{fd, POLLIN, 0};
      if (poll(&p, 1, wait) <= 0) continue;
      const ssize_t n = read(fd, buffer, sizeof(buffer));
      if (n <= 0) return killed;
      stream.append(buffer, static_cast<size_t>(n));
      Receive(&stream);
    }
  }

  void Report(int runs) const {
    uint64_t at_points = 0;
    size_t reached = 0;
    std::vector<size_t> by_name = points_;
    std::sort(by_name.begin(), by_name.end());
    for (const size_t p : by_name) {
      at_points += kills_at_[p];
      reached += kills_at_[p] > 0;
      std::printf("  %-40s %u\n", NameOf(p).c_str(), kills_at_[p]);
    }
    std::printf("kill_loop: %d kills in %d runs, %llu of them at %zu of %zu named points; %llu "
                "steps acknowledged; none lost, fsck clean, all answers as undisturbed\n",
                killed_, runs, static_cast<unsigned long long>(at_points), reached, points_.size(),
                static_cast<unsigned long long>(acknowledged_));
  }

  const uint64_t seed_;
  const int wanted_;
  std::mt19937_64 random_;
  Load load_;
  std::string folder_, model_;
  std::map<std::tuple<uint32_t, uint32_t, uint32_t>, std::vector<TokenId>> expected_;
  using Counts = std::array<uint32_t, kPoints>;
  Counts seen_{}, seen_opening_{}, kills_at_{};
  std::vector<size_t> points_;         // that were passed in the undisturbed run
  std::vector<size_t> making_points_;  // of them, those that only the making of its folder passed
  size_t next_point_ = 0, next_making_point_ = 0;
  bool calm_ = true;
  bool self_killed_ = false;
  int killed_ = 0;
  uint64_t acknowledged_ = 0;
};

}  // namespace
}  // namespace holdfast::soak

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  int kills = 50;
  uint64_t seed = std::random_device{}();
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 < argc && std::strcmp(argv[i], "--kills") == 0) {
      kills = std::atoi(argv[i + 1]);
    } else if (i + 1 < argc && std::strcmp(argv[i], "--seed") == 0) {
      seed = std::strtoull(argv[i + 1], nullptr, 10);
    } else {
      std::fprintf(stderr, "usage: kill_loop [--kills N] [--seed S]\n");
      return 2;
    }
  }
  return holdfast::soak::Campaign(seed, kills).Main();
}

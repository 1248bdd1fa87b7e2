// fault_sweep [--every N] [--seed S] [--skip L]: lets the n-th file operation of a whole life fail.
//
// A life: a data folder is made, and one client of load.h does every kind of step on it, alone.
// For every n (or every N-th, from a random one on) and each fault the life is lived again with
// the n-th file operation failing: of SQLite, of the page files or of RocksDB; reads, writes, syncs,
// names. Last, the n-th takes its time and is then done: nothing fails for that. Checked:
//   - no crash, no hang; a step that fails says so with a typed error, and opening does
//   - with the disk well again, what was acknowledged is there and fsck is clean, in this process
//     and in the next one; the branch of the step that failed is as before it or as after it
//   - the life goes on to its end with the tokens of one that nothing disturbed
// Exit 0: all held. --skip leaves out the first L lives, which an earlier run of the same seed has
// lived. A life that hangs ends the process, with a core.

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
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

constexpr int kClient = 1;
constexpr int kHangSeconds = 120;        // of one life, which takes a fraction of a second
constexpr std::chrono::milliseconds kStall{500};  // twice what a turn waits for pages
constexpr uint64_t kLivesPerLine = 250;  // of progress
const std::vector<StepKind> kLife = {
    StepKind::kTurn,   StepKind::kTurn, StepKind::kFork,    StepKind::kTurn,   StepKind::kSnapshot,
    StepKind::kEvict,  StepKind::kTurn, StepKind::kExport,  StepKind::kRewind, StepKind::kTurn,
    StepKind::kCollect, StepKind::kTurn, StepKind::kDelete, StepKind::kTurn};

enum class Repeat : uint8_t { kOnce, kFromThenOn };
struct Kind {
  const char* name;
  DiskFault fault;  // kNone: it stalls
  Repeat repeat;
};
constexpr Kind kKinds[] = {{"EIO", DiskFault::kIo, Repeat::kOnce},
                           {"ENOSPC", DiskFault::kNoSpace, Repeat::kOnce},
                           {"short", DiskFault::kShort, Repeat::kOnce},
                           {"EIO from then on", DiskFault::kIo, Repeat::kFromThenOn},
                           {"stall", DiskFault::kNone, Repeat::kOnce}};

// Ends the process when a life takes kHangSeconds in which the process may run: a second in which it
// is stopped, for however long, counts as one.
class HangWatch {
 public:
  HangWatch() : thread_([this](std::stop_token stop) { Run(stop); }) {}
  void NewLife(const std::string& about) {
    std::lock_guard lock(mu_);
    about_ = about;
    seconds_ = 0;
  }

 private:
  void Run(std::stop_token stop) {
    std::unique_lock lock(mu_);
    while (!stop.stop_requested()) {
      changed_.wait_for(lock, stop, std::chrono::seconds(1), [] { return false; });
      if (++seconds_ < kHangSeconds) continue;
      std::fprintf(stderr, "campaign: %s: the life hangs\n", about_.c_str());
      std::abort();
    }
  }

  std::mutex mu_;
  std::string about_;
  int seconds_ = 0;
  std::condition_variable_any changed_;
  std::jthread thread_;
};

class FailingDisk : public testing::DiskHook {
 public:
  FailingDisk(uint64_t at, const Kind& kind) : at_(at), kind_(kind) {}
  DiskFault Before(const DiskEvent& e) override {
    const uint64_t n = ++operations_;
    const uint64_t at = at_;
    if (at == 0 || n < at || (n > at && kind_.repeat == Repeat::kOnce)) return DiskFault::kNone;
    // A disk that is full takes no writes; it reads as before.
    if (kind_.fault == DiskFault::kNoSpace && e.op == testing::DiskOp::kRead) return DiskFault::kNone;
    ++faults_;
    if (kind_.fault == DiskFault::kNone) Stall();
    return kind_.fault;
  }
  void Heal() { at_ = 0; }
  uint64_t operations() const { return operations_; }
  uint64_t faults() const { return faults_; }

 private:
  static void Stall() {
    std::mutex mu;
    std::condition_variable never;
    std::unique_lock lock(mu);
    never.wait_for(lock, kStall, [] { return false; });
  }

  std::atomic<uint64_t> operations_{0}, faults_{0}, at_;
  const Kind kind_;
};

class Sweep {
 public:
  struct Options {
    uint64_t seed = 0, every = 60, skip = 0;
  };
  explicit Sweep(const Options& options)
      : seed_(options.seed), every_(options.every), skip_(options.skip), random_(seed_) {
    folder_ = (std::filesystem::temp_directory_path() / "fault-sweep-XXXXXX").string();
    if (mkdtemp(folder_.data()) == nullptr) Fail("no temporary folder");
    model_ = Load::WriteModel(folder_);
  }

  int Main() {
    std::printf("fault_sweep: seed %llu, every %llu, in %s\n",
                static_cast<unsigned long long>(seed_), static_cast<unsigned long long>(every_),
                folder_.c_str());
    learning_ = true;
    const uint64_t operations = Live(0, kKinds[0]);
    learning_ = false;
    for (const Kind& kind : kKinds) {
      for (uint64_t n = 1 + random_() % every_; n <= operations; n += every_) {
        if (++turn_ <= skip_) continue;
        Live(n, kind);
        if (turn_ % kLivesPerLine == 0) Progress(operations);
      }
    }
    std::filesystem::remove_all(folder_);
    std::printf("fault_sweep: %llu lives of about %llu file operations, %llu faults; %llu openings "
                "and %llu steps failed, with typed errors; old state or new state after each, and "
                "all answers as undisturbed\n",
                static_cast<unsigned long long>(lives_),
                static_cast<unsigned long long>(operations),
                static_cast<unsigned long long>(faults_),
                static_cast<unsigned long long>(failed_opens_),
                static_cast<unsigned long long>(failed_steps_));
    return 0;
  }

 private:
  // One life with the n-th operation failing (0: none). Returns the operations until its first
  // failure, or its end.
  uint64_t Live(uint64_t n, const Kind& kind) {
    where_ = std::string(kind.name) + " at operation " + std::to_string(n);
    hang_.NewLife(where_);
    ++lives_;
    const std::string data = folder_ + "/data";
    Load load("fault-sweep", seed_, kLife);
    FailingDisk disk(n, kind);
    Code code = Code::kOk;
    {
      testing::FaultVfs vfs(&disk);
      testing::HookEnv env(&disk);
      testing::FaultIndexEnv index(&disk);
      RuntimeOptions options = Load::OptionsFor(model_, data);
      options.database_vfs = vfs.name();
      options.env = &env;
      options.index_env = index.env();
      auto runtime = Runtime::Open(options);
      if (runtime.ok()) {
        code = GoOn(**runtime, &load);
        disk.Heal();
        load.Check(**runtime);
      } else {
        ++failed_opens_;
        code = runtime.status().code();
        why_ = runtime.status().ToString();
      }
    }
    if (code != Code::kOk && code != Code::kIo && code != Code::kExhausted &&
        code != Code::kCorrupt && code != Code::kUnavailable) {
      FailHere("failed with " + std::string(CodeName(code)) + ": " + why_);
    }
    if (kind.fault == DiskFault::kNone && code != Code::kOk) {
      FailHere("a stall has made it fail: " + why_);
    }
    faults_ += disk.faults();
    const uint64_t operations = disk.operations();
    auto runtime = Runtime::Open(Load::OptionsFor(model_, data));
    if (!runtime.ok()) FailHere("the next opening: " + runtime.status().ToString());
    load.Check(**runtime);
    if (code != Code::kOk) {
      CheckOldOrNew(**runtime, load);
      if (GoOn(**runtime, &load) != Code::kOk) FailHere("the life does not go on: " + why_);
      load.Check(**runtime);
    }
    runtime->reset();
    std::filesystem::remove_all(data);
    return operations;
  }

  // Steps to the end of the life, or the first that fails.
  Code GoOn(Runtime& runtime, Load* load) {
    while (load->round(kClient) == 0) {
      Result<Ack> ack = load->Step(runtime, kClient);
      if (!ack.ok()) {
        ++failed_steps_;
        why_ = ack.status().ToString();
        return ack.status().code();
      }
      if (learning_) {
        expected_.push_back(*ack);
      } else if (expected_[load->steps()].completion != ack->completion) {
        FailHere("step " + std::to_string(ack->step) + " has other tokens than undisturbed");
      }
      load->Advance(std::move(ack).value());
    }
    runtime.SyncPages();
    return Code::kOk;
  }

  // Each branch, after the failure of the next step.
  void CheckOldOrNew(Runtime& runtime, const Load& load) {
    const Ack& next = expected_[load.steps()];
    if (kLife[next.step] == StepKind::kDelete) return;  // gone, or as Check has found it
    for (const auto& [branch, last] : load.Heads(kClient)) {
      const auto tokens = runtime.keeper().Tokens("fault-sweep", last.session, branch);
      if (!tokens.ok()) FailHere("branch " + branch + ": " + tokens.status().ToString());
      if (*tokens == HeadAfter(last) || *tokens == HeadAfter(next)) continue;
      FailHere("branch " + branch + " is neither as before nor as after: " +
               std::to_string(tokens->size()) + " tokens");
    }
  }

  void Progress(uint64_t operations) const {
    std::printf("  %llu of about %llu lives; now %s; %llu openings and %llu steps failed\n",
                static_cast<unsigned long long>(turn_),
                static_cast<unsigned long long>(std::size(kKinds) * (operations / every_)),
                where_.c_str(), static_cast<unsigned long long>(failed_opens_),
                static_cast<unsigned long long>(failed_steps_));
  }

  [[noreturn]] void FailHere(const std::string& why) { Fail(where_ + ": " + why); }

  const uint64_t seed_, every_, skip_;
  HangWatch hang_;
  std::mt19937_64 random_;
  std::string folder_, model_, where_, why_;
  std::vector<Ack> expected_;  // by step
  bool learning_ = false;
  uint64_t turn_ = 0;  // of lives, those that were skipped too
  uint64_t lives_ = 0, faults_ = 0, failed_opens_ = 0, failed_steps_ = 0;
};

}  // namespace
}  // namespace holdfast::soak

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  holdfast::soak::Sweep::Options options{.seed = std::random_device{}()};
  for (int i = 1; i < argc; i += 2) {
    uint64_t* const to = std::strcmp(argv[i], "--every") == 0  ? &options.every
                         : std::strcmp(argv[i], "--seed") == 0 ? &options.seed
                         : std::strcmp(argv[i], "--skip") == 0 ? &options.skip
                                                               : nullptr;
    if (to == nullptr || i + 1 == argc) {
      std::fprintf(stderr, "usage: fault_sweep [--every N] [--seed S] [--skip L]\n");
      return 2;
    }
    *to = std::strtoull(argv[i + 1], nullptr, 10);
  }
  options.every = std::max<uint64_t>(1, options.every);
  return holdfast::soak::Sweep(options).Main();
}

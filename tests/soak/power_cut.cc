// power_cut [--cuts N] [--seed S]: cuts the power under a whole Runtime, again and again.
//
// The clients of load.h talk to a Runtime whose SQLite, page files and RocksDB stand on a PowerDisk.
// At operations that chance picks, in the middle of whatever runs, the campaign remembers what the
// clients have seen the end of and writes out what the disk would hold: sectors of 512 bytes or 4
// KiB and names that were not synced are there or not, each by chance. A Runtime is then opened on
// that folder. Checked:
//   - everything acknowledged before the cut is there, token for token, but for lazy turns of the
//     last 2 s with nothing durable after them; fsck is clean
//   - the clients go on from there, and get the tokens of a run that nothing disturbed
// The last folder of a run is where the next run begins, so that damage would add up. Exit 0: all
// held; else the seed of the run is printed.

#include <atomic>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <random>
#include <thread>

#include "engine/store/data_dir.h"
#include "tests/engine/base/hook_env.h"
#include "tests/engine/base/power_disk.h"
#include "tests/engine/store/fault_index_env.h"
#include "tests/engine/store/fault_vfs.h"
#include "tests/soak/load.h"

namespace holdfast::soak {
namespace {

constexpr uint32_t kRounds = 6;   // of the clients, in one data folder
constexpr int kCutsPerRun = 5;
constexpr int kStepsAfter = 2;    // of each client, on what a cut left
constexpr uint64_t kMaxGap = 500;  // operations between two cuts

// What the clients have seen, shared by their threads.
struct Watched {
  std::mutex mu;
  Load load;
  std::atomic<bool> stop{false};
  explicit Watched(Load l) : load(std::move(l)) {}
  Load Copy() {
    std::lock_guard lock(mu);
    return load;
  }
};

// The tokens of each turn in a run that nothing disturbed.
using Expected = std::map<std::tuple<uint32_t, uint32_t, uint32_t>, std::vector<TokenId>>;

// Lets the clients do steps in parallel until `steps` each, the end of the rounds, or stop.
void RunClients(Runtime& runtime, Watched* w, int steps, Expected* expected, bool learn) {
  std::vector<std::thread> threads;
  for (int i = 0; i < Load::kClients; ++i) {
    threads.emplace_back([&, i] {
      for (int n = 0; n < steps && !w->stop; ++n) {
        const Load now = w->Copy();
        if (now.round(i) >= kRounds) return;
        Ack ack = now.MustStep(runtime, i);
        const auto key = std::tuple(ack.client, ack.round, ack.step);
        std::lock_guard lock(w->mu);
        if (learn) {
          (*expected)[key] = ack.completion;
        } else if (expected->at(key) != ack.completion) {
          Fail("client " + std::to_string(i) + ", round " + std::to_string(ack.round) + ", step " +
               std::to_string(ack.step) + ": other tokens than the undisturbed run");
        }
        w->load.Advance(std::move(ack));
      }
    });
  }
  for (std::thread& t : threads) t.join();
}

struct Cut {
  std::string folder;
  Load load;
  Load::Clock::time_point at;
};

// Cuts at operations that chance picks.
class CuttingDisk : public testing::PowerDisk {
 public:
  CuttingDisk(const std::string& folder, std::string out, Watched* watched, uint64_t seed, int most)
      : PowerDisk(folder), out_(std::move(out)), watched_(watched), random_(seed), most_(most) {
    next_ = 1 + random_() % kMaxGap;
  }
  testing::DiskFault Before(const testing::DiskEvent& event) override {
    if (event.op == testing::DiskOp::kRead) return testing::DiskFault::kNone;
    std::lock_guard lock(mu_);
    if (++operations_ < next_ || static_cast<int>(cuts_.size()) >= most_) {
      return testing::DiskFault::kNone;
    }
    next_ = operations_ + 1 + random_() % kMaxGap;
    Load load = watched_->Copy();  // before the cut: what is acknowledged now must survive it
    const Load::Clock::time_point at = Load::Clock::now();
    static constexpr double kKeep[] = {0, 0.1, 0.5, 0.9, 1};
    testing::DiskModel::Chances chances;
    chances.sector = random_() % 2 == 0 ? 512 : 4096;
    chances.keep_data = kKeep[random_() % std::size(kKeep)];
    chances.keep_names = kKeep[random_() % std::size(kKeep)];
    const std::string folder = out_ + "-" + std::to_string(cuts_.size());
    unsynced_ += unsynced_sectors() > 0;
    WriteAfterCut(random_(), chances, folder);
    cuts_.push_back({folder, std::move(load), at});
    if (static_cast<int>(cuts_.size()) >= most_) watched_->stop = true;
    return testing::DiskFault::kNone;
  }
  std::vector<Cut>& cuts() { return cuts_; }
  uint64_t unsynced() const { return unsynced_; }  // cuts that found something to drop
  uint64_t operations() const { return operations_; }

 private:
  const std::string out_;
  Watched* watched_;
  std::mutex mu_;
  std::mt19937_64 random_;
  const int most_;
  uint64_t operations_ = 0, next_ = 0, unsynced_ = 0;
  std::vector<Cut> cuts_;
};

std::unique_ptr<Runtime> Open(const RuntimeOptions& options, const char* when) {
  auto runtime = Runtime::Open(options);
  if (!runtime.ok()) Fail(std::string(when) + ": " + runtime.status().ToString());
  return std::move(runtime).value();
}

class Campaign {
 public:
  Campaign(uint64_t seed, int cuts) : seed_(seed), wanted_(cuts), random_(seed) {
    folder_ = (std::filesystem::temp_directory_path() / "power-cut-XXXXXX").string();
    if (mkdtemp(folder_.data()) == nullptr) Fail("no temporary folder");
    model_ = Load::WriteModel(folder_);
  }

  int Main() {
    std::printf("power_cut: seed %llu, %d cuts, in %s\n", static_cast<unsigned long long>(seed_),
                wanted_, folder_.c_str());
    Learn();
    while (done_ < wanted_) {
      Run();
      if (runs_ % 64 == 0) std::printf("  %d cuts so far\n", done_);
    }
    std::filesystem::remove_all(folder_);
    std::printf("power_cut: %d cuts (%llu with writes to lose) in %d runs of %llu file operations; "
                "%llu steps acknowledged; none lost but %d young lazy turns, fsck clean, all "
                "answers as undisturbed\n",
                done_, static_cast<unsigned long long>(unsynced_), runs_,
                static_cast<unsigned long long>(operations_),
                static_cast<unsigned long long>(steps_), lost_);
    return 0;
  }

 private:
  void Learn() {
    Watched w(Load("power-cut", seed_));
    const auto runtime = Open(Load::OptionsFor(model_, folder_ + "/calm"), "calm");
    RunClients(*runtime, &w, INT32_MAX, &expected_, true);
  }

  // Where the next run begins: on the last cut, or anew when the clients are through.
  void Begin() {
    bool through = true;
    if (state_) {
      for (int i = 0; i < Load::kClients; ++i) through &= state_->load.round(i) >= kRounds - 1;
    }
    if (!through) return;
    if (state_) std::filesystem::remove_all(state_->folder);
    const std::string folder = folder_ + "/run" + std::to_string(runs_);
    auto made = DataDir::Open(folder, DataDir::Mode::kCreate);
    if (!made.ok()) Fail(made.status().ToString());
    state_.emplace(Cut{folder, Load("power-cut", seed_), {}});
  }

  void Run() {
    Begin();
    Watched w(state_->load);
    CuttingDisk disk(state_->folder, folder_ + "/cut" + std::to_string(runs_), &w, random_(),
                     std::min(kCutsPerRun, wanted_ - done_));
    {
      testing::FaultVfs vfs(&disk);
      testing::HookEnv env(&disk);
      testing::FaultIndexEnv index(&disk);
      RuntimeOptions options = Load::OptionsFor(model_, state_->folder);
      options.database_vfs = vfs.name();
      options.env = &env;
      options.index_env = index.env();
      const auto runtime = Open(options, "before the cut");
      RunClients(*runtime, &w, INT32_MAX, &expected_, false);
    }
    ++runs_;
    steps_ += w.load.steps() - state_->load.steps();
    unsynced_ += disk.unsynced();
    operations_ += disk.operations();
    std::filesystem::remove_all(state_->folder);
    if (disk.cuts().empty()) {  // the clients came to their end
      state_.reset();
      return;
    }
    for (Cut& cut : disk.cuts()) {
      Verify(&cut);
      ++done_;
      if (&cut != &disk.cuts().back()) std::filesystem::remove_all(cut.folder);
    }
    state_ = std::move(disk.cuts().back());
  }

  void Verify(Cut* cut) {
    const auto runtime = Open(Load::OptionsFor(model_, cut->folder), "after the cut");
    lost_ += cut->load.TakeBackLost(*runtime, cut->at);
    cut->load.Check(*runtime);
    Watched w(cut->load);
    RunClients(*runtime, &w, kStepsAfter, &expected_, false);
    cut->load = w.load;
  }

  const uint64_t seed_;
  const int wanted_;
  std::mt19937_64 random_;
  std::string folder_, model_;
  Expected expected_;
  std::optional<Cut> state_;
  int done_ = 0, runs_ = 0, lost_ = 0;
  uint64_t unsynced_ = 0, operations_ = 0, steps_ = 0;
};

}  // namespace
}  // namespace holdfast::soak

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  int cuts = 50;
  uint64_t seed = std::random_device{}();
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 < argc && std::strcmp(argv[i], "--cuts") == 0) {
      cuts = std::atoi(argv[i + 1]);
    } else if (i + 1 < argc && std::strcmp(argv[i], "--seed") == 0) {
      seed = std::strtoull(argv[i + 1], nullptr, 10);
    } else {
      std::fprintf(stderr, "usage: power_cut [--cuts N] [--seed S]\n");
      return 2;
    }
  }
  return holdfast::soak::Campaign(seed, cuts).Main();
}

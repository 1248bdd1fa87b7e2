#include "engine/backend/cpu/roofline.h"

#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "engine/backend/cpu/levels.h"
#include "engine/backend/cpu/machine.h"

namespace holdfast {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kLeastPasses = 1;
constexpr int64_t kFirstRounds = 1000;  // of a loop, to learn how long one takes

double Seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

// Runs fn(thread) on `threads` threads at once; the seconds from the first begin to the last end.
template <typename F>
double RunTogether(int threads, const F& fn) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  std::vector<int> processors;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
    for (int c = 0; c < CPU_SETSIZE; ++c) {
      if (CPU_ISSET(c, &allowed)) processors.push_back(c);
    }
  }
  const bool pins = threads <= static_cast<int>(processors.size());
  std::barrier start(threads);
  std::vector<Clock::time_point> begin(threads), end(threads);
  std::vector<std::thread> workers;
  for (int t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] {
      if (pins) {
        cpu_set_t own;
        CPU_ZERO(&own);
        CPU_SET(processors[t], &own);
        pthread_setaffinity_np(pthread_self(), sizeof(own), &own);
      }
      SetFpControl();
      start.arrive_and_wait();
      begin[t] = Clock::now();
      fn(t);
      end[t] = Clock::now();
    });
  }
  for (std::thread& w : workers) w.join();
  return Seconds(*std::max_element(end.begin(), end.end()) -
                 *std::min_element(begin.begin(), begin.end()));
}

// The best rate of `work(thread, rounds)`, which returns what it has done; the number of rounds is
// first made to last about options.seconds.
template <typename F>
double BestRate(const RooflineOptions& options, int64_t first_rounds, const F& work) {
  std::vector<double> done(options.threads);
  const auto run = [&](int64_t rounds) {
    return RunTogether(options.threads, [&](int t) { done[t] = work(t, rounds); });
  };
  const double first = std::max(run(first_rounds), 1e-7);
  const double factor = std::clamp(options.seconds / first, 1.0, 1e6);
  const auto rounds = static_cast<int64_t>(static_cast<double>(first_rounds) * factor);
  double best = 0;
  for (int i = 0; i < options.runs; ++i) {
    const double seconds = run(rounds);
    double all = 0;
    for (const double d : done) all += d;
    best = std::max(best, all / seconds);
  }
  return best;
}

// Memory of huge pages where the system has them. Null data: there is none.
class Buffer {
 public:
  explicit Buffer(int64_t bytes) : bytes_(static_cast<size_t>(bytes)) {
    void* p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return;
    madvise(p, bytes_, MADV_HUGEPAGE);
    std::memset(p, 1, bytes_);
    data_ = static_cast<uint8_t*>(p);
  }
  ~Buffer() {
    if (data_ != nullptr) munmap(data_, bytes_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  const uint8_t* data() const { return data_; }

 private:
  size_t bytes_;
  uint8_t* data_ = nullptr;
};

// Streams start an odd number of 4 KiB pages apart: at powers of two they would share cache sets.
int64_t ShareOf(int64_t bytes_per_thread) {
  constexpr int64_t kPage = 4096;
  const int64_t pages = std::max<int64_t>(1, bytes_per_thread / kReadStreams / kPage);
  return ((pages - 1) | 1) * kPage * kReadStreams;
}

double ReadRate(const RooflineOptions& options, const Buffer& buffer, int64_t bytes_per_thread) {
  if (buffer.data() == nullptr) return 0;
  const auto read = RooflineOf(options.level).read;
  const int64_t share = ShareOf(bytes_per_thread);
  return BestRate(options, kLeastPasses, [=, &buffer](int thread, int64_t passes) {
    uint64_t all = 0;
    for (int64_t p = 0; p < passes; ++p) all ^= read(buffer.data() + share * thread, share);
    __asm__ volatile("" : : "r"(all));
    return static_cast<double>(passes * share);
  });
}

}  // namespace

const RooflineKernels& RooflineOf(std::string_view level) {
  for (const CpuLevel& known : CpuLevels()) {
    if (known.name == level) return known.roofline();
  }
  return RooflinePortable();
}

int64_t CacheBytes(int level) {
  for (int index = 0; index < 8; ++index) {
    const std::string folder =
        "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
    int at = 0;
    int64_t kib = 0;
    std::string type;
    std::ifstream(folder + "level") >> at;
    std::ifstream(folder + "type") >> type;
    std::ifstream(folder + "size") >> kib;  // "1024K"
    if (at == level && type != "Instruction" && kib > 0) return kib * 1024;
  }
  return level == 2 ? 512 << 10 : 8 << 20;
}

double MeasureRead(const RooflineOptions& options) {
  const int64_t share = options.dram_bytes / options.threads;
  const Buffer buffer(ShareOf(share) * options.threads);
  return ReadRate(options, buffer, share);
}

Roofline MeasureRoofline(const RooflineOptions& options) {
  const RooflineKernels& kernels = RooflineOf(options.level);
  const int64_t l2 = CacheBytes(2) / 2;  // half of a cache: what else is in it stays there
  const int64_t l3 = std::max(4 * l2, CacheBytes(3) / 2 / options.threads);
  const int64_t dram = options.dram_bytes / options.threads;
  const Buffer buffer(ShareOf(std::max({l2, l3, dram})) * options.threads);
  Roofline r{.threads = options.threads};
  r.dram_read = ReadRate(options, buffer, dram);
  r.l3_read = ReadRate(options, buffer, l3);
  r.l2_read = ReadRate(options, buffer, l2);
  r.int8 = BestRate(options, kFirstRounds, [&](int, int64_t n) { return kernels.int8(n); });
  r.fp32 = BestRate(options, kFirstRounds, [&](int, int64_t n) { return kernels.fp32(n); });
  return r;
}

}  // namespace holdfast

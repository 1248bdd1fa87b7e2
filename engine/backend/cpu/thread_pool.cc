// One job at a time. Run opens it, works itself, and closes it when the cursor has run out; a
// worker joins only while it is open. So a worker that the operating system has not woken yet costs
// the caller nothing: on a crowded machine Run is never slower than one thread by more than a
// wake-up.
//
// `gate_` counts the workers inside and says whether the job is open; the job's fields change only
// while it is closed and empty, so a worker that has joined reads them safely. `epoch_` is what
// idle workers watch: for kSpins pauses (some tens of microseconds: longer than the gap between two
// operations, about what waking a sleeping processor costs), then in the kernel.
//
// Workers are kept off the processor that the caller runs on. A kernel may put a thread that was
// just woken beside the one that woke it, where it can only wait (kernels of small virtual machines
// pack threads on purpose, even for whole seconds). The caller's own affinity is left alone, since
// threads that it starts would inherit it.
#include "engine/backend/cpu/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <thread>
#include <vector>

#include "engine/backend/cpu/machine.h"

namespace holdfast {
namespace {

constexpr int kSpins = 1024;
constexpr uint32_t kOpen = 1u << 16;  // above it: nothing; below: workers inside

// Waits until `value` is not `old`.
void Await(const std::atomic<uint32_t>& value, uint32_t old, int spins) {
  for (int i = 0; i < spins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    CpuPause();
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

struct ThreadPool::Impl {
  explicit Impl(int threads) {
    sched_getaffinity(0, sizeof(allowed), &allowed);
    const int processors = CPU_COUNT(&allowed);
    // More threads than processors: whoever spins takes one from a thread that would work.
    spins = threads <= processors ? kSpins : 0;
    steers = threads > 1 && threads <= processors;
    for (int i = 1; i < threads; ++i) workers.emplace_back([this, i] { Loop(i); });
  }

  void Loop(int thread) {
    uint32_t seen = 0;
    while (true) {
      Await(epoch, seen, spins);
      seen = epoch.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_relaxed)) return;
      if (!Join()) continue;
      SetFpControl();
      Work(thread);
      if (gate.fetch_sub(1, std::memory_order_acq_rel) == 1) gate.notify_all();
    }
  }

  // One system call per worker whenever the caller has been moved, which is rare.
  void KeepWorkersOff(int processor) {
    if (processor == caller_on) return;
    caller_on = processor;
    cpu_set_t others = allowed;
    CPU_CLR(processor, &others);
    // Failure (the process may have been confined since) only leaves the workers where they are.
    for (std::thread& worker : workers) {
      pthread_setaffinity_np(worker.native_handle(), sizeof(others), &others);
    }
  }

  bool Join() {
    uint32_t now = gate.load(std::memory_order_relaxed);
    while (now & kOpen) {
      if (gate.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel)) return true;
    }
    return false;
  }

  void Work(int thread) {
    while (true) {
      const int64_t task = cursor.fetch_add(1, std::memory_order_relaxed);
      if (task >= tasks) return;
      (*fn)(task, thread);
    }
  }

  void Run(int64_t n, const TaskRef& f) {
    if (steers) KeepWorkersOff(sched_getcpu());
    fn = &f;
    tasks = n;
    cursor.store(0, std::memory_order_relaxed);
    gate.store(kOpen, std::memory_order_release);
    epoch.fetch_add(1, std::memory_order_acq_rel);
    epoch.notify_all();
    Work(0);
    uint32_t inside = gate.fetch_and(~kOpen, std::memory_order_acq_rel) & ~kOpen;
    while (inside != 0) {
      Await(gate, inside, spins);
      inside = gate.load(std::memory_order_acquire);
    }
  }

  cpu_set_t allowed;  // of the process, when the pool was made
  bool steers = false;
  int caller_on = -1;
  int spins = 0;
  const TaskRef* fn = nullptr;
  int64_t tasks = 0;
  alignas(64) std::atomic<int64_t> cursor{0};
  alignas(64) std::atomic<uint32_t> gate{0};
  alignas(64) std::atomic<uint32_t> epoch{0};
  std::atomic<bool> stop{false};
  std::vector<std::thread> workers;
};

ThreadPool::ThreadPool(int threads) : impl_(std::make_unique<Impl>(threads)) {}

ThreadPool::~ThreadPool() {
  impl_->stop.store(true, std::memory_order_relaxed);
  impl_->epoch.fetch_add(1, std::memory_order_acq_rel);
  impl_->epoch.notify_all();
  for (std::thread& worker : impl_->workers) worker.join();
}

int ThreadPool::threads() const { return static_cast<int>(impl_->workers.size()) + 1; }

void ThreadPool::Run(int64_t tasks, TaskRef fn) {
  SetFpControl();
  if (tasks > 1 && !impl_->workers.empty()) return impl_->Run(tasks, fn);
  for (int64_t task = 0; task < tasks; ++task) fn(task, 0);
}

}  // namespace holdfast

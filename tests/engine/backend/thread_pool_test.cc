#include "engine/backend/cpu/thread_pool.h"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "engine/backend/cpu/machine.h"

using namespace holdfast;

namespace {

// Threads of this process in state S, as the kernel sees them.
int SleepingThreads() {
  int sleeping = 0;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream file(task.path() / "stat");
    std::string text;
    std::getline(file, text);
    const size_t name_end = text.rfind(')');  // "pid (name) S ..."
    if (name_end != std::string::npos && text[name_end + 2] == 'S') ++sleeping;
  }
  return sleeping;
}

// Denormals count as zero, as operands and as results.
#if defined(__x86_64__)
void FlushDenormals() { _mm_setcsr(0x1f80 | 0x8040); }
#elif defined(__aarch64__)
void FlushDenormals() { __asm__ volatile("msr fpcr, %0" : : "r"(uint64_t{1} << 24)); }
#endif

}  // namespace

TEST_CASE("every task runs once, on a thread of the pool") {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    for (int64_t tasks : {0, 1, 2, 3, 7, 100, 5000}) {
      std::vector<std::atomic<int>> done(tasks);
      std::atomic<bool> bad_thread = false;
      pool.Run(tasks, [&](int64_t task, int thread) {
        done[task].fetch_add(1);
        if (thread < 0 || thread >= threads) bad_thread = true;
      });
      CHECK(!bad_thread);
      for (const auto& count : done) REQUIRE(count == 1);
    }
  }
}

TEST_CASE("all writes of the tasks are seen when Run returns, in thousands of short runs") {
  ThreadPool pool(4);
  std::vector<int64_t> value(64);
  for (int64_t n = 1; n <= 20000; ++n) {
    const int64_t tasks = 1 + n % 64;
    pool.Run(tasks, [&](int64_t task, int) { value[task] = n; });
    for (int64_t task = 0; task < tasks; ++task) REQUIRE(value[task] == n);
  }
}

TEST_CASE("Run waits for a worker that is still busy when the caller is done") {
  ThreadPool pool(2);
  for (int n = 0; n < 20; ++n) {
    std::atomic<int> inside = 0;
    bool written = false;
    pool.Run(2, [&](int64_t, int thread) {
      inside.fetch_add(1);
      while (inside.load() < 2) std::this_thread::yield();  // each thread has one task
      if (thread == 0) return;
      const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(2);
      while (std::chrono::steady_clock::now() < end) std::this_thread::yield();
      written = true;
    });
    REQUIRE(written);
  }
}

TEST_CASE("no two threads have the same number at the same time") {
  ThreadPool pool(4);
  std::atomic<int> inside[4] = {};
  std::atomic<bool> clash = false;
  for (int n = 0; n < 2000; ++n) {
    pool.Run(16, [&](int64_t, int thread) {
      if (inside[thread].fetch_add(1) != 0) clash = true;
      inside[thread].fetch_sub(1);
    });
  }
  CHECK(!clash);
}

TEST_CASE("denormals are kept on every thread, whatever a foreign library had set there") {
  ThreadPool pool(3);
  for (int64_t tasks : {1, 1000}) {
    // Every thread that takes a task ends it with denormals flushed.
    pool.Run(tasks, [](int64_t, int) { FlushDenormals(); });
    FlushDenormals();
    std::atomic<int> lost = 0;
    pool.Run(tasks, [&](int64_t, int) {
      volatile float smallest = std::numeric_limits<float>::denorm_min();
      volatile float twice = smallest + smallest;
      if (twice == 0.0f) lost.fetch_add(1);
    });
    CHECK(lost == 0);
  }
  // Threads that start now inherit the flush.
  FlushDenormals();
  ThreadPool late(2);
  std::atomic<int> lost = 0;
  std::atomic<int> inside = 0;
  late.Run(2, [&](int64_t, int) {
    inside.fetch_add(1);
    while (inside.load() < 2) std::this_thread::yield();  // both threads have one task
    volatile float smallest = std::numeric_limits<float>::denorm_min();
    volatile float twice = smallest + smallest;
    if (twice == 0.0f) lost.fetch_add(1);
  });
  CHECK(lost == 0);
  SetFpControl();
}
TEST_CASE("an idle pool sleeps") {
  const int before = SleepingThreads();
  ThreadPool pool(2);
  for (int n = 0; n < 100; ++n) pool.Run(8, [](int64_t, int) {});
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (SleepingThreads() < before + 1 && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
  }
  CHECK(SleepingThreads() == before + 1);
}

TEST_CASE("what a run costs (printed only)") {
  for (int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    const auto begin = std::chrono::steady_clock::now();
    constexpr int kRuns = 20000;
    for (int n = 0; n < kRuns; ++n) pool.Run(threads, [](int64_t, int) {});
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - begin;
    std::printf("%d threads: %.2f us per run\n", threads, took.count() / kRuns);
  }
}

// A pool of worker threads that joins per operation: Run hands out task numbers from one atomic
// cursor and returns when all are done. Costs microseconds, since an operation of a small model
// takes not much more; workers spin for a short while, then sleep, so that an idle process uses no
// CPU.
//
// Workers set their own floating-point control (round to nearest, denormals kept) before each Run,
// because foreign libraries may have switched flush-to-zero on; so does the caller's thread.
// One caller at a time. Results never depend on which thread does which task (NUMERICS.md, 1).
#pragma once

#include <cstdint>
#include <memory>

namespace holdfast {

// A borrowed callable `void(int64_t task, int thread)`; valid during the call that takes it.
class TaskRef {
 public:
  template <typename F>
  TaskRef(const F& f)  // NOLINT: implicit by design
      : object_(&f), call_([](const void* o, int64_t task, int thread) {
          (*static_cast<const F*>(o))(task, thread);
        }) {}
  void operator()(int64_t task, int thread) const { call_(object_, task, thread); }

 private:
  const void* object_;
  void (*call_)(const void*, int64_t, int);
};

class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // the caller is one of them; >= 1
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;
  // Calls fn(task, thread) once for each task in 0..tasks-1, thread in 0..threads()-1.
  void Run(int64_t tasks, TaskRef fn);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace holdfast

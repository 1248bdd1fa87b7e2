// Attention on the CPU: NUMERICS.md sections 5 and 6, equal to reference::Attend by memcmp at every
// level, for F16 and F32 KV and INT8 K (by integer products), k_dim and v_dim that are multiples of
// 16, any number of query heads per KV head, windows, runs that start and end anywhere, and any mix
// of sequences and rows in a call.
//
// Work is cut into tasks of (sequence, KV head, block of rows, stretch of splits). Query heads that
// share a KV head and rows of one block go through the tiles together, so that a number of K or V
// is loaded and converted once for all of them; so do sequences that begin in the same pages, as
// far as they do. A sequence that is alone is cut along its length, so that one decoding row keeps
// every thread busy. Where the work was cut, and who went together, shows in no result.
#pragma once

#include <memory>

#include "engine/backend/backend.h"
#include "engine/backend/cpu/thread_pool.h"

namespace holdfast {

struct AttendKernels;  // attend_tile.h

// Buffers that CpuAttend reuses from call to call; they grow to the largest call and stay. One per
// backend; one call at a time.
class AttendScratch {
 public:
  AttendScratch();
  ~AttendScratch();
  AttendScratch(const AttendScratch&) = delete;
  AttendScratch& operator=(const AttendScratch&) = delete;

  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

// `kernels` are of a level that this processor has. Rows of `out` that no sequence names are not
// touched. The rope table must reach every position - shift that a row sees.
void CpuAttend(ThreadPool& pool, const AttendKernels& kernels, const AttendArgs& args,
               AttendScratch& scratch);

}  // namespace holdfast

// Weights and matrix products of the CPU backends (NUMERICS.md sections 2 and 4).
//
// One packed form serves every level (pack.h), so a weight that one CPU backend packed may be used
// by another. Results are the reference's to the bit for any rows, threads and split.
#pragma once

#include <memory>
#include <span>

#include "engine/backend/backend.h"
#include "engine/backend/cpu/thread_pool.h"

namespace holdfast {

class WeightMemory;    // pack.h
struct MatMulKernels;  // matmul_kernels.h

// Any thread. kInvalid as reference::CheckSource says; kExhausted when there is no memory.
Result<std::unique_ptr<Weight>> PackCpuWeight(const WeightSource& source, WeightMemory& memory);

// `table` is from PackCpuWeight, ids are in range; out is [ids][inputs].
void CpuEmbed(const Weight& table, std::span<const TokenId> ids, float* out);

// Buffers that CpuMatMul reuses from call to call. One per backend; one call at a time.
class MatMulScratch {
 public:
  MatMulScratch();
  ~MatMulScratch();
  MatMulScratch(const MatMulScratch&) = delete;
  MatMulScratch& operator=(const MatMulScratch&) = delete;

  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

// Products of as many rows each. Their `w` are from PackCpuWeight; `kernels` are of a level that
// this processor has.
void CpuMatMul(ThreadPool& pool, const MatMulKernels& kernels,
               std::span<const MatMulArgs> products, MatMulScratch& scratch);

}  // namespace holdfast

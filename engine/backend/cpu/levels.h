// The instruction sets that this build has kernels for. One row each, in levels_<architecture>.cc,
// of which the build takes one: what is above the kernels knows levels by their rows alone.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "engine/backend/cpu/attend_tile.h"
#include "engine/backend/cpu/elementwise.h"
#include "engine/backend/cpu/matmul_kernels.h"
#include "engine/backend/cpu/roofline.h"

namespace holdfast {

struct CpuLevel {
  std::string_view name;
  std::string_view needs;  // for messages
  bool (*present)();       // this processor, and its operating system, can run it
  int64_t task_elements;   // of a cheap operation that are worth a thread
  const ElementwiseKernels& (*elementwise)();
  const MatMulKernels& (*matmul)();
  const AttendKernels& (*attend)();
  const RooflineKernels& (*roofline)();
};

std::span<const CpuLevel> CpuLevels();  // the best first; the last is portable, always present
const CpuLevel& BestCpuLevel();         // of those that are present

}  // namespace holdfast

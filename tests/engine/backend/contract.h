// What every Backend must do: equal reference by memcmp, NaNs made canonical, over shapes that cross
// every threshold of every implementation. A level joins with one test file (avx2_test.cc).
#pragma once

#include <memory>
#include <span>
#include <string>

#include "engine/backend/backend.h"

namespace holdfast {
namespace testing {

struct ContractPart {
  const char* name;
  void (*check)(Backend& backend);  // by doctest's CHECK
};
std::span<const ContractPart> ContractParts();

// The backend of a level, or null when this processor lacks it: then it says so on standard output
// and checks that MakeCpuBackend refuses with kInvalid, and that `cpu_flag` is absent in fact.
std::unique_ptr<Backend> MakeLevel(const std::string& level, const std::string& cpu_flag,
                                   int threads);

// All parts, with one thread and with three.
void CheckLevel(const std::string& level, const std::string& cpu_flag);

}  // namespace testing
}  // namespace holdfast

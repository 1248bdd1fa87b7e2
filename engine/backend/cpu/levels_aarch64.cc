#include "engine/backend/cpu/levels.h"
#include "engine/backend/cpu/machine.h"

namespace holdfast {

std::span<const CpuLevel> CpuLevels() {
  static constexpr CpuLevel kLevels[] = {
      {"neon", "NEON with dot products (ARMv8.2)", ProcessorHasNeon, 16384,
       ElementwiseNeon, NeonMatMulKernels, AttendNeon, RooflineNeon},
      {"portable", "nothing", ProcessorHasAnything, 2048,
       ElementwisePortable, PortableMatMulKernels, AttendPortable, RooflinePortable},
  };
  return kLevels;
}

}  // namespace holdfast

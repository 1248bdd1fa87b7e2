#include "engine/backend/cpu/levels.h"
#include "engine/backend/cpu/machine.h"

namespace holdfast {

std::span<const CpuLevel> CpuLevels() {
  static constexpr CpuLevel kLevels[] = {
      {"avx512", "AVX-512 F, BW, VL, DQ and VNNI", ProcessorHasAvx512, 16384,
       ElementwiseAvx512, Avx512MatMulKernels, AttendAvx512, RooflineAvx512},
      {"avx2", "AVX2, FMA and F16C", ProcessorHasAvx2, 16384,
       ElementwiseAvx2, Avx2MatMulKernels, AttendAvx2, RooflineAvx2},
      {"portable", "nothing", ProcessorHasAnything, 2048,
       ElementwisePortable, PortableMatMulKernels, AttendPortable, RooflinePortable},
  };
  return kLevels;
}

}  // namespace holdfast

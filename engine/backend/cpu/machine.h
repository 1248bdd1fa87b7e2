// What C++ has no name for: floating-point modes, a spin's pause, what the processor can do. The
// only file with an #if per architecture.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace holdfast {

inline bool ProcessorHasAnything() { return true; }

#if defined(__x86_64__)

// Round to nearest even, denormals kept on input and output, no traps.
inline void SetFpControl() { _mm_setcsr(0x1f80); }
inline void CpuPause() { _mm_pause(); }

// All that files compiled for the level may use, the operating system's support included.
inline bool ProcessorHasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
inline bool ProcessorHasAvx512() {
  return ProcessorHasAvx2() && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}

#elif defined(__aarch64__)

inline void SetFpControl() { __asm__ volatile("msr fpcr, %0" : : "r"(uint64_t{0})); }
inline void CpuPause() { __asm__ volatile("yield"); }

// NEON itself is part of every such processor; its dot products came with ARMv8.2.
inline bool ProcessorHasNeon() {
  constexpr unsigned long kAsimdDp = 1 << 20;  // HWCAP_ASIMDDP, for C libraries that lack the name
  return (getauxval(AT_HWCAP) & kAsimdDp) != 0;
}

#endif

}  // namespace holdfast

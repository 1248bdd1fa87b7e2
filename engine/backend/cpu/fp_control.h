// The two things of a thread that C++ has no name for. The only file with an #if per architecture.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace holdfast {

#if defined(__x86_64__)

// Round to nearest even, denormals kept on input and output, no traps.
inline void SetFpControl() { _mm_setcsr(0x1f80); }
inline void CpuPause() { _mm_pause(); }

#elif defined(__aarch64__)

inline void SetFpControl() { __asm__ volatile("msr fpcr, %0" : : "r"(uint64_t{0})); }
inline void CpuPause() { __asm__ volatile("yield"); }

#endif

}  // namespace holdfast

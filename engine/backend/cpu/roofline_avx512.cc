#include <immintrin.h>

#include "engine/backend/cpu/roofline_inl.h"

namespace holdfast {
namespace {

struct Vectors {
  static constexpr int kBytes = 64;
  static __m512i Zero() { return _mm512_setzero_si512(); }
  static __m512 ZeroFloat() { return _mm512_setzero_ps(); }
  static __m512i Load(const uint8_t* p) { return _mm512_load_si512(p); }
  static __m512i Xor(__m512i a, __m512i b) { return _mm512_xor_si512(a, b); }
  static uint64_t Fold(__m512i v) {
    alignas(64) uint64_t word[8], all = 0;
    _mm512_store_si512(word, v);
    for (const uint64_t w : word) all ^= w;
    return all;
  }
  static void MultiplyAddInt8(__m512i& sum, __m512i a, __m512i b) {
    __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  }
  static void MultiplyAdd(__m512& sum, __m512 a, __m512 b) {
    __asm__ volatile("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  }
};

constexpr RooflineKernels kKernels = {ReadStreams<Vectors>, Int8Steps<Vectors>, Fp32Steps<Vectors>};

}  // namespace

const RooflineKernels& RooflineAvx512() { return kKernels; }

}  // namespace holdfast

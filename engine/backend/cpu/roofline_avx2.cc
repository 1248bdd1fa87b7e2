#include <immintrin.h>

#include "engine/backend/cpu/roofline_inl.h"

namespace holdfast {
namespace {

struct Vectors {
  static constexpr int kBytes = 32;
  static __m256i Zero() { return _mm256_setzero_si256(); }
  static __m256 ZeroFloat() { return _mm256_setzero_ps(); }
  static __m256i Load(const uint8_t* p) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
  }
  static __m256i Xor(__m256i a, __m256i b) { return _mm256_xor_si256(a, b); }
  static uint64_t Fold(__m256i v) {
    alignas(32) uint64_t word[4], all = 0;
    _mm256_store_si256(reinterpret_cast<__m256i*>(word), v);
    for (const uint64_t w : word) all ^= w;
    return all;
  }
  static void MultiplyAddInt8(__m256i& sum, __m256i a, __m256i b) {
    __m256i product;
    __asm__ volatile("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
                     : "+x"(sum), "=&x"(product) : "x"(a), "x"(b));
  }
  static void MultiplyAdd(__m256& sum, __m256 a, __m256 b) {
    __asm__ volatile("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
  }
};

constexpr RooflineKernels kKernels = {ReadStreams<Vectors>, Int8Steps<Vectors>, Fp32Steps<Vectors>};

}  // namespace

const RooflineKernels& RooflineAvx2() { return kKernels; }

}  // namespace holdfast

// What this machine can do at most, with the instructions of one level: the rates that every limit
// of a benchmark is counted from.
//
// A rate is the best of several runs of a loop that does one thing, with its threads on processors
// of their own. The best, not the median: what disturbed a run is no limit of the machine.
//
//   read   loads of whole vectors from four places per thread in turn (a prefetcher follows one
//          stream within a 4 KiB page only), huge pages
//   int8   multiply and add of 8-bit integers in registers, with the fewest steps that a weight
//          type can do with: vpdpbusd (avx512), vpmaddubsw and vpaddw (avx2), sdot (neon), what
//          the compiler makes of an int16 product (portable)
//   fp32   fused multiply-add in registers (portable: the C library's fma, as its kernels use)
//
// A multiply and an add are two operations. Nothing here computes a result of the engine.
#pragma once

#include <cstdint>
#include <string_view>

namespace holdfast {

// Loops of one instruction set, one thread each.
struct RooflineKernels {
  // Reads `bytes` (a multiple of kReadUnit) at `data` (64-byte aligned); the XOR of its u64 words.
  uint64_t (*read)(const uint8_t* data, int64_t bytes);
  // `rounds` times the loop's body; the operations that this was. 0 rounds are none.
  double (*int8)(int64_t rounds);
  double (*fp32)(int64_t rounds);
};
inline constexpr int kReadStreams = 4;
inline constexpr int kReadUnit = kReadStreams * 256;

const RooflineKernels& RooflinePortable();
const RooflineKernels& RooflineAvx2();
const RooflineKernels& RooflineAvx512();
const RooflineKernels& RooflineNeon();
// By Backend::name(); "reference" has none of its own and counts as portable.
const RooflineKernels& RooflineOf(std::string_view level);

struct RooflineOptions {
  std::string_view level;             // Backend::name()
  int threads = 1;
  int64_t dram_bytes = 512ll << 20;   // read in all where memory is meant; far beyond the caches
  double seconds = 0.03;              // of one run, about
  int runs = 5;
};

struct Roofline {
  int threads = 0;
  double dram_read = 0, l3_read = 0, l2_read = 0;  // bytes/s of all threads together
  double int8 = 0, fp32 = 0;                       // operations/s of all threads together
};

// Zeros where there is no memory to read.
Roofline MeasureRoofline(const RooflineOptions& options);
// Bytes/s at which options.dram_bytes are read again and again.
double MeasureRead(const RooflineOptions& options);

// Bytes of a data cache of this machine, 2 or 3; a guess where the system does not say.
int64_t CacheBytes(int level);

}  // namespace holdfast

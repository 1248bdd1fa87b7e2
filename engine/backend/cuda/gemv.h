// A quantised matrix times a few rows on a CUDA device, with the bits of NUMERICS.md section 4.
// Plain C++: includable without the CUDA headers. All pointers are device memory.
#pragma once

#include <cstdint>

#include "engine/backend/backend.h"

struct CUstream_st;

namespace holdfast {
namespace cuda {

// Rows of groups of 32 elements, each array contiguous over [outputs][groups]:
struct GemvWeight {
  WeightType type = WeightType::kQ8_0;  // kQ8_0 or kQ4_K
  int outputs = 0;
  int groups = 0;                   // inputs / 32
  const void* codes = nullptr;      // Q8_0: 32 signed bytes a group; Q4_K: 16 bytes, element j in
                                    // the low nibble of byte j, j + 16 in the high one
  const uint16_t* d = nullptr;      // f16; Q8_0: [outputs][groups], Q4_K: [outputs][groups / 8]
  const uint16_t* dmin = nullptr;   // f16; Q4_K: [outputs][groups / 8]
  const uint8_t* scale = nullptr;   // Q4_K: [outputs][groups], 0..63
  const uint8_t* min = nullptr;     // Q4_K: [outputs][groups], 0..63
};

struct GemvArgs {
  GemvWeight w;
  int rows = 0;                     // 1..65535; the weights are read once per row
  const int8_t* q = nullptr;        // [rows][groups * 32], as QuantizedRows has them
  const float* scale = nullptr;     // [rows][groups]
  const int32_t* sum = nullptr;     // [rows][groups]: sum_lo + sum_hi
  const float* bias = nullptr;      // [outputs] or null
  float* y = nullptr;               // [rows][outputs]
};

// Queues the product on `stream`. kInvalid for a type or shape that it can't take; kUnavailable
// with the driver's words when the launch fails.
Status LaunchGemv(const GemvArgs& args, CUstream_st* stream);

}  // namespace cuda
}  // namespace holdfast

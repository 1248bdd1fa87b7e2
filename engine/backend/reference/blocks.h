// GGUF weight blocks read one group of 32 elements at a time (NUMERICS.md section 4).
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/backend/backend.h"

namespace holdfast {

// The integers and scales of 32 consecutive elements of a row. What a type lacks is neutral.
struct WeightGroup {
  int8_t w[32];     // w of the table: the type's offset is taken off
  float d = 0;      // dw of the table
  float min = 0;    // min of the table; Q4_1, Q5_1: -m
  int8_t sc[2] = {1, 1};  // Q6_K: scales of elements 0..15 and 16..31
};

// `row` is the first byte of a row of quantised `type`; `group` counts groups of 32 along it.
WeightGroup ReadWeightGroup(WeightType type, const std::byte* row, int64_t group);

}  // namespace holdfast

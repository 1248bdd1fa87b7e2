#include "engine/backend/backend.h"

namespace holdfast {

std::string_view WeightTypeName(WeightType type) {
  switch (type) {
    case WeightType::kF32: return "F32";
    case WeightType::kF16: return "F16";
    case WeightType::kQ4_1: return "Q4_1";
    case WeightType::kQ5_0: return "Q5_0";
    case WeightType::kQ8_0: return "Q8_0";
    case WeightType::kQ4_K: return "Q4_K";
    case WeightType::kQ6_K: return "Q6_K";
  }
  return "unknown";
}

BlockShape WeightBlock(WeightType type) {
  switch (type) {
    case WeightType::kF32: return {1, 4};
    case WeightType::kF16: return {1, 2};
    case WeightType::kQ4_1: return {32, 2 + 2 + 16};        // d, m, nibbles
    case WeightType::kQ5_0: return {32, 2 + 4 + 16};        // d, fifth bits, nibbles
    case WeightType::kQ8_0: return {32, 2 + 32};            // d, bytes
    case WeightType::kQ4_K: return {256, 2 + 2 + 12 + 128};  // d, dmin, 8 x (scale, min), nibbles
    case WeightType::kQ6_K: return {256, 128 + 64 + 16 + 2};  // low 4 bits, high 2 bits, scales, d
  }
  return {};
}

void QuantizedRows::Resize(int64_t n_rows, int64_t n_cols) {
  rows = n_rows;
  cols = (n_cols + kQuantGroup - 1) / kQuantGroup * kQuantGroup;
  const size_t groups = static_cast<size_t>(rows) * (cols / kQuantGroup);
  q.resize(groups * kQuantGroup);
  scale.resize(groups);
  sum_lo.resize(groups);
  sum_hi.resize(groups);
}

}  // namespace holdfast

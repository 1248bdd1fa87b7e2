#include "engine/backend/backend.h"

#include <array>

namespace holdfast {

namespace {

struct TypeInfo {
  WeightType type;
  std::string_view name;
  BlockShape block;
};

constexpr TypeInfo kTypes[] = {
    {WeightType::kF32, "F32", {1, 4}},
    {WeightType::kF16, "F16", {1, 2}},
    {WeightType::kQ4_0, "Q4_0", {32, 2 + 16}},                // d, nibbles
    {WeightType::kQ4_1, "Q4_1", {32, 2 + 2 + 16}},            // d, m, nibbles
    {WeightType::kQ5_0, "Q5_0", {32, 2 + 4 + 16}},            // d, fifth bits, nibbles
    {WeightType::kQ5_1, "Q5_1", {32, 2 + 2 + 4 + 16}},        // d, m, fifth bits, nibbles
    {WeightType::kQ8_0, "Q8_0", {32, 2 + 32}},                // d, bytes
    {WeightType::kQ4_K, "Q4_K", {256, 2 + 2 + 12 + 128}},     // d, dmin, 8 x (scale, min), nibbles
    {WeightType::kQ5_K, "Q5_K", {256, 2 + 2 + 12 + 32 + 128}},  // the same, fifth bits, nibbles
    {WeightType::kQ6_K, "Q6_K", {256, 128 + 64 + 16 + 2}},    // low 4, high 2 bits, scales, d
    {WeightType::kIQ4_NL, "IQ4_NL", {32, 2 + 16}},            // d, nibbles
    {WeightType::kIQ4_XS, "IQ4_XS", {256, 2 + 2 + 4 + 128}},  // d, scales' high, low bits, nibbles
    {WeightType::kBF16, "BF16", {1, 2}},
    {WeightType::kMXFP4, "MXFP4", {32, 1 + 16}},              // exponent, nibbles
};

constexpr auto kAll = [] {
  std::array<WeightType, std::size(kTypes)> all{};
  for (size_t i = 0; i < all.size(); ++i) all[i] = kTypes[i].type;
  return all;
}();

const TypeInfo* Find(WeightType type) {
  for (const TypeInfo& info : kTypes) {
    if (info.type == type) return &info;
  }
  return nullptr;
}

}  // namespace

std::span<const WeightType> AllWeightTypes() { return kAll; }

std::string_view WeightTypeName(WeightType type) {
  const TypeInfo* info = Find(type);
  return info != nullptr ? info->name : "unknown";
}

BlockShape WeightBlock(WeightType type) {
  const TypeInfo* info = Find(type);
  return info != nullptr ? info->block : BlockShape();
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

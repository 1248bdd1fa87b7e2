// The few scalar types that every layer shares.
#pragma once

#include <cstdint>

namespace holdfast {

using TokenId = int32_t;  // an index into a model's vocabulary; never negative in a timeline
inline constexpr TokenId kNoToken = -1;

}  // namespace holdfast

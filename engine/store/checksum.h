// XXH3-64 as formats use it against accidents (never against malice: see HmacSha256).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace holdfast {

// Of all parts, one after another. `seed` ties the value to a place, say.
uint64_t Checksum64(std::span<const std::span<const std::byte>> parts, uint64_t seed);

}  // namespace holdfast

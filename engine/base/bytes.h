// Numbers in files and records: little endian, wherever they stand.
#pragma once

#include <bit>
#include <cstddef>
#include <cstring>

namespace holdfast {

static_assert(std::endian::native == std::endian::little, "formats are read as they lie");

template <typename T>
void Put(std::byte* at, T value) {
  std::memcpy(at, &value, sizeof(value));
}

template <typename T>
T Get(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

}  // namespace holdfast

// Which way a list is read, from its oldest row or from its newest.
#pragma once

#include <cstdint>

namespace holdfast {

enum class ListOrder : uint8_t { kAscending, kDescending };

}  // namespace holdfast

// Memory, as the system counts it.
#pragma once

#include <cstddef>

namespace holdfast {

// Bytes that this process may still take: what the kernel calls available, within the limit of its
// cgroup. 0 where nothing can be read.
size_t AvailableMemory();
// Bytes of this process that lie in memory now.
size_t ResidentMemory();

}  // namespace holdfast

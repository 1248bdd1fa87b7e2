// Threads that stand back where others want the cores.
#pragma once

#include <chrono>

namespace holdfast {

// From now on the calling thread gets about a tenth of a core that a thread of ordinary priority
// wants too, and all of one that nobody wants. Where the system refuses nothing changes.
void StandBack();

// Of a core, that the calling thread has had so far.
std::chrono::nanoseconds ThreadCpuTime();

}  // namespace holdfast

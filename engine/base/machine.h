// What machine this is, as far as its speed goes.
#pragma once

#include <string>

namespace holdfast {

std::string CpuModel();  // as the kernel names it; "unknown" where it does not
int UsableCores();       // that this process may use

}  // namespace holdfast

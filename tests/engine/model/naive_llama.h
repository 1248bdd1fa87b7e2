// A forward pass of each architecture as the papers write it, in double precision over an F32 GGUF file,
// with the file's own order of rotation. Slow and short: what forward.cc is judged against, within
// rounding, where the bitwise tests can't see a mistake that all of them share.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "engine/base/types.h"

namespace holdfast {

// Logits after each of `tokens`; [tokens][vocab]. `file` holds an F32 model of
// fixtures/tiny_model.h.
std::vector<std::vector<double>> NaiveLogits(const std::string& file,
                                             std::span<const TokenId> tokens);

}  // namespace holdfast

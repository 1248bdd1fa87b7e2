// The user's own text, for contexts to be made of (contexts.h).
#pragma once

#include <span>
#include <string>
#include <vector>

#include "engine/base/status.h"

namespace holdfast {

struct TextFile {
  std::string path;
  std::vector<std::string> lines;  // each with its newline
};

// The text files among `paths`, files or folders with all that they hold, in order of their paths.
// Left out: what is hidden; what is shorter than kLeastTextLines, larger than kMostTextBytes or has
// a line longer than kMostLineBytes (data, not text); what holds control characters, or "<|", with
// which chat templates mark messages. kNotFound: a path is not there; kInvalid: no file is left.
Result<std::vector<TextFile>> ReadTextFiles(std::span<const std::string> paths);
inline constexpr size_t kLeastTextLines = 20;
inline constexpr size_t kMostTextBytes = 1 << 20;
inline constexpr size_t kMostLineBytes = 500;

}  // namespace holdfast

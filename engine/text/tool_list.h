// The tools of a request as a set: two lists that offer the same tools say the same, whatever the
// order of the tools and of their keys, and whatever blanks stand between them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"

namespace holdfast {

struct CanonicalTool {
  std::string name;  // "" where it has none
  std::string json;  // keys in order, no blanks, without `cache_control`
  bool operator==(const CanonicalTool&) const = default;
};

// In order of names. `tools_json`: an array of OpenAI tools, or empty. kInvalid: it is neither.
Result<std::vector<CanonicalTool>> CanonicalTools(std::string_view tools_json);

}  // namespace holdfast

// JSON at the edge, bounded. For api/*.cc and the tests' drivers; no other layer sees
// nlohmann/json.
//
// Debian's nlohmann 3.11.2 crashes when it dumps what is 100,000 levels deep and throws on half a
// UTF-8 character: so parsing stops at a depth and at a number of nodes, and Dump replaces what is
// not UTF-8.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "engine/base/status.h"

namespace holdfast {

// Keeps the order of keys: templates show tools as they were sent.
using Json = nlohmann::ordered_json;

inline constexpr int kJsonDepth = 64;
inline constexpr size_t kJsonNodes = 1u << 20;

// kInvalid, with the byte where it went wrong. Exactly one document; duplicate keys: the last wins.
Result<Json> ParseJson(std::string_view text);
std::string DumpJson(const Json& value);

}  // namespace holdfast

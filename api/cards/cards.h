// The cards of stitcher/cards/*.json, which the build puts into the binary.
#pragma once

#include <string_view>

namespace holdfast {

extern const std::string_view kBuiltInCards;  // a JSON array of cards

}  // namespace holdfast

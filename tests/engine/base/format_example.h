// The worked examples of the FORMAT.md files: bytes as lines "offset: 16 bytes", and the block of
// such lines that a document has.
#pragma once

#include <cstddef>
#include <cstdio>
#include <fstream>
#include <span>
#include <sstream>
#include <string>

namespace holdfast::testing {

// Lines of sixteen zeros are left out.
inline std::string HexLines(std::span<const std::byte> bytes) {
  std::string lines;
  char text[8];
  for (size_t at = 0; at < bytes.size(); at += 16) {
    std::snprintf(text, sizeof(text), "%04zx:", at);
    std::string line = text;
    bool zero = true;
    for (size_t i = at; i < at + 16 && i < bytes.size(); ++i) {
      std::snprintf(text, sizeof(text), " %02x", std::to_integer<int>(bytes[i]));
      line += text;
      zero = zero && bytes[i] == std::byte{0};
    }
    if (!zero) lines += line + "\n";
  }
  return lines;
}

// The first block of the document marked as hex; "" where there is none.
inline std::string HexBlockOf(const std::string& document) {
  std::ifstream file(document);
  std::stringstream text;
  text << file.rdbuf();
  const std::string doc = text.str(), fence = "```hex\n";
  const size_t begin = doc.find(fence);
  if (begin == std::string::npos) return "";
  const size_t first = begin + fence.size();
  return doc.substr(first, doc.find("```", first) - first);
}

}  // namespace holdfast::testing

// A small byte-level vocabulary: tokens 0..255 are the bytes, then a few merges, then special tokens.
#pragma once

#include <string>
#include <vector>

#include "engine/text/text.h"

namespace holdfast {

// The letter that byte-level vocabularies write for `byte`, as UTF-8.
inline std::string ByteLetter(int byte) {
  auto printable = [](int b) { return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b != 0xad); };
  int letter = byte;
  if (!printable(byte)) {
    letter = 256;
    for (int b = 0; b < byte; ++b) letter += !printable(b);
  }
  if (letter < 0x80) return std::string(1, static_cast<char>(letter));
  return {static_cast<char>(0xc0 | letter >> 6), static_cast<char>(0x80 | (letter & 0x3f))};
}

inline TokenizerSpec ByteSpec() {
  TokenizerSpec spec;
  spec.model = "gpt2";
  spec.pre = "qwen2";
  for (int b = 0; b < 256; ++b) spec.tokens.push_back(ByteLetter(b));
  const std::string space = ByteLetter(' ');
  for (const auto& [left, right] : std::vector<std::pair<std::string, std::string>>{
           {"h", "e"}, {"l", "l"}, {"he", "ll"}, {"hell", "o"}, {space, "w"}, {"a", "b"},
           {"b", "c"}, {"<", "|"}, {"i", "m"}}) {
    spec.merges.push_back(left + " " + right);
    spec.tokens.push_back(left + right);
  }
  spec.types.assign(spec.tokens.size(), static_cast<int32_t>(TokenType::kNormal));
  auto add = [&spec](const char* text, TokenType type) {
    spec.tokens.push_back(text);
    spec.types.push_back(static_cast<int32_t>(type));
    return static_cast<TokenId>(spec.tokens.size()) - 1;
  };
  spec.bos = add("<|im_start|>", TokenType::kControl);
  spec.eos = add("<|im_end|>", TokenType::kControl);
  add("<tool_call>", TokenType::kUserDefined);
  add("</tool_call>", TokenType::kControl);
  add("<|im_start|>system", TokenType::kControl);
  return spec;
}

}  // namespace holdfast

// From messages to tokens: renders what is new after a stored history, and says which token belongs
// to which message.
//
// R(k) is the template's rendering of the first k messages without the generation prompt, R that of
// all of them with it. Where R begins with R(k), what is new after a stored output that ended
// message k is
//   what the template puts after the output's end token (all of its end marker where none was
//   sampled), then R without R(k)
// tokenised on its own: sampled tokens are never rendered again. Where R does not begin with R(k)
// (a template that drops old reasoning, say) the caller renders the whole and takes what is equal.
//
// The end of message j is where R(j+1) and R part ways.
//
// A message may bring the tokens of parts of its text (ChatMessage::spans): these stay as they are,
// and what lies between them is tokenised on its own. Not so where the template shows the text
// otherwise, nor where a tokenizer adds bytes of its own before a text: then all of it is tokenised
// as ever. So do the tokens that were sampled for an answer (PromptArgs::sampled), where it is
// shown as they spell it, all of it or what comes behind the reasoning. Immutable; any thread.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/text/text.h"
#include "sessions/turn.h"

namespace holdfast {

// Where a token of the log comes from. The values are stored.
enum class TokenOrigin : uint8_t { kGiven = 0, kTemplate = 1, kSampled = 2, kForced = 3 };

struct PromptArgs {
  std::span<const ChatMessage> messages;
  std::string_view tools_json, kwargs_json;  // "" = none
  int64_t now_unix_s = 0;
  // What was sampled for each message's body, or none: these tokens stand where they spell what
  // the template shows of it. Empty, or one list for each message.
  std::span<const std::vector<TokenId>> sampled = {};
};

// Bytes of a text that become these tokens.
struct FixedPart {
  size_t begin = 0, end = 0;
  std::span<const TokenId> tokens;
};

// The tokens of one message, by index into PromptTokens::tokens.
struct ItemSpan {
  int64_t end = 0;        // begins where the one before ends
  int64_t body_begin = 0, body_end = 0;  // the content; body_begin == body_end: not found as it is
};

struct PromptTokens {
  std::vector<TokenId> tokens;
  std::vector<TokenOrigin> origins;  // one per token; kGiven or kTemplate, kForced for the trailer
  std::vector<ItemSpan> items;       // one per message rendered, ascending
  int64_t prompt_begin = 0;          // the generation prompt is tokens[prompt_begin ..]
};

class PromptRenderer {
 public:
  // The work of finding where messages end is bounded: past this many bytes of rendering, the
  // remaining messages share one span (the last one's).
  static constexpr size_t kMaxSpanBytes = 64u << 20;

  // Both outlive the renderer. Finds out once what the template puts after an assistant's content.
  static Result<std::unique_ptr<PromptRenderer>> Create(const Tokenizer* tokenizer,
                                                        const ChatTemplate* chat_template);

  // Over the whole history, from the first token on. kInvalid: the template refuses the messages.
  Result<PromptTokens> Whole(const PromptArgs& args) const;

  // What follows after the first `from` messages (at least 1), the last of which is an output of
  // ours that ends with token `last`. nullopt: the template is not prefix-stable here.
  Result<std::optional<PromptTokens>> After(const PromptArgs& args, int from, TokenId last) const;

  // True for an end-of-generation token that is not the one the template puts after an answer: it
  // would not be in a rendering, and is not kept in a head.
  bool IsStrayEnd(TokenId token) const;
  // Over template and tokenizer: what, beside messages and tools, decides the tokens.
  const Digest& digest() const { return digest_; }

 private:
  PromptRenderer(const Tokenizer* tokenizer, const ChatTemplate* chat_template)
      : tokenizer_(tokenizer), template_(chat_template) {}
  Result<Rendered> Render(const PromptArgs& args, int count, GenerationPrompt prompt) const;
  Result<std::vector<size_t>> MessageEnds(const PromptArgs& args, int from, std::string_view all,
                                          size_t begin, size_t* prompt_begin) const;
  size_t FindContent(std::string_view all, size_t begin, size_t end,
                     std::string_view content) const;
  std::optional<FixedPart> FindSampled(const Rendered& all, size_t prompt_begin, size_t from,
                                       std::span<const TokenId> sampled) const;
  Result<PromptTokens> Tokenise(const PromptArgs& args, int from, const Rendered& all,
                                size_t begin, std::string_view trailer) const;

  const Tokenizer* tokenizer_;
  const ChatTemplate* template_;
  std::string after_answer_;       // "<|im_end|>\n"
  TokenId end_token_ = kNoToken;   // the end-of-generation token that it begins with
  Digest digest_;
};

// "[a,b,...]" of the messages' raw JSON, the first `count` of them.
std::string MessagesJson(std::span<const ChatMessage> messages, int count);

}  // namespace holdfast

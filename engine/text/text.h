// engine/text: text to tokens and back, chat templates, constrained decoding.
//
// A Rust crate (engine/text/crate) over `tokenizers`, `minijinja` and `llguidance` does the work;
// this is the only door to it. No panic passes: it comes back as kCorrupt, and its object should be
// dropped. The caller owns what a function returns; nothing borrows from its arguments after the
// call unless a comment says "must outlive". Text is UTF-8; offsets are bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/hash.h"
#include "engine/base/status.h"
#include "engine/base/types.h"

namespace holdfast {

// What a GGUF file says about a token (tokenizer.ggml.token_type). kControl and kUnknown are
// special: found only where special tokens are parsed. kUserDefined matches in any text.
enum class TokenType : int32_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

// A tokenizer as a model file describes it. The fields carry the names of tokenizer.ggml.*.
struct TokenizerSpec {
  std::string model;                // "gpt2" (byte-level BPE) or "llama" (SentencePiece's BPE);
                                    // others: kInvalid that names it
  std::string pre;                  // the pre-tokenizer: "smollm", "qwen2", "llama-bpe", ...
  std::vector<std::string> tokens;  // by id, as the file spells them (byte-level letters for gpt2,
                                    // U+2581 for blanks for llama)
  std::vector<int32_t> types;       // by id, values of TokenType; empty means all kNormal
  std::vector<std::string> merges;  // "left right", best first
  std::vector<float> scores;        // by id; the order of llama's merges, unused by gpt2
  TokenId bos = kNoToken, eos = kNoToken, eot = kNoToken, eom = kNoToken;
  TokenId unk = kNoToken, pad = kNoToken;
  std::optional<bool> add_bos;      // bos goes before a text; unset: as `pre` usually has it
  bool add_space_prefix = false;    // of llama: a blank goes before a text and after specials
};

// Bytes [begin, end) of a text in which no special token is parsed: they came from a user.
struct PlainRange {
  size_t begin = 0, end = 0;
  bool operator==(const PlainRange&) const = default;
};

// Immutable; any thread.
class Tokenizer {
 public:
  // kInvalid: unknown model or pre (named), ids out of range, a merge of unknown tokens.
  static Result<std::unique_ptr<Tokenizer>> Create(const TokenizerSpec& spec);
  ~Tokenizer();

  // Special tokens are parsed, except where one would overlap a plain range (ascending, disjoint).
  // Plain ranges change nothing else: merges run across their borders. Adds no bos.
  // kInvalid: text is not UTF-8 (with the offset), bad ranges.
  Result<std::vector<TokenId>> Encode(std::string_view text,
                                      std::span<const PlainRange> plain = {}) const;
  Result<std::vector<TokenId>> EncodePlain(std::string_view text) const;  // all of it is plain

  // The raw bytes of a token, perhaps a part of a character; a special token's literal. Empty for
  // an id out of range.
  const std::string& TokenText(TokenId id) const;
  size_t vocab_size() const;
  bool IsSpecial(TokenId id) const;  // kControl or kUnknown
  TokenId FindToken(std::string_view text) const;  // by TokenText; kNoToken when there is none
  TokenId bos() const;  // bos and eos: kNoToken where the model has none
  TokenId eos() const;
  bool add_bos() const;  // whether the caller should put bos before a text
  std::span<const TokenId> end_of_generation() const;  // eos, eot, eom and their kin; ascending
  bool IsEndOfGeneration(TokenId id) const;
  std::vector<std::string> SpecialTexts() const;  // the literals of all special tokens
  const Digest& digest() const;  // over everything that decides token ids
 private:
  friend class ConstraintFactory;
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Turns a stream of tokens into text that never splits a character. One thread at a time.
class StreamDecoder {
 public:
  enum class Specials : uint8_t { kHide, kShow };  // whether special tokens' literals are text
  explicit StreamDecoder(const Tokenizer* tokenizer,  // must outlive this
                         Specials specials = Specials::kHide);
  // The text that `id` completes; bytes of an unfinished character are held back, bytes that can't
  // become UTF-8 any more come out as U+FFFD, one for each maximal bad part (as Python does).
  std::string Push(TokenId id);
  std::string Flush();  // what is held back, as U+FFFD; the decoder is then as new
  size_t held_bytes() const { return held_.size(); }

 private:
  const Tokenizer* const tokenizer_;
  const Specials specials_;
  std::string held_;  // at most 3 bytes: the beginning of one character
};

struct ChatTemplateSpec {
  std::string source, bos_text, eos_text;  // source: Jinja, as the model file carries it
  std::vector<std::string> special_texts;  // Tokenizer::SpecialTexts()
};

enum class GenerationPrompt : uint8_t { kOmit, kAdd };
// JSON as text, nested at most 64 deep (else kInvalid).
struct RenderArgs {
  std::string_view messages_json;  // array of OpenAI chat messages
  std::string_view tools_json;     // array of OpenAI tools, or empty
  std::string_view extra_json;     // object of further template variables, or empty
  GenerationPrompt generation_prompt = GenerationPrompt::kAdd;
  int64_t now_unix_s = 0;          // what strftime_now shows, in UTC
};

struct Rendered {
  std::string text;
  std::vector<PlainRange> plain;  // special literals that came from messages, tools or extra
};

// Immutable; any thread.
class ChatTemplate {
 public:
  // kInvalid: the template does not parse (message and line).
  static Result<std::unique_ptr<ChatTemplate>> Create(const ChatTemplateSpec& spec);
  ~ChatTemplate();

  // kInvalid: bad JSON, or the template refused (raise_exception: its message), or failed;
  // kExhausted: more than 1 M steps (64 bytes handled are one too) or 16 MiB of output.
  // Tool-call arguments that arrive as a JSON string become the object that it spells.
  Result<Rendered> Render(const RenderArgs& args) const;
  const Digest& digest() const;  // over source, bos and eos
 private:
  struct Impl;
  explicit ChatTemplate(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The state of one constrained generation, a function of the grammar and the accepted tokens alone
// (so it is rebuilt by accepting them again). One thread at a time. kExhausted from FillMask or
// Accept: the grammar is too large to follow; the constraint is then of no more use.
class Constraint {
 public:
  ~Constraint();
  // Bit id%32 of bits[id/32] is set where token `id` may come next (where the text is forced: only
  // its canonical token); (vocab_size+31)/32 words, else kInvalid. End-of-generation tokens are
  // allowed exactly where IsComplete() is.
  Status FillMask(std::span<uint32_t> bits);
  // kInvalid when `id` may not come now; the constraint is then unchanged. An end-of-generation
  // token ends it: no token is allowed after that.
  Status Accept(TokenId id);
  bool IsComplete() const;  // the output so far is whole: generation may stop here
  bool IsFinished() const;  // nothing but an end-of-generation token may come
  // The tokens that must come next whatever the model says (may be empty). Not accepted yet.
  std::vector<TokenId> Forced();
  Result<std::unique_ptr<Constraint>> Clone() const;
 private:
  friend class ConstraintFactory;
  struct Impl;
  explicit Constraint(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

struct Tool {
  std::string name;
  std::string parameters_json;  // JSON schema of the arguments; empty means any object
};

enum class ParallelCalls : uint8_t { kOne, kMany };
// One call is prefix + {"name": <one of tools>, "arguments": <by its schema>} + suffix.
struct ToolCallSpec {
  std::vector<Tool> tools;
  std::string only;            // name of the one tool that must be called; empty means any of them
  std::string prefix, suffix;  // "<tool_call>\n", "\n</tool_call>", or empty
  ParallelCalls parallel = ParallelCalls::kOne;  // kMany: one or more calls, a newline between
};

// kStrict refuses what can't be enforced (kInvalid, saying what); kRelaxed enforces less and warns.
enum class SchemaMode : uint8_t { kStrict, kRelaxed };
struct CompiledConstraint {
  std::unique_ptr<Constraint> constraint;
  std::string warning;  // empty, or what kRelaxed gave up
};

// Compiles constraints for one tokenizer. JSON comes out as json.dumps spaces it (", " and ": " and
// no other blanks). Immutable; any thread. `tokenizer` must outlive it. A trie over the vocabulary
// is made in the background (0.2 s for 150,000 tokens): the first Compile waits for that, and has
// its error if there is one.
class ConstraintFactory {
 public:
  static std::unique_ptr<ConstraintFactory> Create(const Tokenizer& tokenizer);
  ~ConstraintFactory();
  Result<CompiledConstraint> CompileJsonSchema(std::string_view schema_json, SchemaMode mode) const;
  Result<CompiledConstraint> CompileJsonObject() const;  // any one JSON object
  Result<CompiledConstraint> CompileToolCall(const ToolCallSpec& spec, SchemaMode mode) const;
  Result<CompiledConstraint> CompileRegex(std::string_view regex) const;
 private:
  struct Impl;
  explicit ConstraintFactory(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace holdfast

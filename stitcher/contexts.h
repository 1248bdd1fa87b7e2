// Contexts to measure reuse on: agent-like, the same from the same seed and texts on every machine
// and for every model (but for its tokenizer and chat template).
//
// A context is a prompt with the runs of it whose KV exists from elsewhere. Histories are a system
// message, a task, tool calls with their outputs, an answer, and a question that comes new; they
// are edited above the question. Chunks are pieces of text in one message, each computed alone as
// isolated variants are (isolated.h). Outputs and chunks are stretches of text files, or, where
// there are none, made up: logs, tables, JSON, code, listings and prose of random words.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"
#include "engine/model/model.h"
#include "stitcher/card.h"
#include "stitcher/texts.h"

namespace holdfast {

// What was done to a context since its KV was computed.
enum class ContextEdit : uint8_t {
  kDelete,     // A1: a tool output and its call are gone
  kReplace,    // A2: another output stands in its place
  kInsert,     // A3: an output came in near the front
  kSwap,       // A4: two outputs changed places
  kThin,       // A5: several outputs are gone, so that many runs moved
  kChunks256,  // B256, B512, B1024: chunks of that many tokens, computed alone, put together
  kChunks512,
  kChunks1024,
};
inline constexpr ContextEdit kContextEdits[] = {
    ContextEdit::kDelete,     ContextEdit::kReplace,   ContextEdit::kInsert,
    ContextEdit::kSwap,       ContextEdit::kThin,      ContextEdit::kChunks256,
    ContextEdit::kChunks512,  ContextEdit::kChunks1024};
const char* ContextEditName(ContextEdit edit);  // "A1", "B512", ...
CardKind KindOf(ContextEdit edit);
int64_t ChunkTokens(ContextEdit edit);  // 0: not of chunks

// Numbers of a fixed generator (SplitMix64).
class SeededRandom {
 public:
  explicit SeededRandom(uint64_t seed) : state_(seed) {}
  uint64_t Next();
  int64_t Below(int64_t n) { return static_cast<int64_t>(Next() % static_cast<uint64_t>(n)); }
  int64_t In(int64_t first, int64_t last) { return first + Below(last - first + 1); }
  template <size_t n>
  const char* Pick(const char* const (&list)[n]) { return list[Below(n)]; }

 private:
  uint64_t state_;
};

struct TestMessage {
  std::string role, content;
};

// The indices [begin, end) of a source stand at `at` in the prompt, with the same tokens.
struct TestRun {
  int source = 0;
  int64_t begin = 0, end = 0, at = 0;
  int64_t size() const { return end - begin; }
  int64_t shift() const { return at - begin; }
};

struct TestContext {
  CardKind kind = CardKind::kInContext;
  std::vector<TokenId> tokens;                // the prompt, up to where the answer begins
  int64_t question = 0;                       // index of its last message, or of what asks in it
  std::vector<std::vector<TokenId>> sources;  // prompts of before, computed each on its own
  std::vector<TestRun> runs;                  // ascending; the exact prefix is not in them
  int64_t exact = 0;                          // tokens of that prefix
};

struct ToolOutput {
  std::string file, text;  // of that file
};

class ContextMaker {
 public:
  // `model` (its tokenizer and template) and `texts` must outlive this. Texts that are not UTF-8
  // are left out; without any, text is made up. kInvalid: the model has no chat template, or one
  // that renders a message differently when others follow; no text is UTF-8.
  static Result<std::unique_ptr<ContextMaker>> Create(const Model& model,
                                                      std::span<const TextFile> texts = {});

  Result<TestContext> Make(ContextEdit edit, uint64_t seed) const;

  // Parts, for tasks of one's own. A history that was `messages`, of which those of `order`
  // (indices; others may be `fresh` ones, from messages.size() on) are left, with `question` as the
  // last message.
  Result<TestContext> History(const std::vector<TestMessage>& messages,
                              const std::vector<TestMessage>& fresh, const std::vector<int>& order,
                              const std::string& question) const;
  // Chunks computed alone, then put together in one message before `question`.
  Result<TestContext> Chunks(const std::vector<std::vector<TokenId>>& chunks,
                             const std::string& question) const;
  // Exactly `tokens` tokens of text; `facts` are lines that stand in it somewhere, unbroken.
  Result<std::vector<TokenId>> ChunkOf(int64_t tokens, const std::vector<std::string>& facts,
                                       SeededRandom* random) const;
  // What a tool returns, about `tokens` tokens.
  ToolOutput OutputOf(int64_t tokens, const std::vector<std::string>& facts,
                       SeededRandom* random) const;

 private:
  explicit ContextMaker(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  std::vector<std::string> Lines(const TextFile& text, int64_t tokens, SeededRandom* random) const;
  std::vector<std::string> MadeUpLines(int64_t tokens, SeededRandom* random) const;
  // The tokens of each message; the last one's end with the generation prompt.
  Result<std::vector<std::vector<TokenId>>> Pieces(const std::vector<TestMessage>& messages) const;
  Result<std::string> Render(const std::vector<TestMessage>& messages,
                             GenerationPrompt prompt) const;
  int64_t CountTokens(const std::string& text) const;

  const Tokenizer& tokenizer_;
  std::vector<const TextFile*> texts_;
  std::unique_ptr<ChatTemplate> template_;
  std::string bos_text_;
};

// A system message and the first words of an agent's session, with `outputs` as tool outputs, each
// after its call, and an answer at the end.
std::vector<TestMessage> AgentHistory(const std::vector<ToolOutput>& outputs,
                                      SeededRandom* random);
TestMessage CallFor(const ToolOutput& output);  // the message before it
inline constexpr int kHistoryHead = 2;  // messages before the first call; then call, output, ...

}  // namespace holdfast

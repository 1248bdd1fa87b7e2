#include "stitcher/isolated.h"

#include <algorithm>
#include <string>
#include <utility>

#include "stitcher/segment_store.h"
#include "stitcher/token_hash.h"

namespace holdfast {
namespace {

constexpr std::string_view kMark = "holdfast-segment-mark";

// The primer: of many kinds, since a segment may be of any. Some 300 tokens for the models known
// here; of more, the last.
constexpr size_t kPrimerTokens = 320;
constexpr std::string_view kPrimer =
    R"(The following pages were collected from several places. Some are notes that people wrote, some
are lists, some were printed by programs. They are in no special order, and what stands in one
of them need not have to do with what stands in the next.

A harbour town keeps its records in three rooms. In the first are letters, in the second are
maps, and in the third are the books in which every ship was entered when it came in: its name,
its captain, what it carried, and on what day it left again.

- rope, 40 coils
- tar, 12 barrels
- sailcloth, 9 rolls
- lamp oil, 30 jars

name,port,year,tons
Alma,Riga,1871,210
Bruno,Porto,1874,185

{"ship": "Alma", "master": "J. Olsen", "cargo": ["timber", "salt"], "days": 14}

def total(rows):
    tons = 0
    for row in rows:
        tons += row.tons
    return tons

08:14:02 INFO gate: opened
08:15:40 WARN gate: wind above 20 knots

)";

bool IsPlainWord(std::string_view s) {
  return !s.empty() && std::all_of(s.begin(), s.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || c == '_';
  });
}

// What the chat template puts before the first message of `role`.
Result<std::vector<TokenId>> SinkPrefix(const Tokenizer& tokenizer,
                                        const ChatTemplate& chat_template, std::string_view role) {
  if (!IsPlainWord(role)) {
    return Status::Invalid("segments: '" + std::string(role) + "' is no role");
  }
  std::string json = "[{\"role\":\"" + std::string(role) + "\",\"content\":\"";
  json += std::string(kMark) + "\"" + (role == "tool" ? ",\"tool_call_id\":\"0\"}]" : "}]");
  RenderArgs args;
  args.messages_json = json;
  args.generation_prompt = GenerationPrompt::kOmit;
  HOLDFAST_ASSIGN_OR_RETURN(const Rendered shown, chat_template.Render(args));
  const size_t at = shown.text.rfind(kMark);
  if (at == std::string::npos) {
    return Status::Invalid("segments: the chat template does not show a message of role '" +
                           std::string(role) + "' as it is");
  }
  HOLDFAST_ASSIGN_OR_RETURN(std::vector<TokenId> sink, tokenizer.Encode(shown.text.substr(0, at)));
  const TokenId bos = tokenizer.bos();
  if (tokenizer.add_bos() && bos != kNoToken && (sink.empty() || sink.front() != bos)) {
    sink.insert(sink.begin(), bos);
  }
  return sink;
}

}  // namespace

Result<std::vector<TokenId>> IsolatedPrefix(const Tokenizer& tokenizer,
                                            const ChatTemplate& chat_template,
                                            std::string_view role) {
  auto prefix = SinkPrefix(tokenizer, chat_template, role);
  if (!prefix.ok() && role != "user") prefix = SinkPrefix(tokenizer, chat_template, "user");
  if (!prefix.ok()) return prefix;
  HOLDFAST_ASSIGN_OR_RETURN(const std::vector<TokenId> primer, tokenizer.EncodePlain(kPrimer));
  const size_t count = std::min(primer.size(), kPrimerTokens);
  prefix->insert(prefix->end(), primer.end() - count, primer.end());
  return prefix;
}

Result<Variant> ComputeIsolated(Engine& engine, Stitcher& stitcher,
                                const IsolatedRequest& request) {
  const auto begin = static_cast<int64_t>(request.prefix.size());
  const int64_t end = begin + static_cast<int64_t>(request.tokens.size());
  if (end - begin < kMinSegmentTokens) {
    return Status::Invalid("segments: " + std::to_string(end - begin) +
                           " tokens are too few to be used again; " +
                           std::to_string(kMinSegmentTokens) + " are needed");
  }
  const int64_t whole = (end + kPageTokens - 1) / kPageTokens * kPageTokens;
  if (whole > engine.max_context()) {
    return Status::Invalid("context_length_exceeded: the segment and its prefix have " +
                           std::to_string(whole) + " tokens, the context " +
                           std::to_string(engine.max_context()));
  }
  std::vector<TokenId> tokens(request.prefix.begin(), request.prefix.end());
  tokens.insert(tokens.end(), request.tokens.begin(), request.tokens.end());
  tokens.resize(static_cast<size_t>(whole), tokens.back());
  HOLDFAST_ASSIGN_OR_RETURN(Stitched stitched,
                            stitcher.Stitch({request.scope, tokens, nullptr, {}}));
  HOLDFAST_ASSIGN_OR_RETURN(const Timeline timeline,
                            ComputeOn(engine, ComputeRequest(std::move(stitched.timeline))));
  if (static_cast<int64_t>(timeline.ExactKeys().size()) * kPageTokens < end) {
    return Status::Corrupt("segments: the pages of an isolated variant were not sealed");
  }
  Variant v = SliceOf(timeline, engine.model().fingerprint(), TokenHashes(timeline.tokens()),
                      begin, end);
  v.kind = VariantKind::kIsolated;
  v.sink.assign(request.prefix.begin(), request.prefix.end());
  return v;
}

}  // namespace holdfast

#include "stitcher/isolated.h"

#include <algorithm>
#include <string>
#include <utility>

#include "stitcher/segment_store.h"
#include "stitcher/token_hash.h"

namespace holdfast {
namespace {

constexpr std::string_view kMark = "holdfast-segment-mark";

bool IsPlainWord(std::string_view s) {
  return !s.empty() && std::all_of(s.begin(), s.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || c == '_';
  });
}

Result<std::vector<TokenId>> PrefixOf(const Tokenizer& tokenizer,
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

Result<std::vector<TokenId>> SinkPrefix(const Tokenizer& tokenizer,
                                        const ChatTemplate& chat_template, std::string_view role) {
  auto sink = PrefixOf(tokenizer, chat_template, role);
  if (sink.ok() || role == "user") return sink;
  return PrefixOf(tokenizer, chat_template, "user");
}

Result<Variant> ComputeIsolated(Engine& engine, Stitcher& stitcher,
                                const IsolatedRequest& request) {
  const auto begin = static_cast<int64_t>(request.sink.size());
  const int64_t end = begin + static_cast<int64_t>(request.tokens.size());
  if (end - begin < kMinSegmentTokens) {
    return Status::Invalid("segments: " + std::to_string(end - begin) +
                           " tokens are too few to be used again; " +
                           std::to_string(kMinSegmentTokens) + " are needed");
  }
  const int64_t whole = (end + kPageTokens - 1) / kPageTokens * kPageTokens;
  if (whole > engine.max_context()) {
    return Status::Invalid("context_length_exceeded: the segment and its sink prefix have " +
                           std::to_string(whole) + " tokens, the context " +
                           std::to_string(engine.max_context()));
  }
  std::vector<TokenId> tokens(request.sink.begin(), request.sink.end());
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
  v.sink.assign(request.sink.begin(), request.sink.end());
  return v;
}

}  // namespace holdfast

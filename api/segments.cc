#include "api/segments.h"

#include <utility>

#include "stitcher/isolated.h"

namespace holdfast {
namespace {

std::string Spelled(const Tokenizer& tokenizer, std::span<const TokenId> tokens) {
  std::string text;
  for (TokenId t : tokens) text += tokenizer.TokenText(t);
  return text;
}

// Tokens that could have come of a text.
Status CheckTokens(const Tokenizer& tokenizer, std::span<const TokenId> tokens) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    const bool there = tokens[i] >= 0 && static_cast<size_t>(tokens[i]) < tokenizer.vocab_size();
    if (there && !tokenizer.IsSpecial(tokens[i])) continue;
    return Status::Invalid("tokens[" + std::to_string(i) + "] " +
                           (there ? "is a control token" : "is not a token of this model"));
  }
  if (tokenizer.EncodePlain(Spelled(tokenizer, tokens)).ok()) return Status();
  return Status::Invalid("tokens: they do not spell whole characters");
}

// Computes the isolated variant, or finds its pages, and takes it on.
Status Warm(const SegmentParts& p, const TenantScope& scope, std::string_view role,
            std::span<const TokenId> tokens) {
  HOLDFAST_ASSIGN_OR_RETURN(const std::vector<TokenId> prefix,
                            IsolatedPrefix(p.engine->tokenizer(), *p.chat_template, role));
  p.keeper->MakeRoom(static_cast<int64_t>(prefix.size() + tokens.size()) / kPageTokens + 2);
  HOLDFAST_ASSIGN_OR_RETURN(Variant variant,
                            ComputeIsolated(*p.engine, *p.stitcher, {scope, prefix, tokens}));
  return p.segments->Put(scope, role, tokens, std::move(variant));
}

}  // namespace

Result<SegmentInfo> AddSegment(const SegmentParts& parts, const NewSegment& request) {
  const Tokenizer& tokenizer = parts.engine->tokenizer();
  if (request.text.empty() == request.tokens.empty()) {
    return Status::Invalid("text: one of text and tokens is needed, and not both");
  }
  SegmentStore::Given given{request.role, request.tokens, {}, request.pin};
  if (given.tokens.empty()) {
    HOLDFAST_ASSIGN_OR_RETURN(given.tokens, tokenizer.EncodePlain(request.text));
    if (Spelled(tokenizer, given.tokens) != request.text) given.text = request.text;
  } else {
    HOLDFAST_RETURN_IF_ERROR(CheckTokens(tokenizer, given.tokens));
  }
  const TenantScope scope(request.tenant);
  if (request.warm) HOLDFAST_RETURN_IF_ERROR(Warm(parts, scope, given.role, given.tokens));
  return parts.segments->Give(scope, given);
}

Result<SegmentBody> SegmentNamed(const SegmentStore& segments, const Tokenizer& tokenizer,
                                 std::string_view tenant, std::string_view id) {
  const auto parsed = SegmentId::Parse(id);
  if (!parsed) return Status::NotFound("segment '" + std::string(id) + "' does not exist");
  HOLDFAST_ASSIGN_OR_RETURN(SegmentBody body,
                            segments.Body(TenantScope(std::string(tenant)), *parsed));
  if (!body.text.empty()) return body;
  body.text = Spelled(tokenizer, body.tokens);
  if (tokenizer.EncodePlain(body.text).ok()) return body;
  return Status::Invalid("segment '" + std::string(id) +
                         "' ends inside a character: it can't stand in a message");
}

}  // namespace holdfast

#include "stitcher/segment.h"

#include "stitcher/token_hash.h"

namespace holdfast {
namespace {

constexpr std::string_view kIdPrefix = "seg_";

}  // namespace

std::string SegmentId::Text() const { return std::string(kIdPrefix) + digest.Hex(); }

std::optional<SegmentId> SegmentId::Parse(std::string_view text) {
  SegmentId id;
  if (!text.starts_with(kIdPrefix) || !Digest::FromHex(text.substr(kIdPrefix.size()), &id.digest)) {
    return std::nullopt;
  }
  return id;
}

SegmentId MakeSegmentId(const SegmentBasis& basis, const TenantScope& scope, std::string_view role,
                        std::span<const TokenId> tokens) {
  Hasher h("segment-1");
  h.Values(tokens).Add(basis.fp).Add(basis.tokenizer).Add(basis.chat_template).Text(role);
  return {h.Text(scope.tenant()).Finish()};
}

const char* VariantKindName(VariantKind kind) {
  return kind == VariantKind::kIsolated ? "isolated" : "in_context";
}

std::vector<PageKey> KeysAfter(const PageKey& parent, std::span<const TokenId> tokens) {
  std::vector<PageKey> keys;
  PageKey key = parent;
  for (size_t at = 0; at + kPageTokens <= tokens.size(); at += kPageTokens) {
    key = NextKey(key, tokens.subspan(at, kPageTokens), Digest{});
    keys.push_back(key);
  }
  return keys;
}

std::vector<PageKey> Variant::PageKeys() const { return KeysAfter(parent, tokens); }

Variant SliceOfChain(std::span<const TokenId> chain, const PageKey& parent, int64_t begin,
                     int64_t end) {
  const int64_t from = begin / kPageTokens * kPageTokens;
  const int64_t to = (end + kPageTokens - 1) / kPageTokens * kPageTokens;
  const auto pages = chain.subspan(static_cast<size_t>(from), static_cast<size_t>(to - from));
  Variant v;
  v.parent = parent;
  v.tokens.assign(pages.begin(), pages.end());
  v.first = static_cast<int32_t>(begin - from);
  v.count = static_cast<int32_t>(end - begin);
  v.position = begin;
  return v;
}

TokenHashes::TokenHashes(std::span<const TokenId> tokens) : prefix_(tokens.size() + 1) {
  uint64_t h = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    h = h * kBase + Mix(static_cast<uint64_t>(tokens[i]) + 1);
    prefix_[i + 1] = h;
  }
}

std::vector<uint64_t> SuffixHashes(const TokenHashes& tokens, int64_t end) {
  std::vector<uint64_t> out;
  for (int64_t n = 1; n <= end; n *= 2) out.push_back(tokens.Of(end - n, n));
  return out;
}

}  // namespace holdfast

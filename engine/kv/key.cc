#include "engine/kv/key.h"

#include <cassert>

#include "engine/kv/layout.h"

namespace holdfast {
namespace {

// Inputs that no model has yet are hashed as "none", so that a model which has them gets keys of
// its own without a new tag.
constexpr Digest kNoAdapters{};

PageKey ChainKey(std::string_view tag, const PageKey& parent, std::span<const TokenId> tokens,
                 const Digest& taint) {
  Hasher h(tag);
  h.Add(parent).Values(tokens);
  h.Bytes(nullptr, 0);  // digests of non-token inputs: none
  h.Bytes(nullptr, 0);  // explicit positions: none, position = index
  return h.Add(taint).Finish();
}

}  // namespace

PageKey RootKey(const Digest& fp, const TenantScope& scope, const Digest& taint) {
  Hasher h("page-root-1");
  return h.Add(fp).Text(scope.tenant()).Add(kNoAdapters).Add(taint).Finish();
}

PageKey NextKey(const PageKey& parent, std::span<const TokenId> tokens, const Digest& taint) {
  assert(tokens.size() == kPageTokens);
  return ChainKey("page-key-1", parent, tokens, taint);
}

PageKey TailKey(const PageKey& parent, std::span<const TokenId> tokens, const Digest& taint) {
  assert(!tokens.empty() && tokens.size() < kPageTokens);
  return ChainKey("tail-key-1", parent, tokens, taint);
}

Digest TaintAfter(const Digest& before, const PageKey& source, int first, int count, int shift) {
  Hasher h("taint-1");
  h.Add(before).Add(source);
  h.U64(static_cast<uint64_t>(first)).U64(static_cast<uint64_t>(count));
  return h.U64(static_cast<uint64_t>(static_cast<int64_t>(shift))).Finish();
}

}  // namespace holdfast

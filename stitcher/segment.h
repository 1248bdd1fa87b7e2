// Segments: spans of tokens whose KV is kept for use elsewhere (tool outputs, documents, pasted
// text). Plain values; what keeps them is segment_store.h, what finds them in a prompt
// anchor_index.h, what uses them splice.h.
//
// A segment is named by its tokens, never by where it stood. Each time that it was computed it may
// have left a *variant*: a slice of the sealed pages of one exact chain. There is no second copy of
// KV: a variant names ordinary pages by their keys, which follow from `parent` and `tokens`, and
// PagePool::Find and PageStore::Get compare the tokens. A variant's pages may be gone, then it
// serves nothing until they are there again.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/hash.h"
#include "engine/base/types.h"
#include "engine/kv/key.h"
#include "engine/kv/layout.h"

namespace holdfast {

// Shorter spans are never used again: a run of them saves less than its seams cost.
inline constexpr int kMinSegmentTokens = 64;
// Of a variant. What has been measured is one step of staleness; only exact chains are sources now.
inline constexpr int kMaxGeneration = 0;

// H("segment-1", tokens, fp, tokenizer digest, role context, tenant).
struct SegmentId {
  Digest digest;

  std::string Text() const;  // "seg_" and 64 hex digits
  static std::optional<SegmentId> Parse(std::string_view text);
  auto operator<=>(const SegmentId&) const = default;
};

// What a segment's name is over, beside its tokens and the tenant.
struct SegmentBasis {
  Digest fp;         // Model::fingerprint()
  Digest tokenizer;  // Tokenizer::digest()
  Digest chat_template;
  bool operator==(const SegmentBasis&) const = default;
};
// `role`: of the message that holds it ("tool", "user", ...); with the template it is the role
// context.
SegmentId MakeSegmentId(const SegmentBasis& basis, const TenantScope& scope, std::string_view role,
                        std::span<const TokenId> tokens);

// The values are stored.
enum class VariantKind : uint8_t {
  kInContext = 0,  // as it stood in a conversation, after all that came before it there
  kIsolated = 1,   // behind a fixed prefix of its role (isolated.h)
};
const char* VariantKindName(VariantKind kind);  // "in_context", "isolated"

// Immutable. Shared by whoever uses it: deleting its segment does not take it from them.
struct Variant {
  int64_t row = 0;                // of the store; never reused while the process runs
  SegmentId segment;
  VariantKind kind = VariantKind::kInContext;
  Digest fp;
  PageKey parent;                 // the chain's key before the first covering page
  std::vector<TokenId> tokens;    // of the covering pages, all whole: a multiple of kPageTokens
  int32_t first = 0;              // the segment's first token is tokens[first]; 0 .. 31
  int32_t count = 0;              // of the segment's tokens, from its first on, that lie in them
  // Index at which tokens[first] was computed; position % kPageTokens == first. So the left chain
  // is `position` tokens long, and its end is `parent` with tokens[0 .. first).
  int64_t position = 0;
  // The whole left chain, `position` tokens (of kIsolated), or as far as the covering pages (of a
  // slice that is no segment's); else empty.
  std::vector<TokenId> sink;
  int32_t generation = 0;         // approximate ancestors; 0: its chain is exact
  int64_t owner = 0;              // the session that it was computed in (its row), or none
  // Hashes of the last 1, 2, 4, ... tokens of the left chain, as far as it goes
  // (token_hash.h: SuffixHashes).
  std::vector<uint64_t> left;

  std::span<const TokenId> body() const {
    return std::span(tokens).subspan(static_cast<size_t>(first), static_cast<size_t>(count));
  }
  // Keys of the covering pages, in order; page i holds tokens[32 i .. 32 i + 31] and its parent is
  // key i - 1 (`parent` for the first).
  std::vector<PageKey> PageKeys() const;
};

// Keys of the whole pages of `tokens`, which follow `parent` in an exact chain.
std::vector<PageKey> KeysAfter(const PageKey& parent, std::span<const TokenId> tokens);

// The tokens [begin, end) of a chain, in the pages that cover them; `parent` is its key before
// those. Only what follows from these is set: parent, tokens, first, count, position.
Variant SliceOfChain(std::span<const TokenId> chain, const PageKey& parent, int64_t begin,
                     int64_t end);

// Tokens [begin, end) of a prompt that are body()[offset ..] of a variant, token by token. A run
// of Splice: slot (first + offset) % 32 of page (first + offset) / 32, shift = begin - (position +
// offset).
struct FoundRun {
  int64_t begin = 0, end = 0;
  std::shared_ptr<const Variant> variant;
  int64_t offset = 0;
  // How many tokens before `begin` are the same in the prompt and before the run in the variant's
  // own chain: exact up to the variant's tokens, beyond them a lower bound (a power of two).
  int64_t shared_left = 0;

  int64_t shift() const { return begin - (variant->position + offset); }
};

}  // namespace holdfast
